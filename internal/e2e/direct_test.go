package e2e_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// leastTunnelled is the least length in bytes of an outer packet that counts as one with something of pods in it:
// handshakes and offers are shorter. Those that are to show are full.
const leastTunnelled = 400

// tunnelled matches packets of either tunnel that carry something.
func tunnelled(p *pkt) bool {
	return p.proto == protoUDP && (p.dport == vxlanPort || p.dport == wireguardPort || p.sport == wireguardPort) &&
		p.length >= leastTunnelled
}

// fromTo matches packets with these addresses, in either direction.
func fromTo(match func(*pkt) bool, a, b *lab.Node) func(*pkt) bool {
	own := func(n *lab.Node, x netip.Addr) bool { return x == n.V4 || x == n.V6 }
	return func(p *pkt) bool {
		return match(p) && (own(a, p.src) && own(b, p.dst) || own(b, p.src) && own(a, p.dst))
	}
}

// direct adds a node that asks for direct or auto, without a key.
func (c *cluster) direct(n *lab.Node, encapsulation string) *lab.Node {
	n.Settings.Workers, n.Settings.Encapsulation = 2, encapsulation
	return n
}

// peer asks a node how it reaches another one.
func (c *cluster) peer(n, other *lab.Node) api.Peer {
	c.t.Helper()
	for _, p := range ask[[]api.Peer](c, n, "peers") {
		if p.Name == other.Name {
			return p
		}
	}
	c.t.Fatalf("node %s does not know %s", n.Name, other.Name)
	return api.Peer{}
}

// isDirect wants a node to reach another one's pods without a tunnel, by these next hops.
func (c *cluster) isDirect(n, other *lab.Node, hops ...netip.Addr) {
	c.t.Helper()
	p := c.peer(n, other)
	var got []netip.Addr
	for _, d := range p.Direct {
		got = append(got, d.NextHop)
	}
	if p.Encapsulation != "direct" || !slices.Equal(got, slices.Concat(hops, hops)) {
		c.t.Errorf("node %s reaches %s by %s, %+v; want direct by %s", n.Name, other.Name, p.Encapsulation, p.Direct, hops)
	}
}

