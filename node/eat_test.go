package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/node/config"
)

// placeless is a node that the ledger lets through, and for which the forwarding table has no place: its pod CIDR is
// not masked.
func (c *bigCluster) placeless(i int) control.Node {
	n := c.node(i)
	n.PodCIDRs[0] = netip.PrefixFrom(n.PodCIDRs[0].Addr().Next(), n.PodCIDRs[0].Bits())
	return n
}

// say has the control plane say something, and the writer eat it.
func (c *bigCluster) say(u control.Update) kernelNews {
	c.tb.Helper()
	c.writer.node.feed.take(u)
	f := c.writer.node.feed.fetch()
	return c.writer.eatNodes(f.set, f.gone)
}

// inForce are the names of the peers in the snapshot in force, sorted.
func (c *bigCluster) inForce() string {
	var out []string
	for p := range c.writer.node.table.Load().Peers() {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (c *bigCluster) warnings() []string { return c.writer.node.view.Load().warnings }

// retry has the time pass until what is not in force may be tried again.
func (c *bigCluster) retry() { c.writer.retry(time.Now().Add(retryEvery)) }

// TestOneNodeKeepsNobodyOut: of a batch in which nodes have no place in the forwarding table the rest is in force.
// Those nodes are named with the cause, and come in when there is a place.
func TestOneNodeKeepsNobodyOut(t *testing.T) {
	c := newBigCluster(t, 3)
	f := c.writer.node.feed
	bad, worse := c.placeless(0), c.placeless(11)
	news := c.say(control.Update{Nodes: []control.Node{bad, worse, c.node(10)}, Gone: []string{"node-00001"}})
	if got := c.inForce(); got != "node-00002 node-00010" {
		t.Fatalf("in force: %s", got)
	}
	old, next := c.node(0).Addresses[0], c.node(10).Addresses[0]
	if !slices.Contains(news.before, old) || slices.Contains(news.after, old) || !slices.Contains(news.after, next) {
		t.Errorf("the kernel is told of addresses %v, then %v", news.before, news.after)
	}
	is := func(what string, parts ...string) {
		t.Helper()
		said := c.warnings()
		if len(said) != len(parts) {
			t.Errorf("%s: %q", what, said)
			return
		}
		for k, part := range parts {
			if !strings.Contains(said[k], part) || !strings.Contains(said[k], "masked") {
				t.Errorf("%s: %q, want %q in it", what, said[k], part)
			}
		}
	}
	is("at once", "peer node-00000 is left out: prefix 10.244.0.1/29",
		"peer node-00011 is left out: prefix 10.244.0.89/29")

	// Others come and go meanwhile, and what is tried again in vain is no news to anybody.
	c.say(control.Update{Nodes: []control.Node{c.node(12)}})
	generation, snapshot := c.writer.generation, c.writer.node.table.Load()
	c.retry()
	c.writer.retry(time.Now()) // too early
	if c.writer.generation != generation || c.writer.node.table.Load() != snapshot {
		t.Error("what was tried in vain is in force")
	}
	is("tried again", "peer node-00000", "peer node-00011")

	// One changes, one leaves.
	c.say(control.Update{Nodes: []control.Node{c.node(0)}})
	is("one is good", "peer node-00011")
	c.say(control.Update{Gone: []string{worse.Name}})
	is("one has left")
	if got := c.inForce(); got != "node-00000 node-00002 node-00010 node-00012" || len(c.writer.plan.refused) > 0 {
		t.Errorf("in force: %s; refused %v", got, c.writer.plan.refused)
	}
	if f.fetch(); len(c.writer.plan.peers) != 4 {
		t.Errorf("%d peers are planned", len(c.writer.plan.peers))
	}
}

// TestAPlaceComesFree: a node that was left out as somebody had what it claims comes in without a word of anybody when
// that is free.
func TestAPlaceComesFree(t *testing.T) {
	c := newBigCluster(t, 3)
	// The ledger would let nobody claim another's: the feed and the plan disagree here.
	twin := c.node(20)
	twin.PodCIDRs = c.node(1).PodCIDRs
	c.writer.eatNodes([]control.Node{twin, c.node(21)}, nil)
	if got := c.inForce(); got != "node-00000 node-00001 node-00002 node-00021" || len(c.warnings()) != 1 ||
		!strings.Contains(c.warnings()[0], "node-00020 is left out: prefix 10.244.0.8/29 has two owners: peer node-00001") {
		t.Fatalf("in force: %s; %q", got, c.warnings())
	}
	// Whoever was in force stays so when everything is planned anew, whatever the names are.
	rival := c.node(1)
	rival.Name = "a-rival"
	c.writer.eatNodes([]control.Node{rival}, nil)
	if err := c.writer.publish(c.writer.plan.nodes()); err != nil {
		t.Fatal(err)
	}
	if got := c.inForce(); got != "node-00000 node-00001 node-00002 node-00021" || len(c.warnings()) != 2 {
		t.Errorf("after all were planned anew: %s; %q", got, c.warnings())
	}
	c.writer.eatNodes(nil, []string{"node-00001"})
	if c.retry(); c.inForce() != "a-rival node-00000 node-00002 node-00021" || len(c.warnings()) != 1 {
		t.Errorf("when it is free: %s; %q", c.inForce(), c.warnings())
	}
	numbers := map[int32]bool{}
	for p := range c.writer.node.table.Load().Peers() {
		numbers[p.Tunnel] = true
		if c.writer.node.secure.tunnel.Peer(p.Tunnel) == nil {
			t.Errorf("the tunnel does not know %s", p.Name)
		}
	}
	if len(numbers) != 4 || c.writer.plan.numbers.last > 6 {
		t.Errorf("numbers %v, %d in all", numbers, c.writer.plan.numbers.last)
	}
}

// TestStartBesideAPlacelessNode: a node that starts is not kept from it either.
func TestStartBesideAPlacelessNode(t *testing.T) {
	c := emptyCluster(t)
	if err := c.writer.publish([]control.Node{c.node(1), c.placeless(2), c.node(3)}); err != nil {
		t.Fatal(err)
	}
	if got := c.inForce(); got != "node-00001 node-00003" || len(c.warnings()) != 1 ||
		!strings.Contains(c.warnings()[0], "peer node-00002 is left out") {
		t.Errorf("in force: %s; %q", got, c.warnings())
	}
	if c.writer.plan.cfg.Control = config.Static; c.writer.publish(c.writer.plan.nodes()) == nil {
		t.Error("what somebody wrote down is not refused as a whole")
	}
}

// TestOwed: what no snapshot can be made of, for a reason that is not one node's, is kept, named, and tried again.
func TestOwed(t *testing.T) {
	c := newBigCluster(t, 2)
	w := c.writer
	cfg, self := w.plan.cfg, w.plan.cfg.Self
	self.PublicKey, self.PodCIDRs = key.Public{77}, []netip.Prefix{netip.MustParsePrefix("10.244.255.1/24")}
	said := func() string { return strings.Join(c.warnings(), "\n") }
	if w.adoptSelf(&self) || !strings.Contains(said(), "of this node is not in force, and is tried again: forwarding") ||
		w.plan.cfg != cfg || w.owed.self == nil {
		t.Fatalf("%s", said())
	}
	if w.retry(time.Now()); w.owed.self == nil || w.owed.tried.IsZero() {
		t.Error("it is tried again at once")
	}
	self.PodCIDRs = cfg.Self.PodCIDRs
	if !w.adoptSelf(w.owed.self) || w.owed.self != nil || w.plan.cfg.Self.PublicKey != self.PublicKey ||
		strings.Contains(said(), "not in force") {
		t.Errorf("not in force although it can be: %+v, %s", w.owed, said())
	}

	// Two of one name at once are no change at all; when it is tried again the latter is meant.
	last := w.plan.numbers.last
	x, y, z := c.node(7), c.node(7), c.node(8)
	w.eatNodes([]control.Node{x, z, y}, []string{"node-00000"})
	if got := c.inForce(); got != "node-00001" || w.plan.numbers.last != last+3 || // who has left does not stay for them
		!strings.Contains(said(), "says of node-00007, node-00008 is not in force, and is tried again: ") {
		t.Fatalf("in force: %s; %s", got, said())
	}
	c.say(control.Update{Nodes: []control.Node{c.node(9)}}) // whoever comes later is not kept out
	if got := c.inForce(); got != "node-00001 node-00009" || !strings.Contains(said(), "not in force") {
		t.Errorf("in force: %s; %s", got, said())
	}
	c.retry()
	if c.inForce() != "node-00001 node-00007 node-00008 node-00009" || strings.Contains(said(), "not in force") ||
		w.plan.peers[y.Name].node.PublicKey != y.PublicKey || w.plan.numbers.last != last+3 {
		t.Errorf("in force: %s; %s; %d numbers more", c.inForce(), said(), w.plan.numbers.last-last)
	}

	var o owed
	o.settle([]control.Node{{Name: "a"}}, []string{"b"}, nil)
	if len(o.warnings()) > 0 || o.peers != nil {
		t.Error("what is in force is owed")
	}
	o.settle([]control.Node{{Name: "a", Port: 1}, {Name: "c"}}, []string{"b"}, errors.New("too large"))
	o.settle([]control.Node{{Name: "a", Port: 2}}, nil, errors.New("too large"))
	o.settle([]control.Node{{Name: "c"}, {Name: "d"}}, nil, nil)
	set, gone := o.changes()
	if len(set) != 1 || set[0].Port != 2 || !slices.Equal(gone, []string{"b"}) ||
		!strings.Contains(o.warnings()[0], "says of a, b is not in force, and is tried again: too large") {
		t.Errorf("%+v, %v, %q", set, gone, o.warnings())
	}
	o.settle([]control.Node{{Name: "b", Port: 3}}, nil, errors.New("too large"))
	o.settle([]control.Node{{Name: "b", Port: 4}}, nil, errors.New("too large"))
	if set, gone := o.changes(); len(set) != 2 || set[1].Port != 4 || !slices.Equal(gone, []string{"b"}) {
		t.Errorf("who left and came again: %+v, %v", set, gone)
	}
	o.settle(nil, []string{"b"}, errors.New("too large"))
	if set, gone := o.changes(); len(set) != 1 || !slices.Equal(gone, []string{"b"}) {
		t.Errorf("who left again: %+v, %v", set, gone)
	}
	var many []string
	for i := range namedOwed + 3 {
		many = append(many, fmt.Sprint("n", i))
	}
	if o.settle(nil, many, errors.New("no")); !strings.Contains(o.warnings()[0], "and of 5 others") {
		t.Errorf("%q", o.warnings())
	}
}

// TestReplacedHost: another machine of a name is another peer, with a number and counters of its own, and what was
// agreed with the one before is over; a new key alone and a new address alone change neither.
func TestReplacedHost(t *testing.T) {
	type host struct {
		key     byte
		address string
	}
	for name, c := range map[string]struct {
		next     []host // said between two looks of the writer
		leaves   bool   // before
		replaced bool
	}{
		"the same":                         {[]host{{1, "2001:db8::71"}}, false, false},
		"a new key":                        {[]host{{2, "2001:db8::71"}}, false, false},
		"a new address":                    {[]host{{1, "2001:db8::72"}}, false, false},
		"both":                             {[]host{{2, "2001:db8::72"}}, false, true},
		"one after the other, merged":      {[]host{{2, "2001:db8::71"}, {2, "2001:db8::72"}}, false, true},
		"left and came again as it was":    {[]host{{1, "2001:db8::71"}}, true, false},
		"left and came with a new key":     {[]host{{2, "2001:db8::71"}}, true, true},
		"left and came with a new address": {[]host{{1, "2001:db8::72"}}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBigCluster(t, 3)
			w, tunnel := b.writer, b.writer.node.secure.tunnel
			as := func(h host) control.Node {
				n := b.node(7)
				n.PublicKey, n.Addresses = key.Public{31: h.key}, []netip.Addr{addr(h.address)}
				return n
			}
			b.say(control.Update{Nodes: []control.Node{as(host{1, "2001:db8::71"})}})
			before := w.plan.peers["node-00007"]
			id, was := before.tunnel.ID, tunnel.Peer(before.tunnel.ID)
			before.peer.Stats.Cell(0).TxPackets.Add(5)
			w.plan.grace["node-00007"] = time.Now().Add(time.Hour)
			if c.leaves {
				w.node.feed.take(control.Update{Gone: []string{"node-00007"}})
			}
			for _, h := range c.next {
				w.node.feed.take(control.Update{Nodes: []control.Node{as(h)}})
			}
			f := w.node.feed.fetch()
			w.eatNodes(f.set, f.gone)

			after := w.plan.peers["node-00007"]
			if f.set != nil && (after.tunnel.ID != id) != c.replaced {
				t.Errorf("number %d, before %d", after.tunnel.ID, id)
			}
			is := tunnel.Peer(after.tunnel.ID)
			if (is != was) != c.replaced || (tunnel.Peer(id) == nil) != c.replaced {
				t.Errorf("the tunnel has %p, before %p; under the old number %p", is, was, tunnel.Peer(id))
			}
			last := c.next[len(c.next)-1]
			if s, _ := tunnel.Status(after.tunnel.ID); s.Public != (key.Public{31: last.key}) ||
				s.Endpoint.Addr() != addr(last.address) {
				t.Errorf("the tunnel knows %v at %v", s.Public, s.Endpoint)
			}
			if n := after.peer.Stats.Totals().TxPackets; (n == 0) != c.replaced {
				t.Errorf("%d packets sent to it", n)
			}
			if _, graced := w.plan.grace["node-00007"]; graced == c.replaced {
				t.Errorf("a grace: %v", graced)
			}
			if p := w.node.table.Load().PeerByTunnel(after.tunnel.ID); p == nil || p.Name != "node-00007" {
				t.Errorf("the forwarding table has %v under its number", p)
			}
		})
	}
}

// TestReplacedHostOwed: that the one before has left is not forgotten while it is not in force.
func TestReplacedHostOwed(t *testing.T) {
	for name, retried := range map[string]bool{"with what comes later": false, "when it is tried again": true} {
		t.Run(name, func(t *testing.T) {
			c := newBigCluster(t, 3)
			w := c.writer
			id := w.plan.peers["node-00001"].tunnel.ID
			twice := []control.Node{c.node(7), c.node(7)} // which is no change at all
			w.eatNodes(slices.Concat([]control.Node{c.node(1)}, twice), []string{"node-00001"})
			if len(w.owed.peers) != 2 || w.plan.peers["node-00001"] == nil {
				t.Fatalf("%+v", w.owed.peers)
			}
			again := []control.Node{c.node(1)} // with another key at the same address
			if retried {
				w.eatNodes(slices.Concat(again, twice), nil)
				c.retry()
			} else {
				w.eatNodes(again, nil)
			}
			if n := w.plan.peers["node-00001"].tunnel.ID; n == id {
				t.Errorf("another host has the number %d of the one before", n)
			}
			if w.node.secure.tunnel.Peer(id) != nil {
				t.Error("what was agreed with the one before goes on")
			}
		})
	}
}

// TestReplacedHostInTheFile: what holds for a control plane holds for a list that somebody writes.
func TestReplacedHostInTheFile(t *testing.T) {
	p := newSecurePlan(t)
	first, out := p.peer(t, "moved")
	p.secure.tunnel.SetPeers(out.tunnels, 0)
	p.cfg = p.changed("moved", func(n *control.Node) { n.PublicKey = key.Public{9} })
	rotated, _ := p.peer(t, "moved")
	p.cfg = p.changed("moved", func(n *control.Node) {
		n.PublicKey, n.Addresses = key.Public{10}, []netip.Addr{addr("192.0.2.77")}
	})
	replaced, out := p.peer(t, "moved")
	if first.Tunnel != rotated.Tunnel || rotated.Tunnel == replaced.Tunnel {
		t.Errorf("number %d, with a new key %d, on another machine %d", first.Tunnel, rotated.Tunnel, replaced.Tunnel)
	}
	p.secure.tunnel.SetPeers(out.tunnels, 0)
	if p.secure.tunnel.Peer(first.Tunnel) != nil || p.secure.tunnel.Peer(replaced.Tunnel) == nil {
		t.Error("the tunnel does not tell the two apart")
	}
}

// TestNumbersOfFailedChanges: what does not come to be takes no number for good.
func TestNumbersOfFailedChanges(t *testing.T) {
	c := newBigCluster(t, 3)
	last := c.writer.plan.numbers.last
	for range 50 {
		c.say(control.Update{Nodes: []control.Node{c.placeless(9)}})
		unreachable := c.node(8)
		unreachable.Addresses = nil
		c.say(control.Update{Nodes: []control.Node{unreachable}})
	}
	c.say(control.Update{Nodes: []control.Node{c.node(7)}})
	if n := c.writer.plan.numbers.last; n != last+1 {
		t.Errorf("%d numbers are given, want %d", n, last+1)
	}

	p := newSecurePlan(t) // where a failure is one of all
	if _, err := p.build(1, p.cfg.Peers(p.cfg.State)); err != nil {
		t.Fatal(err)
	}
	last = p.numbers.last
	nodes := append(p.cfg.Peers(p.cfg.State), control.Node{Name: "x", PublicKey: key.Public{5}, Addresses: []netip.Addr{
		addr("192.0.2.99")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.9.7/24")}})
	for range 3 {
		if _, err := p.build(2, nodes); err == nil {
			t.Fatal("no error")
		}
		if _, err := p.change(2, nodes[len(nodes)-1:], nil); err == nil {
			t.Fatal("no error")
		}
	}
	nodes[len(nodes)-1].PodCIDRs[0] = nodes[len(nodes)-1].PodCIDRs[0].Masked()
	if out, err := p.change(2, nodes[len(nodes)-1:], nil); err != nil || out.tunnels[0].ID != last+1 {
		t.Errorf("%+v, %v, want number %d", out, err, last+1)
	}
}
