package forwarder

import (
	"net/netip"
	"testing"

	"github.com/warren-net/warren/forwarder/packet"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func prefixes(s ...string) (p []netip.Prefix) {
	for _, x := range s {
		p = append(p, prefix(x))
	}
	return p
}

// testSpec is node a (10.244.1.0/24) with the peers b and c.
func testSpec() Spec {
	return Spec{
		Generation:   7,
		PodCIDRs:     prefixes("10.244.1.0/24", "fd00:10:244:1::/64"),
		NodeAddrs:    []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")},
		Gateways:     []netip.Addr{addr("10.244.1.1"), addr("fd00:10:244:1::1")},
		ClusterCIDRs: prefixes("10.244.0.0/16", "fd00:10:244::/48"),
		Peers: []*Peer{
			{Name: "b", Endpoint: netip.MustParseAddrPort("192.0.2.2:4789"), MTU: 1450,
				PodCIDRs: prefixes("10.244.2.0/24", "fd00:10:244:2::/64"), Stats: NewPeerStats(1)},
			{Name: "c", Endpoint: netip.MustParseAddrPort("[2001:db8::3]:4789"), MTU: 1430,
				NodeAddrs: []netip.Addr{addr("192.0.2.3")},
				PodCIDRs:  prefixes("10.244.3.0/24"), Stats: NewPeerStats(1)},
		},
	}
}

func testSnapshot(t testing.TB) *Snapshot {
	t.Helper()
	s, err := Build(testSpec())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// info makes what Parse would have found; size is the packet's length.
func info(src, dst string, size int) *packet.Info {
	i := &packet.Info{Src: addr(src), Dst: addr(dst), Len: uint16(size), Version: 4, L4: 20, L4Len: 20, Proto: 6}
	if i.Src.Is6() {
		i.Version, i.L4, i.Flags = 6, 40, packet.DontFragment
	}
	return i
}

func TestFromTUN(t *testing.T) {
	s := testSnapshot(t)
	b, c := s.peers[0], s.peers[1]
	df := func(i *packet.Info) *packet.Info { i.Flags |= packet.DontFragment; return i }
	syn := func(i *packet.Info) *packet.Info { i.TCPFlags = tcpSYN; return i }
	tso := packet.Meta{Type: packet.GSOTCP4, SegmentSize: 1400}
	tests := []struct {
		name string
		i    *packet.Info
		m    packet.Meta
		want Decision
	}{
		{"to a peer's pod", info("10.244.1.5", "10.244.2.9", 1420), packet.Meta{}, Decision{Verdict: ToPeer, Peer: b,
			MTU: 1450}},
		{"IPv6 to a peer's pod", info("fd00:10:244:1::5", "fd00:10:244:2::9", 1420), packet.Meta{},
			Decision{Verdict: ToPeer, Peer: b, MTU: 1450}},
		{"to a peer's endpoint", info("10.244.1.5", "192.0.2.2", 100), packet.Meta{}, Decision{Verdict: ToPeer, Peer: b,
			MTU: 1450}},
		{"to a peer's other address", info("10.244.1.5", "192.0.2.3", 100), packet.Meta{}, Decision{Verdict: ToPeer,
			Peer: c, MTU: 1430}},
		{"node to a peer's pod", info("192.0.2.1", "10.244.3.9", 100), packet.Meta{}, Decision{Verdict: ToPeer, Peer: c,
			MTU: 1430}},
		{"gateway to a peer's pod", info("10.244.1.1", "10.244.3.9", 100), packet.Meta{}, Decision{Verdict: ToPeer,
			Peer: c, MTU: 1430}},
		{"SYN", syn(info("10.244.1.5", "10.244.3.9", 60)), packet.Meta{}, Decision{Verdict: ToPeer, Peer: c, MTU: 1430,
			Edit: ClampMSS}},
		{"same node", info("10.244.1.5", "10.244.1.6", 100), packet.Meta{}, Decision{Verdict: Local}},
		{"to the own gateway", info("10.244.1.5", "10.244.1.1", 100), packet.Meta{}, Decision{Verdict: Local}},
		{"outside", info("10.244.1.5", "198.51.100.1", 100), packet.Meta{}, Decision{Verdict: Kernel}},
		{"IPv6 outside", info("fd00:10:244:1::5", "2001:db8:1::1", 100), packet.Meta{}, Decision{Verdict: Kernel}},
		{"node to outside", info("192.0.2.1", "198.51.100.1", 100), packet.Meta{}, Decision{Reason: NodeToOutside,
			Reject: packet.RejectNoRoute}},
		{"hole in the cluster", info("10.244.1.5", "10.244.99.1", 100), packet.Meta{}, Decision{Reason: NoRoute,
			Reject: packet.RejectNoRoute}},
		{"spoofed: a peer's pod", info("10.244.2.5", "10.244.3.1", 100), packet.Meta{}, Decision{Reason: SourceNotLocal}},
		{"spoofed: outside", info("198.51.100.7", "10.244.3.1", 100), packet.Meta{}, Decision{Reason: SourceNotLocal}},
		{"multicast report of the kernel", info("::", "ff02::16", 76), packet.Meta{}, Decision{Reason: Multicast}},
		{"spoofed: to a group", info("198.51.100.7", "224.0.0.1", 100), packet.Meta{}, Decision{Reason: SourceNotLocal}},
		{"spoofed: hole", info("10.244.99.7", "10.244.3.1", 100), packet.Meta{}, Decision{Reason: SourceNotLocal}},
		{"multicast", info("10.244.1.5", "224.0.0.251", 100), packet.Meta{}, Decision{Reason: Multicast}},
		{"broadcast", info("10.244.1.5", "255.255.255.255", 100), packet.Meta{}, Decision{Reason: Multicast}},
		{"IPv6 multicast", info("fd00:10:244:1::5", "ff02::2", 100), packet.Meta{}, Decision{Reason: Multicast}},
		{"IPv6 link-local", info("fd00:10:244:1::5", "fe80::1", 100), packet.Meta{}, Decision{Reason: LinkLocal}},
		{"fits exactly, DF", df(info("10.244.1.5", "10.244.2.9", 1450)), packet.Meta{}, Decision{Verdict: ToPeer, Peer: b,
			MTU: 1450}},
		{"a byte too big, DF", df(info("10.244.1.5", "10.244.2.9", 1451)), packet.Meta{}, Decision{Reason: TooBig,
			Reject: packet.RejectTooBig, Peer: b, MTU: 1450}},
		{"a byte too big", info("10.244.1.5", "10.244.2.9", 1451), packet.Meta{}, Decision{Verdict: ToPeer, Peer: b,
			MTU: 1450, Edit: Fragment}},
		{"IPv6 too big", info("fd00:10:244:1::5", "fd00:10:244:2::9", 1451), packet.Meta{}, Decision{Reason: TooBig,
			Reject: packet.RejectTooBig, Peer: b, MTU: 1450}},
		{"superpacket whose segments fit", df(info("10.244.1.5", "10.244.2.9", 60000)), tso, Decision{Verdict: ToPeer,
			Peer: b, MTU: 1450}},
		{"superpacket whose segments do not", df(info("10.244.1.5", "10.244.3.9", 60000)), tso, Decision{Reason: TooBig,
			Reject: packet.RejectTooBig, Peer: c, MTU: 1430}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := s.FromTUN(tt.i, tt.m); got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// TestPathBelowIPv6Minimum: IPv6 is never told less than 1280 bytes, IPv4 and the MSS follow the path.
func TestPathBelowIPv6Minimum(t *testing.T) {
	spec := testSpec()
	b := spec.Peers[0]
	b.MTU = 1000
	s, err := Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	syn := info("fd00:10:244:1::5", "fd00:10:244:2::9", 80)
	syn.TCPFlags = tcpSYN
	big4 := info("10.244.1.5", "10.244.2.9", 1001)
	big4.Flags |= packet.DontFragment
	for _, tt := range []struct {
		name string
		i    *packet.Info
		want Decision
	}{
		{"IPv6, 1280 bytes", info("fd00:10:244:1::5", "fd00:10:244:2::9", 1280),
			Decision{Verdict: ToPeer, Peer: b, MTU: 1000}},
		{"IPv6, 1281 bytes", info("fd00:10:244:1::5", "fd00:10:244:2::9", 1281),
			Decision{Reason: TooBig, Reject: packet.RejectTooBig, Peer: b, MTU: 1280}},
		{"IPv6 SYN", syn, Decision{Verdict: ToPeer, Peer: b, MTU: 1000, Edit: ClampMSS}},
		{"IPv4", big4, Decision{Reason: TooBig, Reject: packet.RejectTooBig, Peer: b, MTU: 1000}},
	} {
		if got := s.FromTUN(tt.i, packet.Meta{}); got != tt.want {
			t.Errorf("%s: got  %+v\nwant %+v", tt.name, got, tt.want)
		}
	}
}

func TestFromWire(t *testing.T) {
	s := testSnapshot(t)
	b, c := s.peers[0], s.peers[1]
	syn := info("10.244.2.5", "10.244.1.9", 60)
	syn.TCPFlags = tcpSYN | 0x10
	tests := []struct {
		name string
		peer *Peer
		i    *packet.Info
		want Decision
	}{
		{"pod to pod", b, info("10.244.2.5", "10.244.1.9", 100), Decision{Verdict: Local, Peer: b}},
		{"IPv6 pod to pod", b, info("fd00:10:244:2::5", "fd00:10:244:1::9", 100), Decision{Verdict: Local, Peer: b}},
		{"SYN+ACK", b, syn, Decision{Verdict: Local, Peer: b, Edit: ClampMSS, MTU: 1450}},
		{"pod to node", b, info("10.244.2.5", "192.0.2.1", 100), Decision{Verdict: Local, Peer: b}},
		{"node to pod", b, info("192.0.2.2", "10.244.1.9", 100), Decision{Verdict: Local, Peer: b}},
		{"node's other address to pod", c, info("192.0.2.3", "10.244.1.9", 100), Decision{Verdict: Local, Peer: c}},
		{"another peer's pod", b, info("10.244.3.5", "10.244.1.9", 100), Decision{Reason: SourceNotPeer, Peer: b}},
		{"another peer's node", b, info("192.0.2.3", "10.244.1.9", 100), Decision{Reason: SourceNotPeer, Peer: b}},
		{"our own pod", b, info("10.244.1.5", "10.244.1.9", 100), Decision{Reason: SourceNotPeer, Peer: b}},
		{"outside", b, info("198.51.100.5", "10.244.1.9", 100), Decision{Reason: SourceNotPeer, Peer: b}},
		{"hole", b, info("10.244.77.5", "10.244.1.9", 100), Decision{Reason: SourceNotPeer, Peer: b}},
		{"to a third node", b, info("10.244.2.5", "10.244.3.9", 100), Decision{Reason: NotForThisNode, Peer: b}},
		{"to the outside", b, info("10.244.2.5", "198.51.100.1", 100), Decision{Reason: NotForThisNode, Peer: b}},
		{"back to the sender", b, info("10.244.2.5", "10.244.2.6", 100), Decision{Reason: NotForThisNode, Peer: b}},
		{"multicast", b, info("10.244.2.5", "224.0.0.1", 100), Decision{Reason: NotForThisNode, Peer: b}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := s.FromWire(tt.peer, tt.i); got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestEmptyTableDropsEverything(t *testing.T) {
	var table Table
	if d := table.Load().FromTUN(info("10.244.1.5", "10.244.2.5", 100), packet.Meta{}); d.Verdict != Drop {
		t.Errorf("got %+v", d)
	}
}

func TestEveryReasonHasANameAndAText(t *testing.T) {
	seen := map[string]bool{}
	for r := range NumReasons {
		if r.Name() == "" || r.Text() == "" || seen[r.Name()] {
			t.Errorf("reason %d: name %q, text %q", r, r.Name(), r.Text())
		}
		seen[r.Name()] = true
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	s := testSnapshot(t)
	out, in := info("10.244.1.5", "10.244.2.9", 1420), info("10.244.2.9", "10.244.1.5", 1420)
	var d Decision
	if n := testing.AllocsPerRun(1000, func() {
		d = s.FromTUN(out, packet.Meta{})
		d = s.FromWire(s.peers[0], in)
	}); n != 0 {
		t.Errorf("%v allocations per decision", n)
	}
	_ = d
}
