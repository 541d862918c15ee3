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
	plain   [][]byte // a slot's packets
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
	first, _ := s.session.Reserve(len(s.plain))
	s.ready = s.from.Buf[:0]
	for k, p := range s.plain {
		h := wireguard.Head{Receiver: s.session.To(0, 0, 0), Counter: first + uint64(k)}
		s.ready = s.session.Seal(s.ready, &s.nonce, h, p)
	}
}

// newSecureSource makes one that delivers what node b sends, a superpacket with this payload, to node a.
func newSecureSource(t testing.TB, a, b *testNode, payload, size int) *secureSource {
	t.Helper()
	s := &secureSource{session: b.with(a).Current()}
	p := build{src: "10.244.2.5", dst: "10.244.1.9", payload: payload, df: true}.bytes(t)
	p, m := super(t, p, size)
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
func newSecurePair(t testing.TB) (a, b *testNode, w *Worker) {
	t.Helper()
	c := newCluster(t, clusterConfig{nodes: 2, late: true, over: encrypted})
	a, b = c.nodes[0], c.nodes[1]
	a.connectLate(t, b)
	a.secure.stop() // what they allocate is not the workers'
	b.secure.stop()
	w = a.workers[0]
	w.snap = w.Table.Load()
	return a, b, w
}

// TestSecureLoopDoesNotAllocate is TestLoopDoesNotAllocate for what is encrypted.
func TestSecureLoopDoesNotAllocate(t *testing.T) {
	a, b, w := newSecurePair(t)
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
}

// BenchmarkSecure measures one superpacket of 45 segments on its way from the device into messages, and back.
func BenchmarkSecure(b *testing.B) {
	const payload, size = 45 * 1380, 1380
	b.Run("seal", func(b *testing.B) {
		node, peer, w := newSecurePair(b)
		s := newSecureSource(b, node, peer, payload, size)
		s.packet, s.meta = super(b, build{src: "10.244.1.9", dst: "10.244.2.5", payload: payload, df: true}.bytes(b), size)
		w.lane.Lane = Lane{Queue: s, Secure: s}
		b.SetBytes(int64(len(s.packet)))
		b.ReportAllocs()
		for b.Loop() {
			s.packets = 1
			if _, _, err := w.drainQueue(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		node, peer, w := newSecurePair(b)
		s := newSecureSource(b, node, peer, payload, size)
		w.lane.Lane, w.Writers = Lane{Queue: s, Secure: s}, []device.Queue{s}
		b.SetBytes(payload + 40)
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
	})
}
