package soak

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

func series(d time.Duration, of func(share float64) float64) []sample {
	const count = 100
	samples := make([]sample, count)
	for i := range samples {
		share := float64(i) / count
		samples[i] = sample{at: time.Duration(share * float64(d)), figures: figures{"m": of(share)}}
	}
	return samples
}

func TestJudgeMeasure(t *testing.T) {
	const d = time.Hour
	m := measure{metric: "m", name: "m", unit: 10, share: 0.1, much: 5}
	for name, c := range map[string]struct {
		of   func(share float64) float64
		fail bool
	}{
		"flat":                  {func(float64) float64 { return 1000 }, false},
		"warming up":            {func(s float64) float64 { return min(1000, 100+s*4000) }, false},
		"breathing":             {func(s float64) float64 { return 1000 + float64(int(s*100)%7)*30 }, false},
		"growing a little":      {func(s float64) float64 { return 1000 + s*150 }, false},
		"growing":               {func(s float64) float64 { return 1000 + s*400 }, true},
		"one step":              {func(s float64) float64 { return 1000 + 200*math.Floor(s+0.4) }, true},
		"one peak":              {func(s float64) float64 { return 1000 + 9000*math.Floor(1-math.Abs(s-0.8)) }, false},
		"shrinking":             {func(s float64) float64 { return 1000 - s*900 }, false},
		"little, but more than": {func(s float64) float64 { return 1 + s*20 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := judgeMeasure(m, series(d, c.of), d)
			if fail := g.verdict != ""; fail != c.fail {
				t.Errorf("verdict %q of %+v", g.verdict, g)
			}
		})
	}
	if g := judgeMeasure(m, series(d, func(float64) float64 { return 1000 }), d); g.second != 100 || g.max != 100 {
		t.Errorf("figures are not in the measure's unit: %+v", g)
	}
	if g := judgeMeasure(m, nil, d); g.verdict == "" {
		t.Error("no samples, no complaint")
	}
}

func TestJudgeIdle(t *testing.T) {
	m := measure{metric: goroutines, much: 2}
	if v := judgeIdle(m, figures{goroutines: 20}, figures{goroutines: 22}); v != "" {
		t.Errorf("two more: %s", v)
	}
	if v := judgeIdle(m, figures{goroutines: 20}, figures{goroutines: 23}); v == "" {
		t.Error("three more are no failure")
	}
}

func TestMayDrop(t *testing.T) {
	const kills = 2
	for _, c := range []struct {
		reason  string
		count   uint64
		allowed [members]bool
	}{
		{"multicast", 100, [members]bool{true, true, true}},
		{"queue-full", 100, [members]bool{killed: true}},
		{"socket-full", 100, [members]bool{killed: true}},
		{"send-failed", kills * refusalsPerKill, [members]bool{first: true, second: true}},
		{"send-failed", kills*refusalsPerKill + 1, [members]bool{}},
		{"spoofed", 1, [members]bool{}},
		{"no-route", 1, [members]bool{}},
		{"unknown-peer", 1, [members]bool{}},
	} {
		for node := range members {
			if got := mayDrop(node, c.reason, c.count, kills) != ""; got != c.allowed[node] {
				t.Errorf("node %d, %d for %s: allowed is %v", node, c.count, c.reason, got)
			}
		}
	}
}

func TestParseMetrics(t *testing.T) {
	var text strings.Builder
	text.WriteString("# HELP go_goroutines Number\n# TYPE go_goroutines gauge\ngo_gc_duration_seconds{quantile=\"0\"} 1\n")
	for _, m := range measures() {
		text.WriteString(m.metric + " 1.5e+06\n")
	}
	f, err := parseMetrics(strings.NewReader(text.String()))
	if err != nil || f[goroutines] != 1.5e6 || len(f) != len(measures()) {
		t.Errorf("%v, %v", f, err)
	}
	for _, bad := range []string{"", "go_goroutines 7\n", "go_goroutines many\n"} {
		if f, err := parseMetrics(strings.NewReader(bad)); err == nil {
			t.Errorf("%q gave %v", bad, f)
		}
	}
}

func TestTrouble(t *testing.T) {
	var tr trouble
	hit, other := &lab.Pod{}, &lab.Pod{}
	before := time.Now()
	if tr.met(hit, before) {
		t.Error("trouble before any")
	}
	tr.begin(hit)
	if !tr.met(hit, time.Now()) || tr.met(other, before) {
		t.Error("a kill meets its own pod alone")
	}
	tr.end()
	if !tr.met(hit, before) || !tr.met(hit, time.Now()) || tr.met(hit, time.Now().Add(time.Hour)) {
		t.Error("what began before the restart was met, and what begins an hour later was not")
	}
}

func TestResultSaysWhatFailed(t *testing.T) {
	r := run{Config: Config{Duration: time.Hour}, sampler: &sampler{}, begin: time.Now()}
	for i := range r.nodes {
		r.nodes[i] = &lab.Node{Name: string(rune('a' + i))}
		r.sampler.drops[i] = map[string]uint64{"spoofed": uint64(i)}
	}
	r.tally("nothing came of this")
	var idle allFigures
	res := r.judge(&idle, nil)
	var out strings.Builder
	if err := res.Write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"nothing came of this: not once", "node b dropped 1 packets: spoofed", "too few samples",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the result does not say %q:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "nothing grew") {
		t.Errorf("failures, and praise:\n%s", &out)
	}
}

func TestTooShort(t *testing.T) {
	if _, err := Run(context.Background(), Config{Duration: time.Second}); err == nil {
		t.Error("a second was taken")
	}
}
