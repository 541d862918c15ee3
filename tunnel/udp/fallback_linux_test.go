package udp

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

// A fakeKernel stands where sendmmsg does, and behaves like kernels and devices that are not at hand. It reads the
// messages as a kernel would: addresses, pieces and control messages.
type fakeKernel struct {
	t           *testing.T
	mtu         int        // of the device, for IPv4; 0: as large as one likes
	tooBigGSO   unix.Errno // what a GSO send with segments above the MTU returns: EINVAL on older kernels
	maxSegments int
	withHeaders int                    // bytes of headers that count in the limit of segments: kernels before 5.16
	gso         unix.Errno             // what every GSO send returns; 0: it works
	fail        func(i int) unix.Errno // what message i of a call returns; nil: nothing special
	datagrams   []string
	calls       int
}

func (k *fakeKernel) sendmmsg(_ int, msgs []mmsghdr) (int, unix.Errno) {
	k.calls++
	for i := range msgs {
		if errno := k.send(i, &msgs[i].hdr); errno != 0 {
			if i > 0 {
				return i, 0 // the error is lost, and met again when the caller comes back with this message
			}
			return 0, errno
		}
	}
	return len(msgs), 0
}

func (k *fakeKernel) send(i int, h *unix.Msghdr) unix.Errno {
	if k.fail != nil {
		if errno := k.fail(i); errno != 0 {
			return errno
		}
	}
	var payload []byte
	for _, v := range unsafe.Slice(h.Iov, h.Iovlen) {
		payload = append(payload, unsafe.Slice(v.Base, v.Len)...)
	}
	segment := 0
	if h.Control != nil {
		c := (*control)(unsafe.Pointer(h.Control))
		for at := 0; ; {
			cm, value, after, ok := c.next(at, int(h.Controllen))
			if !ok {
				break
			}
			at = after
			if cm.Level == unix.SOL_UDP && cm.Type == unix.UDP_SEGMENT {
				segment = int(value[0]) | int(value[1])<<8
			}
		}
	}
	if segment == 0 {
		if len(payload) > maxBytes4 || k.mtu > 0 && len(payload)+28 > k.mtu {
			return unix.EMSGSIZE
		}
		k.datagrams = append(k.datagrams, string(payload))
		return 0
	}
	switch {
	case len(payload) > maxBytes4:
		return unix.EMSGSIZE
	case k.mtu > 0 && min(segment, len(payload))+28 > k.mtu:
		return k.tooBigGSO
	case len(payload)+k.withHeaders > segment*k.maxSegments:
		return unix.EINVAL
	case k.gso != 0:
		return k.gso
	}
	for part := range slices.Chunk(payload, segment) {
		k.datagrams = append(k.datagrams, string(part))
	}
	return 0
}

// newFake makes a Socket over a fake kernel, without any descriptor.
func newFake(t *testing.T, k *fakeKernel) *Socket {
	s := newSocket(Config{SendWait: DefaultSendWait})
	s.send[v4] = 1 << 20 // not a descriptor
	k.t = t
	s.sender.sendmmsg = k.sendmmsg
	return s
}

var fakePeer = netip.AddrPortFrom(b4, tunnelPort)

func TestKernels(t *testing.T) {
	kernels := map[string]fakeKernel{
		"Linux 6.18":         {maxSegments: 128, tooBigGSO: unix.EMSGSIZE},
		"Linux 5.10":         {maxSegments: 64, tooBigGSO: unix.EINVAL},
		"device without GSO": {maxSegments: 64, tooBigGSO: unix.EINVAL, gso: unix.EIO},
	}
	for name, kernel := range kernels {
		t.Run(name, func(t *testing.T) {
			k := kernel
			s := newFake(t, &k)
			for range 2 { // the second time with what was learnt
				for _, l := range append(sizes, load{total: 5 * 1050, segment: 5, piece: 1}) {
					l.to = fakePeer
					var o tunnel.Outbound
					want := l.add(&o)
					want = append(want, load{to: fakePeer, total: 3000, segment: 1000}.add(&o)...)
					k.datagrams = nil
					if res, err := s.Send(&o); err != nil || res.Sent != 2 || res.Dropped+res.TooBig != 0 {
						t.Fatalf("%+v: %+v, %v", l, res, err)
					}
					if !slices.Equal(k.datagrams, want) {
						t.Fatalf("%+v: %d datagrams left, want %d", l, len(k.datagrams), len(want))
					}
				}
			}
			if gso := s.gso.enabled(); gso != (k.gso == 0) {
				t.Errorf("GSO is on: %v", gso)
			}
			if s.sender.maxSegments != k.maxSegments && k.gso == 0 {
				t.Errorf("up to %d segments are sent, want %d", s.sender.maxSegments, k.maxSegments)
			}
			calls := k.calls
			var o tunnel.Outbound
			load{to: fakePeer, total: 100 * 100, segment: 100}.add(&o)
			if _, err := s.Send(&o); err != nil || k.calls > calls+2 {
				t.Errorf("what was learnt still costs %d system calls (%v)", k.calls-calls, err)
			}
		})
	}
}

