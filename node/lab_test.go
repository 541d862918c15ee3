package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

var errNotYet = errors.New("not yet")

// binDir is where the tests of this process put the programs.
func binDir() string { return filepath.Join(os.TempDir(), fmt.Sprintf("wrn-node-bin-%d", os.Getpid())) }

// build builds the programs once, with the race detector when the tests have it.
var build = sync.OnceValue(func() error {
	// Readable for everybody: a test runs the program as another user.
	if err := os.Mkdir(binDir(), 0o755); err != nil {
		return err
	}
	args := []string{"build", "-buildvcs=false", "-o", binDir() + "/"}
	if raceEnabled {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "../cmd/...")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
})

func TestMain(m *testing.M) {
	// Programs with the race detector wait a second at their end, each question to a node as well.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=20 "+os.Getenv("GORACE")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(binDir()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// A cluster is a lab with some nodes whose daemons do not run yet.
type cluster struct {
	t     *testing.T
	lab   *lab.Lab
	nodes []*lab.Node
	ctx   context.Context
}

func newCluster(t *testing.T, names ...string) *cluster {
	t.Helper()
	lab.NeedRoot(t)
	if err := build(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	c := &cluster{t: t, lab: lab.ForTest(t, lab.Options{Prefix: "node", BinDir: binDir()}), ctx: ctx}
	for _, name := range names {
		n, err := c.lab.AddNode(name)
		if err != nil {
			t.Fatal(err)
		}
		n.Settings.Workers = 2
		c.nodes = append(c.nodes, n)
	}
	c.write()
	// Nothing is to change by itself while a test compares.
	for _, n := range c.nodes {
		c.eventually(func() error {
			out, err := n.NS.Run(ctx, "ip", "-6", "addr", "show", "tentative")
			if err == nil && strings.TrimSpace(out) != "" {
				return fmt.Errorf("%w: %s", errNotYet, out)
			}
			return err
		})
	}
	return c
}

func (c *cluster) ok(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) write() {
	c.t.Helper()
	c.ok(c.lab.WriteConfigs())
}

// state lists the kernel's state. A TUN device's operational state says UNKNOWN until its last queue was closed once,
// and the TAP device, which goes with its process, has another index each time: both is not of interest.
func (c *cluster) state(n *lab.Node) lab.KernelState {
	c.t.Helper()
	s, err := n.NS.State(c.ctx)
	c.ok(err)
	for i, line := range s["device"] {
		line = strings.Replace(line, "state UNKNOWN", "state UP", 1)
		if _, rest, ok := strings.Cut(line, ": "); ok && strings.HasPrefix(rest, "warren0-gso:") {
			line = rest
		}
		s["device"][i] = line
	}
	return s
}

// same checks that the namespace is as it was.
func (c *cluster) same(n *lab.Node, before lab.KernelState) {
	c.t.Helper()
	added, gone := c.state(n).Since(before)
	if len(added)+len(gone) > 0 {
		c.t.Errorf("node %s is not as before:\nadded:\n  %s\ngone:\n  %s", n.Name, strings.Join(added, "\n  "),
			strings.Join(gone, "\n  "))
	}
}

func ask[T any](c *cluster, n *lab.Node, what ...string) T {
	c.t.Helper()
	out, err := n.Warren(c.ctx, append(what, "-o", "json")...)
	c.ok(err)
	var v T
	c.ok(json.Unmarshal([]byte(out), &v))
	return v
}

// eventually waits until f returns nil.
func (c *cluster) eventually(f func() error) {
	c.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// ping pings b's gateways from a's.
func (c *cluster) ping(a, b *lab.Node) {
	c.t.Helper()
	for i, cidr := range a.PodCIDRs {
		from, to := cidr.Addr().Next(), b.PodCIDRs[i].Addr().Next()
		c.eventually(func() error {
			_, err := a.NS.Run(c.ctx, "ping", "-c1", "-W1", "-I", from.String(), to.String())
			return err
		})
	}
}

// refused starts a daemon that is expected to end by itself, and returns what it said.
func (c *cluster) refused(n *lab.Node, wants ...string) {
	c.t.Helper()
	_, err := n.NS.Run(c.ctx, filepath.Join(c.lab.Options.BinDir, "warren"), "up", "--config", n.ConfigFile)
	if err == nil {
		c.t.Fatal("the daemon started and ended without an error")
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			c.t.Errorf("got  %v\nwant %q in it", err, want)
		}
	}
}

func (c *cluster) status(n *lab.Node) api.Status {
	c.t.Helper()
	return ask[api.Status](c, n, "status")
}
