package bench

import (
	"fmt"
	"io"
	"time"
)

// progress tells how far a run has come and how long the rest will take.
type progress struct {
	out   io.Writer // may be nil
	begin time.Time

	done    int
	pending map[string]int           // measurements to come, by scenario
	spent   map[string]time.Duration // on those that are done
	counted map[string]int           // how many those are
}

// setUp is about what a measurement takes beside its traffic, until one has been seen.
const setUp = time.Second

func newProgress(out io.Writer) *progress {
	return &progress{out: out, begin: time.Now(), pending: make(map[string]int), spent: make(map[string]time.Duration),
		counted: make(map[string]int)}
}

func (p *progress) say(format string, args ...any) {
	if p.out != nil {
		fmt.Fprintf(p.out, "%5.0fs  %s\n", time.Since(p.begin).Seconds(), fmt.Sprintf(format, args...))
	}
}

// measured notes that a measurement of a scenario is over.
func (p *progress) measured(scenario string, took time.Duration) {
	p.done++
	p.pending[scenario]--
	p.spent[scenario] += took
	p.counted[scenario]++
}

// all is how many measurements the run has.
func (p *progress) all() int {
	all := p.done
	for _, n := range p.pending {
		all += n
	}
	return all
}

// left estimates the time that the rest takes, from what each scenario took up to now.
func (p *progress) left(scenarios []scenario) time.Duration {
	var left time.Duration
	for _, s := range scenarios {
		each := s.time + setUp
		if n := p.counted[s.name]; n > 0 {
			each = p.spent[s.name] / time.Duration(n)
		}
		left += each * time.Duration(p.pending[s.name])
	}
	return left
}

// about shows a duration as a reader of a clock would say it.
func about(d time.Duration) string {
	if d < time.Minute {
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d min", int(d.Round(time.Minute)/time.Minute))
}