// TestTooBig expects EMSGSIZE and the EINVAL of older kernels to mean the same, in the middle of a batch.
func TestTooBig(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EMSGSIZE, unix.EINVAL} {
		k := fakeKernel{maxSegments: 64, tooBigGSO: errno, mtu: 1300}
		s := newFake(t, &k)
		var o tunnel.Outbound
		want := load{to: fakePeer, total: 5000, segment: 1000}.add(&o)
		load{to: fakePeer, total: 35 * 1400, segment: 1400}.add(&o)
		load{to: fakePeer, total: 140 * 1400, segment: 1400}.add(&o)
		load{to: fakePeer, total: 70000}.add(&o)
		want = append(want, load{to: fakePeer, total: 5000, segment: 1000}.add(&o)...)
		res, err := s.Send(&o)
		if err != nil || res.Sent != 2 || res.TooBig != 3 || res.TooBigDatagrams != 35+140+1 ||
			!errors.Is(res.LastError, tunnel.ErrTooBig) {
			t.Errorf("%v: %+v, %v", errno, res, err)
		}
		if !slices.Equal(k.datagrams, want) {
			t.Errorf("%v: %d datagrams left, want %d", errno, len(k.datagrams), len(want))
		}
		if !s.gso.enabled() {
			t.Errorf("%v switched GSO off", errno)
		}
		s.send[v4] = -1
		if got := s.PathEvents(nil); !slices.Equal(got, []tunnel.PathEvent{{To: b4, Err: tunnel.ErrTooBig}}) {
			t.Errorf("%v: events %+v", errno, got)
		}
	}
}

// TestRefusals has the kernel return each error once, and for good, for the second of three sends.
func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		errno   unix.Errno
		onceOK  bool // returned once it costs nothing
		gsoOff  bool
		isEvent bool
	}{
		{errno: unix.ECONNREFUSED, onceOK: true},
		{errno: unix.EHOSTUNREACH, onceOK: true, isEvent: true},
		{errno: unix.ENETUNREACH, onceOK: true, isEvent: true},
		{errno: unix.EPERM, isEvent: true},
		{errno: unix.EMSGSIZE, onceOK: true, isEvent: true},
		{errno: unix.EINTR, onceOK: true},
		{errno: unix.EAGAIN, onceOK: true},
		{errno: unix.ENOBUFS},
		{errno: unix.ENOMEM},
		{errno: unix.EIO, onceOK: true, gsoOff: true},
		{errno: unix.EINVAL, onceOK: true},
	} {
		for _, forever := range []bool{false, true} {
			if forever && tt.errno == unix.EINTR {
				continue
			}
			k := fakeKernel{maxSegments: 128}
			s := newFake(t, &k)
			failed := false
			k.fail = func(i int) unix.Errno {
				if len(k.datagrams) != 3 || !forever && failed {
					return 0
				}
				failed = i == 0 // otherwise it does not get to the caller
				return tt.errno
			}
			var o tunnel.Outbound
			want := load{to: fakePeer, total: 3000, segment: 1000}.add(&o)
			second := load{to: fakePeer, total: 2000, segment: 1000}.add(&o)
			third := load{to: fakePeer, total: 2000, segment: 1000}.add(&o)
			if forever {
				third = nil // it meets the same error
			} else {
				want = append(want, map[bool][]string{true: second}[tt.onceOK]...)
			}
			want = append(want, third...)
			start := time.Now()
			res, err := s.Send(&o)
			if took := time.Since(start); took > 200*time.Millisecond {
				t.Errorf("%v: Send took %v", tt.errno, took)
			}
			if err != nil || res.Sent+res.Dropped+res.TooBig != 3 {
				t.Errorf("%v: %+v, %v", tt.errno, res, err)
			}
			if !slices.Equal(k.datagrams, want) {
				t.Errorf("%v, for good: %v: %d datagrams left, want %d; %+v", tt.errno, forever, len(k.datagrams), len(want), res)
			}
			if s.gso.enabled() == tt.gsoOff {
				t.Errorf("%v: GSO is on: %v", tt.errno, !tt.gsoOff)
			}
			if got := len(s.errors.stash) > 0; got != (tt.isEvent && (forever || !tt.onceOK)) {
				t.Errorf("%v, for good: %v: events %+v", tt.errno, forever, s.errors.stash)
			}
		}
	}
}

