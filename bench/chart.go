package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Chart is a picture of a part of a report.
type Chart struct {
	Name  string // of its file
	Title string
	SVG   []byte
}

// chartPrefix begins the names of the charts' files.
const chartPrefix = "chart-"

// chart is what a picture shows: groups along the horizontal axis, and in each a figure per system.
type chart struct {
	name, title string
	axis        string // what the vertical axis counts
	logarithmic bool   // marks instead of bars, which would have no foot to stand on
	groups      []string
	series      []chartSeries
}

// chartSeries are one system's figures.
type chartSeries struct {
	system string
	values map[string]Summary // by group; a group that the system has no figure for is missing
}

// add puts a figure into the chart. A logarithmic axis has no place for a figure that is not positive.
func (c *chart) add(group, system string, s Summary) {
	if c.logarithmic && s.Min <= 0 {
		return
	}
	if !slices.Contains(c.groups, group) {
		c.groups = append(c.groups, group)
	}
	i := slices.IndexFunc(c.series, func(s chartSeries) bool { return s.system == system })
	if i < 0 {
		i = len(c.series)
		c.series = append(c.series, chartSeries{system: system, values: make(map[string]Summary)})
	}
	c.series[i].values[group] = s
}

// A chartKind chooses the rows of a chart, of which there is one for each wire.
type chartKind struct {
	name, title, axis string
	logarithmic       bool
	// group is the group of a row; empty: the chart is not about it.
	group func(scenario, metric string) string
}

// otherWays reports whether a scenario repeats another one in other directions. They have charts of their own, or there
// would be more groups than fit.
func otherWays(scenario string) bool {
	return strings.HasSuffix(scenario, "-reverse") || strings.HasSuffix(scenario, "-bidir")
}

// only is the group function of a chart about one metric: the scenario, if its name begins so.
func only(metric, prefix string) func(string, string) string {
	return func(scenario, m string) string {
		if m != metric || !strings.HasPrefix(scenario, prefix) || otherWays(scenario) {
			return ""
		}
		return scenario
	}
}

// directions is the group function of a chart about the other directions.
func directions(scenario, metric string) string {
	if metric != metricRate || !otherWays(scenario) {
		return ""
	}
	return scenario
}

func roundTrip(scenario, metric string) string {
	if metric != metricP50 && metric != metricP99 || !strings.HasPrefix(scenario, "rtt-") {
		return ""
	}
	return strings.TrimPrefix(scenario, "rtt-") + " " + strings.TrimSuffix(metric, "_us")
}

// rates is the group function of a chart about everything of which more is better.
func rates(scenario, metric string) string {
	switch {
	case otherWays(scenario), metric == metricRate && strings.HasPrefix(scenario, "udp-"): // the datagrams, once more
		return ""
	case metric == metricRate, metric == metricReceived, metric == metricConns:
		return scenario
	}
	return ""
}

func chartKinds() []chartKind {
	const logarithmic = true
	return []chartKind{
		{"tcp", "TCP throughput", "Gbit/s", !logarithmic, only(metricRate, "tcp-")},
		{"tcp-directions", "TCP throughput, other directions", "Gbit/s", !logarithmic, directions},
		{"udp", "UDP datagrams received", "packets/s", !logarithmic, only(metricReceived, "udp-")},
		{"flows", "Throughput of many flows", "Gbit/s", !logarithmic, only(metricRate, "flows-")},
		{"same-node", "TCP throughput between pods of one node", "Gbit/s", !logarithmic, only(metricRate, "same-node")},
		{"connect", "New TCP connections", "connections/s", !logarithmic, only(metricConns, "")},
		{"rtt", "Round trip, idle and under load", "µs (logarithmic)", logarithmic, roundTrip},
		{"cni", "ADD and DEL of a pod by the CNI plugin", "ms", !logarithmic, only(metricCNI, "cni")},
		{"cpu", "CPU time per 10⁹ bytes", "s/GB", !logarithmic, only(metricCPU, "")},
		{"memory", "Resident memory of the larger node", "MiB", !logarithmic, only(metricRSS, "")},
	}
}

