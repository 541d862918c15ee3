package worker

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/warren-net/warren/device"
	devmem "github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
)

// A feeder hands what a peer or a stranger may send to a worker that does not run.
type feeder struct {
	t    testing.TB
	node *testNode
	w    *Worker
	from netip.AddrPort
}

func newFeeder(t testing.TB, a, b *testNode) *feeder {
	f := &feeder{t, a, a.workers[0], netip.AddrPortFrom(b.addr, securePort)}
	f.w.snap = f.w.Table.Load()
	f.w.join.Reset()
	return f
}

// feed has the worker take one receive of datagrams of size bytes each, and returns what it wrote.
func (f *feeder) feed(b []byte, size int, tos uint8) (written []devmem.Packet) {
	f.t.Helper()
	f.w.join.Reset()
	n := f.w.fromTunnel(&tunnel.Datagrams{Buf: b, N: len(b), SegmentSize: size, TOS: tos, From: f.from})
	if err := f.w.deliverRuns(n); err != nil {
		f.t.Fatal(err)
	}
	for {
		select {
		case p := <-f.node.dev.Written():
			written = append(written, p)
		default:
			return written
		}
	}
}

// takenByKernel wants that a packet is one that a kernel takes: the rules of virtio_net_hdr_to_skb and of what comes
// after it, written down once more.
func takenByKernel(t testing.TB, p devmem.Packet) {
	t.Helper()
	m, n := p.Meta, len(p.Data)
	var i packet.Info
	if e := packet.Parse(p.Data, &i); e != packet.OK || int(i.Len) != n {
		t.Fatalf("%d bytes that are no packet, or not all of it: %v, %+v", n, e, i)
	}
	if m.NeedsChecksum && int(m.ChecksumStart)+int(m.ChecksumOffset)+2 > n {
		t.Fatalf("a checksum beyond the packet: %+v", m)
	}
	if m.Type == packet.GSONone {
		if m.SegmentSize != 0 {
			t.Fatalf("a lone packet with %+v", m)
		}
		return
	}
	payload := n - i.HeaderLen()
	segments := (payload + int(m.SegmentSize) - 1) / max(int(m.SegmentSize), 1)
	proto := map[packet.GSOType]uint8{packet.GSOTCP4: protoTCP, packet.GSOTCP6: protoTCP, packet.GSOUDP: protoUDP}[m.Type]
	most := map[packet.GSOType]int{packet.GSOTCP4: packet.MaxSegments, packet.GSOTCP6: packet.MaxSegments,
		packet.GSOUDP: 128}[m.Type] // an older kernel refuses more than 64, which are cut then
	switch {
	case m.SegmentSize == 0 || m.SegmentSize == 0xffff || segments < 2 || segments > most:
		t.Fatalf("%d segments of %d bytes", segments, m.SegmentSize)
	case proto != i.Proto, m.Type == packet.GSOTCP4 && i.Version != 4, m.Type == packet.GSOTCP6 && i.Version != 6:
		t.Fatalf("type %v for protocol %d in IPv%d", m.Type, i.Proto, i.Version)
	case !m.NeedsChecksum, m.ChecksumStart != i.L4, i.Is(packet.Fragment):
		t.Fatalf("%+v for %+v", m, i)
	}
	shape, err := device.Inspect(m, [][]byte{p.Data})
	if err != nil || shape.Header != i.HeaderLen() {
		t.Fatalf("%v: headers of %d bytes, want %d", err, shape.Header, i.HeaderLen())
	}
}