// TestDirect has nodes on one subnet talk without a tunnel: pods of both modes with pods, with nodes and with the
// outside, while the daemons are dead, and until a node leaves.
func TestDirect(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a, b := c.direct(c.node("a"), "direct"), c.direct(c.node("b"), "auto")
	c.configure(setNode("a", "encapsulation", "direct"), setNode("b", "encapsulation", "auto"))
	initial := map[*lab.Node]lab.KernelState{a: c.state(a.NS), b: c.state(b.NS)}
	c.up(a, b)
	// The peers' answers: both pod CIDRs, then both addresses.
	c.isDirect(a, b, b.V4, b.V6)
	c.isDirect(b, a, a.V4, a.V6)
	for _, want := range []string{"b     direct         via 192.0.2.2 dev eth0 "} {
		if out, err := a.Warren(c.ctx, "peers"); err != nil || !strings.Contains(out, want) {
			t.Errorf("no %q in (%v)\n%s", want, err, out)
		}
	}
	if out, err := a.Warren(c.ctx, "routes"); err != nil ||
		!strings.Contains(out, "10.244.2.0/24 ") || !strings.Contains(out, " via 192.0.2.2 dev eth0\n") {
		t.Errorf("routes (%v):\n%s", err, out)
	}
	inTunnel := c.capture(c.lab.Switch(), a.Port(), tunnelled)
	inTUN := c.capture(a.NS, "warren0", func(p *pkt) bool { return slices.ContainsFunc(b.PodCIDRs, holds(p.dst)) })
	onWire := c.capture(c.lab.Switch(), a.Port(), bare)

	one := c.podWith(a, "routed", lab.PodOptions{Mode: "routed"})
	other := c.podWith(b, "bridged", lab.PodOptions{Mode: "bridge"})
	another := c.podWith(b, "bridged2", lab.PodOptions{Mode: "bridge"})
	for _, f := range families() {
		c.meet(one, other, f)
		c.meet(another, one, f)
		c.beyond(one, f)
		c.beyond(other, f)
	}
	inTunnel.nothing("a packet in a tunnel")
	inTUN.nothing("a packet for the peer's pods in the TUN device")
	onWire.some("a pod's packet without a tunnel")
	for _, n := range c.lab.Nodes() {
		for _, p := range ask[[]api.Peer](c, n, "peers") {
			if p.TxPackets+p.RxPackets > 0 {
				t.Errorf("node %s and %s: %d packets sent, %d received by the tunnel", n.Name, p.Name, p.TxPackets, p.RxPackets)
			}
		}
	}

	// Nobody needs a daemon for it.
	k := c.startTraffic("direct", one, other)
	for _, n := range []*lab.Node{a, b} {
		c.ok(n.Kill())
	}
	k.works()
	c.up(a, b)
	k.works()
	if lost := k.end(); lost > 0 {
		t.Errorf("%d pings lost while daemons were killed and started", lost)
	}
	c.isDirect(a, b, b.V4, b.V6)

	// What others flush comes back.
	c.do(a.NS, "ip route flush proto 87", "ip route flush table 8787", "ip -6 route flush table 8787")
	c.eventually(func() error {
		_, err := one.NS.Ping(c.ctx, other.V4, lab.Ping{Count: 1})
		return err
	})

	// The other node leaves: nothing of its pods' goes anywhere, neither to it nor by the default route.
	c.edit(a, func(file map[string]any) { file["nodes"] = file["nodes"].([]any)[:1] })
	c.reload(a)
	leak := c.capture(c.lab.Switch(), a.Port(), func(p *pkt) bool { return p.src == one.V4 || p.src == one.V6 })
	for _, f := range families() {
		if _, err := one.NS.Ping(c.ctx, other.Address(f), lab.Ping{Count: 1}); err == nil {
			t.Errorf("IPv%d: a pod of a node that left answers", f)
		}
	}
	leak.nothing("a packet for a node that left")

	for _, p := range []*lab.Pod{one, other, another} {
		c.ok(p.Delete(c.ctx, lab.PodOptions{Mode: map[bool]string{true: "routed", false: "bridge"}[p == one]}))
	}
	for n, before := range initial {
		c.ok(n.Down(c.ctx))
		c.same(n.NS, before)
	}
}

func holds(a netip.Addr) func(netip.Prefix) bool {
	return func(p netip.Prefix) bool { return p.Contains(a) }
}

// TestDirectOverIPv6 has nodes without an IPv4 address route IPv4 pods to each other.
func TestDirectOverIPv6(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a, b := c.direct(c.node("a"), "direct"), c.direct(c.node("b"), "direct")
	c.configure(underlayV6(a, b)...)
	c.up(a, b)
	p := c.peer(a, b)
	if p.Encapsulation != "direct" || len(p.Direct) != 3 || p.Direct[0].NextHop != b.V6 || p.Direct[1].NextHop != b.V6 {
		t.Errorf("%s, %+v", p.Encapsulation, p.Direct)
	}
	one, other := c.pod(a, "1"), c.pod(b, "1")
	inTunnel := c.capture(c.lab.Switch(), a.Port(), tunnelled)
	for _, f := range families() {
		c.meet(one, other, f)
		c.meet(other, one, f)
		c.ping(a.NS, other.Address(f), lab.Ping{Count: 1})
	}
	inTunnel.nothing("a packet in a tunnel")
}

// TestDirectTrust has an underlay host send as pods of a direct peer's neighbour, and as the node's own.
func TestDirectTrust(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a, b := c.direct(c.node("a"), "direct"), c.direct(c.node("b"), "direct")
	c.configure()
	c.up(a, b)
	one := c.pod(a, "1")
	// Addresses: of a direct peer's pod, which an underlay host can take as it can the peer's own; of no node's; of the
	// node itself.
	for from, want := range map[string]bool{
		"10.244.2.77": true, "10.244.7.77": false, "10.244.1.77": false, "fd00:10:244:2::77": true,
		"fd00:10:244:7::77": false, "fd00:10:244:1::77": false,
	} {
		if got := c.arrives(one, netip.MustParseAddr(from)); got != want {
			t.Errorf("a packet from %s is heard: %t, want %t", from, got, want)
		}
	}
	if c.drops(a, "spoofed") == 0 {
		t.Error("what was dropped is not counted")
	}
}

