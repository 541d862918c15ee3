package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
)

// configPage makes warren.yaml(5) of docs/configuration.md. Its tables have sentences in their cells, for which a
// terminal is too narrow: each row becomes a paragraph with a tag, as man pages have them.
func configPage(markdown string, e edition) []byte {
	out := &strings.Builder{}
	fmt.Fprintf(out, "%% \"WARREN.YAML\" \"5\" %q %q \"Warren\"\n", e.date.Format("2006-01-02"), e.source())
	out.WriteString("# NAME\nwarren.yaml - configuration of a node of Warren\n\n# DESCRIPTION\n")
	var header []string
	inCode := false
	for line := range strings.Lines(markdown) {
		switch {
		case strings.HasPrefix(line, "```"):
			inCode = !inCode
		case inCode:
		case strings.HasPrefix(line, "# "):
			continue // the page's own name
		case strings.HasPrefix(line, "#"):
			line = line[1:]
		case strings.HasPrefix(line, "|"):
			cells := cellsOf(line)
			switch {
			case header == nil:
				header = cells
			case !isRule(cells):
				out.WriteString(row(header, cells))
			}
			continue
		default:
			line = unlinked(line)
		}
		header = nil
		out.WriteString(line)
	}
	out.WriteString("\n# SEE ALSO\n**warren(8)**, **warren-up(8)**, **warren-check(8)**, **warren-key(8)**, " +
		"**warren-peer-config(8)**\n")
	return []byte(ends.ReplaceAllString(string(md2man.Render([]byte(out.String()))), ""))
}

var link = regexp.MustCompile(`\[([^\]]+)\]\([^)]*\)`)

// unlinked leaves the text of links: they lead to other files of the documentation.
func unlinked(text string) string { return link.ReplaceAllString(text, "$1") }

// cellsOf are the cells of a table's line. A line that the text breaks in two ends the table.
func cellsOf(line string) []string {
	cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
	for i, cell := range cells {
		cells[i] = unlinked(strings.TrimSpace(cell))
	}
	return cells
}

// isRule knows the line between a table's header and its rows.
func isRule(cells []string) bool { return strings.Trim(strings.Join(cells, ""), "-: ") == "" }

// row is a definition: the first cell is the term, with those between it and the last, which is what it means.
func row(header, cells []string) string {
	term := cells[0]
	var more []string
	for i := 1; i < len(cells)-1; i++ {
		if cells[i] != "" {
			more = append(more, strings.TrimSpace(header[min(i, len(header)-1)]+" "+cells[i]))
		}
	}
	if len(more) > 0 {
		term += " (" + strings.Join(more, ", ") + ")"
	}
	return fmt.Sprintf("%s\n: %s\n\n", term, cells[len(cells)-1])
}
