package udp

import (
	"net/netip"
	"testing"

	"github.com/warren-net/warren/tunnel"
)

// TestOverflowsAreCounted floods a socket that nobody reads.
func TestOverflowsAreCounted(t *testing.T) {
	at := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	s, err := Open(Config{Addrs: at, SocketBuffer: 4096})
	if err != nil {
		t.Fatal(err)
	}
	sender, err := Open(Config{Addrs: at, GSO: Off})
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	if n := s.Overflows(); n != 0 {
		t.Errorf("%d overflows of a new socket", n)
	}
	var o tunnel.Outbound
	const sent = 50
	for range sent {
		o.Append(tunnel.Send{To: netip.AddrPortFrom(at[0], s.Port())}, make([]byte, 1000), nil)
	}
	if _, err := sender.Send(&o); err != nil {
		t.Fatal(err)
	}
	in := tunnel.NewInbound(1)
	received := uint64(0)
	for {
		if err := s.Receive(in); err != nil {
			t.Fatal(err)
		}
		if in.N == 0 {
			break
		}
		received += uint64(in.Slots[0].N / in.Slots[0].SegmentSize)
	}
	if n := s.Overflows(); n == 0 || n+received != sent {
		t.Errorf("%d overflows and %d received of %d", n, received, sent)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := s.Overflows(); n != 0 {
		t.Errorf("%d overflows of a closed socket", n)
	}
}
