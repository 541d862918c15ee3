package e2e_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// spoofPort is the port that spoofed packets are sent to, and nothing else.
const spoofPort = 4001

// spoofedUDP matches the packets that a test sends from foreign addresses, also inside a tunnel or quoted by an error.
func spoofedUDP(p *pkt) bool {
	for q := p; q != nil; q = q.inner {
		if q.proto == protoUDP && q.dport == spoofPort {
			return true
		}
	}
	return false
}

// A spoofTarget is where spoofed packets are sent to.
type spoofTarget struct {
	name string
	ns   *lab.NS
	addr netip.Addr
}

// TestPodsSendFromTheirOwnAddresses gives a pod an address that is not its own and has it send from there.
func TestPodsSendFromTheirOwnAddresses(t *testing.T) {
	c := newCluster(t, lab.Options{})
	nodes := c.running("a", "b")
	a, b := nodes[0], nodes[1]
	far := c.pod(b, "far")
	for _, mode := range []string{"routed", "bridge"} {
		bad := c.podWith(a, mode+"-bad", lab.PodOptions{Mode: mode})
		good := c.podWith(a, mode+"-good", lab.PodOptions{Mode: mode})
		for _, f := range families() {
			t.Run(fmt.Sprintf("%s, IPv%d", mode, f), func(t *testing.T) {
				sub := *c
				sub.t = t
				targets := []spoofTarget{
					{"a pod of the node", good.NS, good.Address(f)},
					{"a pod of another node", far.NS, far.Address(f)},
					{"its own node", a.NS, a.Address(f)},
					{"another node", b.NS, b.Address(f)},
					{"the outside", c.lab.Outside, outside(f)},
				}
				sub.spoofAll(bad, targets, map[string]netip.Addr{
					"another pod of the node":    good.Address(f),
					"a free address of the node": n200(a, f),
					"a pod of another node":      far.Address(f),
					"a free address of another":  n200(b, f),
					"its own node":               a.Address(f),
					"another node":               b.Address(f),
					"the gateway":                gateway(a, f),
					"the outside":                strangerAddr(f),
				})
			})
		}
		c.ok(bad.Delete(c.ctx, lab.PodOptions{}))
		c.ok(good.Delete(c.ctx, lab.PodOptions{}))
	}
}

// spoofAll has a pod send from each of the addresses to each of the targets.
func (c *cluster) spoofAll(bad *lab.Pod, targets []spoofTarget, sources map[string]netip.Addr) {
	c.t.Helper()
	n := bad.Node
	// The pod's own device shows that the packets were sent; the others, that they went no further.
	left := c.capture(bad.NS, "eth0", spoofedUDP)
	captures := []*capture{c.capture(n.NS, "warren0", spoofedUDP)}
	for _, to := range targets {
		captures = append(captures, c.capture(to.ns, "eth0", spoofedUDP))
		c.ping(bad.NS, to.addr, lab.Ping{Count: 1}) // what is its own passes
	}
	sent := 0
	for what, from := range sources {
		own := netip.PrefixFrom(from, from.BitLen())
		suffix := ""
		if from.Is6() {
			suffix = " nodad"
		}
		c.do(bad.NS, fmt.Sprintf("ip addr add %s dev eth0%s", own, suffix))
		for _, to := range targets {
			if to.addr == from {
				continue
			}
			before := c.drops(n, "spoofed")
			sent += c.spoof(bad.NS, from, to.addr)
			c.eventually(func() error {
				if got := c.drops(n, "spoofed") - before; got < spoofTimes {
					return fmt.Errorf("%w: from %s (%s) to %s: %d of %d packets counted", errNotYet, what, from, to.name, got,
						spoofTimes)
				}
				return nil
			})
		}
		c.do(bad.NS, fmt.Sprintf("ip addr del %s dev eth0", own))
	}
	if n := left.stop(); n != sent {
		c.t.Errorf("%d packets left the pod, want %d", n, sent)
	}
	for _, k := range captures {
		k.nothing("spoofed packets")
	}
}

const spoofTimes = 3

// spoof sends some datagrams from a foreign address.
func (c *cluster) spoof(ns *lab.NS, from, to netip.Addr) int {
	c.t.Helper()
	c.ok(ns.Do(func() error {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 4000)),
			net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, spoofPort)))
		if err != nil {
			return err
		}
		defer conn.Close()
		for range spoofTimes {
			if _, err := conn.Write([]byte("from somebody else")); err != nil {
				return err
			}
		}
		return nil
	}))
	return spoofTimes
}

func outside(family int) netip.Addr {
	if family == 4 {
		return lab.OutsideV4()
	}
	return lab.OutsideV6()
}

// strangerAddr is an address that is nobody's.
func strangerAddr(family int) netip.Addr {
	return netip.MustParseAddr(map[int]string{4: "203.0.113.77", 6: "2001:db8:77::77"}[family])
}

// cidr is a node's pod CIDR of a family.
func cidr(n *lab.Node, family int) netip.Prefix { return n.PodCIDRs[map[int]int{4: 0, 6: 1}[family]] }

func gateway(n *lab.Node, family int) netip.Addr { return cidr(n, family).Addr().Next() }

// n200 is an address of the node's pod CIDR that no pod of a small test gets.
func n200(n *lab.Node, family int) netip.Addr {
	b := cidr(n, family).Addr().AsSlice()
	b[len(b)-1] = 200
	a, _ := netip.AddrFromSlice(b)
	return a
}

