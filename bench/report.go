package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// A Row is one figure of one system over all rounds.
type Row struct {
	System   string `json:"system"`
	Wire     string `json:"wire"`
	Scenario string `json:"scenario"`
	Metric   string `json:"metric"`
	Unit     string `json:"unit"`
	Summary
	Rounds int `json:"rounds"` // how many the summary is of
}

// A Ratio is one system's figure over another's, formed in each round by itself.
type Ratio struct {
	System   string `json:"system"`
	Over     string `json:"over"`
	Wire     string `json:"wire"`
	Scenario string `json:"scenario"`
	Metric   string `json:"metric"`
	Summary
}

// A Within is a system's figure in one scenario over its own in another, formed in each round by itself.
type Within struct {
	System   string `json:"system"`
	Wire     string `json:"wire"`
	Scenario string `json:"scenario"`
	Over     string `json:"over"` // the other scenario
	Metric   string `json:"metric"`
	Summary
}

// A Report is what a run found out.
type Report struct {
	Rows   []Row    `json:"rows"`
	Ratios []Ratio  `json:"ratios"`
	Within []Within `json:"within,omitempty"`
	// Failures are measurements that failed, self-checks among them: a report with one proves nothing.
	Failures []string `json:"failures"`
	// Notes say what was left out and why.
	Notes []string `json:"notes,omitempty"`
	// Machine says what was measured on, and which programs took part.
	Machine map[string]string `json:"machine"`
}

// series identifies the figures that make a row.
type series struct{ system, wire, scenario, metric string }

// results collect the figures of a run, by round.
type results struct {
	order  []series
	values map[series]map[int]float64

	limited map[series]int // rounds in which the generator was the limit
}

func newResults() *results {
	return &results{values: make(map[series]map[int]float64), limited: make(map[series]int)}
}

func (r *results) add(s series, round int, value float64) {
	if r.values[s] == nil {
		r.values[s] = make(map[int]float64)
		r.order = append(r.order, s)
	}
	r.values[s][round] = value
}

// sendersLimits say of which rows some rounds show what the generator could send, and not what the system could carry.
func (r *results) sendersLimits() []string {
	var notes []string
	for _, s := range r.order {
		if n := r.limited[s]; n > 0 {
			notes = append(notes, fmt.Sprintf("%s, %s, %s: the sender's limit, not the system's: %d of %d rounds", s.scenario,
				s.system, s.wire, n, len(r.values[s])))
		}
	}
	return notes
}

func (r *results) rows() []Row {
	rows := []Row{}
	for _, s := range r.order {
		var values []float64
		for _, v := range r.values[s] {
			values = append(values, v)
		}
		rows = append(rows, Row{System: s.system, Wire: s.wire, Scenario: s.scenario, Metric: s.metric,
			Unit: unitOf(s.metric), Summary: Summarize(values), Rounds: len(values)})
	}
	return rows
}

// ratios relates each of Warren's figures to every other system's. A round counts where both have a figure.
func (r *results) ratios() []Ratio {
	ratios := []Ratio{}
	for _, s := range r.order {
		// How fast a flood arrived is nobody's merit.
		if !strings.HasPrefix(s.system, "warren-") || s.system == warrenBefore || s.system == wireguardBefore ||
			s.metric == metricFlood {
			continue
		}
		for _, over := range r.order {
			if over.system == s.system || over != (series{over.system, s.wire, s.scenario, s.metric}) {
				continue
			}
			var values []float64
			for round, v := range r.values[s] {
				if o, ok := r.values[over][round]; ok && o != 0 {
					values = append(values, v/o)
				}
			}
			if len(values) > 0 {
				ratios = append(ratios, Ratio{System: s.system, Over: over.system, Wire: s.wire, Scenario: s.scenario,
					Metric: s.metric, Summary: Summarize(values)})
			}
		}
	}
	return ratios
}