func TestFatal(t *testing.T) {
	k := fakeKernel{fail: func(int) unix.Errno { return unix.EBADF }}
	s := newFake(t, &k)
	var o tunnel.Outbound
	for range 200 {
		load{to: fakePeer, total: 10}.add(&o)
	}
	res, err := s.Send(&o)
	if !errors.Is(err, unix.EBADF) || res.Dropped != 200 {
		t.Errorf("%+v, %v; want EBADF and all sends dropped", res, err)
	}
}

// TestBadSends hands over sends that lie. They are counted, and the good ones beside them go.
func TestBadSends(t *testing.T) {
	good := tunnel.Send{To: fakePeer, Len: 30, SegmentSize: 10, Segments: 3, First: 0, N: 3}
	edit := func(f func(*tunnel.Send)) tunnel.Send {
		s := good
		f(&s)
		return s
	}
	bad := []tunnel.Send{
		{},
		edit(func(s *tunnel.Send) { s.To = netip.AddrPort{} }),
		edit(func(s *tunnel.Send) { s.To = netip.AddrPortFrom(b4, 0) }),
		edit(func(s *tunnel.Send) { s.Len = 29 }),
		edit(func(s *tunnel.Send) { s.Len = 31 }),
		edit(func(s *tunnel.Send) { s.Len = -1 }),
		edit(func(s *tunnel.Send) { s.SegmentSize = -1 }),
		edit(func(s *tunnel.Send) { s.First = -1 }),
		edit(func(s *tunnel.Send) { s.First = 1 }),
		edit(func(s *tunnel.Send) { s.First = 1 << 62 }),
		edit(func(s *tunnel.Send) { s.N = 1 << 62 }),
		edit(func(s *tunnel.Send) { s.N = -1 }),
		edit(func(s *tunnel.Send) { s.To = netip.AddrPortFrom(b6, 1) }), // a family that the socket has not
	}
	pieces := [][]byte{make([]byte, 10), make([]byte, 10), make([]byte, 10)}
	many := tunnel.Send{To: fakePeer, Len: 1025, First: 3, N: 1025}
	for range many.N {
		pieces = append(pieces, []byte{1})
	}
	bad = append(bad, many)
	for i, b := range bad {
		k := fakeKernel{maxSegments: 128}
		s := newFake(t, &k)
		res, err := s.Send(&tunnel.Outbound{Sends: []tunnel.Send{good, b, good}, Pieces: pieces})
		if err != nil || res.Sent != 2 || res.Dropped != 1 || res.DroppedDatagrams != b.Segments || res.LastError == nil {
			t.Errorf("bad send %d: %+v, %v", i, res, err)
		}
		if len(k.datagrams) != 6 {
			t.Errorf("bad send %d: %d datagrams left, want 6", i, len(k.datagrams))
		}
	}
}

// FuzzSend cuts anything into anything, over a kernel of any kind, and expects the same datagrams as the naive way.
func FuzzSend(f *testing.F) {
	f.Add(uint32(65250), uint16(1450), uint16(0), uint8(0))
	f.Add(uint32(129), uint16(1), uint16(1), uint8(1))
	f.Add(uint32(200000), uint16(1), uint16(7), uint8(2))
	f.Fuzz(func(t *testing.T, total uint32, segment, piece uint16, kind uint8) {
		total %= 300_000
		if segment == 0 || total/uint32(segment) > 20_000 || segment > maxBytes4 {
			return
		}
		k := fakeKernel{maxSegments: 128, tooBigGSO: unix.EMSGSIZE}
		switch kind % 3 {
		case 1:
			k.maxSegments = 64
		case 2:
			k.gso = unix.EIO
		}
		s := newFake(t, &k)
		l := load{to: fakePeer, total: int(total), segment: int(segment), piece: int(piece)}
		if piece > 0 && segment/piece >= maxPieces {
			return
		}
		var o tunnel.Outbound
		want := l.add(&o)
		if res, err := s.Send(&o); err != nil || res.Sent != 1 {
			t.Fatalf("%+v: %+v, %v", l, res, err)
		}
		if !slices.Equal(k.datagrams, want) {
			t.Fatalf("%+v: %d datagrams left, want %d", l, len(k.datagrams), len(want))
		}
	})
}
