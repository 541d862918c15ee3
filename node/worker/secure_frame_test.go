package worker

import (
	"bytes"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	devmem "github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/device/memory/netpod"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	tunmem "github.com/warren-net/warren/tunnel/memory"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// testPiece is the size of pieces on a path with the tests' usual MTU.
const testPiece = 1420 + wireguard.Overhead

// sealedFrame is a superpacket as node from sends it to node to in a superframe: its pieces, one behind the other.
func sealedFrame(t testing.TB, from, to *testNode, p []byte, size uint16) []byte {
	t.Helper()
	return sealedIn(t, from, to, wireguard.Frame{Packet: p, SegmentSize: size, Piece: testPiece})
}

// sealedIn does it with any frame.
func sealedIn(t testing.TB, from, to *testNode, f wireguard.Frame) []byte {
	t.Helper()
	s := from.with(to).Current()
	n, _, fits := f.Bounds()
	counter, ok := s.Reserve(1)
	if !fits || !ok {
		t.Fatalf("no superframe for %d bytes: %v, %v", len(f.Packet), fits, ok)
	}
	head := wireguard.Head{Receiver: s.To(0), Counter: counter}
	return s.SealFrame(make([]byte, 0, n), new(wireguard.Nonce), head, &f)
}

// pieces is the captured pieces of superframes to an address.
func (c *capture) pieces(to netip.Addr) (msgs []tunmem.Datagram) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.seen {
		if d.To.Addr() == to && wireguard.IsPiece(d.Data) {
			msgs = append(msgs, d)
		}
	}
	return msgs
}

// chop is the datagrams of a train.
func chop(train []byte, size int) [][]byte { return slices.Collect(slices.Chunk(train, size)) }

// TestFrameCongestion follows RFC 6040 through superframes: as they are sent, and when the underlay has marked one of
// the pieces. The checksums stay what they have to be, and nothing else changes.
func TestFrameCongestion(t *testing.T) {
	var seen capture
	c := newCluster(t, clusterConfig{nodes: 2, over: superframes, network: tunmem.Config{Tap: seen.tap}})
	a, b := c.nodes[0], c.nodes[1]
	const dscp = 46 << 2
	bld := build{src: "10.244.2.5", dst: "10.244.1.9", payload: 8000, df: true}
	bld6 := build{src: "fd00:10:244:2::5", dst: "fd00:10:244:1::9", payload: 8000}
	for ecn := range uint8(4) {
		for _, x := range []build{bld, bld6} {
			x.tos = dscp | ecn
			p, m := super(t, x.bytes(t), 1300)
			before := len(seen.pieces(a.addr))
			b.dev.Inject(bytes.Clone(p), m)
			if got := a.next(t); !bytes.Equal(got.Data, p) || got.Meta != m {
				t.Errorf("%s, ECN %d: arrived as %x with %+v", x.src, ecn, got.Data[:8], got.Meta)
			}
			msgs := seen.pieces(a.addr)[before:]
			if len(msgs) != 6 {
				t.Errorf("ECN %d: %d pieces, want 6", ecn, len(msgs))
			}
			for _, d := range msgs {
				if d.TOS != ecn {
					t.Errorf("ECN %d shows as TOS %#x", ecn, d.TOS)
				}
			}
		}
	}
	s := secureStranger(c, "192.0.2.2")
	for _, tt := range []struct{ inner, outer, marked, want uint8 }{
		{2, 2, 3, 3}, {1, 1, 3, 3}, {2, 2, 1, 1}, {2, 2, 2, 2}, {3, 0, 0, 3}, {0, 2, 2, 0}, {1, 1, 1, 1},
	} {
		for k := range 6 { // which piece has the mark
			for _, x := range []build{bld, bld6} {
				x.tos = dscp | tt.inner
				p, m := super(t, x.bytes(t), 1300)
				for n, d := range chop(sealedFrame(t, b, a, p, 1300), testPiece) {
					tos := 0xb8 | tt.outer
					if n == k {
						tos = 0xb8 | tt.marked
					}
					s.send(t, tos, d)
				}
				want := bytes.Clone(p)
				var i packet.Info
				if e := packet.Parse(want, &i); e != packet.OK {
					t.Fatal(e)
				}
				packet.SetTOS(want, &i, dscp|tt.want)
				if got := a.next(t); !bytes.Equal(got.Data, want) || got.Meta != m {
					t.Errorf("%s, inner %d, outer %d, piece %d with %d: %x, %+v; want %x", x.src, tt.inner, tt.outer, k,
						tt.marked, got.Data[:12], got.Meta, want[:12])
				} else if i.Version == 4 && !packet.VerifyIPv4(got.Data[:20]) {
					t.Errorf("bad IPv4 header %x", got.Data[:20])
				}
			}
		}
	}
	p, _ := super(t, bld.bytes(t), 1300)
	for n, d := range chop(sealedFrame(t, b, a, p, 1300), testPiece) {
		s.send(t, []uint8{0, 0, 3, 0, 0, 0}[n], d)
	}
	a.waitDrop(t, forwarder.Congestion, 1)
	if d := a.allDrops(); len(d) > 1 {
		t.Errorf("dropped: %v", d)
	}
	a.nothing(t)
}

