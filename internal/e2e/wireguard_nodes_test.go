package e2e_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// underlayV6 is the edit that leaves a node nothing but its IPv6 address.
func underlayV6(nodes ...*lab.Node) []edit {
	var edits []edit
	for _, n := range nodes {
		edits = append(edits, setNode(n.Name, "addresses", []string{n.V6.String()}))
	}
	return edits
}

// TestEncrypted has the pods of two nodes say everything to each other, over an underlay of either family, with and
// without offloads: from the first packet, which one of the nodes can't deliver yet, on.
func TestEncrypted(t *testing.T) {
	for _, k := range []struct {
		name, prefix string
		family       int
		offloads     map[string]string
	}{
		{"IPv4 underlay", "enc4", 4, allAuto()},
		{"IPv6 underlay", "enc6", 6, allAuto()},
		{"without offloads", "encoff", 4, allOff()},
	} {
		t.Run(k.name, func(t *testing.T) {
			c := newEncrypted(t, k.prefix)
			a, b := c.encrypted("a"), c.encrypted("b")
			for _, n := range []*lab.Node{a, b} {
				n.Settings.Offloads = k.offloads
			}
			var edits []edit
			if k.family == 6 {
				edits = underlayV6(a, b)
			}
			c.configure(edits...)
			g := c.guardUnderlay()
			c.up(a)
			one := c.pod(a, "1")
			early := c.startPinger("early", one.NS, c.first(b, 4))
			time.Sleep(quiet)
			c.up(b)
			other := c.pod(b, "1")
			early.works()
			if other.V4 != c.first(b, 4) {
				t.Fatalf("the first pod of node b is %s", other.V4)
			}
			mtu, err := one.MTU()
			c.ok(err)
			for _, f := range families() {
				for _, p := range []lab.Path{between(one, other, f), between(other, one, f)} {
					c.ping(p.From, p.Addr, lab.Ping{})
					c.fullPing(p.From, p.Addr, mtu)
					c.transfer(p, transferBytes/2)
					c.datagrams(p)
					largest := lab.PayloadFor(mtu, p.Addr)
					c.plainDatagrams(p, []int{0, 1, 64, 65, largest - 1, largest})
					c.plainDatagrams(p, []int{4000}) // in fragments, which may overtake the others
					c.plainDatagrams(p, []int{40_000})
				}
				c.sources(between(one, other, f), one.Address(f))
				c.ping(one.NS, b.Address(f), lab.Ping{})
				c.ping(a.NS, other.Address(f), lab.Ping{})
			}
			early.lost()
			g.nothingReadable()
		})
	}
}

// first is the address of a node's first pod: the second one of its range, behind the gateway's.
func (c *cluster) first(n *lab.Node, family int) netip.Addr {
	a := n.PodCIDRs[map[int]int{4: 0, 6: 1}[family]].Addr()
	return a.Next().Next()
}

// TestEncryptedLifecycle kills, stops and reloads nodes under traffic.
func TestEncryptedLifecycle(t *testing.T) {
	c := newEncrypted(t, "life")
	a, b := c.encrypted("a"), c.encrypted("b")
	c.configure()
	g := c.guardUnderlay()
	c.up(a, b)
	one, other := c.pod(a, "1"), c.pod(b, "1")
	k := c.startTraffic("life", one, other)
	for _, end := range []struct {
		name string
		do   func()
	}{
		{"kill -9", func() { c.ok(a.Kill()) }},
		{"SIGTERM", func() { c.ok(a.Down(c.ctx)) }},
		{"kill -9 of both", func() { c.ok(a.Kill()); c.ok(b.Kill()); c.up(b) }},
	} {
		t.Logf("after %s", end.name)
		end.do()
		time.Sleep(quiet)
		c.up(a)
		k.works()
	}
	// A reload with nothing new, one that takes the other node's key away and one that brings it back.
	c.reload(a, b)
	k.works()
	c.edit(a, setNode(b.Name, "publicKey", key.NewPrivate().Public().String()))
	c.reload(a)
	time.Sleep(5 * quiet)
	c.edit(a, setNode(b.Name, "publicKey", b.PublicKey.String()))
	c.reload(a)
	k.works()
	// A key that nobody was told of before: no rotation, but it has to work in the end.
	c.ok(b.MakeKey())
	c.ok(c.lab.WriteConfigs())
	c.reload(b, a)
	k.works()
	k.end()
	g.nothingReadable()
}

// TestReplacedHost gives a node's name to another host, with another key and at another address: what was agreed with
// the host before is over at once, and the tunnel does not follow what that still sends.
func TestReplacedHost(t *testing.T) {
	c := newEncrypted(t, "repl")
	a, b := c.encrypted("a"), c.encrypted("b")
	c.configure()
	c.up(a, b)
	one, other := c.pod(a, "1"), c.pod(b, "1")
	c.ping(one.NS, other.V4, lab.Ping{})
	c.ping(other.NS, one.V6, lab.Ping{})

	elsewhere := netip.MustParseAddr("192.0.2.250")
	c.edit(a, setNode(b.Name, "publicKey", key.NewPrivate().Public().String()),
		setNode(b.Name, "addresses", []string{elsewhere.String()}))
	c.reload(a)
	for range 2 {
		before := c.drops(a, "unknown-session")
		if _, err := other.NS.Ping(c.ctx, one.V4, lab.Ping{}); err == nil {
			t.Error("the host of before is still heard")
		}
		if c.drops(a, "unknown-session") == before {
			t.Error("what the host of before sends is not dropped as of no session")
		}
		if p := c.peer(a, b); p.Session || p.Endpoint.Addr() != elsewhere || p.RxPackets > 0 {
			t.Errorf("%+v", p)
		}
	}

	c.ok(c.lab.WriteConfigs())
	c.reload(a)
	c.ping(one.NS, other.V4, lab.Ping{})
	c.ping(other.NS, one.V6, lab.Ping{})
}

