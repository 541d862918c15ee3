package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// careless is Warren with a plugin that leaves a route behind whenever it detached a pod.
type careless struct{ *warrenSystem }

func (careless) Name() string { return "careless" }

func (c careless) Up(ctx context.Context, b *Bed) (*Path, error) {
	p, err := c.warrenSystem.Up(ctx, b)
	if err != nil {
		return nil, err
	}
	script := filepath.Join(b.Lab.Dir, "plugin")
	text := fmt.Sprintf("#!/bin/sh\n%s || exit\n[ $CNI_COMMAND = ADD ] || ip route add 192.0.2.1/32 dev lo metric $$\n",
		p.Plugin.Binary)
	p.Plugin.Binary = script
	return p, os.WriteFile(script, []byte(text), 0o755)
}

// TestPlugins measures ADD and DEL, and holds that a plugin which leaves something behind has no figure.
func TestPlugins(t *testing.T) {
	c := smokeConfig(t)
	warren := c.Systems[0].(*warrenSystem)
	c.Systems = []System{warren, careless{warren}, vethSystem{}}
	c.Scenarios, c.Time = []string{"cni"}, 200*time.Millisecond
	report, err := Run(t.Context(), c)
	if err == nil || len(report.Failures) != 1 || !strings.HasPrefix(report.Failures[0], "careless, ") ||
		!strings.Contains(report.Failures[0], "after DEL there is still: 192.0.2.1") {
		t.Errorf("error %v, failures %q, want one, of careless", err, report.Failures)
	}
	for _, metric := range []string{metricCNI, metricAdd, metricDel} {
		if !slices.ContainsFunc(report.Rows, func(r Row) bool {
			return r.System == "warren-vxlan" && r.Scenario == "cni" && r.Metric == metric && r.Unit == "ms" && r.Median > 0
		}) {
			t.Errorf("no row for %s: %+v", metric, report.Rows)
		}
	}
	if len(report.Rows) != 3 {
		t.Errorf("%d rows, want 3 of Warren alone: %+v", len(report.Rows), report.Rows)
	}
	wantNothingLeft(t)
}

// TestPluginEnds waits for what a plugin left running.
func TestPluginEnds(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "sleeper")
	if out, err := exec.Command("cp", "/bin/sleep", program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Chdir(dir)
	p := &Plugin{Binary: "sleeper"}
	if took, err := p.ended(); err != nil {
		t.Errorf("of nothing it is %v, %v", took, err)
	}
	cmd := exec.Command(program, "0.3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	if running, err := runs(program); err != nil || !running {
		t.Errorf("the process is not seen (%v)", err)
	}
	took, err := p.ended()
	if err != nil || took <= 0 {
		t.Errorf("waiting: %v, %v", took, err)
	}
	if running, err := runs(program); err != nil || running {
		t.Errorf("after %v it is still there (%v)", took, err)
	}
	if err := <-gone; err != nil {
		t.Error(err)
	}
}