// TestAuto has three nodes, one of them behind a router: those on one subnet go without a tunnel, the others encrypt.
func TestAuto(t *testing.T) {
	c := newEncrypted(t, "auto")
	a, b := c.encrypted("a"), c.encrypted("b")
	_, err := c.lab.AddRouter()
	c.ok(err)
	far, err := c.lab.AddNodeBehind("c")
	c.ok(err)
	c.ok(far.MakeKey())
	for _, n := range c.lab.Nodes() {
		c.direct(n, "auto")
	}
	c.configure()
	c.up(c.lab.Nodes()...)
	c.isDirect(a, b, b.V4, b.V6)
	c.isDirect(b, a, a.V4, a.V6)
	for _, pair := range [][2]*lab.Node{{a, far}, {far, a}, {b, far}, {far, b}} {
		if p := c.peer(pair[0], pair[1]); p.Encapsulation != "wireguard" ||
			!strings.Contains(p.Direct[0].Tunnel, "another subnet") {
			t.Errorf("node %s reaches %s by %s, %+v", pair[0].Name, pair[1].Name, p.Encapsulation, p.Direct)
		}
	}
	near := c.capture(c.lab.Switch(), b.Port(), fromTo(tunnelled, a, b))
	away := c.capture(c.lab.Switch(), far.Port(), fromTo(tunnelled, a, far))
	plain := c.capture(c.lab.Switch(), far.Port(), bare)
	one, other, third := c.pod(a, "1"), c.pod(b, "1"), c.pod(far, "1")
	for _, f := range families() {
		c.meet(one, other, f)
		c.meet(other, one, f)
		c.meet(one, third, f)
		c.meet(third, one, f)
		c.meet(third, other, f)
		for _, p := range []*lab.Pod{one, third} {
			for _, n := range c.lab.Nodes() {
				c.ping(n.NS, p.Address(f), lab.Ping{Count: 1})
				c.ping(p.NS, n.Address(f), lab.Ping{Count: 1})
			}
		}
	}
	near.nothing("a packet in a tunnel on one subnet")
	away.some("a packet in a tunnel between subnets")
	plain.nothing("a pod's packet without a tunnel between subnets")

	// A node's address moves behind a gateway, and back.
	k := c.startTraffic("auto", one, other)
	c.do(a.NS, "ip route add 192.0.2.2 via 192.0.2.253", "ip -6 route add 2001:db8::2 via 2001:db8::fd")
	c.eventually(func() error {
		if p := c.peer(a, b); p.Encapsulation != "wireguard" {
			return fmt.Errorf("%w: %s is still reached by %s", errNotYet, b.Name, p.Encapsulation)
		}
		return nil
	})
	k.works()
	c.do(a.NS, "ip route del 192.0.2.2", "ip -6 route del 2001:db8::2")
	c.eventually(func() error {
		if p := c.peer(a, b); p.Encapsulation != "direct" {
			return fmt.Errorf("%w: %s is still reached by %s", errNotYet, b.Name, p.Encapsulation)
		}
		return nil
	})
	k.works()
	if lost := k.end(); lost > 0 {
		t.Errorf("%d pings lost", lost)
	}
}

// behindRouter makes two nodes on the underlay and one behind a router.
func (c *cluster) behindRouter() (router *lab.NS, nodes []*lab.Node) {
	c.t.Helper()
	a, b := c.node("a"), c.node("b")
	router, err := c.lab.AddRouter()
	c.ok(err)
	far, err := c.lab.AddNodeBehind("c")
	c.ok(err)
	return router, []*lab.Node{a, b, far}
}

