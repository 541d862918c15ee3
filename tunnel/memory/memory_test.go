package memory

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/warren-net/warren/tunnel"
)

var (
	addrA  = netip.MustParseAddrPort("192.0.2.1:4789")
	addrB  = netip.MustParseAddrPort("192.0.2.2:4789")
	addrA6 = netip.MustParseAddrPort("[2001:db8::1]:4789")
	addrB6 = netip.MustParseAddrPort("[2001:db8::2]:4789")
)

func network(t testing.TB, c Config) *Network {
	t.Helper()
	n, err := NewNetwork(c)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// outbound makes one send of the given datagrams, each in two pieces.
func outbound(to netip.AddrPort, datagrams ...string) *tunnel.Outbound {
	o := &tunnel.Outbound{}
	s := tunnel.Send{To: to, Segments: len(datagrams)}
	if len(datagrams) > 1 {
		s.SegmentSize = len(datagrams[0])
	}
	for _, d := range datagrams {
		s.Len += len(d)
		o.Pieces = append(o.Pieces, []byte(d[:len(d)/2]), []byte(d[len(d)/2:]))
	}
	s.N = len(o.Pieces)
	o.Sends = append(o.Sends, s)
	return o
}

func mustSend(t testing.TB, s *Socket, o *tunnel.Outbound) {
	t.Helper()
	if res, err := s.Send(o); err != nil || res.Sent != len(o.Sends) {
		t.Fatalf("Send: %+v, %v", res, err)
	}
}

// receiveAll empties the socket's queue.
func receiveAll(t testing.TB, s *Socket) (batches []tunnel.Datagrams, datagrams []string) {
	t.Helper()
	in := tunnel.NewInbound(3)
	for {
		if err := s.Receive(in); err != nil {
			t.Fatal(err)
		}
		if in.N == 0 {
			return batches, datagrams
		}
		for _, slot := range in.Slots[:in.N] {
			slot.Buf = slices.Clone(slot.Buf[:slot.N])
			batches = append(batches, slot)
			for b := slot.Buf; ; b = b[min(slot.SegmentSize, len(b)):] {
				datagrams = append(datagrams, string(b[:min(slot.SegmentSize, len(b))]))
				if len(b) <= slot.SegmentSize {
					break
				}
			}
		}
	}
}

func TestDelivery(t *testing.T) {
	var tapped []string
	n := network(t, Config{Tap: func(d Datagram) { tapped = append(tapped, string(d.Data)) }})
	a, b := n.Socket(addrA, addrA6), n.Socket(addrB, addrB6)
	for _, pair := range [][2]netip.AddrPort{{addrA, addrB}, {addrA6, addrB6}} {
		tapped = nil
		o := outbound(pair[1], "aaaa", "bbbb", "cc")
		o.Sends[0].TOS = 3
		mustSend(t, a, o)
		for _, p := range o.Pieces {
			clear(p) // the network must have copied them
		}
		mustSend(t, a, outbound(pair[1], "dddd"))
		mustSend(t, a, outbound(pair[1], ""))
		batches, got := receiveAll(t, b)
		want := []string{"aaaa", "bbbb", "cc", "dddd", ""}
		if !slices.Equal(got, want) || !slices.Equal(tapped, want) {
			t.Errorf("received %q, tapped %q, want %q", got, tapped, want)
		}
		first := batches[0]
		if len(batches) != 3 || first.SegmentSize != 4 || first.N != 10 || first.TOS != 3 ||
			first.From != netip.AddrPortFrom(pair[0].Addr(), a.LocalPort()) {
			t.Errorf("%d batches, the first %+v", len(batches), first)
		}
	}
	if s := n.Stats(); s != (Stats{Sent: 10, Delivered: 10}) {
		t.Errorf("stats %+v", s)
	}
}

// TestGRO compares what is joined with the kernel's rule, and that nothing is joined when it is off.
func TestGRO(t *testing.T) {
	long := make([]string, 100)
	for i := range long {
		long[i] = fmt.Sprintf("%01000d", i)
	}
	for _, tt := range []struct {
		name  string
		sends [][]string
		want  []int // datagrams per batch
	}{
		{"one size", [][]string{{"aa", "bb"}, {"cc"}}, []int{3}},
		{"a short one ends it", [][]string{{"aa", "b"}, {"cc", "dd"}}, []int{2, 2}},
		{"a longer one begins anew", [][]string{{"aa"}, {"bbb"}}, []int{1, 1}},
		{"65,507 bytes and 64 datagrams", [][]string{long}, []int{64, 36}},
	} {
		for _, off := range []bool{false, true} {
			n := network(t, Config{NoGRO: off})
			a, b := n.Socket(addrA), n.Socket(addrB)
			var want []string
			for _, s := range tt.sends {
				mustSend(t, a, outbound(addrB, s...))
				want = append(want, s...)
			}
			batches, got := receiveAll(t, b)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %d datagrams, want %d", tt.name, len(got), len(want))
			}
			counts := tt.want
			if off {
				counts = slices.Repeat([]int{1}, len(want))
			}
			var joined []int
			for _, d := range batches {
				joined = append(joined, (d.N+d.SegmentSize-1)/d.SegmentSize)
			}
			if !slices.Equal(joined, counts) {
				t.Errorf("%s, GRO off %v: batches of %v, want %v", tt.name, off, joined, counts)
			}
		}
	}
}

