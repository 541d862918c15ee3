package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// network makes a network of nodes by `warren init` on the first and `warren join` on the others, and runs them.
func (c *cluster) network(names ...string) []*lab.Node {
	c.t.Helper()
	nodes := make([]*lab.Node, len(names))
	for i, name := range names {
		nodes[i] = c.node(name)
		nodes[i].Settings.OnExit = "leave"
		if i == 0 {
			c.ok(nodes[i].Init(c.ctx))
		} else {
			c.ok(nodes[i].Join(c.ctx, nodes[0]))
		}
		c.ok(nodes[i].Up(c.ctx))
	}
	return nodes
}

func (c *cluster) statusOf(n *lab.Node) api.Status {
	c.t.Helper()
	return ask[api.Status](c, n, "status")
}

// contactWait is how long a node may take to say that it has lost the etcd, or has it again: it looks every 20 seconds,
// waits for an answer, and tries again after up to 15.
const contactWait = 75 * time.Second

// TestNetworkWithoutItsEtcd: the only member of the etcd dies while pods of the other nodes talk; one of these starts
// anew without it, from what it knew; and when it comes back all is as before.
func TestNetworkWithoutItsEtcd(t *testing.T) {
	c := newClusterFor(t, lab.Options{Prefix: "e2e"}, 4*time.Minute)
	nodes := c.network("a", "b", "c")
	a, b, d := nodes[0], nodes[1], nodes[2]
	pa, pb, pc := c.pod(a, "a1"), c.pod(b, "b1"), c.pod(d, "c1")
	for _, family := range families() {
		c.ping(pa.NS, pb.Address(family), lab.Ping{})
		c.ping(pb.NS, pc.Address(family), lab.Ping{})
	}
	var listed []struct {
		Name, State      string
		Self             bool
		RoundTripSeconds float64
	}
	out, err := a.Warren(c.ctx, "nodes", "-o", "json")
	c.ok(err)
	c.ok(json.Unmarshal([]byte(out), &listed))
	for _, l := range listed {
		if l.State != "alive" || (l.RoundTripSeconds > 0) == l.Self {
			t.Errorf("%+v", l)
		}
	}
	if len(listed) != 3 {
		t.Errorf("%s", out)
	}
	transfer, err := lab.StartTransfer(c.ctx, lab.Path{From: pb.NS, To: pc.NS, Addr: pc.V4},
		lab.TransferOptions{BytesPerSecond: 8 << 20})
	c.ok(err)
	before := b.PodCIDRs

	c.ok(a.Kill())
	c.ping(pb.NS, pc.V4, lab.Ping{})
	c.within(contactWait, func() error {
		if s := c.statusOf(b); s.Control.Source != "etcd" || s.Control.Problem == "" || s.Snapshot.Peers != 2 {
			return fmt.Errorf("%w: %+v, %d peers", errNotYet, s.Control, s.Snapshot.Peers)
		}
		return nil
	})
	c.ok(b.Kill())
	c.ok(b.Up(c.ctx)) // from what it knew
	c.ping(pb.NS, pc.V4, lab.Ping{})
	c.ping(pc.NS, pb.V6, lab.Ping{})
	if !slices.Equal(b.PodCIDRs, before) {
		t.Errorf("pod CIDRs %v, before %v", b.PodCIDRs, before)
	}

	c.ok(a.Up(c.ctx))
	c.ping(pa.NS, pb.V4, lab.Ping{})
	c.ping(pc.NS, pa.V6, lab.Ping{})
	c.within(contactWait, func() error {
		if s := c.statusOf(b); s.Control.Problem != "" || len(s.Warnings) > 0 {
			return fmt.Errorf("%w: %+v, %q", errNotYet, s.Control, s.Warnings)
		}
		return nil
	})
	transfer.Finish()
	if r, err := transfer.Wait(); err != nil || r.Bytes == 0 {
		t.Errorf("a transfer between nodes that both lost the etcd: %d bytes, %v", r.Bytes, err)
	}
}

