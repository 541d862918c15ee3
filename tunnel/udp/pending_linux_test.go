package udp

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

// TestPendingErrors: news of a peer that is gone, several in a row, cost another peer nothing.
func TestPendingErrors(t *testing.T) {
	for pending := 1; pending <= pendingTries; pending++ {
		k := fakeKernel{maxSegments: 128}
		s := newFake(t, &k)
		left := pending
		k.fail = func(int) unix.Errno {
			if left == 0 {
				return 0
			}
			left--
			return unix.ECONNREFUSED
		}
		var o tunnel.Outbound
		load{to: fakePeer, total: 2000, segment: 1000}.add(&o)
		if r, err := s.Send(&o); err != nil || r.Sent != 1 || len(k.datagrams) != 2 {
			t.Errorf("%d errors waited: %+v, %v, %d datagrams; want all of 2 sent", pending, r, err, len(k.datagrams))
		}
	}
}
