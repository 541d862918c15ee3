package etcd_test

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd"
)

// A crowd is many nodes, each with a source of its own.
type crowd struct {
	t     *testing.T
	c     *cluster
	nodes []*counted
}

// A counted node counts what it is sent.
type counted struct {
	d       *daemon
	entries atomic.Int64 // nodes in updates
	wholes  atomic.Int64
	knows   atomic.Int64
}

func (w *crowd) add(n int) {
	w.t.Helper()
	for range n {
		i := len(w.nodes)
		cfg := w.c.config(fmt.Sprintf("n%03d", i), w.t.TempDir())
		// Long enough for no sign of life to be due while the test counts.
		cfg.AliveTTL, cfg.Retry, cfg.MaxRetry, cfg.Timeout = 30*time.Minute, 500*time.Millisecond, 10*time.Second, time.Minute
		node := &counted{d: w.c.startQuiet(cfg)}
		node.d.source.Publish(address(i))
		w.nodes = append(w.nodes, node)
		go func() {
			known := map[string]bool{}
			for u := range node.d.updates {
				if u.Whole {
					node.wholes.Add(1)
					clear(known)
				}
				for _, n := range u.Nodes {
					known[n.Name] = n.Broken == "" && len(n.PodCIDRs) == 1
				}
				for _, name := range u.Gone {
					delete(known, name)
				}
				node.entries.Add(int64(len(u.Nodes) + len(u.Gone)))
				node.knows.Store(int64(len(known)))
			}
		}()
	}
}

func address(i int) control.Node {
	return control.Node{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})},
		Port: uint16(1 + i/256)}
}

// all waits until every node satisfies ok.
func (w *crowd) all(what string, ok func(*counted) bool) {
	w.t.Helper()
	for end := time.Now().Add(4 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		missing := 0
		for _, n := range w.nodes {
			if !ok(n) {
				missing++
			}
		}
		if missing == 0 {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s: missing at %d of %d nodes; first problem %v", what, missing, len(w.nodes),
				w.nodes[0].d.lastProblem())
		}
	}
}

// revision counts all writes to the etcd.
func (w *crowd) revision() int64 {
	w.t.Helper()
	resp, err := w.c.client().Etcd().Get(w.t.Context(), "/")
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.Header.Revision
}

// TestScale runs two hundred real sources against a real etcd. What is asserted is how much is asked, written and told.
func TestScale(t *testing.T) {
	const nodes, changes = 200, 100
	w := &crowd{t: t, c: newCluster(t, etcd.Settings{Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})}
	before := w.revision()
	w.add(nodes)
	w.all("everybody", func(n *counted) bool { return n.knows.Load() == nodes })
	w.settle()

	// A node that joins writes twice: record and CIDR in one step, and that it is alive. Where the machine has so much to
	// do that the etcd gives a question up, the latter may be written once more.
	const again = nodes / 5
	if wrote := w.revision() - before; wrote > 2*nodes+again {
		t.Errorf("%d writes for %d nodes", wrote, nodes)
	}
	// It asks a fixed number of times, however many others there are: list, settings, lease, look, what is taken, write
	// (some lose a CIDR to each other and ask twice more), lease and key of its liveness, and one look more as its own
	// record changed.
	asked := 0
	for _, n := range w.c.server.Requests() {
		asked += n
	}
	if asked > 20*nodes {
		t.Errorf("%d requests for %d nodes", asked, nodes)
	}
	for _, n := range w.nodes {
		if n.wholes.Load() != 1 {
			t.Errorf("%s: %d whole updates", n.d.name, n.wholes.Load())
		}
		if n.entries.Load() > 2*nodes {
			t.Errorf("%s: was told %d times of %d nodes", n.d.name, n.entries.Load(), nodes)
		}
	}

	// Churn: each change is one write, and told to each node once.
	told := make([]int64, nodes)
	for i, n := range w.nodes {
		told[i] = n.entries.Load()
	}
	before = w.revision()
	w.c.server.Requests()
	for i := range changes {
		moved := address(i)
		moved.WireGuardPort = 4242
		w.nodes[i].d.source.Publish(moved)
	}
	for i := range w.nodes { // says the same again
		if i >= changes {
			w.nodes[i].d.source.Publish(address(i))
		}
	}
	w.all("the changes", func(n *counted) bool {
		i := 0
		for w.nodes[i] != n {
			i++
		}
		return n.entries.Load() == told[i]+changes
	})
	w.settle()
	if wrote := w.revision() - before; wrote < changes || wrote > changes+again {
		t.Errorf("%d writes for %d changes", wrote, changes)
	}
	for i, n := range w.nodes {
		if got := n.entries.Load() - told[i]; got != changes {
			t.Errorf("%s: was told of %d changes, and %d were there", n.d.name, got, changes)
		}
	}
	asked = 0
	for _, n := range w.c.server.Requests() {
		asked += n
	}
	// Each of them looks, half of them write, and look once more as their record changed.
	if asked > 6*nodes {
		t.Errorf("%d requests for %d changes and %d calls that change nothing", asked, changes, nodes-changes)
	}
}

// settle waits until nothing is asked any more.
func (w *crowd) settle() {
	w.t.Helper()
	for end, last := time.Now().Add(time.Minute), -1; ; time.Sleep(3 * time.Second) { // longer than the gap between writes
		now := w.c.server.Asked()
		if now == last {
			return
		}
		if last = now; time.Now().After(end) {
			w.t.Fatal("the nodes do not come to rest")
		}
	}
}
