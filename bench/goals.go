package bench

import (
	"fmt"
	"slices"
	"strings"
)

// A Goal is a ratio that Warren is to reach, and what a report says about it.
type Goal struct {
	System   string  // whose goal it is
	What     string  // in words
	Over     string  // the system to compare with, or itself elsewhere; empty when none of those was measured
	Wire     string  //
	Scenario string  //
	Metric   string  //
	Limit    float64 // the ratio to reach
	Aim      float64 // the ratio to aim for then; 0: none
	AtMost   bool    // the ratio is to be at most this; else at least

	Measured  bool    // the report has the ratio
	Reached   Summary // formed round by round
	OfMedians float64 // the ratio of the two medians over all rounds
}

// Met says whether the goal is reached, by the median of the rounds' ratios and by the ratio of the medians.
func (g Goal) Met() bool { return g.reaches(g.Limit) }

// AimMet says whether there is an aim and it is reached.
func (g Goal) AimMet() bool { return g.Aim > 0 && g.reaches(g.Aim) }

func (g Goal) reaches(limit float64) bool {
	if !g.Measured {
		return false
	}
	if g.AtMost {
		return max(g.Reached.Median, g.OfMedians) <= limit
	}
	return min(g.Reached.Median, g.OfMedians) >= limit
}

// The systems that have goals: one is plaintext, like kernel VXLAN, the other encrypts, as those it is compared with.
const (
	plainSystem     = "warren-vxlan"
	encryptedSystem = "warren-wireguard"
)

// A demand is a line of the table of goals: it becomes a Goal for each of its wires and scenarios.
type demand struct {
	system     string
	what       string
	over       []string // the best of these
	wires      []string
	scenarios  []string
	metric     string
	limit, aim float64
	atMost     bool
}

// demands is the whole table.
func demands() []demand { return append(plainDemands(), encryptedDemands()...) }

// plainDemands are those of plaintext. The systems that others run in userspace are those to beat; of the kernel's
// VXLAN a part.
func plainDemands() []demand {
	const best, reach = "best of the others in userspace", "TCP"
	both, userspace := Wires(), []string{"wireguard-go", "nebula", "tinc"}
	kernel, offload, segmented := []string{"kernel-vxlan"}, []string{WireOffload}, []string{WireSegmented}
	one, four, few := []string{"tcp-1"}, []string{"tcp-4"}, []string{"tcp-1", "tcp-4"}
	return []demand{
		{plainSystem, reach, []string{"wireguard-go"}, both, few, metricRate, 3, 5, false},
		{plainSystem, reach, []string{"nebula"}, both, few, metricRate, 2.5, 4, false},
		{plainSystem, reach, kernel, offload, one, metricRate, 0.5, 1, false},
		{plainSystem, reach, kernel, offload, four, metricRate, 0.3, 0.6, false},
		{plainSystem, reach, kernel, segmented, few, metricRate, 0.8, 1, false},
		{plainSystem, "64-byte UDP", []string{"nebula"}, both, []string{"udp-64"}, metricReceived, 1.5, 3, false},
		{plainSystem, "64-byte UDP", kernel, both, []string{"udp-64"}, metricReceived, 0.7, 1, false},
		{plainSystem, "idle round trip, " + best, userspace, both, []string{"rtt-idle"}, metricP50, 0.7, 0.5, true},
		{plainSystem, "CPU per GB", []string{"nebula"}, both, few, metricCPU, 0.5, 0.3, true},
		{plainSystem, "round trip under load", kernel, both, []string{"rtt-load"}, metricP50, 3, 1.5, true},
		{plainSystem, "round trip under load", kernel, both, []string{"rtt-load"}, metricP99, 3, 1.5, true},
		{plainSystem, "CNI ADD and DEL", []string{"ptp"}, both, []string{"cni"}, metricCNI, 0.8, 0.6, true},
	}
}

// encryptedDemands are those of encryption, over others that encrypt in userspace.
func encryptedDemands() []demand {
	const reach, none = "TCP, encrypted", 0
	both, few := Wires(), []string{"tcp-1", "tcp-4"}
	wireguard, nebula := []string{"wireguard-go"}, []string{"nebula"}
	return []demand{
		{encryptedSystem, reach, wireguard, both, few, metricRate, 2, 3, false},
		{encryptedSystem, reach, nebula, both, few, metricRate, 1.3, 2, false},
		{encryptedSystem, "CPU per GB, encrypted", wireguard, both, few, metricCPU, 0.5, none, true},
		{encryptedSystem, "idle round trip, encrypted", wireguard, both, []string{"rtt-idle"}, metricP50, 0.7, none, true},
	}
}