// TestFrameIsNotTrusted: what a peer has sealed may still be anything. Each is a drop of its own reason, or arrives as
// a packet that a kernel takes: a segment size that makes no sense leaves a lone packet with a complete checksum.
func TestFrameIsNotTrusted(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 3, over: superframes, late: true})
	a, b := c.nodes[0], c.nodes[1]
	f := newFeeder(t, a, b)
	good := build{src: "10.244.2.5", dst: "10.244.1.9", payload: 5000, df: true}
	with := func(change func(*build)) build {
		x := good
		change(&x)
		return x
	}
	from := func(src, dst string) build { return with(func(x *build) { x.src, x.dst = src, dst }) }
	udp := with(func(x *build) { x.proto = protoUDP })
	set := func(at int, values ...byte) func([]byte) []byte {
		return func(p []byte) []byte { copy(p[at:], values); return p }
	}
	for _, tt := range []struct {
		name  string
		b     build
		full  bool // its checksum is complete: nothing says that it is to be cut
		edit  func([]byte) []byte
		size  uint16
		want  forwarder.Reason // 0: it arrives
		drops uint64           // 0: 1, when there is a reason
		typ   packet.GSOType   // as which it arrives
	}{
		{name: "as it should be", b: good, size: 1000, typ: packet.GSOTCP4},
		{name: "UDP as it should be", b: udp, size: 1000, typ: packet.GSOUDP},
		{name: "segments larger than the packet", b: good, size: 6000},
		{name: "segments of exactly the payload", b: good, size: 5000},
		{name: "segments of 0 bytes", b: good, size: 0},
		{name: "segments of 65,535 bytes, which mean something else to a kernel", b: good, size: 0xffff},
		{name: "segments of a byte", b: good, size: 1, typ: packet.GSOTCP4},
		{name: "more segments than there are", b: with(func(x *build) { x.payload = packet.MaxSegments + 1 }), size: 1},
		{name: "a SYN in segments", b: with(func(x *build) { x.flags = 0x02 }), size: 1000},
		{name: "a RST in segments", b: with(func(x *build) { x.flags = 0x04 }), size: 1000},
		{name: "a lone packet", b: with(func(x *build) { x.payload = 100 }), size: 1000},
		{name: "UDP without a checksum", b: with(func(x *build) { x.proto, x.noSum = protoUDP, true }), full: true, size: 9},
		{name: "a complete checksum", b: good, full: true, size: 1000},
		{name: "a wrong checksum", b: good, edit: set(36, 0x12, 0x34), size: 1000},
		{name: "a fragment", b: with(func(x *build) { x.df, x.fragment = false, 0x2000 }), full: true, size: 1000},
		{name: "ping", b: with(func(x *build) { x.proto = protoICMP }), full: true, size: 1000},
		{name: "another protocol", b: with(func(x *build) { x.proto, x.l4 = 132, make([]byte, 5000) }), full: true, size: 9},

		{name: "another peer's pod", b: from("10.244.3.5", "10.244.1.9"), size: 1000, want: forwarder.SourceNotPeer,
			drops: 5},
		{name: "our pod", b: from("10.244.1.5", "10.244.1.9"), size: 2500, want: forwarder.SourceNotPeer, drops: 2},
		{name: "the outside", b: from("198.51.100.5", "10.244.1.9"), size: 0, want: forwarder.SourceNotPeer},
		{name: "to the outside", b: from("10.244.2.5", "198.51.100.1"), size: 0, want: forwarder.NotForThisNode},
		{name: "to a third node", b: from("10.244.2.5", "10.244.3.1"), size: 1000, want: forwarder.NotForThisNode, drops: 5},
		{name: "no IP", b: good, edit: set(0, 0x15), size: 1000, want: forwarder.FromError(packet.ErrVersion)},
		{name: "zeros", b: good, edit: func(p []byte) []byte { clear(p); return p }, size: 1000,
			want: forwarder.FromError(packet.ErrVersion)},
		{name: "an offer", b: good, size: 1000, want: forwarder.FromError(packet.ErrVersion),
			edit: func([]byte) []byte { return append([]byte{0, 1, 0x87, 0}, "Warren offer"...) }},
		{name: "nothing", b: good, edit: func(p []byte) []byte { return p[:0] }, size: 1000,
			want: forwarder.FromError(packet.ErrVersion)},
		{name: "an IP header that says more", b: good, edit: set(2, 0xff, 0xff), size: 1000,
			want: forwarder.FromError(packet.ErrTruncated)},
		{name: "truncated", b: good, edit: func(p []byte) []byte { return p[:30] }, size: 1000,
			want: forwarder.FromError(packet.ErrTruncated)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tt.b.bytes(t)
			if !tt.full {
				p, _ = super(t, p, 1000)
			}
			if tt.edit != nil {
				p = tt.edit(p)
			}
			before, opened := a.allDrops(), f.w.Counters.FramesOpened.Load()
			f.t = t
			got := f.feed(sealedFrame(t, b, a, bytes.Clone(p), tt.size), testPiece, 0)
			if f.w.Counters.FramesOpened.Load() != opened+1 {
				t.Errorf("not opened")
			}
			drops := a.allDrops()
			for reason, n := range before {
				if drops[reason] -= n; drops[reason] == 0 {
					delete(drops, reason)
				}
			}
			if tt.want != 0 {
				if want := max(tt.drops, 1); len(got) > 0 || len(drops) != 1 || drops[tt.want.Name()] != want {
					t.Errorf("%d written, dropped: %v; want %d %s", len(got), drops, want, tt.want.Name())
				}
				return
			}
			if len(got) != 1 || len(drops) > 0 || got[0].Meta.Type != tt.typ {
				t.Fatalf("%d written, dropped: %v", len(got), drops)
			}
			takenByKernel(t, got[0])
			want := bytes.Clone(p)
			if tt.typ == packet.GSONone && !tt.full && tt.edit == nil {
				want = tt.b.bytes(t) // with its checksum completed
			}
			if !bytes.Equal(got[0].Data, want) {
				t.Errorf("arrived as %x, want %x", got[0].Data[:40], want[:40])
			}
		})
	}
	// Who may send for one node may not for another.
	f.t, f.from = t, netip.AddrPortFrom(c.nodes[2].addr, securePort)
	p, _ := super(t, good.bytes(t), 1000)
	before := a.drops(forwarder.SourceNotPeer)
	if got := f.feed(sealedFrame(t, c.nodes[2], a, p, 1000), testPiece, 0); len(got) > 0 ||
		a.drops(forwarder.SourceNotPeer) != before+5 {
		t.Errorf("sealed by another peer: %d written; drops: %v", len(got), a.allDrops())
	}
}

