// Command distfiles writes what a package of Warren has beside the programs and is made from the definitions of the
// commands: man pages for section 8 and completions for the shells. `make dist-files` runs it. It is a program of its
// own so that warren itself does not carry what makes man pages.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/internal/cli"
)

func main() {
	version := flag.String("version", "", "version of Warren, for the foot of the man pages")
	configuration := flag.String("configuration", "docs/configuration.md", "`FILE` of which warren.yaml(5) is made")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: %s [-version VERSION] [-configuration FILE] DIRECTORY\n", os.Args[0])
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	date, err := dateOf(os.Getenv("SOURCE_DATE_EPOCH"))
	if err == nil {
		err = write(flag.Arg(0), *configuration, edition{version: *version, date: date})
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "distfiles: %v\n", err)
		os.Exit(1)
	}
}

// dateOf is the date of the pages: that of the sources, so that the same sources make the same files, or today's.
func dateOf(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Now().UTC(), nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q: it must be seconds since 1970: %w", epoch, err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// write makes the directories man and completions, anew.
func write(dir, configuration string, e edition) error {
	text, err := os.ReadFile(configuration)
	if err != nil {
		return fmt.Errorf("the text of warren.yaml(5): %w", err)
	}
	for name, make := range map[string]func() (map[string][]byte, error){
		"man": func() (map[string][]byte, error) {
			all, err := pages(cli.Root(), e)
			if err == nil {
				all["warren.yaml.5"] = configPage(string(text), e)
			}
			return all, err
		},
		"completions": func() (map[string][]byte, error) { return completions(cli.Root()) },
	} {
		files, err := make()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := writeAll(filepath.Join(dir, name), files); err != nil {
			return err
		}
	}
	return nil
}

func writeAll(dir string, files map[string][]byte) error {
	// What a command of another name left would go into the package too.
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// completions are the scripts by the names that the shells look for.
func completions(root *cobra.Command) (map[string][]byte, error) {
	var bash, zsh, fish bytes.Buffer
	err := errors.Join(root.GenBashCompletionV2(&bash, true), root.GenZshCompletion(&zsh),
		root.GenFishCompletion(&fish, true))
	name := root.Name()
	return map[string][]byte{
		name: bash.Bytes(), "_" + name: zsh.Bytes(), name + ".fish": fish.Bytes(),
	}, err
}
