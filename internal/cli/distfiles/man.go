package main

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

// section is that of programs for administrators.
const section = "8"

// An edition is what a page's head and foot say.
type edition struct {
	version string
	date    time.Time
}

func (e edition) source() string { return strings.TrimSpace("Warren " + e.version) }

// pages are the man pages of a command and of those below it, by their file names.
func pages(cmd *cobra.Command, e edition) (map[string][]byte, error) {
	all := map[string][]byte{}
	for _, child := range cmd.Commands() {
		if !child.IsAvailableCommand() || child.IsAdditionalHelpTopicCommand() {
			continue
		}
		below, err := pages(child, e)
		if err != nil {
			return nil, err
		}
		for name, page := range below {
			all[name] = page
		}
	}
	if cmd.HasAvailableSubCommands() {
		cmd.Use += " COMMAND"
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	cmd.Flags().VisitAll(describe)
	var out bytes.Buffer
	err := doc.GenMan(cmd, &doc.GenManHeader{
		Section: section, Date: &e.date, Source: e.source(), Manual: "Warren",
	}, &out)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmd.CommandPath(), err)
	}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	all[name+"."+section] = finish(out.String(), e, !cmd.HasParent())
	return all, nil
}

// A placeholder is a flag's value as cobra/doc shows it: `--config=FILE`, where it would show the default, quoted.
type placeholder struct{ pflag.Value }

func (placeholder) Type() string { return "" } // of a string it would show quotes

// describe moves a flag's default into its description, and the name of its value to where the default was.
func describe(f *pflag.Flag) {
	name, usage := pflag.UnquoteUsage(f)
	switch f.DefValue {
	case "", "[]", "false":
	default:
		usage += fmt.Sprintf(" (default %s)", f.DefValue)
	}
	f.Usage = usage
	if f.Value.Type() != "bool" {
		f.DefValue = "*" + name + "*"
		f.Value = placeholder{f.Value}
	}
}

var (
	// An option is a paragraph with a tab in it, which man(7) leaves undefined in text that is filled.
	option = regexp.MustCompile(`(?m)^(?:\.PP\n)?(\\fB-.*)\n\t`)
	// A switch is on when it is there.
	switchOff = regexp.MustCompile(`(\\fB--[a-z-]+\\fP)\[=false\]`)
	// What stands in a line by itself with spaces at its ends makes no other page.
	ends = regexp.MustCompile(`(?m)[ \t]+$`)
)

// finish makes the paragraphs of options such as man(7) has, and adds to the first page what belongs to all commands.
func finish(page string, e edition, first bool) []byte {
	page = strings.Replace(page, e.date.Format(`"Jan 2006"`), e.date.Format(`"2006-01-02"`), 1) // as man(7) has it
	page = option.ReplaceAllString(page, ".TP\n$1\n")
	page = switchOff.ReplaceAllString(page, "$1")
	page = ends.ReplaceAllString(page, "")
	if first {
		const before = ".SH SEE ALSO\n"
		page = strings.Replace(page, before, common+before, 1)
	}
	return []byte(page)
}

const common = `.SH EXIT STATUS
.TP
\fB0\fP
It was done.
.TP
\fB1\fP
It was not. One line on standard error, which begins with "warren: ", says what was wrong, why, and what to do.
.SH FILES
.TP
\fI/etc/warren/warren.yaml\fP
The configuration, see \fBwarren.yaml\fP(5). Each command that reads it has \fB--config\fP for another one.
.TP
\fI/run/warren/warren.sock\fP
Where the running node answers the other commands.
.TP
\fI/run/warren/node.json\fP
What the CNI plugin has to know of the node.
.TP
\fI/var/lib/warren\fP
The node's private key, the addresses that pods have, and the records of the pods.
`
