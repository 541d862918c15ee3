// Command warren-soak keeps three Warren nodes in network namespaces under a bounded mixed load and ends with exit
// status 1 when something grew, broke, or was dropped that should not be. `make soak` runs it, as root.
//
// It changes nothing outside its namespaces and a temporary directory, and removes both, also after Ctrl-C.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/warren-net/warren/bench/soak"
	"github.com/warren-net/warren/internal/lab"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	f := flag.NewFlagSet("warren-soak", flag.ContinueOnError)
	duration := f.Duration("duration", time.Hour, "of the load")
	bin := f.String("bin", "bin", "directory of warren and warren-cni")
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil && f.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q: see -help", f.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if err := lab.CheckPrivileges(); err != nil {
		fmt.Fprintf(os.Stderr, "The soak makes network namespaces and can't: %v.\nTry: sudo make soak\n", err)
		return 1
	}
	ctx, stop := lab.Interruptible()
	defer stop()
	result, err := soak.Run(ctx, soak.Config{Duration: *duration, BinDir: *bin, Prefix: "soak", Progress: os.Stdout})
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
	}
	if result != nil {
		fmt.Println()
		err = errors.Join(err, result.Write(os.Stdout))
	}
	if err != nil || len(result.Failures) > 0 {
		return 1
	}
	return 0
}
