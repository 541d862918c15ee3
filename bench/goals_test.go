package bench

import (
	"slices"
	"strings"
	"testing"
)

// goalReport is a report in which Warren and another system have these figures, round by round.
type goalReport struct{ *results }

func (g goalReport) add(system, scenario, metric string, values ...float64) goalReport {
	for round, v := range values {
		g.results.add(series{system, WireOffload, scenario, metric}, round, v)
	}
	return g
}

func (g goalReport) goal(t *testing.T, scenario, metric, over string) Goal {
	t.Helper()
	r := &Report{Rows: g.rows(), Ratios: g.ratios()}
	for _, goal := range r.Goals() {
		if goal.Wire == WireOffload && goal.Scenario == scenario && goal.Metric == metric && goal.Over == over {
			return goal
		}
	}
	t.Fatalf("no goal for %s, %s over %s", scenario, metric, over)
	return Goal{}
}

func TestGoals(t *testing.T) {
	r := goalReport{newResults()}.
		add("kernel-vxlan", "tcp-1", metricRate, 10, 20, 30).
		add("warren-wireguard", "tcp-1", metricRate, 20, 20, 20). // has goals of its own
		add("nebula", "tcp-1", metricRate, 2, 2, 2).
		add("warren-vxlan", "tcp-1", metricRate, 6, 9, 30).
		add("nebula", "tcp-1", metricCPU, 10, 10, 10).
		add("warren-vxlan", "tcp-1", metricCPU, 4, 3, 5)
	g := r.goal(t, "tcp-1", metricRate, "kernel-vxlan")
	// By rounds 0.6, 0.45 and 1; of medians 9/20.
	if !g.Measured || g.Reached != (Summary{0.6, 0.45, 1}) || g.OfMedians != 0.45 || g.Met() || g.AimMet() {
		t.Errorf("over the kernel: %+v, want missed by the ratio of medians", g)
	}
	if g := r.goal(t, "tcp-1", metricRate, "nebula"); g.OfMedians != 4.5 || !g.Met() || !g.AimMet() {
		t.Errorf("over Nebula: %+v, want more than the aim", g)
	}
	if g := r.goal(t, "tcp-1", metricCPU, "nebula"); g.OfMedians != 0.4 || !g.Met() || g.AimMet() {
		t.Errorf("CPU over Nebula: %+v, want reached, and the aim not", g)
	}
	if g := r.goal(t, "tcp-1", metricRate, "wireguard-go"); g.Measured || g.Met() {
		t.Errorf("over what was not measured: %+v", g)
	}
}

func TestGoalOverTheBest(t *testing.T) {
	r := goalReport{newResults()}.
		add("wireguard-go", "rtt-idle", metricP50, 200, 220, 210).
		add("nebula", "rtt-idle", metricP50, 300, 300, 300).
		add("tinc", "rtt-idle", metricP50, 100, 110, 120).
		add("kernel-vxlan", "rtt-idle", metricP50, 20, 20, 20). // not in userspace
		add("warren-vxlan", "rtt-idle", metricP50, 60, 66, 60)
	if g := r.goal(t, "rtt-idle", metricP50, "tinc"); g.Reached.Median != 0.6 || !g.Met() || g.AimMet() {
		t.Errorf("%+v, want 0.6 over tinc, the best", g)
	}
}

// TestGoalsOfEncryption holds that the encrypted system has goals of its own, and that one without an aim says so.
func TestGoalsOfEncryption(t *testing.T) {
	r := goalReport{newResults()}.
		add("warren-vxlan", "tcp-1", metricRate, 9, 9, 9).
		add("warren-wireguard", "tcp-1", metricRate, 5, 5, 5).
		add("wireguard-go", "tcp-1", metricRate, 2, 2, 2).
		add("nebula", "tcp-1", metricRate, 4, 4, 4).
		add("warren-wireguard", "rtt-idle", metricP50, 60, 60, 60).
		add("wireguard-go", "rtt-idle", metricP50, 100, 100, 100)
	of := func(scenario, over string) Goal {
		t.Helper()
		for _, g := range (&Report{Rows: r.rows(), Ratios: r.ratios()}).Goals() {
			if g.System == "warren-wireguard" && g.Wire == WireOffload && g.Scenario == scenario && g.Over == over &&
				g.Metric != metricCPU {
				return g
			}
		}
		t.Fatalf("no goal for %s over %s", scenario, over)
		return Goal{}
	}
	if g := of("tcp-1", "wireguard-go"); g.OfMedians != 2.5 || !g.Met() || g.AimMet() {
		t.Errorf("over wireguard-go: %+v, want reached, and the aim not", g)
	}
	if g := of("tcp-1", "nebula"); g.OfMedians != 1.25 || g.Met() {
		t.Errorf("over Nebula: %+v, want missed", g)
	}
	g := of("rtt-idle", "wireguard-go")
	if cells := g.cells(); !g.Met() || g.AimMet() || cells[7] != "-" || cells[len(cells)-1] != "-" {
		t.Errorf("round trip: %+v, %q, want reached, and no aim", g, g.cells())
	}
}

