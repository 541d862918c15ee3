package bench

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
)

func sampleResults() *results {
	r := newResults()
	for round, v := range []struct{ warren, veth float64 }{{2, 8}, {9, 10}, {3, 6}} {
		r.add(series{"veth", WireOffload, "tcp-1", metricRate}, round, v.veth)
		r.add(series{"warren-vxlan", WireOffload, "tcp-1", metricRate}, round, v.warren)
	}
	// What must not be related to each other: another wire, and a round that the other system lacks.
	r.add(series{"veth", WireSegmented, "tcp-1", metricRate}, 0, 1)
	r.add(series{"warren-vxlan", WireSegmented, "tcp-1", metricRate}, 1, 1)
	return r
}

func TestRatiosAreFormedRoundByRound(t *testing.T) {
	got := sampleResults().ratios()
	want := []Ratio{{"warren-vxlan", "veth", WireOffload, "tcp-1", metricRate, Summary{0.5, 0.25, 0.9}}}
	if !slices.Equal(got, want) {
		t.Errorf("ratios %v, want %v", got, want)
	}
}

func TestRows(t *testing.T) {
	rows := sampleResults().rows()
	want := Row{"veth", WireOffload, "tcp-1", metricRate, "Gbit/s", Summary{8, 6, 10}, 3}
	if len(rows) != 4 || rows[0] != want {
		t.Errorf("rows %v, want 4 of them beginning with %v", rows, want)
	}
}

// TestSendersLimits holds that a figure which is the generator's says so, with the rounds, and that no row looks other.
func TestSendersLimits(t *testing.T) {
	r := sampleResults()
	if notes := r.sendersLimits(); len(notes) > 0 {
		t.Errorf("notes %q, want none", notes)
	}
	rows := r.rows()
	r.limited[series{"warren-vxlan", WireOffload, "tcp-1", metricRate}] = 2
	want := []string{"tcp-1, warren-vxlan, offload: the sender's limit, not the system's: 2 of 3 rounds"}
	if notes := r.sendersLimits(); !slices.Equal(notes, want) || !slices.Equal(r.rows(), rows) {
		t.Errorf("notes %q, want %q; rows %+v", notes, want, r.rows())
	}
}

// TestReportForm holds the keys of report.json, which other programs read.
func TestReportForm(t *testing.T) {
	r := sampleResults()
	text, err := (&Report{Rows: r.rows(), Ratios: r.ratios(), Failures: []string{}}).JSON()
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Rows   []map[string]any `json:"rows"`
		Ratios []map[string]any `json:"ratios"`
	}
	if err := json.Unmarshal(text, &report); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		got  map[string]any
		want string
	}{
		"rows":   {report.Rows[0], "max median metric min rounds scenario system unit wire"},
		"ratios": {report.Ratios[0], "max median metric min over scenario system wire"},
	} {
		if keys := strings.Join(slices.Sorted(maps.Keys(c.got)), " "); keys != c.want {
			t.Errorf("keys of %s: %s, want %s", name, keys, c.want)
		}
	}
	empty, err := (&Report{Rows: newResults().rows(), Ratios: newResults().ratios()}).JSON()
	if err != nil || !strings.Contains(string(empty), `"rows": []`) || !strings.Contains(string(empty), `"ratios": []`) {
		t.Errorf("a report of nothing has no empty lists: %s, %v", empty, err)
	}
}

func TestTableAndMarkdown(t *testing.T) {
	r := sampleResults()
	report := &Report{Rows: r.rows(), Ratios: r.ratios(), Failures: []string{"veth: two\nlines"}}
	var table strings.Builder
	if err := report.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table.String(), "FAIL veth: two") {
		t.Errorf("the table hides a failure:\n%s", &table)
	}
	markdown := string(report.Markdown())
	for _, want := range []string{
		"| offload | tcp-1 | gbit_per_s | veth | 8 | 6 | 10 | Gbit/s | 3 |",
		"| offload | tcp-1 | gbit_per_s | warren-vxlan | veth | 0.5 | 0.25 | 0.9 |",
		"- veth: two lines",
	} {
		if !strings.Contains(markdown, want) {
			t.Errorf("report.md lacks %q:\n%s", want, markdown)
		}
	}
}