// TestDirectThroughRouter has a router between the nodes that knows the way to the pods: it was told by `warren routes
// export`.
func TestDirectThroughRouter(t *testing.T) {
	c := newCluster(t, lab.Options{})
	router, nodes := c.behindRouter()
	for _, n := range nodes {
		c.direct(n, "direct")
	}
	c.configure()
	c.up(nodes...)
	a, far := nodes[0], nodes[2]
	one, third := c.pod(a, "1"), c.pod(far, "1")
	c.isDirect(a, far, netip.MustParseAddr("192.0.2.253"), netip.MustParseAddr("2001:db8::fd"))
	c.isDirect(far, a, netip.MustParseAddr("203.0.113.254"), netip.MustParseAddr("2001:db8:f::fe"))
	for _, source := range [][]string{nil, {"--from-file"}} {
		if _, err := one.NS.Ping(c.ctx, third.V4, lab.Ping{Count: 1}); err == nil {
			t.Error("the router knows the pods without being told")
		}
		script, err := a.Warren(c.ctx, append([]string{"routes", "export", "--format", "ip"}, source...)...)
		c.ok(err)
		c.run(router, "sh", "-c", script)
		inTunnel := c.capture(c.lab.Switch(), far.Port(), tunnelled)
		for _, f := range families() {
			c.meet(one, third, f)
			c.meet(third, one, f)
			c.beyond(third, f)
			c.ping(router, third.Address(f), lab.Ping{Count: 1})
		}
		// What comes by a device would also leave by it.
		for _, n := range nodes {
			c.ok(n.NS.SetSysctl("net/ipv4/conf/eth0/rp_filter", "1"))
		}
		c.meet(one, third, 4)
		c.ping(a.NS, third.V4, lab.Ping{Count: 1})
		c.ping(third.NS, a.V4, lab.Ping{Count: 1})
		for _, n := range nodes {
			c.ok(n.NS.SetSysctl("net/ipv4/conf/eth0/rp_filter", "0"))
		}
		inTunnel.nothing("a packet in a tunnel")
		c.do(router, "ip route flush proto static", "ip -6 route flush proto static")
	}
}

// TestEncapsulationTour moves a cluster through all encapsulations, node by node, under traffic. No connection breaks.
func TestEncapsulationTour(t *testing.T) {
	c := newEncrypted(t, "tour")
	nodes := []*lab.Node{c.encrypted("a"), c.encrypted("b")}
	router, err := c.lab.AddRouter()
	c.ok(err)
	far, err := c.lab.AddNodeBehind("c")
	c.ok(err)
	c.ok(far.MakeKey())
	nodes = append(nodes, c.direct(far, "wireguard"))
	c.configure()
	c.up(nodes...)
	script, err := far.Warren(c.ctx, "routes", "export")
	c.ok(err)
	c.run(router, "sh", "-c", script)
	traffics := c.everybodyTalks(nodes)
	for _, to := range []string{"auto", "direct", "wireguard", "direct", "auto", "vxlan", "direct", "wireguard"} {
		var edits []edit
		for _, n := range nodes {
			edits = append(edits, setNode(n.Name, "encapsulation", to))
		}
		for _, n := range nodes {
			c.edit(n, edits...)
			c.reload(n)
			time.Sleep(quiet)
			for _, k := range traffics {
				k.works()
			}
		}
		for _, pair := range [][2]*lab.Node{{nodes[0], nodes[1]}, {nodes[1], far}} {
			got := c.peer(pair[0], pair[1]).Encapsulation
			want := to
			if to == "auto" {
				want = map[bool]string{true: "wireguard", false: "direct"}[pair[1] == far]
			}
			if to != "vxlan" && got != want { // to which it moves in ten minutes
				t.Errorf("all ask for %s: node %s reaches %s by %s", to, pair[0].Name, pair[1].Name, got)
			}
		}
	}
	lost := 0
	for _, k := range traffics {
		lost += k.end()
	}
	if lost > 0 {
		t.Errorf("%d pings lost", lost)
		for _, n := range nodes {
			for _, d := range c.askDrops(n) {
				if d.Count > 0 {
					t.Logf("node %s: %d drops as %s", n.Name, d.Count, d.Reason)
				}
			}
		}
	}
}
