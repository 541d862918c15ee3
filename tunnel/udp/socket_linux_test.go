package udp

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

// loopback opens a pair of sockets on the loopback device, which needs no privilege.
func loopback(t testing.TB) (from, to *Socket, peer netip.AddrPort) {
	t.Helper()
	own := Config{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	var pair [2]*Socket
	for i := range pair {
		s, err := Open(own)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		pair[i] = s
	}
	return pair[0], pair[1], netip.AddrPortFrom(own.Addrs[0], pair[1].Port())
}

func TestAllocations(t *testing.T) {
	from, to, peer := loopback(t)
	in := tunnel.NewInbound(8)
	var o tunnel.Outbound
	load{to: peer, total: 45 * 1450, segment: 1450, tos: 2}.add(&o)
	load{to: peer, total: 100}.add(&o)
	bad := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 1) // nobody is there: the error path counts as well
	load{to: bad, total: 100}.add(&o)
	load{to: peer, total: 70000}.add(&o)
	events := make([]tunnel.PathEvent, 0, maxStash)
	round := func() {
		if _, err := from.Send(&o); err != nil {
			t.Fatal(err)
		}
		for in.N = 1; in.N > 0; {
			if err := to.Receive(in); err != nil {
				t.Fatal(err)
			}
		}
		events = from.PathEvents(events[:0])
	}
	for range 10 {
		round()
	}
	if n := testing.AllocsPerRun(200, round); n != 0 {
		t.Errorf("%v allocations per round, want 0", n)
	}
	if len(events) == 0 {
		t.Error("no path event for a port that nobody listens on")
	}
}

// TestJunk floods the send socket's own port, which must not cost it its error queue.
func TestJunk(t *testing.T) {
	from, _, _ := loopback(t)
	c, err := net.Dial("udp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), from.LocalPort()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2000 {
		if _, err := c.Write(make([]byte, 4000)); err != nil {
			t.Fatal(err)
		}
	}
	var o tunnel.Outbound
	nobody := netip.MustParseAddr("127.0.0.1")
	load{to: netip.AddrPortFrom(nobody, 1), total: 100}.add(&o)
	if _, err := from.Send(&o); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(time.Millisecond) {
		if all := from.PathEvents(nil); len(all) == 1 && all[0].Err == unix.ECONNREFUSED && all[0].To == nobody {
			return
		} else if len(all) > 0 || time.Now().After(end) {
			t.Fatalf("events %+v, want one connection refused", all)
		}
	}
}

// TestClose closes sockets that other goroutines use: both ends return net.ErrClosed and no descriptor is touched
// after it may belong to somebody else.
func TestClose(t *testing.T) {
	for range 50 {
		from, to, peer := loopback(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			var o tunnel.Outbound
			load{to: peer, total: 5000, segment: 1000}.add(&o)
			for {
				if _, err := from.Send(&o); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("Send: %v", err)
					}
					return
				}
				from.PathEvents(nil)
			}
		})
		wg.Go(func() {
			in := tunnel.NewInbound(4)
			for {
				if err := to.Receive(in); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("Receive: %v", err)
					}
					return
				}
			}
		})
		for _, s := range []*Socket{from, to} {
			for range 2 { // closing twice is harmless, also at the same time
				wg.Go(func() {
					_ = s.Offloads()
					if err := s.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
				})
			}
		}
		wg.Wait()
		for _, fd := range append(from.FDs(), to.FDs()...) {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
				// The number may be another file's by now, but none that is bound to this port.
				if sa, err := unix.Getsockname(fd); err == nil {
					if sa4, ok := sa.(*unix.SockaddrInet4); ok && sa4.Port == int(peer.Port()) {
						t.Fatalf("descriptor %d is still open", fd)
					}
				}
			}
		}
	}
}

// TestFullBuffer sends into a buffer that nothing leaves: Send must come back in bounded time.
func TestFullBuffer(t *testing.T) {
	k := fakeKernel{maxSegments: 128, fail: func(int) unix.Errno { return unix.EAGAIN }}
	s := newFake(t, &k)
	var o tunnel.Outbound
	for range 100 {
		load{to: fakePeer, total: 100}.add(&o)
	}
	fds := make([]int, 2)
	if err := unix.Pipe(fds); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	s.send[v4] = fds[0] // the reading end never becomes writable
	start := time.Now()
	res, err := s.Send(&o)
	if err != nil || res.Dropped != 100 || res.LastError != unix.EAGAIN {
		t.Errorf("%+v, %v", res, err)
	}
	if took := time.Since(start); took < DefaultSendWait || took > 100*DefaultSendWait {
		t.Errorf("Send took %v, want about %v", took, DefaultSendWait)
	}
}

// TestTruncated receives into a buffer that is too small: the slot is used for the next datagram.
func TestTruncated(t *testing.T) {
	from, to, peer := loopback(t)
	var o tunnel.Outbound
	load{to: peer, total: 1400}.add(&o)
	want := load{to: peer, total: 90}.add(&o)
	if res, err := from.Send(&o); err != nil || res.Sent != 2 {
		t.Fatalf("%+v, %v", res, err)
	}
	in := &tunnel.Inbound{Slots: []tunnel.Datagrams{{Buf: make([]byte, 100)}, {Buf: make([]byte, 100)}}}
	for end := time.Now().Add(3 * time.Second); in.N == 0 && time.Now().Before(end); {
		if err := to.Receive(in); err != nil {
			t.Fatal(err)
		}
	}
	if in.N != 1 || string(in.Slots[0].Buf[:in.Slots[0].N]) != want[0] {
		t.Errorf("received %d datagrams, want the one that fits", in.N)
	}
	if &in.Slots[0].Buf[0] == &in.Slots[1].Buf[0] {
		t.Error("two slots share a buffer")
	}
}

func FuzzControl(f *testing.F) {
	var c control
	size := int32(1450)
	n := c.put(0, unix.SOL_UDP, unix.UDP_GRO, ptr(&size), 4)
	f.Add(c.data[:n], n)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		var c control
		copy(c.data[:], data)
		slot := tunnel.Datagrams{N: 1000, SegmentSize: 1000}
		c.read(n, &slot)
		if slot.SegmentSize <= 0 || slot.SegmentSize > slot.N {
			t.Fatalf("segment size %d of %d bytes", slot.SegmentSize, slot.N)
		}
		r := errorReader{control: c}
		r.msg.SetControllen(n)
		r.name.Family = unix.AF_INET
		r.event()
	})
}
