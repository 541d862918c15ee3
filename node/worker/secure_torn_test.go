package worker

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// newTornPair makes two nodes that take superframes from each other, of two workers each, which don't run. feed has a
// worker of the first one take datagrams that came from an address.
func newTornPair(t *testing.T) (a, b *testNode, feed func(worker int, from netip.AddrPort, datagrams ...[]byte)) {
	t.Helper()
	c := newCluster(t, clusterConfig{nodes: 2, queues: 2, over: superframes, late: true})
	a, b = c.nodes[0], c.nodes[1]
	for _, w := range a.workers {
		w.snap = w.Table.Load()
	}
	return a, b, func(worker int, from netip.AddrPort, datagrams ...[]byte) {
		buf := slices.Concat(datagrams...)
		a.workers[worker].fromTunnel(&tunnel.Datagrams{Buf: buf, N: len(buf), SegmentSize: len(datagrams[0]), From: from})
	}
}

func peerAddr(n *testNode) netip.AddrPort { return netip.AddrPortFrom(n.addr, securePort) }

// TestFrameTorn: the first pieces of a superframe come to another worker, as whoever joins datagrams does so by their
// size, and a full one of another lane was before them.
func TestFrameTorn(t *testing.T) {
	a, b, feed := newTornPair(t)
	p, m := super(t, build{src: "10.244.2.5", dst: "10.244.1.9", payload: 20 * 1360, df: true}.bytes(t), 1360)
	for torn := range 5 {
		pieces := chop(sealedFrame(t, b, a, bytes.Clone(p), m.SegmentSize), testPiece)
		for _, d := range pieces[:torn+1] {
			feed(1, peerAddr(b), d)
		}
		feed(0, peerAddr(b), pieces[torn+1:]...)
		if err := a.workers[0].deliverRuns(len(pieces)); err != nil {
			t.Fatal(err)
		}
		a.workers[0].join.Reset()
		if got := a.next(t); !bytes.Equal(got.Data, p) || got.Meta != m {
			t.Errorf("torn behind piece %d: %d bytes arrived with %+v, want %d with %+v", torn, len(got.Data), got.Meta,
				len(p), m)
		}
	}
	if d := a.allDrops(); len(d) > 0 {
		t.Errorf("dropped: %v", d)
	}
}

// TestForgedFrames: superframes that anybody can make, who knows the index and where the peer is, are complete at once.
// No memory is held for them; and for true ones that have to be collected only so much.
func TestForgedFrames(t *testing.T) {
	a, b, feed := newTornPair(t)
	w := a.workers[0]
	p, m := super(t, build{src: "10.244.2.5", dst: "10.244.1.9", payload: 40, df: true}.bytes(t), 20)
	small := func() [][]byte {
		const piece = 60
		f := wireguard.Frame{Packet: bytes.Clone(p), SegmentSize: m.SegmentSize, Piece: piece}
		return chop(sealedIn(t, b, a, f), piece)
	}
	for range 1000 {
		pieces := small()
		pieces[1][len(pieces[1])-1] ^= 1
		slices.Reverse(pieces)
		for _, d := range pieces {
			feed(0, peerAddr(b), d)
		}
	}
	if n := len(w.lent); n > 0 || a.drops(forwarder.BadSeal) != 1000 {
		t.Errorf("%d are held of 1,000 forged ones; dropped: %v", n, a.allDrops())
	}
	for range 3 * maxLent {
		pieces := small()
		slices.Reverse(pieces)
		for _, d := range pieces {
			feed(0, peerAddr(b), d)
		}
	}
	if n := len(w.lent); n != maxLent || a.drops(forwarder.LostPieces) != 2*maxLent {
		t.Errorf("%d are held, want %d; dropped: %v", n, maxLent, a.allDrops())
	}
	if err := w.deliverRuns(1); err != nil {
		t.Fatal(err)
	}
	if n := len(w.lent); n > 0 {
		t.Errorf("%d are held after they were delivered", n)
	}
}

// TestStrangersPieces: whoever knows the index alone, or repeats from elsewhere what he has heard, has the node keep
// nothing, and count no losses of the peer's.
func TestStrangersPieces(t *testing.T) {
	a, b, feed := newTornPair(t)
	p, m := super(t, build{src: "10.244.2.5", dst: "10.244.1.9", payload: 20 * 1360, df: true}.bytes(t), 1360)
	for k := range 200 {
		pieces := chop(sealedFrame(t, b, a, bytes.Clone(p), m.SegmentSize), testPiece)
		feed(k%2, netip.MustParseAddrPort("203.0.113.9:51820"), pieces[k%len(pieces)])
	}
	if d := a.allDrops(); d[forwarder.Replayed.Name()] != 200 || len(d) != 1 {
		t.Errorf("dropped: %v, want 200 that are not kept", d)
	}
}

// TestNoFrameOfOptions: what the receiver could not complete the checksum of leaves in segments.
func TestNoFrameOfOptions(t *testing.T) {
	a, _, _ := newTornPair(t)
	w := a.workers[0]
	plain := build{src: "fd00:10:244:1::5", dst: "fd00:10:244:2::9", payload: 5000}
	options := plain
	options.ext, options.extType = []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0}, 60
	spoilt := func(p []byte) []byte { p[40+16] ^= 1; return p }
	for _, tt := range []struct {
		name   string
		b      build
		change func([]byte) []byte
		frame  bool
	}{
		{name: "plain", b: plain, frame: true},
		{name: "destination options", b: options},
		{name: "another sum in the checksum field", b: plain, change: spoilt},
	} {
		p, m := super(t, tt.b.bytes(t), 1300)
		if tt.change != nil {
			p = tt.change(p)
		}
		s := &sealedSends{}
		w.lane.Lane = Lane{Queue: &source{packet: p, meta: m, packets: 1}, Secure: s}
		if _, _, err := w.drainQueue(); err != nil {
			t.Fatal(err)
		}
		if len(s.messages) < 4 || wireguard.IsPiece(s.messages[0]) != tt.frame {
			t.Errorf("%s: left in %d datagrams, the first one begins with %x", tt.name, len(s.messages), s.messages[0][:4])
		}
	}
	if packet.IsPartial(plain.bytes(t), &w.info) {
		t.Error("a complete checksum is taken for a partial one")
	}
}
