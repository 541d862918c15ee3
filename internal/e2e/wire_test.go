package e2e_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// wireBytes is what a bulk transfer sends: enough for superpackets of full size, few enough for tshark to read.
const wireBytes = 2 << 20

// TestWire has pods talk over a wire that cuts and sums nothing by itself, with Warren's offloads on and off and over
// IPv4 and IPv6, and has tshark say of every frame whether it is what RFC 7348 and its own checksums want.
//
// Once the nodes' own devices cut, in software: nothing leaves uncut (tunnel-gso), as there is nothing to win. Once
// they say that they cut tunnelled superpackets, and leave it to the switch's ports, as if they were network cards.
func TestWire(t *testing.T) {
	t.Run("cut by the kernel", func(t *testing.T) { testWire(t, false) })
	t.Run("cut by the device", func(t *testing.T) { testWire(t, true) })
}

func testWire(t *testing.T, devicesCut bool) {
	t.Helper()
	c := newCluster(t, lab.Options{})
	auto4, auto6, off4, off6 := c.node("auto4"), c.node("auto6"), c.node("off4"), c.node("off6")
	auto4.Settings.Offloads, auto6.Settings.Offloads = allAuto(), allAuto()
	off4.Settings.Offloads, off6.Settings.Offloads = allOff(), allOff()
	check := wireCheck{mtu: lab.DefaultMTU}
	var edits []edit
	for _, n := range []*lab.Node{auto4, off4} {
		check.nodes = append(check.nodes, newWireNode(n, n.V4, n.V6))
	}
	for _, n := range []*lab.Node{auto6, off6} {
		edits = append(edits, setNode(n.Name, "addresses", []string{n.V6.String()}))
		check.nodes = append(check.nodes, newWireNode(n, n.V6))
	}
	c.configure(edits...)
	c.segment(devicesCut)
	nodes := c.lab.Nodes()
	c.up(nodes...)
	for _, n := range nodes {
		c.leavesUncut(n, devicesCut && (n == auto4 || n == auto6))
	}
	pods := map[*lab.Node]*lab.Pod{}
	for _, n := range nodes {
		pods[n] = c.pod(n, "1")
		c.ok(pods[n].NS.SetSysctl("net/ipv4/ip_local_port_range", opaquePorts(" ")))
	}
	dumps := []*dump{c.dump(c.lab.Switch(), lab.OutsidePort)}
	for _, n := range nodes {
		dumps = append(dumps, c.dump(c.lab.Switch(), n.Port()))
	}
	var talks []*talk
	for _, pair := range [][2]*lab.Node{{auto4, off4}, {auto6, off6}, {auto4, auto6}} {
		for _, f := range families() {
			talks = append(talks, c.talk(between(pods[pair[0]], pods[pair[1]], f)),
				c.talk(between(pods[pair[1]], pods[pair[0]], f)))
		}
	}
	for _, n := range nodes {
		c.sentAs(n, n == auto4 || n == auto6)
		c.sentWhole(n, devicesCut && (n == auto4 || n == auto6))
	}
	time.Sleep(quiet)
	seen := map[flow]*carried{}
	for _, d := range dumps {
		d.stop()
		frames := c.decode(d.file, d.device)
		check.frames(t, frames)
		for _, f := range frames {
			if f.vxlan() {
				note(seen, f)
			}
		}
		if d.device == off4.Port() {
			raw := c.readPcap(d.file)
			i := slices.IndexFunc(frames, func(f frame) bool {
				return f.first("frame.protocols") == "eth:ethertype:ip:udp:vxlan:eth:ethertype:ip:tcp:data"
			})
			if i < 0 || len(raw) != len(frames) {
				t.Fatalf("%d frames with TCP data from the %dth on, tshark read %d", len(raw), i, len(frames))
			}
			check.sees(t, c, raw[i], d.device)
		}
	}
	for _, k := range talks {
		k.check(t, seen)
	}
}