// ratioKinds are the charts of each Warren system's ratios.
func ratioKinds() []chartKind {
	const logarithmic, axis = true, "ratio (logarithmic)"
	return []chartKind{
		{"ratio-rates", "rates over others', above 1 is better", axis, logarithmic, rates},
		{"ratio-directions", "throughput over others' in other directions, above 1 is better", axis, logarithmic, directions},
		{"ratio-rtt", "round trip over others', below 1 is better", axis, logarithmic, roundTrip},
		{"ratio-cpu", "CPU time over others', below 1 is better", axis, logarithmic, only(metricCPU, "")},
	}
}

// layout makes the charts that the report has figures for.
func (r *Report) layout() []chart {
	var charts []chart
	take := func(c chart) {
		if len(c.groups) > 0 {
			charts = append(charts, c)
		}
	}
	for _, k := range chartKinds() {
		for _, wire := range r.wires() {
			c := k.chart(wire)
			for _, row := range r.Rows {
				if group := k.group(row.Scenario, row.Metric); group != "" && row.Wire == wire {
					c.add(group, row.System, row.Summary)
				}
			}
			take(c)
		}
	}
	for _, k := range ratioKinds() {
		for _, system := range r.warrens() {
			for _, wire := range r.wires() {
				c := k.chart(wire)
				c.name = strings.Replace(c.name, k.name, k.name+"-"+system, 1)
				c.title = system + ": " + c.title
				for _, ratio := range r.Ratios {
					group := k.group(ratio.Scenario, ratio.Metric)
					if group != "" && ratio.Wire == wire && ratio.System == system {
						c.add(group, ratio.Over, ratio.Summary)
					}
				}
				take(c)
			}
		}
	}
	return charts
}

func (k chartKind) chart(wire string) chart {
	return chart{name: chartPrefix + k.name + "-" + wire + ".svg", title: k.title + ", " + wire + " wire", axis: k.axis,
		logarithmic: k.logarithmic}
}

// wires are the wires of the report in the order in which they were measured.
func (r *Report) wires() []string {
	var wires []string
	for _, row := range r.Rows {
		if !slices.Contains(wires, row.Wire) {
			wires = append(wires, row.Wire)
		}
	}
	return wires
}

// warrens are the systems whose ratios the report has.
func (r *Report) warrens() []string {
	var systems []string
	for _, ratio := range r.Ratios {
		if !slices.Contains(systems, ratio.System) {
			systems = append(systems, ratio.System)
		}
	}
	return systems
}

// Charts draws the report, without what it has no figures for. The same report gives the same bytes.
func (r *Report) Charts() ([]Chart, error) {
	var charts []Chart
	for _, c := range r.layout() {
		svg, err := c.draw()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		charts = append(charts, Chart{Name: c.name, Title: c.title, SVG: svg})
	}
	return charts, nil
}

// WriteCharts writes the report's charts into a directory in place of an earlier report's, and lists them at the end
// of the report.md that is there.
func (r *Report) WriteCharts(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, chartPrefix+"*.svg"))
	if err != nil {
		return err
	}
	for _, file := range old {
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("an earlier chart: %w", err)
		}
	}
	charts, err := r.Charts()
	if err != nil || len(charts) == 0 {
		return err
	}
	list := "\n## Charts\n\nEach shows the median, and a line from the minimum to the maximum of the rounds.\n"
	for _, c := range charts {
		if err := os.WriteFile(filepath.Join(dir, c.Name), c.SVG, 0o644); err != nil {
			return fmt.Errorf("chart: %w", err)
		}
		list += fmt.Sprintf("\n![%s](%s)\n", c.Title, c.Name)
	}
	file, err := os.OpenFile(filepath.Join(dir, "report.md"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("listing the charts: %w", err)
	}
	_, err = file.WriteString(list)
	return errors.Join(err, file.Close())
}
