package worker

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
)

// A recorder is queue, socket and sender of uncut superpackets: it delivers packets once and notes what is sent how.
type recorder struct {
	source
	queue   []recorded
	next    int
	refuses bool
	broken  bool
	sent    []string
	keep    bool
}

type recorded struct {
	packet []byte
	meta   packet.Meta
}

func (r *recorder) Read(buf []byte) ([]byte, packet.Meta, error) {
	if r.next == len(r.queue) {
		return nil, packet.Meta{}, device.ErrWouldBlock
	}
	q := &r.queue[r.next]
	r.next++
	n := device.Headroom + copy(buf[device.Headroom:], q.packet)
	return buf[device.Headroom:n], q.meta, nil
}

func (r *recorder) Send(o *tunnel.Outbound) (tunnel.SendResult, error) {
	for i := range o.Sends {
		if !r.keep {
			break // the arguments below would be allocated
		}
		r.note("cut %d", o.Sends[i].Segments)
	}
	return tunnel.SendResult{Sent: len(o.Sends), Syscalls: 1}, nil
}

func (r *recorder) Usable() bool { return !r.broken }

func (r *recorder) SendWhole(s *tunnel.Superpacket) bool {
	if r.refuses {
		r.note("refused")
		return false
	}
	if !r.keep {
		return true
	}
	r.note("whole %d from %d to %s, TOS %d, header %d", len(s.Packet), s.SourcePort, s.To, s.TOS, len(s.Header))
	return true
}

func (r *recorder) LocalPort() uint16 { return 4242 }

func (r *recorder) note(format string, args ...any) {
	r.sent = append(r.sent, fmt.Sprintf(format, args...))
}

// TestSendWhole wants of superpackets to a peer the TCP ones to leave uncut, if the peer takes them so, behind all that
// was read before them; and everything else as ever.
func TestSendWhole(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, late: true})
	w := c.nodes[0].workers[0]
	w.snap = w.Table.Load()
	peer := w.snap.Peer(0)
	tcp := func(b build, payload int) recorded {
		b.src, b.dst, b.df, b.payload = "10.244.1.9", "10.244.2.5", true, payload
		p, m := super(t, b.bytes(t), 1360)
		return recorded{p, m}
	}
	lone := recorded{packet: build{src: "10.244.1.9", dst: "10.244.2.5", df: true}.bytes(t)}
	full := tcp(build{tos: 2}, 10*1360)
	two := tcp(build{}, 2*1360)
	udp := tcp(build{proto: protoUDP}, 5*1360)
	options := tcp(build{ipOpts: []byte{1, 1, 1, 1}}, 5*1360)
	whole := fmt.Sprintf("whole %d from 4242 to %s, TOS 2, header 22", len(full.packet), peer.Endpoint)
	for _, tt := range []struct {
		name    string
		queue   []recorded
		none    bool // the node has no way for uncut superpackets
		never   bool // the peer takes none
		refuses bool
		broken  bool
		want    []string
		segs    uint64
	}{
		{name: "behind what was read before", queue: []recorded{lone, full, full, lone},
			want: []string{"cut 1", whole, whole, "cut 1"}, segs: 22},
		{name: "datagrams", queue: []recorded{udp}, want: []string{"cut 5"}, segs: 5},
		{name: "IP options", queue: []recorded{options}, want: []string{"cut 5"}, segs: 5},
		{name: "few segments", queue: []recorded{two}, want: []string{"cut 2"}, segs: 2},
		{name: "no such way", queue: []recorded{full}, none: true, want: []string{"cut 10"}, segs: 10},
		{name: "not to this peer", queue: []recorded{full}, never: true, want: []string{"cut 10"}, segs: 10},
		{name: "refused", queue: []recorded{lone, full}, refuses: true, want: []string{"cut 1", "refused", "cut 10"},
			segs: 11},
		{name: "broken", queue: []recorded{lone, full}, broken: true, want: []string{"cut 1", "cut 10"}, segs: 11},
	} {
		r := &recorder{queue: tt.queue, refuses: tt.refuses, broken: tt.broken, keep: true}
		w.lane.Lane, w.Whole = Lane{Queue: r, Socket: r}, r
		if tt.none {
			w.Whole = nil
		}
		peer.Whole = new(atomic.Bool)
		peer.Whole.Store(!tt.never)
		before, packets := w.Counters.SegmentsOut.Load(), peer.Stats.Totals().TxPackets
		supers := w.Counters.ToPeers.Load()
		if _, _, err := w.drainQueue(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(r.sent, tt.want) {
			t.Errorf("%s: sent %q, want %q", tt.name, r.sent, tt.want)
		}
		if n := w.Counters.SegmentsOut.Load() - before; n != tt.segs {
			t.Errorf("%s: %d segments counted, want %d", tt.name, n, tt.segs)
		}
		if n := peer.Stats.Totals().TxPackets - packets; n != tt.segs {
			t.Errorf("%s: %d segments of the peer counted, want %d", tt.name, n, tt.segs)
		}
		if n := w.Counters.ToPeers.Load() - supers; n != uint64(len(tt.queue)) {
			t.Errorf("%s: %d superpackets counted, want %d", tt.name, n, len(tt.queue))
		}
	}
	if sent, refused := w.Counters.Whole.Load(), w.Counters.WholeRefused.Load(); sent != 2 || refused != 1 {
		t.Errorf("%d superpackets left uncut and %d were refused, want 2 and 1", sent, refused)
	}

	r := &recorder{queue: []recorded{lone, full, full, lone}}
	w.lane.Lane, w.Whole = Lane{Queue: r, Socket: r}, r
	peer.Whole.Store(true)
	if n := testing.AllocsPerRun(20, func() {
		r.next = 0
		if _, _, err := w.drainQueue(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations in a round", n)
	}
}