// TestKeyRotationInANetwork: the others hear of a node's new key from the network.
func TestKeyRotationInANetwork(t *testing.T) {
	c := newCluster(t, lab.Options{})
	nodes := c.network("a", "b")
	a, b := nodes[0], nodes[1]
	pa, pb := c.pod(a, "a1"), c.pod(b, "b1")
	c.ping(pa.NS, pb.V4, lab.Ping{})
	old := c.statusOf(b).Tunnel.PublicKeys[0]
	if _, err := b.Warren(c.ctx, "key", "rotate"); err != nil {
		t.Fatal(err)
	}
	c.eventually(func() error {
		for _, p := range ask[[]api.Peer](c, a, "peers") {
			if p.Name == "b" && p.PublicKey != old && p.PublicKey == c.statusOf(b).Tunnel.PublicKeys[0] {
				return nil
			}
		}
		return errNotYet
	})
	if _, err := b.Warren(c.ctx, "key", "rotate", "--finish"); err != nil {
		t.Error(err)
	}
	c.eventually(func() error {
		if n := len(c.statusOf(b).Tunnel.PublicKeys); n != 1 {
			return fmt.Errorf("%w: %d keys", errNotYet, n)
		}
		return nil
	})
	c.ping(pa.NS, pb.V4, lab.Ping{})
	c.ping(pb.NS, pa.V6, lab.Ping{})
}

// TestMemberLeaves: a host that was refused has nothing of the network; one that becomes a member leaves with one
// command, which stops its daemon, and nothing of the network is left on it either.
func TestMemberLeaves(t *testing.T) {
	c := newCluster(t, lab.Options{})
	nodes := c.network("a", "b")
	a, b, refused := nodes[0], nodes[1], c.node("c")
	token := func(flags ...string) string {
		t.Helper()
		out, err := a.Warren(c.ctx, append([]string{"token", "new"}, flags...)...)
		c.ok(err)
		words := strings.Fields(out)
		return words[slices.Index(words, "--token")+1]
	}
	_, err := refused.Warren(c.ctx, "join", a.V4.String(), "--token", token(), "--no-start", "--node", "a", "--state-dir",
		filepath.Join(refused.StateDir, "new"), "--address", refused.V4.String())
	if err == nil || !strings.Contains(err.Error(), "the name is taken") {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(refused.StateDir); err != nil || len(left) > 0 {
		t.Errorf("a host that was refused has %v, %v", left, err)
	}

	if _, err := b.Warren(c.ctx, "control", "promote", "--token", token("--member")); err != nil {
		t.Fatal(err)
	}
	c.ok(b.Down(c.ctx))
	c.ok(b.Up(c.ctx))
	members := func() string {
		t.Helper()
		out, err := a.Warren(c.ctx, "control", "members")
		if err != nil {
			return ""
		}
		return out
	}
	c.eventually(func() error {
		if out := members(); strings.Count(out, "voting")+strings.Count(out, "leader") != 2 {
			return fmt.Errorf("%w: %s", errNotYet, out)
		}
		return nil
	})
	pid := b.Daemon().Pid()
	if _, err := b.Warren(c.ctx, "leave"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-b.Daemon().Done():
	case <-time.After(time.Second):
		t.Errorf("the daemon, process %d, is there still", pid)
	}
	if out := members(); strings.Count(out, "\n") != 2 {
		t.Errorf("members:\n%s", out)
	}
	out, err := a.Warren(c.ctx, "nodes", "-o", "json")
	c.ok(err)
	var listed []any
	if err := json.Unmarshal([]byte(out), &listed); err != nil || len(listed) != 1 {
		t.Errorf("%s, %v", out, err)
	}
	out, err = b.NS.Run(c.ctx, "ip", "route", "show", "table", "all")
	c.ok(err)
	if strings.Contains(out, "10.244.") || strings.Contains(out, "warren") {
		t.Errorf("left:\n%s", out)
	}
}

// TestLeaveIsWhole: a host that cannot tell the network that it leaves goes on as it was, and one that took another's
// name and never ran gives that name back.
func TestLeaveIsWhole(t *testing.T) {
	c := newCluster(t, lab.Options{})
	nodes := c.network("a", "b", "d")
	a, b, d, next := nodes[0], nodes[1], nodes[2], c.node("c")
	c.ok(b.Down(c.ctx))

	join := func(flags ...string) error {
		t.Helper()
		out, err := a.Warren(c.ctx, append([]string{"token", "new"}, flags...)...)
		if err != nil {
			return err
		}
		args := append(strings.Fields(out)[1:], "--no-start", "--node", "b", "--state-dir", next.StateDir, "--run-dir",
			next.RunDir, "--address", next.V4.String())
		_, err = next.Warren(c.ctx, args...)
		return err
	}
	c.ok(os.RemoveAll(next.ConfigFile))
	c.ok(join("--replace"))
	_, err := next.Warren(c.ctx, "leave")
	c.ok(err)
	out, err := a.Warren(c.ctx, "nodes", "-o", "json")
	c.ok(err)
	if strings.Contains(out, `"b"`) {
		t.Errorf("%s", out)
	}
	if err := join(); err != nil {
		t.Errorf("the name is not free: %v", err)
	}

	c.ok(a.Down(c.ctx))
	_, err = d.Warren(c.ctx, "leave")
	if err == nil || !strings.Contains(err.Error(), "--force takes this host out") {
		t.Errorf("without the etcd: %v", err)
	}
	select {
	case <-d.Daemon().Done():
		t.Error("the daemon was stopped")
	default:
	}
}

// TestMemberDies: the process of a node's member of the etcd dies, as of a disk that is full. The node's daemon says so
// and starts it again, and its pods notice nothing.
func TestMemberDies(t *testing.T) {
	c := newCluster(t, lab.Options{})
	nodes := c.network("a", "b")
	a, b := nodes[0], nodes[1]
	pa, pb := c.pod(a, "a1"), c.pod(b, "b1")
	c.ping(pa.NS, pb.V4, lab.Ping{})
	transfer, err := lab.StartTransfer(c.ctx, lab.Path{From: pa.NS, To: pb.NS, Addr: pb.V4},
		lab.TransferOptions{BytesPerSecond: 8 << 20})
	c.ok(err)
	before := c.statusOf(a)
	member := children(t, before.PID)
	if len(member) != 1 {
		t.Fatalf("the daemon has the processes %v, want a member's", member)
	}
	c.ok(syscall.Kill(member[0], syscall.SIGKILL))
	c.eventually(func() error {
		if s := c.statusOf(a); !strings.Contains(strings.Join(s.Warnings, "\n"), "member of the etcd does not run") {
			return fmt.Errorf("%w: warnings %q", errNotYet, s.Warnings)
		}
		return nil
	})
	c.within(contactWait, func() error {
		s := c.statusOf(a)
		if len(s.Warnings) > 0 || s.PID != before.PID || s.Started != before.Started {
			return fmt.Errorf("%w: process %d since %s, was %d since %s, warnings %q", errNotYet, s.PID, s.Started,
				before.PID, before.Started, s.Warnings)
		}
		return nil
	})
	again := children(t, before.PID)
	if len(again) != 1 || again[0] == member[0] {
		t.Errorf("the daemon has the processes %v, had %v", again, member)
	}
	transfer.Finish()
	if r, err := transfer.Wait(); err != nil || r.Bytes == 0 {
		t.Errorf("a transfer from a node whose member died: %d bytes, %v", r.Bytes, err)
	}

	// It ends with the daemon.
	c.ok(a.Kill())
	c.eventually(func() error {
		if err := syscall.Kill(again[0], 0); err == nil {
			return fmt.Errorf("%w: process %d", errNotYet, again[0])
		}
		return nil
	})
}

// children are the processes that a process has started.
func children(t *testing.T, pid int) []int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, path := range tasks {
		data, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // a thread that has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range strings.Fields(string(data)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, child)
		}
	}
	return out
}