// TestGoalOverItself holds that what a flood leaves of a stream is formed round by round, and over the same system's.
func TestGoalOverItself(t *testing.T) {
	r := goalReport{newResults()}.
		add("warren-wireguard", "tcp-1", metricRate, 10, 4, 10).
		add("warren-wireguard", "flood", metricRate, 6, 3, 4).
		add("wireguard-go", "tcp-1", metricRate, 2, 2).
		add("wireguard-go", "flood", metricRate, 1, 0.5, 1).
		add("warren-wireguard", "flood", metricCPU, 1, 1, 1)
	report := &Report{Rows: r.rows(), Ratios: r.ratios(), Within: r.within()}
	want := []Within{
		{"warren-wireguard", WireOffload, "flood", "tcp-1", metricRate, Summary{0.6, 0.4, 0.75}},
		{"wireguard-go", WireOffload, "flood", "tcp-1", metricRate, Summary{0.375, 0.25, 0.5}},
	}
	if !slices.Equal(report.Within, want) {
		t.Errorf("within: %+v, want %+v", report.Within, want)
	}
	met := map[bool]int{}
	for _, g := range report.Goals() {
		if g.Scenario == "flood" && g.Measured {
			met[g.Met()]++
			if g.Reached.Median != 0.6 || g.OfMedians != 0.4 {
				t.Errorf("%+v, want 0.6 by rounds and 0.4 of medians", g)
			}
		}
	}
	if met[true] != 0 || met[false] != 1 {
		t.Errorf("goals under a flood by whether they are met: %v, want one that is not", met)
	}
	if m := string(report.Markdown()); !strings.Contains(m, "## Ratios within a system") ||
		!strings.Contains(m, "| warren-wireguard | TCP under a handshake flood, over the same without | itself, tcp-1 |") {
		t.Errorf("report.md lacks it:\n%s", m)
	}
}

// TestEveryGoalCanBeMeasured holds that the table asks for what the bench has.
func TestEveryGoalCanBeMeasured(t *testing.T) {
	known := make(map[string]bool)
	for _, s := range Systems(Options{}) {
		known[s.Name()] = true
	}
	for _, s := range ScenarioNames() {
		known[s] = true
	}
	for _, g := range ownGoals() {
		if !known[g.System] || !known[g.Scenario] || unitOf(g.Metric) == "" {
			t.Errorf("%+v: it asks for what the bench has not", g)
		}
	}
	for _, d := range demands() {
		for _, name := range slices.Concat([]string{d.system}, d.over, d.scenarios) {
			if !known[name] {
				t.Errorf("%s: %s is neither a system nor a scenario", d.what, name)
			}
		}
		if unitOf(d.metric) == "" || d.atMost != (d.aim < d.limit) {
			t.Errorf("%+v: a metric without unit, or an aim below the limit", d)
		}
	}
}

func TestGoalsInTheReport(t *testing.T) {
	r := goalReport{newResults()}.add("nebula", "tcp-1", metricRate, 2, 2, 2).
		add("warren-vxlan", "tcp-1", metricRate, 4, 6, 8)
	report := &Report{Rows: r.rows(), Ratios: r.ratios()}
	const want = "| warren-vxlan | TCP | nebula | offload | tcp-1 | gbit_per_s | 2.5 | 4 | 3 (2-4) | 3 | yes | no |"
	if m := string(report.Markdown()); !strings.Contains(m, want) || !strings.Contains(m, "| not measured |") ||
		!strings.Contains(m, "Goals: 1 reached, 0 missed, ") {
		t.Errorf("report.md lacks %q, or what was not measured:\n%s", want, m)
	}
	var table strings.Builder
	if err := report.WriteTable(&table); err != nil || !strings.Contains(table.String(), "aim reached") {
		t.Errorf("the table has no goals: %v\n%s", err, &table)
	}
}