// within relates what systems reach under a flood to what they reach without.
func (r *results) within() []Within {
	var list []Within
	for _, s := range r.order {
		if s.scenario != floodScenario || s.metric != metricRate {
			continue
		}
		calm := series{s.system, s.wire, calmScenario, s.metric}
		var values []float64
		for round, v := range r.values[s] {
			if o := r.values[calm][round]; o != 0 {
				values = append(values, v/o)
			}
		}
		if len(values) > 0 {
			list = append(list, Within{System: s.system, Wire: s.wire, Scenario: s.scenario, Over: calmScenario,
				Metric: s.metric, Summary: Summarize(values)})
		}
	}
	return list
}

// JSON is the report as report.json has it.
func (r *Report) JSON() ([]byte, error) {
	whole := *r
	if whole.Failures == nil {
		whole.Failures = []string{}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	err := e.Encode(whole)
	return b.Bytes(), err
}

// number shows three significant digits, and whole numbers from 100 on.
func number(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func (s Summary) cells() []string { return []string{number(s.Median), number(s.Min), number(s.Max)} }

func (r *Report) rowCells() [][]string {
	cells := [][]string{{"wire", "scenario", "metric", "system", "median", "min", "max", "unit", "rounds"}}
	for _, row := range r.Rows {
		line := append([]string{row.Wire, row.Scenario, row.Metric, row.System}, row.cells()...)
		cells = append(cells, append(line, row.Unit, fmt.Sprint(row.Rounds)))
	}
	return cells
}

func (r *Report) ratioCells() [][]string {
	cells := [][]string{{"wire", "scenario", "metric", "system", "over", "median", "min", "max"}}
	for _, ratio := range r.Ratios {
		line := []string{ratio.Wire, ratio.Scenario, ratio.Metric, ratio.System, ratio.Over}
		cells = append(cells, append(line, ratio.cells()...))
	}
	return cells
}

// withinCells are empty when the report has none: most runs have no scenario of that kind.
func (r *Report) withinCells() [][]string {
	if len(r.Within) == 0 {
		return nil
	}
	cells := [][]string{{"wire", "system", "scenario", "over its", "metric", "median", "min", "max"}}
	for _, w := range r.Within {
		cells = append(cells, append([]string{w.Wire, w.System, w.Scenario, w.Over, w.Metric}, w.cells()...))
	}
	return cells
}

// WriteTable prints the report for a terminal.
func (r *Report) WriteTable(out io.Writer) error {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, table := range [][][]string{r.rowCells(), r.ratioCells(), r.withinCells(), goalCells(r.measuredGoals())} {
		if len(table) == 0 {
			continue
		}
		for _, line := range table {
			fmt.Fprintln(w, strings.Join(line, "\t"))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintln(&b, r.goalsSummary())
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "%s\n", n)
	}
	for _, f := range r.Failures {
		fmt.Fprintf(&b, "FAIL %s\n", f)
	}
	_, err := out.Write(b.Bytes())
	return err
}

// Markdown is the report as report.md has it.
func (r *Report) Markdown() []byte {
	var b bytes.Buffer
	b.WriteString("# Warren bench\n\nMedian, minimum and maximum over the rounds; ratios are formed round by round.\n" +
		"`cpu_s_per_gb` is the CPU time of the whole machine, iperf3 and the kernel's forwarding included, per 10^9 bytes\n" +
		"that arrived; `rss_mib` is the larger of the two nodes' processes.\n")
	for _, key := range machineKeys() {
		if v := r.Machine[key]; v != "" {
			fmt.Fprintf(&b, "\n- %s: %s", key, v)
		}
	}
	b.WriteString("\n")
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\n%s.\n", n)
	}
	fmt.Fprintf(&b, "\n%s.\n", r.goalsSummary())
	titles := []string{"Goals", "Figures", "Ratios", "Ratios within a system"}
	for i, table := range [][][]string{goalCells(r.Goals()), r.rowCells(), r.ratioCells(), r.withinCells()} {
		if len(table) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n", titles[i])
		for j, line := range table {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(line, " | "))
			if j == 0 {
				b.WriteString(strings.Repeat("| --- ", len(line)) + "|\n")
			}
		}
	}
	if len(r.Failures) > 0 {
		b.WriteString("\n## Failures\n\n")
		for _, f := range r.Failures {
			fmt.Fprintf(&b, "- %s\n", strings.ReplaceAll(f, "\n", " "))
		}
	}
	return b.Bytes()
}
