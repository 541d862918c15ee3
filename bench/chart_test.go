package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// chartReport has figures of several systems, of which some lack some.
func chartReport() *Report {
	r := &Report{}
	systems := []string{"veth", "kernel-vxlan", "warren-vxlan", "wireguard-go", "nebula", "a<b&c"}
	for w, wire := range Wires() {
		for i, system := range systems {
			add := func(scenario, metric string, v float64) {
				if system == "nebula" && scenario == "tcp-4" || system == "veth" && metric == metricCPU {
					return
				}
				v *= float64(i+1) * float64(w+1)
				s := Summary{Median: v, Min: v * 0.9, Max: v * 1.2}
				r.Rows = append(r.Rows, Row{System: system, Wire: wire, Scenario: scenario, Metric: metric, Summary: s, Rounds: 3})
				if system != "warren-vxlan" {
					r.Ratios = append(r.Ratios, Ratio{System: "warren-vxlan", Over: system, Wire: wire, Scenario: scenario,
						Metric: metric, Summary: s})
				}
			}
			for _, scenario := range []string{"tcp-1", "tcp-4", "tcp-16", "tcp-4-reverse"} {
				add(scenario, metricRate, 1.5)
				add(scenario, metricCPU, 0.8)
			}
			add("udp-1400", metricReceived, 100_000)
			add("rtt-idle", metricP50, 15)
			add("rtt-idle", metricP99, 40)
			add("rtt-load", metricP50, 900)
			add("rtt-load", metricP99, 4000)
		}
	}
	return r
}

// texts are what an SVG says, and an error when it is no XML.
func texts(svg []byte) ([]string, error) {
	var found []string
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		if t, ok := token.(xml.CharData); ok && len(bytes.TrimSpace(t)) > 0 {
			found = append(found, strings.TrimSpace(string(t)))
		}
	}
}

func chartsOf(t *testing.T, r *Report) map[string][]string {
	t.Helper()
	charts, err := r.Charts()
	if err != nil {
		t.Fatal(err)
	}
	said := map[string][]string{}
	for _, c := range charts {
		if said[c.Name], err = texts(c.SVG); err != nil {
			t.Errorf("%s is not well-formed: %v", c.Name, err)
		}
		if bytes.Contains(c.SVG, []byte("NaN")) || bytes.Contains(c.SVG, []byte("Inf")) {
			t.Errorf("%s has a coordinate that is no number", c.Name)
		}
	}
	return said
}

func TestCharts(t *testing.T) {
	said := chartsOf(t, chartReport())
	for name, want := range map[string][]string{
		"chart-tcp-offload.svg":                      {"tcp-1", "tcp-4", "tcp-16", "Gbit/s", "veth", "a<b&c", "nebula"},
		"chart-tcp-segmented.svg":                    {"tcp-1", "TCP throughput, segmented wire"},
		"chart-udp-offload.svg":                      {"udp-1400", "packets/s", "kernel-vxlan"},
		"chart-rtt-segmented.svg":                    {"idle p50", "idle p99", "load p50", "load p99", "20", "100", "1000"},
		"chart-cpu-offload.svg":                      {"s/GB", "wireguard-go"},
		"chart-ratio-rates-warren-vxlan-offload.svg": {"veth", "tcp-1", "udp-1400"},
		"chart-ratio-rtt-warren-vxlan-offload.svg":   {"idle p50", "load p99"},
		"chart-ratio-cpu-warren-vxlan-offload.svg":   {"tcp-4", "wireguard-go"},
		"chart-tcp-directions-offload.svg":           {"tcp-4-reverse"},
	} {
		for _, w := range want {
			if !slices.Contains(said[name], w) {
				t.Errorf("%s does not say %q, but %q", name, w, said[name])
			}
		}
	}
	if slices.Contains(said["chart-tcp-offload.svg"], "tcp-4-reverse") {
		t.Error("the other directions are among the first one")
	}
	if slices.Contains(said["chart-cpu-offload.svg"], "veth") {
		t.Error("a system without a figure is named")
	}
}