// TestFrameReplay sends captured superframes again, in trains, piece by piece and backwards, from elsewhere: each, or
// each piece where they do not come together, is a drop, and the peer stays where it is.
func TestFrameReplay(t *testing.T) {
	var seen capture
	c := newCluster(t, clusterConfig{nodes: 2, over: superframes, network: tunmem.Config{Tap: seen.tap}})
	a, b := c.nodes[0], c.nodes[1]
	p, m := super(t, build{src: "10.244.2.5", dst: "10.244.1.9", payload: 20 * 1360, df: true}.bytes(t), 1360)
	for range 20 { // more than it remembers of those that are complete
		b.dev.Inject(bytes.Clone(p), m)
		a.next(t)
	}
	msgs := seen.pieces(a.addr)
	each := len(msgs) / 20
	if each != 19 || len(msgs)%20 != 0 {
		t.Fatalf("%d pieces of 20 superframes", len(msgs))
	}
	replayed := func(least int) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); a.drops(forwarder.Replayed) < uint64(least); {
			if time.Now().After(deadline) {
				t.Fatalf("%d drops of what came again, want %d; all: %v", a.drops(forwarder.Replayed), least, a.allDrops())
			}
			time.Sleep(time.Millisecond)
		}
	}
	s := secureStranger(c, "192.0.2.77")
	for _, d := range msgs { // the stranger's are joined again on their way
		s.send(t, 0, d.Data)
	}
	replayed(20)
	n := int(a.drops(forwarder.Replayed))
	slices.Reverse(msgs[:each])
	for _, d := range msgs[:each] {
		s.send(t, 0, d.Data)
	}
	replayed(n + each)
	a.nothing(t)
	if n := a.drops(forwarder.LostPieces); n > 0 {
		t.Errorf("%d superframes are taken for lost", n)
	}
	if at := a.with(b).Endpoint(); at.Addr() != b.addr {
		t.Errorf("the peer is at %v now", at)
	}
}

// TestFramesInOrder reads more at once than the room for a batch holds, superpackets and lone packets of a flow: they
// arrive as they are, and in order, the superpackets whole.
func TestFramesInOrder(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, over: superframes, late: true})
	a, b := c.nodes[0], c.nodes[1]
	var want [][]byte
	for k := range queueBatch {
		x := build{src: "10.244.1.5", dst: "10.244.2.9", df: true, seq: uint32(k) << 20, id: uint16(k)}
		p, m := []byte(nil), packet.Meta{}
		switch k % 4 {
		case 0:
			x.payload = 60000 + k
			p, m = super(t, x.bytes(t), 1380)
		case 1:
			x.payload = 9000 + k*100
			p, m = super(t, x.bytes(t), 20+k)
		case 2:
			x.payload = 1381 // two segments
			p, m = super(t, x.bytes(t), 1380)
		case 3:
			x.payload = k
			p = x.bytes(t)
		}
		want = append(want, bytes.Clone(p))
		if !a.dev.Inject(p, m) {
			t.Fatal("the queue is full")
		}
	}
	c.start(b)
	c.start(a)
	for k := range want {
		if got := b.next(t).Data; !bytes.Equal(got, want[k]) {
			t.Fatalf("packet %d of %d bytes arrived as %d bytes", k, len(want[k]), len(got))
		}
	}
	b.nothing(t)
	if n := a.workers[0].Counters.FramesSealed.Load(); n != queueBatch*3/4 {
		t.Errorf("%d superframes, want %d", n, queueBatch*3/4)
	}
	for _, n := range c.nodes {
		if d := n.allDrops(); len(d) > 0 {
			t.Errorf("%s dropped %v", n.name, d)
		}
	}
}

