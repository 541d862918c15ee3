// Command warren-bench measures Warren beside other overlays in network namespaces and writes report.json and
// report.md. `make bench` runs it, as root. Each flag can be given in the environment as well, under the name that its
// description ends with.
//
// It changes nothing outside its namespaces, a temporary directory, the directory of its report and wireguard-go's
// sockets in /var/run/wireguard, and removes all but the report, also after Ctrl-C.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/warren-net/warren/bench"
	"github.com/warren-net/warren/internal/lab"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	o, err := parse(args, os.Getenv, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if o.needs {
		return tellNeeds(o.config)
	}
	if err := lab.CheckPrivileges(); err != nil {
		fmt.Fprintf(os.Stderr, "The bench makes network namespaces and can't: %v.\nTry: sudo make bench\n", err)
		return 1
	}
	ctx, stop := lab.Interruptible()
	defer stop()
	report, err := bench.Run(ctx, o.config)
	if report != nil && ctx.Err() == nil {
		err = errors.Join(err, write(report, o.out))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// options are the command line.
type options struct {
	config bench.Config
	out    string // directory of the report
	needs  bool   // only say what has to be installed
}

func parse(args []string, env func(string) string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("warren-bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	text := func(name, byDefault, use string) *string {
		key := strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if v := env(key); v != "" {
			byDefault = v
		}
		return f.String(name, byDefault, use+"; "+key)
	}
	quick := f.Bool("quick", isSet(env("QUICK")), "tcp-1 and tcp-4 only, 3 s each, without tinc: under 6 minutes; QUICK")
	systems := text("systems", "", "systems to measure (default all of "+
		strings.Join(names(bench.Systems(bench.Options{})), ",")+", when quick all but tinc)")
	wires := text("wires", strings.Join(bench.Wires(), ","), "wires to measure on")
	scenarios := text("scenarios", "", "scenarios (default all of "+strings.Join(bench.ScenarioNames(), ",")+")")
	rounds := text("rounds", "3", "rounds, at least 3 for figures that count")
	duration := text("duration", "", "of each measurement (default: each scenario's own, 3s when quick)")
	cc := text("cc", "", "congestion control of the pods' TCP (default the machine's)")
	mtu := text("mtu", strconv.Itoa(lab.DefaultMTU), "of the wire, bytes")
	wireguardGo := text("wireguard-go", "", "a binary to measure instead of the built one")
	tincd := text("tincd", "", "a binary to measure instead of the installed one")
	before := text("before", "", "a directory with warren and warren-cni of another commit, measured as warren-before "+
		"and warren-wireguard-before")
	nebula := text("nebula", "", "a binary to measure instead of the built one, with nebula-cert beside it")
	bin := f.String("bin", "bin", "directory of warren and warren-cni")
	f.BoolVar(&o.needs, "needs", false, "only list the programs that have to be installed, with their packages")
	f.StringVar(&o.out, "out", "bench/out", "directory of the report")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q: see -help", f.Arg(0))
	}
	o.config = bench.Config{Wires: list(*wires), Scenarios: list(*scenarios), Prefix: "bench",
		Progress: os.Stdout, CongestionControl: *cc}
	all := bench.Systems(bench.Options{BinDir: *bin, PeerDir: filepath.Join(*bin, "peers"), Before: *before,
		Nebula: *nebula, WireguardGo: *wireguardGo, Tincd: *tincd})
	if *systems == "" {
		*systems = strings.Join(names(all), ",")
		if *quick {
			*systems = strings.ReplaceAll(*systems, ",tinc", "")
		}
	}
	if *scenarios == "" {
		o.config.Scenarios = bench.ScenarioNames()
	}
	if *scenarios == "" && *quick {
		o.config.Scenarios = []string{"tcp-1", "tcp-4"}
	}
	if *duration == "" {
		*duration = map[bool]string{true: "3s", false: "0s"}[*quick]
	}
	var errs [4]error
	o.config.Systems, errs[0] = pick(*systems, all)
	o.config.Rounds, errs[1] = number("ROUNDS", *rounds, 1, 1000)
	o.config.MTU, errs[2] = number("MTU", *mtu, bench.MinMTU, bench.MaxMTU)
	var malformed error
	if o.config.Time, malformed = time.ParseDuration(*duration); malformed != nil || o.config.Time < 0 {
		errs[3] = fmt.Errorf("DURATION is %q: it must be a time like 5s", *duration)
	}
	for _, wire := range o.config.Wires {
		if !slices.Contains(bench.Wires(), wire) {
			err = fmt.Errorf("no wire %q: there are %s", wire, strings.Join(bench.Wires(), ", "))
		}
	}
	return o, errors.Join(err, errors.Join(errs[:]...))
}

// tellNeeds prints what `make bench` installs.
func tellNeeds(c bench.Config) int {
	needs, err := c.Needs()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 2
	}
	fmt.Println(strings.Join(needs, " "))
	return 0
}

func number(name, value string, least, most int) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%s is %q: it must be a number from %d to %d", name, value, least, most)
	}
	return n, nil
}

func isSet(v string) bool { return v != "" && v != "0" }

// list splits a list at commas and blanks.
func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func names(systems []bench.System) []string {
	var all []string
	for _, s := range systems {
		all = append(all, s.Name())
	}
	return all
}

// pick keeps the order of a round, whatever the order of the names.
func pick(chosen string, all []bench.System) ([]bench.System, error) {
	want := list(chosen)
	for _, name := range want {
		if !slices.Contains(names(all), name) {
			return nil, fmt.Errorf("no system %q: there are %s", name, strings.Join(names(all), ", "))
		}
	}
	var picked []bench.System
	for _, s := range all {
		if slices.Contains(want, s.Name()) {
			picked = append(picked, s)
		}
	}
	return picked, nil
}

// write prints the table and writes the files.
func write(report *bench.Report, dir string) error {
	fmt.Println()
	if err := report.WriteTable(os.Stdout); err != nil {
		return err
	}
	content, err := report.JSON()
	if err != nil {
		return fmt.Errorf("report.json: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, "report.json"), content, 0o644),
		os.WriteFile(filepath.Join(dir, "report.md"), report.Markdown(), 0o644), report.WriteCharts(dir))
}
