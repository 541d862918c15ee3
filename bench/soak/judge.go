package soak

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// A Result is what a soak found out.
type Result struct {
	Failures []string // none: everything is as it should be

	duration time.Duration
	growth   []growth
	tallies  []*tally
	drops    []drop
	cores    map[string]float64 // busy on average
}

// growth is one measure of one node.
type growth struct {
	node, name                      string
	before, second, last, max, idle float64 // in the measure's unit: idle before, medians of quarters, largest, idle after
	verdict                         string
}

type drop struct {
	node, reason string
	count        uint64
	why          string // it may happen; empty: it may not
}

// minTrend is the shortest load from which a trend can be read: quarters of a shorter one are the warming up.
const minTrend = 40 * time.Second

// judge forms the result from the figures of the idle daemons before and after, the second of which may be missing.
func (r *run) judge(before, after *allFigures) *Result {
	res := &Result{duration: r.Duration, tallies: r.tallies, cores: r.cores(after)}
	for node, n := range r.nodes {
		for _, m := range measures() {
			g := judgeMeasure(m, r.sampler.samples[node], r.Duration)
			g.node, g.name = n.Name, m.name
			g.before = before[node][m.metric] / m.unit
			if after != nil {
				g.idle = after[node][m.metric] / m.unit
				if idle := judgeIdle(m, before[node], after[node]); g.verdict == "" {
					g.verdict = idle
				}
			}
			if g.verdict != "" {
				r.fail("node %s: %s: %s", n.Name, m.name, g.verdict)
			}
			res.growth = append(res.growth, g)
		}
		drops := maps.Clone(r.sampler.drops[node])
		for reason, count := range r.sampler.last[node] {
			drops[reason] += count
		}
		for reason, count := range drops {
			if count > 0 {
				res.drops = append(res.drops, drop{n.Name, reason, count, mayDrop(node, reason, count, r.trouble.kills)})
			}
		}
	}
	slices.SortFunc(res.drops, func(a, b drop) int { return strings.Compare(a.node+a.reason, b.node+b.reason) })
	for _, d := range res.drops {
		if d.why == "" {
			r.fail("node %s dropped %d packets: %s", d.node, d.count, d.reason)
		}
	}
	for _, t := range r.tallies {
		if t.done == 0 {
			r.fail("%s: not once", t.name)
		}
	}
	res.Failures = r.failures
	return res
}

// mayDrop says why a node may drop so many packets for a reason under this load with so many kills; empty: it may not.
func mayDrop(node int, reason string, count uint64, kills int) string {
	switch {
	case reason == "multicast":
		return "the kernel tells its groups"
	case node == killed && (reason == "queue-full" || reason == "socket-full"):
		return "sent while the daemon was down"
	case node != killed && reason == "send-failed" && count <= uint64(kills)*refusalsPerKill:
		// Without a daemon the host answers with ICMP errors, which the next sends return, each in place of sending.
		return "the killed node's host refused"
	}
	return ""
}

const refusalsPerKill = 3

// judgeMeasure compares the medians of the second and of the last quarter.
func judgeMeasure(m measure, samples []sample, d time.Duration) growth {
	var quarters [4][]float64
	var g growth
	for _, s := range samples {
		v := s.figures[m.metric]
		g.max = max(g.max, v/m.unit)
		q := min(3, int(4*s.at/d))
		quarters[q] = append(quarters[q], v)
	}
	if len(quarters[1]) == 0 || len(quarters[3]) == 0 {
		g.verdict = "too few samples"
		return g
	}
	second, last := median(quarters[1]), median(quarters[3])
	g.second, g.last = second/m.unit, last/m.unit
	if most := second*(1+m.share) + m.much; d >= minTrend && last > most {
		g.verdict = fmt.Sprintf("grew from %s to %s, more than to %s", number(g.second), number(g.last),
			number(most/m.unit))
	}
	return g
}

// judgeIdle wants no more goroutines and descriptors than before the load. A thread, and memory, may stay for later.
func judgeIdle(m measure, before, after figures) string {
	if m.metric != goroutines && m.metric != openFDs {
		return ""
	}
	if b, a := before[m.metric], after[m.metric]; a > b+m.much {
		return fmt.Sprintf("%s before the load, %s after it", number(b), number(a))
	}
	return ""
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// cores are the processors' time per time of the load.
func (r *run) cores(after *allFigures) map[string]float64 {
	var daemons float64
	for node := range r.nodes {
		daemons += r.sampler.cpu[node]
		if after != nil {
			daemons += after[node][cpuMetric]
		}
	}
	busy := map[string]float64{"daemons": daemons / r.Duration.Seconds()}
	var self, children unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &self) == nil && unix.Getrusage(unix.RUSAGE_CHILDREN, &children) == nil {
		// Daemons that were killed are children that were waited for.
		var killed float64
		for _, s := range r.sampler.cpu {
			killed += s
		}
		all := seconds(self.Utime) + seconds(self.Stime) + seconds(children.Utime) + seconds(children.Stime) - killed
		busy["load and checks"] = all / r.Duration.Seconds()
	}
	return busy
}

func seconds(t unix.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

func number(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }

// Write prints the result.
func (res *Result) Write(out io.Writer) error {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(cells ...any) {
		for i, c := range cells {
			if v, ok := c.(float64); ok {
				c = strconv.FormatFloat(v, 'f', 1, 64)
			}
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, c)
		}
		fmt.Fprintln(w)
	}
	row("load", "times", "MB", "longest")
	for _, t := range res.tallies {
		row(t.name, t.done, float64(t.bytes)/1e6, t.longest.Round(100*time.Microsecond))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(&b)
	row("node", "measure", "idle before", "2nd quarter", "last quarter", "largest", "idle after", "")
	for _, g := range res.growth {
		verdict := "ok"
		if g.verdict != "" {
			verdict = "FAIL " + g.verdict
		} else if res.duration < minTrend {
			verdict = "too short for a trend"
		}
		row(g.node, g.name, g.before, g.second, g.last, g.max, g.idle, verdict)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(&b)
	row("node", "dropped for", "packets", "")
	for _, d := range res.drops {
		why := d.why
		if why == "" {
			why = "FAIL"
		}
		row(d.node, d.reason, d.count, why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(&b, "\n%v; cores busy: daemons %.2f, load and checks %.2f\n", res.duration, res.cores["daemons"],
		res.cores["load and checks"])
	for _, f := range res.Failures {
		fmt.Fprintf(&b, "FAIL %s\n", f)
	}
	if len(res.Failures) == 0 {
		fmt.Fprintln(&b, "nothing grew, nothing broke, nothing was dropped that should not be")
	}
	_, err := out.Write(b.Bytes())
	return err
}