func TestGROKeepsApart(t *testing.T) {
	n := network(t, Config{})
	a1, a2, b := n.Socket(addrA), n.Socket(addrA), n.Socket(addrB)
	mustSend(t, a1, outbound(addrB, "aa"))
	mustSend(t, a2, outbound(addrB, "bb"))
	o := outbound(addrB, "cc")
	o.Sends[0].TOS = 1
	mustSend(t, a2, o)
	if batches, _ := receiveAll(t, b); len(batches) != 3 {
		t.Errorf("%d batches, want one per sender and TOS", len(batches))
	}
}

func TestMTU(t *testing.T) {
	n := network(t, Config{})
	a, b := n.Socket(addrA, addrA6), n.Socket(addrB, addrB6)
	send := func(to netip.AddrPort, size int) tunnel.SendResult {
		res, err := a.Send(outbound(to, string(make([]byte, size)), "x"))
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	for _, tt := range []struct {
		to        netip.AddrPort
		mtu, size int
	}{{addrB, 1500, 1472}, {addrB6, 1500, 1452}, {addrB, 1300, 1272}, {addrB6, 1300, 1252}} {
		n.SetMTU(tt.mtu)
		if res := send(tt.to, tt.size); res.Sent != 1 {
			t.Errorf("%d bytes to %v at MTU %d: %+v", tt.size, tt.to, tt.mtu, res)
		}
		for range 2 {
			if res := send(tt.to, tt.size+1); res.TooBig != 1 || !errors.Is(res.LastError, tunnel.ErrTooBig) {
				t.Errorf("%d bytes to %v at MTU %d: %+v", tt.size+1, tt.to, tt.mtu, res)
			}
		}
		want := []tunnel.PathEvent{{To: tt.to.Addr(), MTU: tt.mtu, Err: tunnel.ErrTooBig}}
		if got := a.PathEvents(nil); !slices.Equal(got, want) {
			t.Errorf("events %+v, want %+v", got, want)
		}
	}
	if got := a.PathEvents(nil); len(got) != 0 {
		t.Errorf("events %+v once they were read", got)
	}
	if _, got := receiveAll(t, b); len(got) != 8 {
		t.Errorf("%d datagrams received, want 8", len(got))
	}
}

func TestNotify(t *testing.T) {
	n := network(t, Config{})
	a, b := n.Socket(addrA), n.Socket(addrB)
	mustSend(t, a, outbound(addrB, "x"))
	told := 0
	b.SetNotify(func() { told++ })
	if told != 1 {
		t.Errorf("told %d times of what was there before, want 1", told)
	}
	mustSend(t, a, outbound(addrB, "x"))
	if told != 2 {
		t.Errorf("told %d times, want 2", told)
	}
	b.SetNotify(nil)
	mustSend(t, a, outbound(addrB, "x"))
}

func TestBadSends(t *testing.T) {
	n := network(t, Config{})
	a := n.Socket(addrA)
	b := n.Socket(addrB)
	edit := func(f func(*tunnel.Send)) *tunnel.Outbound {
		o := outbound(addrB, "aa", "bb")
		f(&o.Sends[0])
		return o
	}
	for i, o := range []*tunnel.Outbound{
		edit(func(s *tunnel.Send) { *s = tunnel.Send{} }),
		edit(func(s *tunnel.Send) { s.Len++ }),
		edit(func(s *tunnel.Send) { s.Segments = 3 }),
		edit(func(s *tunnel.Send) { s.SegmentSize = -2 }),
		edit(func(s *tunnel.Send) { s.First = 1 << 62 }),
		edit(func(s *tunnel.Send) { s.N = 1 << 62 }),
		edit(func(s *tunnel.Send) { s.To = netip.AddrPort{} }),
		edit(func(s *tunnel.Send) { s.To = netip.MustParseAddrPort("[::ffff:192.0.2.2]:4789") }),
	} {
		if res, err := a.Send(o); err != nil || res.Dropped != 1 || res.LastError == nil {
			t.Errorf("bad send %d: %+v, %v", i, res, err)
		}
	}
	if res, _ := a.Send(outbound(addrB6, "x")); res.LastError != syscall.EAFNOSUPPORT {
		t.Errorf("a family that the socket has not: %+v", res)
	}
	if _, got := receiveAll(t, b); len(got) != 0 {
		t.Errorf("%q arrived", got)
	}
	for _, c := range []Config{{Loss: -1}, {Duplicate: 2}, {Queue: -1}, {MTU: -1}} {
		if _, err := NewNetwork(c); err == nil {
			t.Errorf("%+v: accepted", c)
		}
	}
}

func TestClose(t *testing.T) {
	n := network(t, Config{})
	a, b := n.Socket(addrA), n.Socket(addrB)
	mustSend(t, a, outbound(addrB, "x"))
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := b.Receive(tunnel.NewInbound(1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive: %v", err)
	}
	if _, err := b.Send(outbound(addrA, "x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send: %v", err)
	}
	mustSend(t, a, outbound(addrB, "x"))
	if s := n.Stats(); s.NoReceiver != 1 {
		t.Errorf("stats %+v", s)
	}
}

// TestTruncated receives into a buffer that is too small: that datagram is thrown away.
func TestTruncated(t *testing.T) {
	n := network(t, Config{})
	a, b := n.Socket(addrA), n.Socket(addrB)
	mustSend(t, a, outbound(addrB, "too long for it"))
	mustSend(t, a, outbound(addrB, "fits"))
	in := &tunnel.Inbound{Slots: []tunnel.Datagrams{{Buf: make([]byte, 5)}}}
	if err := b.Receive(in); err != nil || in.N != 1 || string(in.Slots[0].Buf[:in.Slots[0].N]) != "fits" {
		t.Errorf("%+v, %v", in, err)
	}
}

// TestConcurrent has many workers of three hosts send to each other at once; run with -race.
func TestConcurrent(t *testing.T) {
	const workers, each = 3, 500
	var tapped atomic.Int64
	n := network(t, Config{Reorder: 0.1, Duplicate: 0.1, Loss: 0.1, Tap: func(Datagram) { tapped.Add(1) }})
	addrs := []netip.AddrPort{addrA, addrB, netip.MustParseAddrPort("192.0.2.3:4789")}
	var all []*Socket
	for _, a := range addrs {
		for range workers {
			all = append(all, n.Socket(a))
		}
	}
	var sending, receiving sync.WaitGroup
	done := make(chan struct{})
	received := make([]map[uint16]int, len(all))
	for i, s := range all {
		readable := make(chan struct{}, 1)
		s.SetNotify(func() {
			select {
			case readable <- struct{}{}:
			default:
			}
		})
		received[i] = map[uint16]int{}
		sending.Add(1)
		receiving.Go(func() {
			in := tunnel.NewInbound(2)
			for k := 0; ; {
				if k++; k <= each {
					mustSend(t, s, outbound(addrs[k%len(addrs)], "aaaa", "bbbb", "cc"))
				} else if k == each+1 {
					sending.Done()
				}
				if err := s.Receive(in); err != nil {
					t.Error(err)
					return
				}
				for _, slot := range in.Slots[:in.N] {
					received[i][slot.From.Port()]++
				}
				if k > each && in.N == 0 {
					select {
					case <-readable:
					case <-done:
						return
					}
				}
			}
		})
	}
	sending.Wait()
	time.Sleep(10 * time.Millisecond)
	close(done)
	receiving.Wait()
	if got := tapped.Load(); got != int64(len(all)*each*3) {
		t.Errorf("%d datagrams tapped", got)
	}
	// A flow stays with one worker of the host.
	for host := range addrs {
		owner := map[uint16]int{}
		for w := host * workers; w < (host+1)*workers; w++ {
			for port := range maps.Keys(received[w]) {
				owner[port]++
			}
		}
		for port, n := range owner {
			if n != 1 {
				t.Errorf("host %d: what port %d sent reached %d workers", host, port, n)
			}
		}
		if len(owner) != len(all) {
			t.Errorf("host %d heard %d senders of %d", host, len(owner), len(all))
		}
	}
}

func TestAllocations(t *testing.T) {
	n := network(t, Config{Loss: 0.1, Reorder: 0.1, Hold: time.Hour})
	a, b := n.Socket(addrA), n.Socket(addrB)
	o := outbound(addrB, "aaaa", "bbbb", "cc")
	in := tunnel.NewInbound(8)
	round := func() {
		if _, err := a.Send(o); err != nil {
			t.Fatal(err)
		}
		if err := b.Receive(in); err != nil {
			t.Fatal(err)
		}
	}
	for range 1000 {
		round()
	}
	if got := testing.AllocsPerRun(1000, round); got != 0 {
		t.Errorf("%v allocations per round, want 0", got)
	}
}
