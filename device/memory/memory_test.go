package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
)

var _ device.Queue = (*Queue)(nil)

// udp4 is a UDP packet from 10.0.0.a to 10.0.0.b with n bytes of payload.
func udp4(a, b byte, from, to uint16, n int) []byte {
	p := make([]byte, 28+n)
	p[0], p[9] = 0x45, 17
	copy(p[12:], []byte{10, 0, 0, a, 10, 0, 0, b})
	binary.BigEndian.PutUint16(p[20:], from)
	binary.BigEndian.PutUint16(p[22:], to)
	return p
}

func uso(size uint16) packet.Meta {
	return packet.Meta{Type: packet.GSOUDP, NeedsChecksum: true, SegmentSize: size, ChecksumStart: 20, ChecksumOffset: 6}
}

func TestReadReturnsWhatWasInjected(t *testing.T) {
	d := New(Config{})
	q := d.Queues()[0]
	buf := make([]byte, device.BufferSize)
	if _, _, err := q.Read(buf); !errors.Is(err, device.ErrWouldBlock) {
		t.Errorf("empty: %v", err)
	}
	for round := range 3 * defaultQueueLength { // around the ring
		p := udp4(1, 2, 3, uint16(round), round)
		if !d.Inject(p, uso(100)) {
			t.Fatal("no room")
		}
		clear(p[28:]) // Inject has copied
		p = udp4(1, 2, 3, uint16(round), round)
		got, m, err := q.Read(buf)
		if err != nil || !bytes.Equal(got, p) || m != uso(100) || &got[0] != &buf[device.Headroom] {
			t.Fatalf("%d bytes, %+v, %v", len(got), m, err)
		}
	}
	if _, _, err := q.Read(buf[1:]); err == nil {
		t.Error("short buffer: no error")
	}
	if !d.Inject(make([]byte, packet.MaxPacket), packet.Meta{}) || d.Inject(make([]byte, 1<<17), packet.Meta{}) {
		t.Error("the largest packet fits, a larger one does not")
	}
}