// A datagram is VXLAN as somebody on the underlay may send it.
type datagram struct {
	vni   uint32
	to    *lab.Node // whose VTEP address the inner frame carries
	inner []byte
}

func (d datagram) bytes() []byte {
	mac, _ := vxlan.Address(vxlan.MAC(d.to.V4))
	etherType := uint16(vxlan.EtherTypeIPv4)
	if d.inner[0]>>4 == 6 {
		etherType = vxlan.EtherTypeIPv6
	}
	h := vxlan.NewHeader(d.vni, mac, [6]byte{2, 1, 1, 1, 1, 1}, etherType)
	return append(h[:], d.inner...)
}

// send sends a datagram to a node's tunnel port so many times.
func (c *cluster) send(from *lab.NS, to netip.Addr, payload []byte, times int) {
	c.t.Helper()
	c.ok(from.Do(func() error {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, vxlanPort)))
		if err != nil {
			return err
		}
		defer conn.Close()
		for range times {
			if _, err := conn.Write(payload); err != nil {
				return err
			}
		}
		return nil
	}))
}

// TestWireIsNotTrusted sends VXLAN to a node that it must not take, from nodes that run no Warren.
func TestWireIsNotTrusted(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a, b, fake := c.node("a"), c.node("b"), c.node("fake")
	c.configure() // `fake` is a peer of theirs whose packets the test makes up
	c.up(a, b)
	stranger, err := c.lab.AddNode("stranger") // in nobody's configuration
	c.ok(err)
	pod, other := c.pod(a, "p"), c.pod(b, "p")
	for _, underlay := range families() {
		for _, f := range families() {
			t.Run(fmt.Sprintf("IPv%d in IPv%d", f, underlay), func(t *testing.T) {
				w := wireTest{cluster: *c, a: a, b: b, fake: fake, stranger: stranger, pod: pod, other: other, family: f,
					to: a.Address(underlay)}
				w.t = t
				w.good()
				w.bad()
			})
		}
	}
}

// A wireTest sends packets of one inner and one outer family to node a, with pod; b is a real peer with other, fake is
// a peer that the test plays, stranger is no peer.
type wireTest struct {
	cluster
	a, b, fake, stranger *lab.Node
	pod, other           *lab.Pod
	family               int
	to                   netip.Addr
}

const wirePort = 4000

// inner is a packet with a datagram to the port that the test listens at.
func (w *wireTest) inner(from, to netip.Addr) []byte {
	return udpPacket(netip.AddrPortFrom(from, 5000), netip.AddrPortFrom(to, wirePort), "let me in")
}

// good shows that what the test makes up arrives when nothing is wrong with it.
func (w *wireTest) good() {
	w.t.Helper()
	var server *net.UDPConn
	victim := w.pod.Address(w.family)
	w.ok(w.pod.NS.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(victim, wirePort)))
		return err
	}))
	defer server.Close()
	w.send(w.fake.NS, w.to, datagram{1, w.a, w.inner(n200(w.fake, w.family), victim)}.bytes(), 5)
	if got := len(receiveDatagrams(server, 5)); got != 5 {
		w.t.Fatalf("%d of 5 arrived", got)
	}
}

// bad sends what must not arrive, and wants it to be counted under its own reason.
func (w *wireTest) bad() {
	w.t.Helper()
	here := func(p *pkt) bool { return p.proto == protoUDP && p.dport == wirePort }
	captures := []*capture{w.capture(w.pod.NS, "eth0", here), w.capture(w.a.NS, "warren0", here),
		w.capture(w.other.NS, "eth0", here), w.capture(w.lab.Outside, "eth0", here)}
	f, victim := w.family, w.pod.Address(w.family)
	peer := n200(w.fake, f)
	for _, x := range []struct {
		name, reason string
		from         *lab.Node
		d            datagram
	}{
		{"from an address that is no peer's", "unknown-peer", w.stranger, datagram{1, w.a, w.inner(peer, victim)}},
		{"with a wrong VNI", "wrong-vni", w.fake, datagram{2, w.a, w.inner(peer, victim)}},
		{"to another VTEP", "wrong-mac", w.fake, datagram{1, w.b, w.inner(peer, victim)}},
		{"of another peer's pod", "source-not-peer", w.fake, datagram{1, w.a, w.inner(w.other.Address(f), victim)}},
		{"of another peer's node", "source-not-peer", w.fake, datagram{1, w.a, w.inner(w.b.Address(f), victim)}},
		{"of a pod of the receiver", "source-not-peer", w.fake, datagram{1, w.a, w.inner(n200(w.a, f), victim)}},
		{"of the outside", "source-not-peer", w.fake, datagram{1, w.a, w.inner(strangerAddr(f), victim)}},
		{"to a third node's pod", "not-for-this-node", w.fake, datagram{1, w.a, w.inner(peer, w.other.Address(f))}},
		{"to the outside", "not-for-this-node", w.fake, datagram{1, w.a, w.inner(peer, outside(f))}},
	} {
		const times = 7
		before, all := w.drops(w.a, x.reason), w.allDrops(w.a)
		w.send(x.from.NS, w.to, x.d.bytes(), times)
		w.eventually(func() error {
			if got := w.drops(w.a, x.reason) - before; got != times {
				return fmt.Errorf("%w: %s: %d of %d counted as %s", errNotYet, x.name, got, times, x.reason)
			}
			return nil
		})
		if got := w.allDrops(w.a) - all; got != times {
			w.t.Errorf("%s: %d packets counted under all reasons, want %d", x.name, got, times)
		}
	}
	for _, k := range captures {
		k.nothing("packets from the wire")
	}
}