// sentAs wants a node to have left the cutting to the kernel or not: both are to be on the wire.
func (c *cluster) sentAs(n *lab.Node, cut bool) {
	c.t.Helper()
	status := ask[api.Status](c, n, "status")
	var segments, calls uint64
	for _, w := range status.Workers {
		segments, calls = segments+w.TxSegments, calls+w.TxCalls
	}
	for _, o := range status.Offloads {
		if o.Name == "udp-gso" && o.Enabled != cut {
			c.t.Errorf("node %s: %s is in use: %v, want %v (%s)", n.Name, o.Name, o.Enabled, cut, o.Reason)
		}
	}
	if cut && calls > segments/2 {
		c.t.Errorf("node %s sent %d datagrams by %d calls: nothing was left to the kernel to cut", n.Name, segments, calls)
	}
}

// sentWhole wants a node to have sent superpackets uncut or not.
func (c *cluster) sentWhole(n *lab.Node, want bool) {
	c.t.Helper()
	whole := c.whole(n)
	const least = 100 // of megabytes in superpackets of at most 64 KiB
	if want && whole < least || !want && whole > 0 {
		c.t.Errorf("node %s sent %d superpackets uncut; want that: %v", n.Name, whole, want)
	}
}

// segment makes a wire of the underlay on which packets are what they are on a cable: the nodes' devices cut everything
// to the MTU, or the switch's ports do, and these fill in the checksums.
func (c *cluster) segment(devicesCut bool) {
	c.t.Helper()
	for _, n := range c.lab.Nodes() {
		if !devicesCut {
			c.do(n.NS, "ethtool -K eth0 tso off gso off tx-udp-segmentation off gro on")
		}
		c.do(c.lab.Switch(), "ethtool -K "+n.Port()+" tx off tso off gso off tx-udp-segmentation off gro off")
	}
	c.do(c.lab.Switch(), "ethtool -K "+lab.OutsidePort+" tx off tso off gso off tx-udp-segmentation off gro off")
}

// frames wants every frame to be good.
func (w wireCheck) frames(t *testing.T, frames []frame) {
	t.Helper()
	const show = 10
	bad := 0
	for _, f := range frames {
		if found := w.problems(f); len(found) > 0 {
			if bad++; bad <= show {
				t.Errorf("%s: %q", f, found)
			}
		}
	}
	if bad > show {
		t.Errorf("%d bad frames of %d", bad, len(frames))
	}
}

// A flow is everything of one protocol between two pods.
type flow struct {
	from, to netip.Addr
	proto    string
}

// carried is what crossed the wire of a flow.
type carried struct {
	frames, full int // full: as large as the pods' MTU allows
	tcpBytes     int // of payload
}

// note counts a frame with VXLAN.
func note(seen map[flow]*carried, f frame) {
	p := f.protocols()
	if len(p) < 9 {
		return // and has been complained about
	}
	k := flow{parseAddr(f.last(p[7] + ".src")), parseAddr(f.last(p[7] + ".dst")), p[8]}
	switch {
	case p[7] == "ipv6" && (f.last("ipv6.fraghdr.nxt") == "17" || f.last("ipv6.nxt") == "17"),
		p[7] == "ip" && f.last("ip.proto") == "17":
		k.proto = "udp" // or a fragment of it
	}
	if seen[k] == nil {
		seen[k] = &carried{}
	}
	seen[k].frames++
	if f.number("frame.len") == atInnerIP+wirePodMTU+map[string]int{"ipv6": 20}[p[2]] {
		seen[k].full++
	}
	if n := f.number("tcp.len"); n > 0 {
		seen[k].tcpBytes += n
	}
}

// wirePodMTU is the pods' MTU: the underlay's less 80.
const wirePodMTU = lab.DefaultMTU - 80

// A talk is what was sent one way, and so has to be found on the wire.
type talk struct {
	path     lab.Path
	from     netip.Addr
	sent     int // bytes of TCP payload
	udp      int // IP packets
	icmp     int // requests
	icmpName string
}

