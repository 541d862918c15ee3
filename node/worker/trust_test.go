package worker

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	tunmem "github.com/warren-net/warren/tunnel/memory"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// A stranger is somebody on the underlay who sends whatever he likes to node 1.
type stranger struct {
	sock *tunmem.Socket
	to   netip.AddrPort
}

func newStranger(c *testCluster, from string) stranger {
	return stranger{c.net.Socket(netip.AddrPortFrom(netip.MustParseAddr(from), 5555)),
		netip.AddrPortFrom(c.nodes[0].addr, testPort)}
}

func (s stranger) send(t *testing.T, tos uint8, parts ...[]byte) {
	t.Helper()
	var o tunnel.Outbound
	o.Append(tunnel.Send{To: s.to, TOS: tos}, bytes.Join(parts, nil), nil)
	if _, err := s.sock.Send(&o); err != nil {
		t.Fatal(err)
	}
}

// TestWireIsNotTrusted sends what an attacker or a misconfigured node would; each is a drop of its own reason.
func TestWireIsNotTrusted(t *testing.T) {
	good := build{src: "10.244.2.5", dst: "10.244.1.9", payload: 100}
	from := func(src, dst string) build { return build{src: src, dst: dst, payload: 100} }
	tests := []struct {
		name   string
		sender string // 192.0.2.2 and .3 are peers
		edit   func(h *vxlan.Header)
		b      build
		tos    uint8
		want   forwarder.Reason
	}{
		{name: "unknown underlay address", sender: "192.0.2.77", b: good, want: forwarder.UnknownPeer},
		{name: "our own underlay address", sender: "192.0.2.1", b: good, want: forwarder.UnknownPeer},
		{name: "wrong VNI", b: good, edit: func(h *vxlan.Header) { h[6]++ }, want: forwarder.WrongVNI},
		{name: "no VNI flag", b: good, edit: func(h *vxlan.Header) { h[0] = 0 }, want: forwarder.EncapFlags},
		{name: "remote checksum offload", b: good, edit: func(h *vxlan.Header) { h[1] |= 0x20 },
			want: forwarder.UnofferedExtension},
		{name: "another VTEP's MAC", b: good, edit: func(h *vxlan.Header) { h[13]++ }, want: forwarder.WrongMAC},
		{name: "broadcast MAC", b: good, edit: func(h *vxlan.Header) { copy(h[8:14], "\xff\xff\xff\xff\xff\xff") },
			want: forwarder.GroupMAC},
		{name: "ARP", b: good, edit: func(h *vxlan.Header) { h[20], h[21] = 8, 6 }, want: forwarder.BadEtherType},
		{name: "another peer's pod", b: from("10.244.3.5", "10.244.1.9"), want: forwarder.SourceNotPeer},
		{name: "our pod", b: from("10.244.1.5", "10.244.1.9"), want: forwarder.SourceNotPeer},
		{name: "our gateway", b: from("10.244.1.1", "10.244.1.9"), want: forwarder.SourceNotPeer},
		{name: "our node", b: from("192.0.2.1", "10.244.1.9"), want: forwarder.SourceNotPeer},
		{name: "the outside", b: from("198.51.100.5", "10.244.1.9"), want: forwarder.SourceNotPeer},
		{name: "the peer's pods sent by another peer", sender: "192.0.2.3", b: good, want: forwarder.SourceNotPeer},
		{name: "to the outside", b: from("10.244.2.5", "198.51.100.1"), want: forwarder.NotForThisNode},
		{name: "to a third node", b: from("10.244.2.5", "10.244.3.1"), want: forwarder.NotForThisNode},
		{name: "congested, sender without ECN", b: good, tos: 3, want: forwarder.Congestion},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, clusterConfig{nodes: 3})
			a, b := c.nodes[0], c.nodes[1]
			if tt.sender == "" {
				tt.sender = "192.0.2.2"
			}
			h := vxlan.NewHeader(testVNI, a.mac, b.mac, vxlan.EtherTypeIPv4)
			if tt.edit != nil {
				tt.edit(&h)
			}
			newStranger(c, tt.sender).send(t, tt.tos, h[:], tt.b.bytes(t))
			a.waitDrop(t, tt.want, 1)
			a.nothing(t)
			if all := a.allDrops(); len(all) != 1 {
				t.Errorf("counted more than once: %v", all)
			}
		})
	}
}

