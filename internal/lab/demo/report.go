package main

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// nameWidth is the column where a check's detail begins, counted from the end of "ok   ".
const nameWidth = 58

// A report prints a line per check and counts.
type report struct {
	out            io.Writer
	terminal       bool // colour, and the name of a check while it runs
	passed, failed int
}

const (
	green = "32"
	red   = "31"
	bold  = "1"
)

func (r *report) colour(code, text string) string {
	if !r.terminal {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (r *report) print(format string, args ...any) {
	// There is nobody to tell when standard output is gone; the exit status still says how it went.
	_, _ = fmt.Fprintf(r.out, format, args...)
}

func (r *report) section(title string) { r.print("\n%s\n", r.colour(bold, title)) }

// check runs f and prints its line, unless ctx has ended: an interrupted check has neither passed nor failed.
// It reports whether the check passed.
func (r *report) check(ctx context.Context, name string, f func() (detail string, err error)) bool {
	if ctx.Err() != nil {
		return false
	}
	if r.terminal {
		r.print("     %s …\r", name)
	}
	detail, err := f()
	if r.terminal {
		r.print("\x1b[K")
	}
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil:
		r.failed++
		r.print("%s %s\n", r.colour(red, "FAIL"), name)
		r.print("       %s\n", strings.ReplaceAll(err.Error(), "\n", "\n       "))
		return false
	}
	r.passed++
	r.print("%s   %s\n", r.colour(green, "ok"), strings.TrimRight(fmt.Sprintf("%-*s %s", nameWidth, name, detail), " "))
	return true
}