// TestSmallerPieces: a path that became narrower takes superframes all the same, in smaller pieces, once it is known.
func TestSmallerPieces(t *testing.T) {
	const narrow = 1300
	var seen capture
	c := newCluster(t, clusterConfig{nodes: 2, over: superframes, late: true, network: tunmem.Config{Tap: seen.tap}})
	a, b := c.nodes[0], c.nodes[1]
	var events atomic.Int64
	a.workers[0].PathEvents = func(list []tunnel.PathEvent) { // as node does
		for _, e := range list {
			narrowed := *a.peers[0]
			narrowed.MTU = e.MTU - wireguard.Overhead4
			a.publishPeers(t, []*forwarder.Peer{&narrowed})
			events.Add(1)
		}
	}
	c.start(a)
	c.start(b)
	p, m := super(t, build{src: "10.244.1.5", dst: "10.244.2.9", payload: 20 * 1100, df: true}.bytes(t), 1100)
	send := func() devmem.Packet {
		a.dev.Inject(bytes.Clone(p), m)
		return b.next(t)
	}
	if got := send(); !bytes.Equal(got.Data, p) {
		t.Fatal("did not arrive on the wide path")
	}
	c.net.SetMTU(narrow)
	a.dev.Inject(bytes.Clone(p), m)
	a.waitDrop(t, forwarder.SendTooBig, 16)
	for deadline := time.Now().Add(5 * time.Second); events.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody was told of the narrow path")
		}
	}
	before := len(seen.pieces(b.addr))
	if got := send(); !bytes.Equal(got.Data, p) || got.Meta != m {
		t.Error("did not arrive on the narrow path as it was")
	}
	msgs := seen.pieces(b.addr)[before:]
	for k, d := range msgs {
		if n := len(d.Data); n > narrow-28 || k < len(msgs)-1 && n != narrow-28 {
			t.Errorf("piece %d of %d has %d bytes, want %d", k, len(msgs), n, narrow-28)
		}
	}
	if len(msgs) == 0 {
		t.Error("it left as no superframe")
	}
	if n := a.drops(forwarder.SendTooBig); n != 16 {
		t.Errorf("%d datagrams were too big, want 16", n)
	}
}

// TestLostPiecesEndFrames loses some pieces, and no data messages: the receiver asks for these, a transfer that was
// under way ends right, and nothing is lost any more.
func TestLostPiecesEndFrames(t *testing.T) {
	var pieces atomic.Int64
	c := newCluster(t, clusterConfig{nodes: 2, over: superframes, network: tunmem.Config{
		Drop: func(d tunmem.Datagram) bool { return wireguard.IsPiece(d.Data) && pieces.Add(1)%64 == 0 },
	}})
	a, b := c.nodes[0], c.nodes[1]
	pods := withPods(t, c, 1420, netpod.OffloadFull)
	deadline := time.Now().Add(60 * time.Second)
	for b.with(a).Current().TakesFrames() {
		if time.Now().After(deadline) {
			t.Fatalf("superframes go on; drops: %v", a.allDrops())
		}
		if err := transfer(pods[2], pods[0], pods[0].Addresses()[0], 8<<20); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.drops(forwarder.LostPieces); n < 8 {
		t.Errorf("asked for no more superframes after %d lost ones", n)
	}
	before := pieces.Load()
	if err := transfer(pods[2], pods[0], pods[0].Addresses()[0], 4<<20); err != nil {
		t.Error(err)
	}
	if n := pieces.Load(); n != before && !b.with(a).Current().TakesFrames() {
		t.Errorf("%d pieces after they were declined", n-before)
	}
}