// TestCongestionMarksAreCarriedOver follows RFC 6040 through the whole node.
func TestCongestionMarksAreCarriedOver(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2})
	a, b := c.nodes[0], c.nodes[1]
	h := vxlan.NewHeader(testVNI, a.mac, b.mac, vxlan.EtherTypeIPv4)
	s := newStranger(c, "192.0.2.2")
	const dscp = 10 << 2
	for _, tt := range []struct{ inner, outer, want uint8 }{{2, 3, 3}, {1, 3, 3}, {2, 1, 1}, {2, 2, 2}, {3, 0, 3}, {0,
		2, 0}} {
		s.send(t, 0xb8|tt.outer, h[:], build{src: "10.244.2.5", dst: "10.244.1.9", payload: 9, tos: dscp | tt.inner}.bytes(t))
		got := a.next(t)
		checkTCP(t, got)
		if got.Data[1] != dscp|tt.want {
			t.Errorf("inner %d, outer %d: TOS %#x, want %#x", tt.inner, tt.outer, got.Data[1], dscp|tt.want)
		}
	}
}

// TestBadPacketsAreDropped feeds both ends of a worker with packets that lie; afterwards it still works.
func TestBadPacketsAreDropped(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2})
	a, b := c.nodes[0], c.nodes[1]
	h := vxlan.NewHeader(testVNI, a.mac, b.mac, vxlan.EtherTypeIPv4)
	s := newStranger(c, "192.0.2.2")
	goodOut := build{src: "10.244.1.9", dst: "10.244.2.5", payload: 60, df: true}.bytes(t)
	goodIn := build{src: "10.244.2.5", dst: "10.244.1.9", payload: 60, df: true}.bytes(t)
	v6 := build{src: "fd00:10:244:1::9", dst: "fd00:10:244:2::5", payload: 60}.bytes(t)

	a.dev.Inject(nil, packet.Meta{})
	for n := range len(goodOut) {
		a.dev.Inject(bytes.Clone(goodOut[:n]), packet.Meta{})
		a.dev.Inject(bytes.Clone(v6[:min(n, len(v6)-1)]), packet.Meta{})
		s.send(t, 0, h[:], goodIn[:n])
		s.send(t, 0, h[:min(n, len(h))])
	}
	edit := func(p []byte, at int, v byte) []byte { p = bytes.Clone(p); p[at] = v; return p }
	for _, p := range [][]byte{
		edit(goodOut, 0, 0x55), edit(goodOut, 0, 0x44), edit(goodOut, 0, 0x4f), edit(goodOut, 2, 0xff), edit(goodOut, 3, 3),
		edit(goodOut, 32, 0x10), edit(goodOut, 32, 0xf0), edit(v6, 4, 0xff),
	} {
		a.dev.Inject(p, packet.Meta{})
	}
	for _, m := range []packet.Meta{
		{Type: packet.GSOTCP4}, {Type: packet.GSOTCP6, SegmentSize: 10, NeedsChecksum: true, ChecksumStart: 20,
			ChecksumOffset: 16},
		{Type: packet.GSOUDP, SegmentSize: 10, NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6},
		{Type: packet.GSOTCP4, SegmentSize: 10, NeedsChecksum: true, ChecksumStart: 65535, ChecksumOffset: 65535},
		{Type: 255, SegmentSize: 10}, {NeedsChecksum: true, ChecksumStart: 2000, ChecksumOffset: 3},
	} {
		a.dev.Inject(bytes.Clone(goodOut), m)
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 3000 {
		p := make([]byte, rnd.IntN(200))
		for k := range p {
			p[k] = byte(rnd.Uint32())
		}
		a.dev.Inject(p, packet.Meta{Type: packet.GSOType(rnd.IntN(5)), SegmentSize: uint16(rnd.IntN(3000)),
			NeedsChecksum: rnd.IntN(2) == 0, ChecksumStart: uint16(rnd.IntN(300)), ChecksumOffset: uint16(rnd.IntN(30))})
		s.send(t, uint8(rnd.IntN(256)), h[:], p)
	}
	// Both directions still work, whatever else got through.
	last := build{src: "10.244.1.9", dst: "10.244.2.5", proto: protoUDP, payload: 7}.bytes(t)
	b.gets(t, last, func() { a.dev.Inject(bytes.Clone(last), packet.Meta{}) })
	last = build{src: "10.244.2.5", dst: "10.244.1.9", proto: protoUDP, payload: 7}.bytes(t)
	a.gets(t, last, func() { s.send(t, 0, h[:], last) })
	for _, r := range []forwarder.Reason{forwarder.Truncated, forwarder.BadVersion, forwarder.BadHeader,
		forwarder.BadOffload} {
		if a.drops(r) == 0 {
			t.Errorf("nothing was dropped as %s: %v", r, a.allDrops())
		}
	}
}
