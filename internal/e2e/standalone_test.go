package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/control/remember"
	"github.com/warren-net/warren/internal/lab"
)

// setUp runs `warren init` or `warren join` on a node, which writes its configuration and starts nothing.
func (c *cluster) setUp(n *lab.Node, args ...string) string {
	c.t.Helper()
	out, err := n.Warren(c.ctx, append(args, "--node", n.Name, "--state-dir", n.StateDir, "--run-dir", n.RunDir,
		"--no-start")...)
	c.ok(err)
	return out
}

// tokenIn finds the token in the command that was printed.
func (c *cluster) tokenIn(command string) string {
	c.t.Helper()
	for _, word := range strings.Fields(command) {
		if strings.HasPrefix(word, "warren1.") {
			return word
		}
	}
	c.t.Fatalf("no token in %q", command)
	return ""
}

// A listed is what a test reads of `warren nodes -o json`.
type listed struct {
	Name, State, Encapsulation string
	PodCIDRs                   []string
	LastHandshake              *time.Time
}

func (c *cluster) listed(n *lab.Node) map[string]listed {
	c.t.Helper()
	out, err := n.Warren(c.ctx, "nodes", "-o", "json")
	c.ok(err)
	var list []listed
	c.ok(json.Unmarshal([]byte(out), &list))
	got := map[string]listed{}
	for _, l := range list {
		got[l.Name] = l
	}
	return got
}

// ping waits until the pods reach each other by both families.
func (c *cluster) reach(from, to *lab.Pod) {
	c.t.Helper()
	for _, family := range families() {
		var err error
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if _, err = from.NS.Ping(c.ctx, to.Address(family), lab.Ping{Count: 1}); err == nil {
				break
			}
		}
		c.ok(err)
	}
}

// TestStandalone is the way of docs/standalone.md: two commands, and pods talk; without the etcd they go on.
func TestStandalone(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a, b, d := c.node("a"), c.node("b"), c.node("d")
	token := c.tokenIn(c.setUp(a, "init", "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48", "--token-uses", "2"))
	c.ok(a.Up(c.ctx))
	pods := map[string]*lab.Pod{}
	for _, n := range []*lab.Node{a, b, d} {
		if n != a {
			c.setUp(n, "join", a.V4.String(), "--token", token)
			c.ok(n.Up(c.ctx))
		}
		var err error
		pods[n.Name], err = n.AddPod(c.ctx, "1", lab.PodOptions{})
		c.ok(err)
	}
	c.reach(pods["a"], pods["b"])
	c.reach(pods["d"], pods["a"])
	c.reach(pods["b"], pods["d"])
	nodes := c.listed(a)
	for _, name := range []string{"a", "b", "d"} {
		l := nodes[name]
		if l.State != "alive" || l.Encapsulation != "wireguard" || len(l.PodCIDRs) != 2 ||
			(l.LastHandshake == nil) != (name == "a") {
			t.Errorf("%+v", l)
		}
	}

	// What a node knows it writes down some seconds after its start.
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		known, err := remember.Read(b.StateDir)
		if err == nil && known != nil && len(known.Nodes) == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%+v, %v", known, err)
		}
	}

	// The etcd dies with its host's daemon, and a node that starts meanwhile comes up all the same.
	c.ok(a.Kill())
	c.reach(pods["b"], pods["d"])
	c.ok(b.Kill())
	c.ok(b.Up(c.ctx))
	c.reach(pods["b"], pods["d"])
	if _, err := b.Warren(c.ctx, "nodes"); err == nil || !strings.Contains(err.Error(), "etcd does not answer") {
		t.Errorf("%v", err)
	}
	c.ok(a.Up(c.ctx))
	c.reach(pods["a"], pods["b"])

	// Nobody leaves with pods; then a node leaves, and its name and CIDRs are free.
	if _, err := d.Warren(c.ctx, "leave"); err == nil || !strings.Contains(err.Error(), "1 pod is attached") {
		t.Errorf("%v", err)
	}
	c.ok(pods["d"].Delete(c.ctx, lab.PodOptions{}))
	if _, err := d.Warren(c.ctx, "leave"); err == nil || !strings.Contains(err.Error(), "stop `warren up` first") {
		t.Errorf("%v", err)
	}
	c.ok(d.Down(c.ctx))
	_, err := d.Warren(c.ctx, "leave")
	c.ok(err)
	if nodes := c.listed(a); len(nodes) != 2 {
		t.Errorf("%+v", nodes)
	}
	out, err := a.Warren(c.ctx, "token", "new")
	c.ok(err)
	c.setUp(d, "join", a.V4.String(), "--token", c.tokenIn(out))
}
