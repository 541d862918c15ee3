package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/warren-net/warren/internal/cli"
)

// own are the commands that are Warren's and people's: cobra brings texts for the others, and a hidden one is for
// Warren itself.
func own(root *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{root}
	for _, c := range root.Commands() {
		if c.Name() != "help" && c.Name() != "completion" && !c.Hidden {
			all = append(all, own(c)...)
		}
	}
	return all
}

// A page is as good as the texts of its command.
func TestTexts(t *testing.T) {
	const widest = 72 // columns of an example: what a page leaves on a terminal of 80
	for _, c := range own(cli.Root()) {
		if len(c.Long) <= len(c.Short) {
			t.Errorf("%s: the long text %q says no more than the short one", c.CommandPath(), c.Long)
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if name, _ := pflag.UnquoteUsage(f); f.Value.Type() == "bool" && name != "" {
				t.Errorf("%s: --%s takes no value, but what is in backquotes, %q, is shown as one", c.CommandPath(), f.Name, name)
			}
		})
		for line := range strings.Lines(c.Example) {
			line = strings.TrimSuffix(line, "\n")
			if len(line) > widest || !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: example %q: it must begin with two spaces and have at most %d bytes", c.CommandPath(), line, widest)
			}
		}
	}
}

func TestPages(t *testing.T) {
	root := cli.Root()
	commands := own(root)
	all, err := pages(root, edition{version: "v1.2.3", date: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-")
		page, ok := all[name+".8"]
		if !ok {
			t.Errorf("%s has no page", c.CommandPath())
			continue
		}
		text := string(page)
		for _, want := range []string{
			`"8" "2026-03-04" "Warren v1.2.3" "Warren"`, ".SH NAME\n" + name + " - " + c.Short,
			".SH SYNOPSIS", ".SH DESCRIPTION", ".SH OPTIONS\n.TP\n", ".SH SEE ALSO",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s has no %q:\n%s", name, want, text)
			}
		}
		// What man(7) leaves undefined, and what would be shown as it is written.
		if found := regexp.MustCompile("(?m)^\t.*|.*\\[=.*|.*`.*").FindString(text); found != "" {
			t.Errorf("%s: %q", name, found)
		}
	}
	install := string(all["warren-cni-install.8"])
	for _, want := range []string{
		".TP\n\\fB--bin-dir\\fP=\\fIDIR\\fP\nDIR where the runtime looks for plugins (default /opt/cni/bin)\n",
		".TP\n\\fB--force\\fP\nreplace", "default: the one that came with this program)\n",
	} {
		if !strings.Contains(install, want) {
			t.Errorf("no %q in\n%s", want, install)
		}
	}
	if first := string(all["warren.8"]); !strings.Contains(first, "/etc/warren/warren.yaml") ||
		!strings.Contains(first, "EXIT STATUS") || !strings.Contains(first, "warren COMMAND [flags]") {
		t.Errorf("the first page:\n%s", first)
	}
}

// The page of the configuration has every row of the tables as a paragraph, and no link to a file that is not there.
func TestConfigPage(t *testing.T) {
	text, err := os.ReadFile("../../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(configPage(string(text), edition{version: "v1", date: time.Unix(0, 0).UTC()}))
	for _, want := range []string{
		`"WARREN.YAML" "5" "1970-01-01" "Warren v1" "Warren"`, `warren.yaml \- configuration`, ".SH Required",
		".TP\n\\fBvxlan.vni\\fR (default \\fB1\\fR)\n", ".TP\n\\fBnodes[].addresses\\fR\nUnderlay addresses, at most",
		"cluster: [10.244.0.0/16,", ".SH SEE ALSO",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
	if found := regexp.MustCompile(`(?m)^.*(\.md#|\]\(|^\.TS).*$`).FindString(page); found != "" {
		t.Errorf("%q", found)
	}
	rows := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `") {
			rows++
		}
	}
	if got := strings.Count(page, "\n.TP\n"); got < rows || rows == 0 {
		t.Errorf("%d paragraphs for %d rows", got, rows)
	}
}

// Made twice, the files are the same; what is left of a command that is no more goes.
func TestReproducible(t *testing.T) {
	date, err := dateOf("1700000000")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	e := edition{version: "v1", date: date}
	if err := write(dir, "../../../docs/configuration.md", e); err != nil {
		t.Fatal(err)
	}
	first := read(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "man", "warren-gone.8"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := write(dir, "../../../docs/configuration.md", e); err != nil {
		t.Fatal(err)
	}
	second := read(t, dir)
	for _, name := range []string{"man/warren.8", "completions/warren", "completions/_warren", "completions/warren.fish"} {
		if first[name] == "" {
			t.Errorf("no %s", name)
		}
	}
	if len(first) != len(second) {
		t.Errorf("%d files, then %d", len(first), len(second))
	}
	for name, text := range first {
		if second[name] != text {
			t.Errorf("%s differs", name)
		}
	}
	if _, err := dateOf("yesterday"); err == nil || !strings.Contains(err.Error(), `"yesterday"`) {
		t.Errorf("a date that is none: %v", err)
	}
}

func read(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