// TestNodeInWrongHands: a node that runs is taken out by a member, which ends its traffic and what it may; with a token
// the host is the node of that name again.
func TestNodeInWrongHands(t *testing.T) {
	c := newClusterFor(t, lab.Options{Prefix: "e2e"}, 4*time.Minute)
	nodes := c.network("a", "b", "c")
	a, b, d := nodes[0], nodes[1], nodes[2]
	pb, pc := c.pod(b, "b1"), c.pod(d, "c1")
	c.ping(pb.NS, pc.V4, lab.Ping{})
	if out, err := a.Warren(c.ctx, "leave", "--node", "b"); err == nil || !strings.Contains(err.Error()+out, "--force") {
		t.Errorf("a node that runs: %s, %v", out, err)
	}
	c.ping(pb.NS, pc.V6, lab.Ping{})
	if _, err := a.Warren(c.ctx, "leave", "--node", "b", "--force"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*lab.Node{a, d} {
		c.eventually(func() error {
			if peers := ask[[]api.Peer](c, n, "peers"); len(peers) != 1 {
				return fmt.Errorf("%w: %+v", errNotYet, peers)
			}
			return nil
		})
	}
	c.within(contactWait, func() error {
		if s := c.statusOf(b); !strings.Contains(s.Control.Problem, "refuses this host") {
			return fmt.Errorf("%w: %+v", errNotYet, s.Control)
		}
		return nil
	})
	c.ok(pb.Delete(c.ctx, lab.PodOptions{}))
	if _, err := b.Warren(c.ctx, "leave"); err == nil || !strings.Contains(err.Error(), "taken out of") {
		t.Errorf("%v", err)
	}
	if _, err := b.Warren(c.ctx, "leave", "--force"); err != nil { // as the guide has it
		t.Error(err)
	}
	c.ok(b.Join(c.ctx, a))
	c.ok(b.Up(c.ctx))
	c.ping(c.pod(b, "b2").NS, pc.V4, lab.Ping{})
}
