package worker

import (
	"testing"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// A source is queue and socket of a worker at once: it delivers the same packet so many times, and swallows what the
// worker writes and sends.
type source struct {
	device.Queue
	tunnel.Socket
	packet  []byte
	meta    packet.Meta
	from    tunnel.Datagrams // N bytes in Buf
	packets int              // left to be read
	batches int              // left to be received
	cuts    bool             // superpackets are not taken
	written int
}

func (s *source) Read(buf []byte) ([]byte, packet.Meta, error) {
	if s.packets == 0 {
		return nil, packet.Meta{}, device.ErrWouldBlock
	}
	s.packets--
	n := device.Headroom + copy(buf[device.Headroom:], s.packet)
	return buf[device.Headroom:n], s.meta, nil
}

func (s *source) Write(m packet.Meta, _ [][]byte) error {
	if s.cuts && m.Type != packet.GSONone {
		return device.ErrNotTaken
	}
	s.written++
	return nil
}

func (s *source) Takes(packet.GSOType) bool { return true }

func (s *source) Close() error { return nil }

func (s *source) Send(o *tunnel.Outbound) (tunnel.SendResult, error) {
	s.written += len(o.Sends)
	return tunnel.SendResult{Sent: len(o.Sends)}, nil
}

func (s *source) Receive(in *tunnel.Inbound) error {
	for in.N = 0; s.batches > 0 && in.N < len(in.Slots); in.N++ {
		s.batches--
		slot := &in.Slots[in.N]
		slot.N = copy(slot.Buf, s.from.Buf)
		slot.SegmentSize, slot.From = s.from.SegmentSize, s.from.From
	}
	return nil
}

func (s *source) PathEvents(dst []tunnel.PathEvent) []tunnel.PathEvent { return dst }

// TestLoopDoesNotAllocate runs both halves of the loop over what a node is busy with.
func TestLoopDoesNotAllocate(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, late: true})
	a, b := c.nodes[0], c.nodes[1]
	w := a.workers[0]
	w.snap = w.Table.Load()
	header := vxlan.NewHeader(testVNI, a.mac, b.mac, vxlan.EtherTypeIPv4)
	received := func(size int) tunnel.Datagrams {
		p, m := super(t, build{src: "10.244.2.5", dst: "10.244.1.9", payload: size, df: true}.bytes(t), 1360)
		var i packet.Info
		var segs packet.Segments
		if e := packet.Parse(p, &i); e != packet.OK {
			t.Fatal(e)
		}
		if e := segs.Segment(p, &i, m, header[:]); e != packet.OK {
			t.Fatal(e)
		}
		d := tunnel.Datagrams{SegmentSize: len(header) + i.HeaderLen() + min(size, 1360), From: a.peers[0].Endpoint}
		for k := range segs.N() {
			d.Buf = append(append(d.Buf, segs.Header(k)...), segs.Payload(k)...)
		}
		return d
	}
	for _, tt := range []struct {
		name  string
		dst   string // read from the device; empty: received
		size  int
		super bool
		cuts  bool
	}{
		{name: "superpackets to a peer", dst: "10.244.2.5", size: 60000, super: true},
		{name: "acknowledgements to a peer", dst: "10.244.2.5"},
		{name: "superpackets on this node", dst: "10.244.1.5", size: 60000, super: true},
		{name: "superpackets on this node, cut", dst: "10.244.1.5", size: 60000, super: true, cuts: true},
		{name: "packets without a route", dst: "10.244.99.5", size: 100},
		{name: "superpackets from a peer", size: 40 * 1360},
		{name: "superpackets from a peer, cut", size: 40 * 1360, cuts: true},
		{name: "small packets from a peer", size: 10},
	} {
		s := &source{cuts: tt.cuts}
		w.lane.Lane, w.Writers = Lane{Queue: s, Socket: s}, []device.Queue{s}
		if tt.dst == "" {
			s.from = received(tt.size)
		} else if s.packet = (build{src: "10.244.1.9", dst: tt.dst, payload: tt.size, df: true}).bytes(t); tt.super {
			s.packet, s.meta = super(t, s.packet, 1360)
		}
		round := func() {
			s.packets, s.batches = queueBatch, socketSlots
			if tt.dst == "" {
				s.packets = 0
			} else {
				s.batches = 0
			}
			if _, _, err := w.drainQueue(); err != nil {
				t.Fatal(err)
			}
			if _, _, err := w.drainSocket(); err != nil {
				t.Fatal(err)
			}
		}
		round() // buffers grow to their working size
		if n := testing.AllocsPerRun(20, round); n != 0 {
			t.Errorf("%s: %v allocations in a round", tt.name, n)
		}
		if s.written == 0 {
			t.Errorf("%s: nothing was written", tt.name)
		}
	}
}
