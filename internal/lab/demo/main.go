// Command demo shows a whole Warren cluster on one machine: three nodes in network namespaces, joined by an
// underlay, each with its own daemon and two pods that the CNI plugin attached, and every promise of the README checked
// with a line of its own. `make demo` runs it.
//
// It changes nothing outside its namespaces and a temporary directory, and removes both, also after Ctrl-C. With KEEP=1
// in the environment it leaves the lab up; `demo down` takes it down. With CONTROL=etcd the nodes find each other by
// `warren init` and `warren join` instead of files that list them.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
)

// prefix names the demo's namespaces: wrn-demo-….
const prefix = "demo"

// interruptedStatus is what a shell reports for a command that SIGINT ended.
const interruptedStatus = 130

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if err := lab.CheckPrivileges(); err != nil {
		fmt.Fprintf(os.Stderr, "The demo makes network namespaces and can't: %v.\nTry: sudo make demo\n", err)
		return 1
	}
	switch {
	case len(args) == 0:
		return show()
	case len(args) == 1 && args[0] == "down":
		return down()
	}
	fmt.Fprintln(os.Stderr, "usage: warren-demo [down]\n  KEEP=1 in the environment leaves the lab up; down takes it down")
	return 2
}

// down takes down the labs that KEEP=1 left up.
func down() int {
	removed, err := lab.Sweep(prefix, lab.SweepKept)
	for _, name := range removed {
		fmt.Println("removed", name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if len(removed) == 0 {
		fmt.Println("no demo is up")
	}
	return 0
}

func show() (status int) {
	ctx, stop := lab.Interruptible()
	defer stop()
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer removeIfMade("/run/netns")()
	d := &demo{ctx: ctx, report: &report{out: os.Stdout, terminal: isTerminal(os.Stdout)}}
	d.keep = os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0"
	switch control := os.Getenv("CONTROL"); control {
	case "", "static":
	case "etcd":
		d.etcd = true
	default:
		fmt.Fprintf(os.Stderr, "CONTROL=%s: the demo knows static and etcd\n", control)
		return 2
	}
	d.lab, err = lab.New(lab.Options{Prefix: prefix, BinDir: filepath.Dir(self)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Runs when a check panics as well.
	defer func() { status = max(status, d.closeLab()) }()

	d.run()
	switch {
	case ctx.Err() != nil:
		d.print("\ninterrupted: taking the lab down\n")
		return interruptedStatus
	case d.keep:
		return d.leaveUp()
	}
	if status := d.closeLab(); status != 0 {
		return status
	}
	return d.sumUp()
}

// removeIfMade returns a function that removes the directory when it is empty then and was not there before.
func removeIfMade(dir string) func() {
	if _, err := os.Stat(dir); err == nil {
		return func() {}
	}
	return func() { _ = os.Remove(dir) }
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// closeLab takes the lab down and says what could not be removed. A second call does nothing.
func (d *demo) closeLab() int {
	if err := d.lab.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "taking the lab down: %v\n", err)
		return 1
	}
	return 0
}

func (d *demo) sumUp() int {
	d.print("\n%d passed, %d failed\n", d.passed, d.failed)
	if d.failed > 0 {
		return 1
	}
	return 0
}
