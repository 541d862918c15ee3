package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

var errNotYet = errors.New("not yet")

// families are the address families that everything is tried with.
func families() []int { return []int{4, 6} }

// A cluster is a lab with nodes whose daemons do not run yet.
type cluster struct {
	t   *testing.T
	lab *lab.Lab
	ctx context.Context
}

// testWait bounds a test: no test here takes a minute, and a hang is to be told from slowness.
const testWait = 100 * time.Second

func newCluster(t *testing.T, o lab.Options) *cluster {
	t.Helper()
	o.Prefix = "e2e"
	return newClusterFor(t, o, testWait)
}

func newClusterFor(t *testing.T, o lab.Options, wait time.Duration) *cluster {
	t.Helper()
	lab.NeedRoot(t)
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	t.Cleanup(cancel)
	o.BinDir = binDir()
	return &cluster{t: t, lab: lab.ForTest(t, o), ctx: ctx}
}

// node adds a node to the lab; its daemon does not run, and its settings may still change.
func (c *cluster) node(name string) *lab.Node {
	c.t.Helper()
	n, err := c.lab.AddNode(name)
	c.ok(err)
	n.Settings.Workers = 2
	return n
}

// running makes nodes that run Warren with their default settings.
func (c *cluster) running(names ...string) []*lab.Node {
	c.t.Helper()
	nodes := make([]*lab.Node, len(names))
	for i, name := range names {
		nodes[i] = c.node(name)
	}
	c.configure()
	c.up(nodes...)
	return nodes
}

func (c *cluster) up(nodes ...*lab.Node) {
	c.t.Helper()
	for _, n := range nodes {
		c.ok(n.Up(c.ctx))
	}
}

func (c *cluster) pod(n *lab.Node, name string) *lab.Pod {
	c.t.Helper()
	return c.podWith(n, name, lab.PodOptions{})
}

func (c *cluster) podWith(n *lab.Node, name string, o lab.PodOptions) *lab.Pod {
	c.t.Helper()
	p, err := n.AddPod(c.ctx, name, o)
	c.ok(err)
	return p
}