func TestChartsAreDeterministic(t *testing.T) {
	first, err := chartReport().Charts()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		again, err := chartReport().Charts()
		if err != nil {
			t.Fatal(err)
		}
		for i := range first {
			if !bytes.Equal(first[i].SVG, again[i].SVG) {
				t.Fatalf("%s differs from itself", first[i].Name)
			}
		}
	}
}

// TestChartBars reads the height of two bars from the drawing: the order of what is seen is that of the figures.
func TestChartBars(t *testing.T) {
	c := chart{axis: "u", groups: []string{"g"}, series: []chartSeries{
		{"veth", map[string]Summary{"g": {Median: 10, Min: 10, Max: 10}}},
		{"nebula", map[string]Summary{"g": {Median: 5, Min: 5, Max: 5}}},
	}}
	svg, err := c.draw()
	if err != nil {
		t.Fatal(err)
	}
	heights := map[string]float64{}
	for _, system := range []string{"#8C8C8C", "#009E73"} {
		heights[system] = largestBox(t, string(svg), system)
	}
	if ratio := heights["#8C8C8C"] / heights["#009E73"]; ratio < 1.99 || ratio > 2.01 {
		t.Errorf("bars of 10 and 5 are %v high", heights)
	}
}

func TestChartsOfLittle(t *testing.T) {
	for name, r := range map[string]*Report{
		"nothing":       {},
		"zeros":         {Rows: []Row{{System: "veth", Wire: "offload", Scenario: "tcp-1", Metric: metricRate}}},
		"no round trip": {Rows: []Row{{System: "veth", Wire: "offload", Scenario: "rtt-idle", Metric: metricP50}}},
		"one figure": {Rows: []Row{{System: "veth", Wire: "offload", Scenario: "rtt-idle", Metric: metricP50,
			Summary: Summary{10, 10, 10}}}},
		"unknown": {Rows: []Row{{System: "x", Wire: "y", Scenario: "z", Metric: "w", Summary: Summary{1, 1, 1}}}},
		"ratio alone": {Ratios: []Ratio{{System: "warren-vxlan", Over: "veth", Wire: "offload", Scenario: "tcp-1",
			Metric: metricRate, Summary: Summary{1, 1, 1}}}},
	} {
		t.Run(name, func(t *testing.T) { chartsOf(t, r) })
	}
}

func TestWriteCharts(t *testing.T) {
	dir := t.TempDir()
	report := filepath.Join(dir, "report.md")
	old := filepath.Join(dir, chartPrefix+"of-an-earlier-run.svg")
	for _, file := range []string{report, old} {
		if err := os.WriteFile(file, []byte("# Warren bench\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := chartReport().WriteCharts(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("an earlier run's chart is still there: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, chartPrefix+"*.svg"))
	if err != nil || len(files) < 10 {
		t.Errorf("%d charts: %v", len(files), err)
	}
	for _, file := range files {
		if !strings.Contains(string(text), "]("+filepath.Base(file)+")") {
			t.Errorf("report.md does not list %s:\n%s", filepath.Base(file), text)
		}
	}
	if !strings.HasPrefix(string(text), "# Warren bench\n") {
		t.Errorf("report.md lost its beginning:\n%s", text)
	}
}

// largestBox is the height of the highest path that is filled with a colour.
func largestBox(t *testing.T, svg, fill string) float64 {
	t.Helper()
	var highest float64
	for _, m := range regexp.MustCompile(`<path d="([^"]*)"\s+style="fill:`+fill).FindAllStringSubmatch(svg, -1) {
		low, high := math.Inf(1), math.Inf(-1)
		for _, y := range regexp.MustCompile(`,([\d.]+)`).FindAllStringSubmatch(m[1], -1) {
			v, err := strconv.ParseFloat(y[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			low, high = min(low, v), max(high, v)
		}
		highest = max(highest, high-low)
	}
	if highest <= 0 {
		t.Fatalf("nothing is filled with %s in\n%s", fill, svg)
	}
	return highest
}