func TestBoundedAndNotified(t *testing.T) {
	d := New(Config{QueueLength: 3})
	q := d.Queues()[0]
	calls := 0
	q.SetNotify(func() { calls++ })
	for i := range 5 {
		if ok := d.Inject(udp4(1, 2, 3, 4, 0), packet.Meta{}); ok != (i < 3) {
			t.Errorf("packet %d: %v", i, ok)
		}
	}
	if s := d.Stats(); calls != 3 || q.Len() != 3 || s.Injected != 3 || s.Full != 2 {
		t.Errorf("%d calls, %d queued, %+v", calls, q.Len(), s)
	}
	d.SetDown(true)
	if d.Inject(udp4(1, 2, 3, 4, 0), packet.Meta{}) {
		t.Error("injected while down")
	}
	if err := d.Close(); err != nil || calls != 4 {
		t.Errorf("Close: %v, %d calls", err, calls)
	}
	q.SetNotify(nil)
	if _, _, err := q.Read(make([]byte, device.BufferSize)); !errors.Is(err, device.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if err := q.Write(packet.Meta{}, [][]byte{udp4(1, 2, 3, 4, 0)}); !errors.Is(err, device.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
}

func TestWrite(t *testing.T) {
	d := New(Config{})
	q := d.Queues()[0]
	p := udp4(1, 2, 3, 4, 2000)
	if err := q.Write(uso(500), [][]byte{p[:5], nil, p[5:30], p[30:]}); err != nil {
		t.Fatal(err)
	}
	if got := <-d.Written(); !bytes.Equal(got.Data, p) || got.Meta != uso(500) {
		t.Errorf("%d bytes, %+v", len(got.Data), got.Meta)
	}
	if err := q.Write(uso(10), [][]byte{p}); !errors.Is(err, device.ErrNotTaken) {
		t.Errorf("more datagrams than a kernel takes: %v", err)
	}
	if err := q.Write(uso(0), [][]byte{p}); !errors.Is(err, device.ErrBadPacket) {
		t.Errorf("bad metadata: %v", err)
	}
	for range writtenLength + 2 {
		if err := q.Write(packet.Meta{}, [][]byte{p}); err != nil {
			t.Fatal(err)
		}
	}
	if s := d.Stats(); s.Lost != 2 || s.Written != writtenLength+3 {
		t.Errorf("%+v", s)
	}
	var got []byte
	d.OnWrite(func(p []byte, _ packet.Meta) { got = append(got, p...) })
	if err := q.Write(packet.Meta{}, [][]byte{p}); err != nil || !bytes.Equal(got, p) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	d.SetDown(true)
	if err := q.Write(packet.Meta{}, [][]byte{p}); !errors.Is(err, device.ErrDown) {
		t.Errorf("down: %v", err)
	}
}

func TestOffloads(t *testing.T) {
	p := [][]byte{udp4(1, 2, 3, 4, 2000)}
	d := New(Config{NoUSO: true})
	q := d.Queues()[0]
	if q.Takes(packet.GSOUDP) || !q.Takes(packet.GSOTCP4) || !q.Takes(packet.GSONone) || q.Takes(device.GSOUnknown) {
		t.Error("NoUSO: takes the wrong types")
	}
	if err := q.Write(uso(500), p); !errors.Is(err, device.ErrNotTaken) {
		t.Errorf("%v, want ErrNotTaken", err)
	}
	if d := New(Config{NoTSO: true}); d.Queues()[0].Takes(packet.GSOTCP6) || d.Offloads()[1].Enabled {
		t.Error("NoTSO: takes TCP")
	}

	d = New(Config{})
	q = d.Queues()[0]
	d.Break(packet.GSOUDP)
	if !q.Takes(packet.GSOUDP) {
		t.Error("off before the first write")
	}
	if err := q.Write(uso(500), p); !errors.Is(err, device.ErrNotTaken) || q.Takes(packet.GSOUDP) {
		t.Errorf("%v, want ErrNotTaken and the type off", err)
	}
	if s := d.Offloads(); !s[1].Enabled || s[2].Enabled || s[2].Reason == "" {
		t.Errorf("%+v", s)
	}
}

// Both directions of a flow, and all fragments, meet in one queue; flows spread over the queues.
func TestFlowHash(t *testing.T) {
	seen := map[uint32]bool{}
	for port := range uint16(100) {
		there, back := udp4(1, 2, port, 80, 10), udp4(2, 1, 80, port, 10)
		if flowHash(there) != flowHash(back) {
			t.Fatalf("port %d: the directions differ", port)
		}
		self, selfBack := udp4(1, 1, port, 80, 10), udp4(1, 1, 80, port, 10)
		if flowHash(self) != flowHash(selfBack) {
			t.Fatalf("port %d, to itself: the directions differ", port)
		}
		seen[flowHash(there)%4] = true

		v6, v6back := make([]byte, 48), make([]byte, 48)
		v6[0], v6[6], v6[23], v6[39], v6[41], v6[43] = 0x60, 6, 1, 2, byte(port), 80
		v6back[0], v6back[6], v6back[23], v6back[39], v6back[41], v6back[43] = 0x60, 6, 2, 1, 80, byte(port)
		if flowHash(v6) != flowHash(v6back) {
			t.Fatalf("IPv6, port %d: the directions differ", port)
		}
	}
	if len(seen) != 4 {
		t.Errorf("100 flows use %d of 4 queues", len(seen))
	}
	first, later := udp4(1, 2, 7, 8, 100), udp4(1, 2, 9, 9, 100)
	first[6], later[7] = 0x20, 1
	if flowHash(first) != flowHash(later) {
		t.Error("fragments of one packet differ")
	}
	for n := range 48 { // truncated anywhere
		p := append([]byte{0x45}, make([]byte, 47)...)
		p[9] = 17
		flowHash(p[:n])
		p[0] = 0x60
		flowHash(p[:n])
	}
}

// TestFlowsFollow: a flow's packets come in the queue to which its other direction was written last.
func TestFlowsFollow(t *testing.T) {
	d := New(Config{Queues: 4})
	d.OnWrite(func([]byte, packet.Meta) {})
	there, back, other := udp4(1, 2, 7, 80, 10), udp4(2, 1, 80, 7, 10), udp4(1, 2, 8, 80, 10)
	where := func(p []byte) int {
		if !d.Inject(p, packet.Meta{}) {
			t.Fatal("not injected")
		}
		buf := make([]byte, device.BufferSize)
		for i, q := range d.Queues() {
			if _, _, err := q.Read(buf); err == nil {
				return i
			}
		}
		t.Fatal("in no queue")
		return -1
	}
	before := where(other)
	for _, i := range []int{3, 0, 2} {
		if err := d.Queues()[i].Share().Write(packet.Meta{}, [][]byte{back}); err != nil {
			t.Fatal(err)
		}
		if got := where(there); got != i {
			t.Errorf("the flow comes in queue %d after it was written to %d", got, i)
		}
	}
	if after := where(other); after != before {
		t.Errorf("another flow comes in queue %d, before in %d", after, before)
	}
}

func TestNoAllocations(t *testing.T) {
	d := New(Config{QueueLength: 4})
	q := d.Queues()[0]
	d.OnWrite(func([]byte, packet.Meta) {})
	p := udp4(1, 2, 3, 4, 2000)
	pieces := [][]byte{p[:28], p[28:]}
	buf := make([]byte, device.BufferSize)
	step := func() {
		d.Inject(p, uso(500))
		_, _, _ = q.Read(buf)
		_ = q.Write(uso(500), pieces)
	}
	for range 4 {
		step() // the ring's buffers grow
	}
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	d := New(Config{Queues: 2, QueueLength: 10})
	var wg sync.WaitGroup
	for _, q := range d.Queues() {
		wake := make(chan struct{}, 1)
		q.SetNotify(func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		})
		wg.Go(func() {
			buf := make([]byte, device.BufferSize)
			for {
				p, m, err := q.Read(buf)
				switch {
				case errors.Is(err, device.ErrClosed):
					return
				case errors.Is(err, device.ErrWouldBlock):
					<-wake
				default:
					_ = q.Write(m, [][]byte{p})
				}
			}
		})
	}
	var senders sync.WaitGroup
	for i := range 4 {
		senders.Go(func() {
			for j := range 500 {
				d.Inject(udp4(1, 2, uint16(i), uint16(j), 10), packet.Meta{})
			}
		})
	}
	senders.Wait()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
