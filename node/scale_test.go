package node

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/tunnel/wireguard"
)

const bigConfig = `node: a
cluster: [10.244.0.0/16, "fd00:10:244::/48"]
nodes:
  - name: a
    addresses: [192.0.2.1, "2001:db8::1"]
    podCIDRs: [10.244.255.0/24, "fd00:10:244:ffff::/64"]
    publicKey: KEY-a
`

// A bigCluster is a node among many, from what its control plane says to what its workers and its tunnel go by, without
// a kernel or a socket.
type bigCluster struct {
	tb     testing.TB
	writer *writer
	drawn  uint64 // keys
}

func newBigCluster(tb testing.TB, peers int) *bigCluster {
	tb.Helper()
	c := emptyCluster(tb)
	c.take(control.Update{Whole: true, Nodes: c.nodes(peers)})
	return c
}

func emptyCluster(tb testing.TB) *bigCluster {
	tb.Helper()
	text, keys := withKeys(bigConfig)
	p := newPlan(tb, text)
	p.cfg.Control, p.cfg.State.Nodes, p.cfg.StateDir = config.Etcd, nil, tb.TempDir()
	log := slog.New(slog.DiscardHandler)
	n := newNode(p.cfg, nil, Options{Log: log})
	n.secure = secure{tunnel: wireguard.New(wireguard.Config{Workers: 2}), ring: key.Ring{Keys: []key.Private{keys["a"]}}}
	p.secure, p.grace = &n.secure, map[string]time.Time{}
	n.feed = newFeed(p.cfg, nil, log)
	w := &writer{node: n, log: log, plan: *p}
	if err := w.publish(nil); err != nil {
		tb.Fatal(err)
	}
	return &bigCluster{tb: tb, writer: w}
}

// node is number i of the cluster, with another key each time.
func (c *bigCluster) node(i int) control.Node {
	c.drawn++
	n := control.Node{Name: fmt.Sprintf("node-%05d", i)}
	binary.BigEndian.PutUint64(n.PublicKey[:], c.drawn)
	address := [16]byte{0x20, 0x01, 0x0d, 0xb8, 4: 1}
	binary.BigEndian.PutUint32(address[12:], uint32(i))
	v4 := [4]byte{10, 244}
	binary.BigEndian.PutUint16(v4[2:], uint16(i*8))
	v6 := [16]byte{0xfd, 0x00, 0x00, 0x10, 0x02, 0x44}
	binary.BigEndian.PutUint16(v6[6:], uint16(i))
	n.Addresses = []netip.Addr{netip.AddrFrom16(address)}
	n.PodCIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(v4), 29), netip.PrefixFrom(netip.AddrFrom16(v6), 64)}
	return n
}

func (c *bigCluster) nodes(count int) []control.Node {
	out := make([]control.Node, count)
	for i := range out {
		out[i] = c.node(i)
	}
	return out
}

// take takes an update all the way, but for the kernel's part (hostnet.Nodes has a test of its own).
func (c *bigCluster) take(u control.Update) {
	c.tb.Helper()
	c.writer.node.feed.take(u)
	f := c.writer.node.feed.fetch()
	if len(f.warnings) > 0 || len(f.set)+len(f.gone) != len(u.Nodes)+len(u.Gone) {
		c.tb.Fatalf("%d of %d changes, %v", len(f.set)+len(f.gone), len(u.Nodes)+len(u.Gone), f.warnings)
	}
	c.writer.eatNodes(f.set, f.gone)
	if said := c.writer.node.view.Load().warnings; len(said) > 0 {
		c.tb.Fatal(strings.Join(said, "\n"))
	}
}

// rotate has a node get another key.
func (c *bigCluster) rotate(i int) { c.take(control.Update{Nodes: []control.Node{c.node(i)}}) }

// comeAndGo has a node join that was not there, and leave.
func (c *bigCluster) comeAndGo(i int) {
	c.take(control.Update{Nodes: []control.Node{c.node(i)}})
	c.take(control.Update{Gone: []string{fmt.Sprintf("node-%05d", i)}})
}

// Two sizes of a cluster, which are compared.
const (
	someNodes = 500
	manyNodes = 5000
)

// TestOneOfManyChanges: what is about one peer leaves the others as they are, each in the plan, in the forwarding table
// and in the tunnel.
func TestOneOfManyChanges(t *testing.T) {
	c := newBigCluster(t, manyNodes)
	w := c.writer
	type seenPeer struct {
		planned *planned
		peer    *forwarder.Peer
		tunnel  *wireguard.Peer
		public  key.Public
	}
	look := func() map[string]seenPeer {
		out := map[string]seenPeer{}
		for name, m := range w.plan.peers {
			s, _ := w.node.secure.tunnel.Status(m.tunnel.ID)
			out[name] = seenPeer{m, nil, w.node.secure.tunnel.Peer(m.tunnel.ID), s.Public}
		}
		for p := range w.node.table.Load().Peers() {
			s := out[p.Name]
			s.peer = p
			out[p.Name] = s
		}
		return out
	}
	before := look()
	if len(before) != manyNodes {
		t.Fatalf("%d peers", len(before))
	}
	const number = 1234
	changed := c.node(number)
	c.take(control.Update{Nodes: []control.Node{changed}})
	after := look()
	for name, was := range before {
		is := after[name]
		if name != changed.Name {
			if is != was {
				t.Errorf("%s is another one than before", name)
			}
			continue
		}
		if is.planned == was.planned || is.peer == was.peer || is.tunnel != was.tunnel || is.public != changed.PublicKey {
			t.Errorf("%s: %+v, before %+v", name, is, was)
		}
	}
	c.take(control.Update{Gone: []string{changed.Name}})
	delete(after, changed.Name)
	if last := look(); len(last) != len(after) {
		t.Errorf("%d peers", len(last))
	}
}

// TestManyWarnings: what people are told of many peers at once is what is logged of each, once, and its end too.
func TestManyWarnings(t *testing.T) {
	c := newBigCluster(t, 3)
	var log strings.Builder
	c.writer.log = slog.New(slog.NewTextHandler(&log, nil))
	say := func(list ...string) string {
		log.Reset()
		c.writer.feedSaid = list
		c.writer.showAgain()
		return log.String()
	}
	var many []string
	for i := range manyNodes {
		many = append(many, fmt.Sprint("warning of ", i))
	}
	if n := strings.Count(say(many...), "level=WARN"); n != manyNodes {
		t.Errorf("%d warnings of %d", n, manyNodes)
	}
	if said := say(many...); said != "" {
		t.Errorf("what was said already: %.200s", said)
	}
	if said := say(slices.Concat(many[:7], many[8:], []string{"new"})...); strings.Count(said, "\n") != 2 ||
		!strings.Contains(said, "warning of 7") || !strings.Contains(said, "text=new") {
		t.Errorf("one is gone, and one is new: %.300s", said)
	}
	if n := strings.Count(say(), "no longer holds"); n != manyNodes {
		t.Errorf("the end of %d warnings of %d", n, manyNodes)
	}
}