// FuzzFrameContents has a peer seal anything as a superframe. What a worker makes of it is one drop, or packets that a
// kernel takes.
func FuzzFrameContents(f *testing.F) {
	a, b, _ := newSecurePair(f, superframes)
	feeder := newFeeder(f, a, b)
	for _, x := range []build{
		{src: "10.244.2.5", dst: "10.244.1.9", payload: 500, df: true},
		{src: "10.244.2.5", dst: "10.244.1.9", payload: 500, proto: protoUDP},
		{src: "fd00:10:244:2::5", dst: "fd00:10:244:1::9", payload: 500, tos: 2},
		{src: "fd00:10:244:2::5", dst: "fd00:10:244:1::9", payload: 300, proto: protoUDP,
			ext: []byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, extType: 60},
		{src: "10.244.2.5", dst: "10.244.1.9", payload: 40, ipOpts: []byte{0x94, 4, 0, 0}},
		{src: "10.244.2.5", dst: "10.244.1.9", payload: 100, proto: protoICMP},
	} {
		p := x.bytes(f)
		if x.proto != protoICMP {
			p, _ = super(f, p, 100)
		}
		for _, size := range []uint16{0, 1, 100, 499, 0xffff} {
			f.Add(p, size, uint8(0))
			f.Add(append(bytes.Clone(p), 1, 2, 3), size, uint8(3))
		}
	}
	f.Fuzz(func(t *testing.T, inner []byte, size uint16, tos uint8) {
		if len(inner) > 60000 {
			return
		}
		feeder.t = t
		opened, before, writes := feeder.w.Counters.FramesOpened.Load(), fmt.Sprint(a.allDrops()), a.dev.Stats().Written
		got := feeder.feed(sealedFrame(t, b, a, bytes.Clone(inner), size), testPiece, tos)
		if feeder.w.Counters.FramesOpened.Load() != opened+1 {
			t.Fatal("not opened")
		}
		if dropped := fmt.Sprint(a.allDrops()) != before; dropped == (a.dev.Stats().Written > writes) {
			t.Errorf("%d packets were written, and dropped %v", len(got), dropped)
		}
		for _, p := range got {
			takenByKernel(t, p)
			var i packet.Info
			_ = packet.Parse(p.Data, &i) // as before
			if i.Src != b.addr && !b.cidrs[0].Contains(i.Src) && !b.cidrs[1].Contains(i.Src) {
				t.Errorf("a packet from %v", i.Src)
			}
		}
	})
}