func (c *cluster) ok(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// An edit changes a node's configuration before it is written.
type edit func(file map[string]any)

// configure writes the configuration files, each with the edits.
func (c *cluster) configure(edits ...edit) {
	c.t.Helper()
	c.ok(c.lab.WriteConfigs())
	for _, n := range c.lab.Nodes() {
		if len(edits) > 0 {
			c.edit(n, edits...)
		}
	}
}

// edit changes one node's configuration file, whole at a time, so that a running daemon never reads a part of it.
func (c *cluster) edit(n *lab.Node, edits ...edit) {
	c.t.Helper()
	content, err := os.ReadFile(n.ConfigFile)
	c.ok(err)
	var file map[string]any
	c.ok(yaml.Unmarshal(content, &file))
	for _, e := range edits {
		e(file)
	}
	content, err = yaml.Marshal(file)
	c.ok(err)
	c.ok(os.WriteFile(n.ConfigFile+".new", content, 0o644))
	c.ok(os.Rename(n.ConfigFile+".new", n.ConfigFile))
}

// set is the edit that gives a key of the file a value.
func set(key string, value any) edit { return func(file map[string]any) { file[key] = value } }

// setNode is the edit that gives a key of an entry of `nodes` a value.
func setNode(name, key string, value any) edit {
	return func(file map[string]any) {
		for _, entry := range file["nodes"].([]any) {
			if entry := entry.(map[string]any); entry["name"] == name {
				entry[key] = value
			}
		}
	}
}

// run runs a command in a namespace, which must succeed.
func (c *cluster) run(ns *lab.NS, args ...string) string {
	c.t.Helper()
	out, err := ns.Run(c.ctx, args...)
	c.ok(err)
	return out
}

// do runs several commands, a line each, in a namespace.
func (c *cluster) do(ns *lab.NS, lines ...string) {
	c.t.Helper()
	for _, line := range lines {
		c.run(ns, strings.Fields(line)...)
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

// drops counts the packets that a node dropped for a reason.
func (c *cluster) drops(n *lab.Node, reason string) int {
	c.t.Helper()
	for _, d := range c.askDrops(n) {
		if d.Reason == reason {
			return int(d.Count)
		}
	}
	c.t.Fatalf("`warren drops -a` does not know the reason %q", reason)
	return 0
}

// allDrops counts the packets that a node dropped for whatever reason.
func (c *cluster) allDrops(n *lab.Node) int {
	c.t.Helper()
	sum := 0
	for _, d := range c.askDrops(n) {
		sum += int(d.Count)
	}
	return sum
}

// askDrops asks the socket, as `warren drops` does: starting a program each time takes longer than the tests have.
func (c *cluster) askDrops(n *lab.Node) []api.Drop {
	c.t.Helper()
	drops, err := api.NewClient(filepath.Join(n.RunDir, "warren.sock")).Drops(c.ctx)
	c.ok(err)
	return drops
}

// eventually waits until f returns nil.
func (c *cluster) eventually(f func() error) {
	c.t.Helper()
	c.within(15*time.Second, f)
}

// within is eventually with a time of its own: WireGuard gives up a session that is not answered after 15 s, for one.
func (c *cluster) within(wait time.Duration, f func() error) {
	c.t.Helper()
	for deadline := time.Now().Add(wait); ; time.Sleep(30 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || c.ctx.Err() != nil {
			c.t.Fatal(err)
		}
	}
}

// ping wants every echo request answered, the second time at the latest: the requests leave all at once, and this once
// lost them on a machine that was busy with other tests. What they met then is logged.
func (c *cluster) ping(from *lab.NS, to netip.Addr, how lab.Ping) {
	c.t.Helper()
	_, err := from.Ping(c.ctx, to, how)
	if err == nil {
		return
	}
	c.t.Logf("%v\n%s", err, c.devices(from))
	if _, err := from.Ping(c.ctx, to, how); err != nil {
		c.t.Errorf("the second time as well: %v", err)
	}
}

// devices shows what a packet may have met: the counters, states and neighbours in the namespace and on the nodes.
func (c *cluster) devices(from *lab.NS) string {
	var b strings.Builder
	show := func(ns *lab.NS) {
		for _, line := range []string{"ip -s -s link", "ip neigh", "ip -6 neigh", "nft list ruleset"} {
			out, err := ns.Run(c.ctx, strings.Fields(line)...)
			fmt.Fprintf(&b, "== %s in %s (%v)\n%s\n", line, ns.Name, err, out)
		}
	}
	show(from)
	for _, n := range c.lab.Nodes() {
		show(n.NS)
		if n.Daemon() != nil {
			out, err := n.Warren(c.ctx, "drops")
			fmt.Fprintf(&b, "== drops of node %s (%v)\n%s\n", n.Name, err, out)
		}
	}
	return b.String()
}

// fullPing sends pings of exactly mtu bytes with DF set.
func (c *cluster) fullPing(from *lab.NS, to netip.Addr, mtu int) {
	c.t.Helper()
	c.ping(from, to, lab.Ping{Count: 2, Payload: lab.PayloadFor(mtu, to), DontFragment: true})
}

// transfer sends so many bytes over TCP and compares the hashes.
func (c *cluster) transfer(p lab.Path, bytes int64) lab.TransferResult {
	c.t.Helper()
	t, err := lab.StartTransfer(c.ctx, p, lab.TransferOptions{Bytes: bytes})
	if err != nil {
		c.t.Error(err)
		return lab.TransferResult{}
	}
	r, err := t.Wait()
	if err != nil {
		c.t.Errorf("%s to %s: %v", p.From.Name, p.Addr, err)
	}
	return r
}

// between is the path from one pod to another.
func between(from, to *lab.Pod, family int) lab.Path {
	return lab.Path{From: from.NS, To: to.NS, Addr: to.Address(family)}
}

// sources wants the far end of a path to see this source, by TCP and by UDP.
func (c *cluster) sources(p lab.Path, want netip.Addr) {
	c.t.Helper()
	for name, ask := range map[string]func(context.Context) (netip.Addr, error){
		"TCP": p.SourceSeen, "UDP": p.SourceSeenUDP,
	} {
		if seen, err := ask(c.ctx); err != nil || seen != want {
			c.t.Errorf("%s from %s to %s: seen as %s, want %s (%v)", name, p.From.Name, p.Addr, seen, want, err)
		}
	}
}

// deviceIndex begins a line about a device or its address.
var deviceIndex = regexp.MustCompile(`^\d+: `)

// state lists a namespace's kernel state, without what is not of interest: the devices' indices, and that a TUN
// device's operational state says UNKNOWN until its last queue was closed once.
func (c *cluster) state(ns *lab.NS) lab.KernelState {
	c.t.Helper()
	s, err := ns.State(c.ctx)
	c.ok(err)
	for _, kind := range []string{"device", "address"} {
		for i, line := range s[kind] {
			s[kind][i] = strings.Replace(deviceIndex.ReplaceAllString(line, ""), "state UNKNOWN", "state UP", 1)
		}
	}
	return s
}

// same wants the namespace to be as it was, maybe after a moment: IPv6 addresses and routes settle by themselves.
func (c *cluster) same(ns *lab.NS, before lab.KernelState) {
	c.t.Helper()
	var text string
	for range 20 {
		added, gone := c.state(ns).Since(before)
		if len(added)+len(gone) == 0 {
			return
		}
		text = fmt.Sprintf("added:\n  %s\ngone:\n  %s", strings.Join(added, "\n  "), strings.Join(gone, "\n  "))
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Errorf("namespace %s is not as before:\n%s", ns.Name, text)
}
