package bench

import (
	"fmt"
	"slices"
	"strings"
)

// A Goal is a ratio that Warren is to reach, and what a report says about it.
type Goal struct {
	What     string  // in words
	Over     string  // the system to compare with; empty when none of those in question was measured
	Wire     string  //
	Scenario string  //
	Metric   string  //
	Limit    float64 // the ratio to reach
	Aim      float64 // the ratio to aim for then
	AtMost   bool    // the ratio is to be at most this; else at least

	Measured  bool    // the report has the ratio
	Reached   Summary // formed round by round
	OfMedians float64 // the ratio of the two medians over all rounds
}

// Met says whether the goal is reached, by the median of the rounds' ratios and by the ratio of the medians.
func (g Goal) Met() bool { return g.reaches(g.Limit) }

// AimMet says whether the aim is.
func (g Goal) AimMet() bool { return g.reaches(g.Aim) }

func (g Goal) reaches(limit float64) bool {
	if !g.Measured {
		return false
	}
	if g.AtMost {
		return max(g.Reached.Median, g.OfMedians) <= limit
	}
	return min(g.Reached.Median, g.OfMedians) >= limit
}

// goalSystem is the system whose goals these are: plaintext, like kernel VXLAN.
const goalSystem = "warren-vxlan"

// A demand is a line of the table of goals: it becomes a Goal for each of its wires and scenarios.
type demand struct {
	what       string
	over       []string // the best of these
	wires      []string
	scenarios  []string
	metric     string
	limit, aim float64
	atMost     bool
}

// demands is the table. The systems that others run in userspace are those to beat; of the kernel's VXLAN a part.
func demands() []demand {
	const best, reach = "best of the others in userspace", "TCP"
	both, userspace := Wires(), []string{"wireguard-go", "nebula", "tinc"}
	kernel, offload, segmented := []string{"kernel-vxlan"}, []string{WireOffload}, []string{WireSegmented}
	one, four, few := []string{"tcp-1"}, []string{"tcp-4"}, []string{"tcp-1", "tcp-4"}
	return []demand{
		{reach, []string{"wireguard-go"}, both, few, metricRate, 3, 5, false},
		{reach, []string{"nebula"}, both, few, metricRate, 2.5, 4, false},
		{reach, kernel, offload, one, metricRate, 0.5, 1, false},
		{reach, kernel, offload, four, metricRate, 0.3, 0.6, false},
		{reach, kernel, segmented, few, metricRate, 0.8, 1, false},
		{"64-byte UDP", []string{"nebula"}, both, []string{"udp-64"}, metricReceived, 1.5, 3, false},
		{"64-byte UDP", kernel, both, []string{"udp-64"}, metricReceived, 0.7, 1, false},
		{"idle round trip, " + best, userspace, both, []string{"rtt-idle"}, metricP50, 0.7, 0.5, true},
		{"CPU per GB", []string{"nebula"}, both, few, metricCPU, 0.5, 0.3, true},
		{"round trip under load", kernel, both, []string{"rtt-load"}, metricP50, 3, 1.5, true},
		{"round trip under load", kernel, both, []string{"rtt-load"}, metricP99, 3, 1.5, true},
		{"CNI ADD and DEL", []string{"ptp"}, both, []string{"cni"}, metricCNI, 0.8, 0.6, true},
	}
}

// Goals lists all goals with what the report says about each.
func (r *Report) Goals() []Goal {
	var goals []Goal
	for _, d := range demands() {
		for _, wire := range d.wires {
			for _, scenario := range d.scenarios {
				g := Goal{What: d.what, Wire: wire, Scenario: scenario, Metric: d.metric, Limit: d.limit, Aim: d.aim,
					AtMost: d.atMost}
				goals = append(goals, r.judge(g, d.over))
			}
		}
	}
	return goals
}

// judge fills in the hardest of the comparisons: the one with the best of the systems.
func (r *Report) judge(g Goal, over []string) Goal {
	if len(over) == 1 {
		g.Over = over[0]
	}
	for _, ratio := range r.Ratios {
		if ratio.System != goalSystem || !slices.Contains(over, ratio.Over) || ratio.Wire != g.Wire ||
			ratio.Scenario != g.Scenario || ratio.Metric != g.Metric {
			continue
		}
		harder := g.AtMost == (ratio.Median > g.Reached.Median)
		if g.Measured && !harder {
			continue
		}
		own, other := r.median(goalSystem, g), r.median(ratio.Over, g)
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
	cells := []string{g.What, g.Over, g.Wire, g.Scenario, g.Metric, g.limit(g.Limit), g.limit(g.Aim)}
	if !g.Measured {
		return append(cells, "-", "-", "not measured", "")
	}
	return append(cells, fmt.Sprintf("%s (%s-%s)", number(g.Reached.Median), number(g.Reached.Min), number(g.Reached.Max)),
		number(g.OfMedians), yesNo(g.Met()), yesNo(g.AimMet()))
}

func (r *Report) measuredGoals() []Goal {
	return slices.DeleteFunc(r.Goals(), func(g Goal) bool { return !g.Measured })
}

func goalCells(goals []Goal) [][]string {
	cells := [][]string{{"goal of " + goalSystem, "over", "wire", "scenario", "metric", "must reach", "aim",
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