// ownGoals are those that a system has over itself: what a flood of handshakes leaves of a stream.
func ownGoals() []Goal {
	const half = 0.5
	var goals []Goal
	for _, wire := range Wires() {
		goals = append(goals, Goal{System: encryptedSystem, What: "TCP under a handshake flood, over the same without",
			Over: "itself, " + calmScenario, Wire: wire, Scenario: floodScenario, Metric: metricRate, Limit: half})
	}
	return goals
}

// Goals lists all goals with what the report says about each.
func (r *Report) Goals() []Goal {
	var goals []Goal
	for _, d := range demands() {
		for _, wire := range d.wires {
			for _, scenario := range d.scenarios {
				g := Goal{System: d.system, What: d.what, Wire: wire, Scenario: scenario, Metric: d.metric,
					Limit: d.limit, Aim: d.aim, AtMost: d.atMost}
				goals = append(goals, r.judge(g, d.over))
			}
		}
	}
	for _, g := range ownGoals() {
		goals = append(goals, r.judgeOwn(g))
	}
	return goals
}

// judgeOwn fills in a goal that a system has over itself.
func (r *Report) judgeOwn(g Goal) Goal {
	for _, w := range r.Within {
		if w.System != g.System || w.Wire != g.Wire || w.Scenario != g.Scenario || w.Metric != g.Metric {
			continue
		}
		calm := g
		calm.Scenario = w.Over
		if other := r.median(g.System, calm); other > 0 {
			g.Measured, g.Reached, g.OfMedians = true, w.Summary, r.median(g.System, g)/other
		}
	}
	return g
}

// judge fills in the hardest of the comparisons: the one with the best of the systems.
func (r *Report) judge(g Goal, over []string) Goal {
	if len(over) == 1 {
		g.Over = over[0]
	}
	for _, ratio := range r.Ratios {
		if ratio.System != g.System || !slices.Contains(over, ratio.Over) || ratio.Wire != g.Wire ||
			ratio.Scenario != g.Scenario || ratio.Metric != g.Metric {
			continue
		}
		harder := g.AtMost == (ratio.Median > g.Reached.Median)
		if g.Measured && !harder {
			continue
		}
		own, other := r.median(g.System, g), r.median(ratio.Over, g)
		if own == 0 || other == 0 {
			continue
		}
		g.Measured, g.Over, g.Reached, g.OfMedians = true, ratio.Over, ratio.Summary, own/other
	}
	return g
}

// median is a system's median of what the goal is about; 0 when the report has none.
func (r *Report) median(system string, g Goal) float64 {
	for _, row := range r.Rows {
		if row.System == system && row.Wire == g.Wire && row.Scenario == g.Scenario && row.Metric == g.Metric {
			return row.Median
		}
	}
	return 0
}

func (g Goal) limit(v float64) string {
	if g.AtMost {
		return "at most " + number(v)
	}
	return number(v)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (g Goal) cells() []string {
	aim, aimMet := "-", "-"
	if g.Aim > 0 {
		aim, aimMet = g.limit(g.Aim), yesNo(g.AimMet())
	}
	cells := []string{g.System, g.What, g.Over, g.Wire, g.Scenario, g.Metric, g.limit(g.Limit), aim}
	if !g.Measured {
		return append(cells, "-", "-", "not measured", "")
	}
	return append(cells, fmt.Sprintf("%s (%s-%s)", number(g.Reached.Median), number(g.Reached.Min), number(g.Reached.Max)),
		number(g.OfMedians), yesNo(g.Met()), aimMet)
}

func (r *Report) measuredGoals() []Goal {
	return slices.DeleteFunc(r.Goals(), func(g Goal) bool { return !g.Measured })
}

func goalCells(goals []Goal) [][]string {
	cells := [][]string{{"system", "goal", "over", "wire", "scenario", "metric", "must reach", "aim",
		"ratio by rounds (min-max)", "ratio of medians", "reached", "aim reached"}}
	for _, g := range goals {
		cells = append(cells, g.cells())
	}
	return cells
}

// goalsSummary counts in one sentence.
func (r *Report) goalsSummary() string {
	var met, missed, open int
	for _, g := range r.Goals() {
		switch {
		case !g.Measured:
			open++
		case g.Met():
			met++
		default:
			missed++
		}
	}
	parts := []string{fmt.Sprintf("Goals: %d reached, %d missed", met, missed)}
	if open > 0 {
		parts = append(parts, fmt.Sprintf("%d not measured", open))
	}
	return strings.Join(parts, ", ")
}