// talk sends something of everything: bulk and interactive TCP, small, large, cut and fragmented UDP datagrams, pings.
func (c *cluster) talk(p lab.Path) *talk {
	c.t.Helper()
	k := &talk{path: p, sent: wireBytes, icmpName: map[bool]string{true: "icmp", false: "icmpv6"}[p.Addr.Is4()]}
	var err error
	k.from, err = p.SourceSeen(c.ctx)
	c.ok(err)
	c.transfer(p, wireBytes)
	e, err := lab.StartEcho(c.ctx, p, 2*time.Millisecond)
	c.ok(err)
	c.ok(e.WaitAnswered(c.ctx))
	time.Sleep(20 * time.Millisecond)
	c.ok(e.WaitAnswered(c.ctx))
	c.ok(e.Stop())
	c.datagrams(p)
	const cutDatagrams, fragments = 20, 3
	largest := lab.PayloadFor(wirePodMTU, p.Addr) // UDP's header is as long as ICMP's
	sizes := []int{0, 1, 64, 65, largest - 1, largest}
	c.plainDatagrams(p, sizes)
	c.plainDatagrams(p, []int{4000})
	k.udp = cutDatagrams + len(sizes) + fragments
	c.ping(p.From, p.Addr, lab.Ping{})
	c.fullPing(p.From, p.Addr, wirePodMTU)
	k.icmp = 3 + 2
	return k
}

// plainDatagrams sends a datagram of each size and wants all of them to arrive.
func (c *cluster) plainDatagrams(p lab.Path, sizes []int) {
	c.t.Helper()
	server, client := c.udpPair(p)
	defer server.Close()
	defer client.Close()
	var want [][]byte
	for _, size := range sizes {
		b := bytes.Repeat([]byte{byte(size), 0x5a}, (size+1)/2)[:size]
		want = append(want, b)
		if _, err := client.Write(b); err != nil {
			c.t.Errorf("a datagram of %d bytes from %s: %v", size, p.From.Name, err)
		}
	}
	if got := receiveDatagrams(server, len(want)); !slices.EqualFunc(got, want, bytes.Equal) {
		var arrived []int
		for _, b := range got {
			arrived = append(arrived, len(b))
		}
		c.t.Errorf("datagrams of %v bytes from %s to %s: arrived with %v, or changed", sizes, p.From.Name, p.Addr, arrived)
	}
}

// check compares what was sent with what was on the wire.
func (k *talk) check(t *testing.T, seen map[flow]*carried) {
	t.Helper()
	got := func(proto string, from, to netip.Addr) carried {
		if s := seen[flow{from, to, proto}]; s != nil {
			return *s
		}
		return carried{}
	}
	what := fmt.Sprintf("%s to %s", k.from, k.path.Addr)
	// What is lost in a full queue is sent again.
	tcp := got("tcp", k.from, k.path.Addr)
	if tcp.tcpBytes < k.sent || tcp.tcpBytes > 2*k.sent {
		t.Errorf("%s: %d bytes of TCP payload on the wire, want %d and a little", what, tcp.tcpBytes, k.sent)
	}
	const headers = 20 + 20 // at least
	if least := k.sent * 9 / 10 / (wirePodMTU - headers); tcp.full < least {
		t.Errorf("%s: %d full frames with TCP, want at least %d: the wire cut nothing", what, tcp.full, least)
	}
	if udp := got("udp", k.from, k.path.Addr); udp.frames != k.udp {
		t.Errorf("%s: %d frames with UDP, want %d", what, udp.frames, k.udp)
	}
	// Each direction pings once, and the answers to the other's requests go the same way.
	if icmp := got(k.icmpName, k.from, k.path.Addr); icmp.frames != 2*k.icmp {
		t.Errorf("%s: %d frames with ICMP, want %d", what, icmp.frames, 2*k.icmp)
	}
}
