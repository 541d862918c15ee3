package worker

import (
	"net/netip"
	"testing"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// A secureSource is queue and WireGuard socket of a worker: as a source, but what it delivers is sealed anew each time,
// as no message is taken twice.
type secureSource struct {
	source
	session *wireguard.Session
	plain   [][]byte        // a slot's packets
	frame   wireguard.Frame // in place of them: the superpacket, when it comes as a superframe
	nonce   wireguard.Nonce
	ready   []byte // a slot's messages, where they were sealed before
}

func (s *secureSource) Receive(in *tunnel.Inbound) error {
	for in.N = 0; s.batches > 0 && in.N < len(in.Slots); in.N++ {
		s.batches--
		slot := &in.Slots[in.N]
		if s.ready == nil {
			s.seal()
		}
		slot.N = copy(slot.Buf, s.ready)
		slot.SegmentSize, slot.From = s.from.SegmentSize, s.from.From
		s.ready = nil
	}
	return nil
}

// seal makes a slot's messages.
func (s *secureSource) seal() {
	if s.frame.Packet != nil {
		counter, _ := s.session.Reserve(1)
		head := wireguard.Head{Receiver: s.session.To(0), Counter: counter}
		s.ready = s.session.SealFrame(s.from.Buf[:0], &s.nonce, head, &s.frame)
		return
	}
	first, _ := s.session.Reserve(len(s.plain))
	s.ready = s.from.Buf[:0]
	for k, p := range s.plain {
		h := wireguard.Head{Receiver: s.session.To(0), Counter: first + uint64(k)}
		s.ready = s.session.Seal(s.ready, &s.nonce, h, p)
	}
}

// newSecureSource makes one that delivers what node b sends, a superpacket with this payload, to node a: as a
// superframe when a takes these.
func newSecureSource(t testing.TB, a, b *testNode, payload, size int) *secureSource {
	t.Helper()
	s := &secureSource{session: b.with(a).Current()}
	p := build{src: "10.244.2.5", dst: "10.244.1.9", payload: payload, df: true}.bytes(t)
	p, m := super(t, p, size)
	if s.session.TakesFrames() && payload > size {
		p = append(make([]byte, 0, len(p)+64), p...)
		s.frame = wireguard.Frame{Packet: p, SegmentSize: m.SegmentSize, Piece: 1420 + wireguard.Overhead}
		s.from = tunnel.Datagrams{Buf: make([]byte, 1<<17), SegmentSize: s.frame.Piece,
			From: netip.AddrPortFrom(b.addr, securePort)}
		return s
	}
	var i packet.Info
	var segs packet.Segments
	if e := packet.Parse(p, &i); e != packet.OK {
		t.Fatal(e)
	}
	if e := segs.Segment(p, &i, m, nil); e != packet.OK {
		t.Fatal(e)
	}
	for k := range segs.N() {
		plain := append(append([]byte(nil), segs.Header(k)...), segs.Payload(k)...)
		s.plain = append(s.plain, append(plain, make([]byte, wireguard.PaddedLen(len(plain), 1420)-len(plain))...))
	}
	s.from = tunnel.Datagrams{Buf: make([]byte, 1<<16), SegmentSize: len(s.plain[0]) + wireguard.Overhead,
		From: netip.AddrPortFrom(b.addr, securePort)}
	return s
}

// newSecurePair makes two nodes with a session whose workers don't run, and returns the first one's worker.
func newSecurePair(t testing.TB, over encapsulation) (a, b *testNode, w *Worker) {
	t.Helper()
	c := newCluster(t, clusterConfig{nodes: 2, late: true, over: over})
	a, b = c.nodes[0], c.nodes[1]
	a.connectLate(t, b)
	a.secure.stop() // what they allocate is not the workers'
	b.secure.stop()
	w = a.workers[0]
	w.snap = w.Table.Load()
	return a, b, w
}

// TestSecureLoopDoesNotAllocate is TestLoopDoesNotAllocate for what is encrypted.
func TestSecureLoopDoesNotAllocate(t *testing.T) { eachEncryption(t, testSecureLoopDoesNotAllocate) }

func testSecureLoopDoesNotAllocate(t *testing.T, over encapsulation) {
	a, b, w := newSecurePair(t, over)
	for _, tt := range []struct {
		name string
		out  bool
		size int // payload
		seg  int
		drop bool // nobody has the session
	}{
		{name: "superpackets to a peer", out: true, size: 60000, seg: 1360},
		{name: "superpackets that fill the MTU", out: true, size: 60000, seg: 1380},
		{name: "small segments, more than the buffer holds", out: true, size: 60000, seg: 16},
		{name: "a small packet to a peer", out: true, size: 10, seg: 1360},
		{name: "superpackets from a peer", size: 40 * 1360, seg: 1360},
		{name: "small packets from a peer", size: 10, seg: 1360},
		{name: "an unknown session", size: 40 * 1360, seg: 1360, drop: true},
	} {
		s := newSecureSource(t, a, b, tt.size, tt.seg)
		if tt.out {
			s.packet, s.meta = super(t, build{src: "10.244.1.9", dst: "10.244.2.5", payload: tt.size, df: true}.bytes(t), tt.seg)
		}
		if tt.drop {
			s.session = a.with(b).Current() // its index is the other node's
		}
		w.lane.Lane, w.Writers = Lane{Queue: s, Secure: s}, []device.Queue{s}
		round := func() {
			s.packets, s.batches = 0, 4
			if tt.out {
				s.packets, s.batches = queueBatch, 0
			}
			if _, _, err := w.drainQueue(); err != nil {
				t.Fatal(err)
			}
			if _, _, err := w.drainSecure(); err != nil {
				t.Fatal(err)
			}
		}
		round() // buffers grow to their working size
		if n := testing.AllocsPerRun(20, round); n != 0 {
			t.Errorf("%s: %v allocations in a round", tt.name, n)
		}
		if s.written == 0 != tt.drop {
			t.Errorf("%s: %d were written; drops: %v", tt.name, s.written, a.allDrops())
		}
	}
	c := &w.Counters
	if c.FramesSealed.Load() > 0 != over.frames || c.FramesOpened.Load() > 0 != over.frames {
		t.Errorf("%d superframes sealed, %d opened", c.FramesSealed.Load(), c.FramesOpened.Load())
	}
}

// BenchmarkSecure measures one superpacket of 45 segments on its way from the device into messages, and back.
func BenchmarkSecure(b *testing.B) {
	b.Run("seal", func(b *testing.B) { benchmarkSeal(b, encrypted) })
	b.Run("open", func(b *testing.B) { benchmarkOpen(b, encrypted) })
	b.Run("seal superframe", func(b *testing.B) { benchmarkSeal(b, superframes) })
	b.Run("open superframe", func(b *testing.B) { benchmarkOpen(b, superframes) })
}

const benchmarkPayload, benchmarkSize = 45 * 1380, 1380

func benchmarkSeal(b *testing.B, over encapsulation) {
	node, peer, w := newSecurePair(b, over)
	s := newSecureSource(b, node, peer, benchmarkPayload, benchmarkSize)
	s.packet, s.meta = super(b, build{src: "10.244.1.9", dst: "10.244.2.5", payload: benchmarkPayload, df: true}.bytes(b),
		benchmarkSize)
	w.lane.Lane = Lane{Queue: s, Secure: s}
	b.SetBytes(int64(len(s.packet)))
	b.ReportAllocs()
	for b.Loop() {
		s.packets = 1
		if _, _, err := w.drainQueue(); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkOpen(b *testing.B, over encapsulation) {
	node, peer, w := newSecurePair(b, over)
	s := newSecureSource(b, node, peer, benchmarkPayload, benchmarkSize)
	w.lane.Lane, w.Writers = Lane{Queue: s, Secure: s}, []device.Queue{s}
	b.SetBytes(benchmarkPayload + 40)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		s.seal()
		s.batches = 1
		b.StartTimer()
		if _, _, err := w.drainSecure(); err != nil {
			b.Fatal(err)
		}
	}
	if s.written == 0 {
		b.Fatalf("nothing was taken: %v", node.allDrops())
	}
}