// everybodyTalks makes a pod on each node, and traffic between each two of them.
func (c *cluster) everybodyTalks(nodes []*lab.Node) []*traffic {
	c.t.Helper()
	var pods []*lab.Pod
	var all []*traffic
	for _, n := range nodes {
		pod := c.pod(n, "1")
		for _, other := range pods {
			all = append(all, c.startTraffic(n.Name+other.Node.Name, pod, other))
		}
		pods = append(pods, pod)
	}
	return all
}

// TestKeyRotation gives each node of a running cluster a new key, one after the other, with its peers learning of it at
// different times. Nobody who talks may notice.
func TestKeyRotation(t *testing.T) {
	c := newEncrypted(t, "rot")
	nodes := []*lab.Node{c.encrypted("a"), c.encrypted("b"), c.encrypted("c")}
	c.configure()
	g := c.guardUnderlay()
	c.up(nodes...)
	traffics := c.everybodyTalks(nodes)
	for i, n := range nodes {
		out, err := n.Warren(c.ctx, "key", "rotate")
		c.ok(err)
		public := strings.TrimSpace(out)
		if public == n.PublicKey.String() {
			t.Fatalf("node %s: `warren key rotate` prints the key that there was", n.Name)
		}
		c.reload(n)
		before := g.handshakes()
		for k := range nodes {
			peer := nodes[(i+k)%len(nodes)]
			c.edit(peer, setNode(n.Name, "publicKey", public))
			c.reload(peer)
			time.Sleep(quiet)
		}
		c.eventually(func() error {
			// With each of the two peers, seen at two ports.
			if now := g.handshakes(); now < before+4 {
				return fmt.Errorf("%w: %d initiations seen after the key of node %s changed", errNotYet, now-before, n.Name)
			}
			return nil
		})
		_, err = n.Warren(c.ctx, "key", "rotate", "--finish")
		c.ok(err)
		c.reload(n)
		for _, k := range traffics {
			k.works()
		}
	}
	for _, k := range traffics {
		if lost := k.end(); lost > 0 {
			t.Errorf("%d pings lost", lost)
		}
	}
	g.nothingReadable()
}

// TestEncapsulationMove moves a cluster from plaintext to encryption node by node, and back. Nobody who talks may
// notice, and two nodes that have moved say nothing in plaintext to each other.
func TestEncapsulationMove(t *testing.T) {
	c := newEncrypted(t, "move")
	nodes := []*lab.Node{c.encrypted("a"), c.encrypted("b"), c.encrypted("c")}
	for _, n := range nodes {
		n.Encapsulation = "vxlan"
	}
	c.configure()
	c.up(nodes...)
	traffics := c.everybodyTalks(nodes)
	among := func(of []*lab.Node) func(a, b netip.Addr) bool {
		has := func(a netip.Addr) bool { return slices.ContainsFunc(of, func(n *lab.Node) bool { return n.V4 == a }) }
		return func(a, b netip.Addr) bool { return has(a) && has(b) }
	}
	// move changes a node's encapsulation, while the guard looks at what others who are encrypted say to each other.
	move := func(n *lab.Node, encapsulation string, encrypted []*lab.Node) {
		t.Helper()
		g := c.guardPairs(among(encrypted))
		n.Encapsulation = encapsulation
		c.ok(c.lab.WriteConfigs())
		c.reload(nodes...)
		for _, k := range traffics {
			k.works()
		}
		if len(encrypted) > 1 {
			g.nothingReadable()
		}
		g.stop()
	}
	for i, n := range nodes {
		move(n, "", nodes[:i])
	}
	g := c.guardUnderlay()
	for _, k := range traffics {
		k.works()
	}
	g.nothingReadable()
	for i, n := range nodes {
		move(n, "vxlan", nodes[i+1:])
	}
	lost := 0
	for _, k := range traffics {
		lost += k.end()
	}
	// The files change one after the other, and for that long two nodes disagree: what is dropped then is counted.
	refused := 0
	for _, n := range nodes {
		for _, reason := range []string{"plaintext", "no-session", "unknown-session"} {
			if d := c.drops(n, reason); d > 0 {
				t.Logf("node %s: %d drops as %s", n.Name, d, reason)
				refused += d
			}
		}
	}
	const most = 2 // of some 20,000
	if lost > refused || lost > most {
		t.Errorf("%d pings lost, %d drops that say why; want at most %d", lost, refused, most)
		for _, n := range nodes {
			t.Logf("handshakes of node %s: %v", n.Name, ask[api.Status](c, n, "status").Tunnel.Handshakes)
		}
	}
}
