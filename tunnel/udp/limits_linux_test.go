package udp

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

// TestLimitCountsHeaders sends full batches to a kernel before 5.16, which refuses 64 segments that leave no room for
// the headers in its limit: that costs a second try once, not each time.
func TestLimitCountsHeaders(t *testing.T) {
	k := fakeKernel{maxSegments: 64, tooBigGSO: unix.EINVAL, withHeaders: 28}
	s := newFake(t, &k)
	for round := range 3 {
		var o tunnel.Outbound
		want := load{to: fakePeer, total: 64 * 100, segment: 100}.add(&o)
		k.datagrams, k.calls = nil, 0
		res, err := s.Send(&o)
		if err != nil || res.Sent != 1 || !slices.Equal(k.datagrams, want) {
			t.Fatalf("%+v, %v, %d datagrams", res, err, len(k.datagrams))
		}
		if round > 0 && k.calls > 1 {
			t.Errorf("round %d: %d system calls, want 1", round, k.calls)
		}
	}
	if !s.gso.enabled() {
		t.Error("GSO is off")
	}
}

// TestShortTailOfTooBig joins a small datagram of another flow to large ones, as tunnel.Outbound does: it has to leave
// although they are too big for the path.
func TestShortTailOfTooBig(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EMSGSIZE, unix.EINVAL} {
		for _, off := range []bool{false, true} {
			k := fakeKernel{maxSegments: 64, tooBigGSO: errno, mtu: 1300}
			s := newFake(t, &k)
			if off {
				s.gso.disable("test")
			}
			var o tunnel.Outbound
			all := load{to: fakePeer, total: 10*1400 + 74, segment: 1400}.add(&o)
			res, err := s.Send(&o)
			if err != nil || res.TooBig != 1 {
				t.Errorf("%v, GSO off %v: %+v, %v", errno, off, res, err)
			}
			if !slices.Equal(k.datagrams, all[10:]) {
				t.Errorf("%v, GSO off %v: %d datagrams left, want the short one", errno, off, len(k.datagrams))
			}
			if k.calls > 8 {
				t.Errorf("%v, GSO off %v: %d system calls", errno, off, k.calls)
			}
		}
	}
}
