package udp

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-net/warren/tunnel"
)

// TestSteering sends from the sockets of groups of several sizes to a group: what one socket sends arrives at one
// socket, in order, whatever is joined on the way; between equally large groups at the one of the same number.
func TestSteering(t *testing.T) {
	a, b := newPair(t)
	const lanes = 3
	to := b.openGroup(lanes, Config{Port: tunnelPort})
	if o := to[0].Offloads(); len(o) != 3 || o[2].Name != "udp-steering" || !o[2].Enabled {
		t.Fatalf("offloads: %+v", o)
	}
	for _, senders := range []int{1, 2, lanes, 8} {
		for k, from := range a.openGroup(senders, Config{}) {
			if senders > 1 && int(from.LocalPort())%senders != k {
				t.Errorf("socket %d of %d sends from port %d", k, senders, from.LocalPort())
			}
			for _, addr := range []netip.Addr{b4, b6} {
				got := steered(t, from, to, netip.AddrPortFrom(addr, tunnelPort))
				if senders == lanes && got != k {
					t.Errorf("socket %d of %d reached socket %d over %v", k, senders, got, addr)
				}
			}
		}
	}
}

// steered sends datagrams of many sizes, alone and joined, and returns the number of the socket where they arrive.
func steered(t *testing.T, from *Socket, to []*Socket, addr netip.AddrPort) int {
	t.Helper()
	sent := 0
	for round := range 20 {
		var o tunnel.Outbound
		for n := range 10 {
			p := binary.BigEndian.AppendUint16(nil, uint16(sent))
			o.Append(tunnel.Send{To: addr}, p, make([]byte, 30+100*(round%3)+n%2))
			sent++
		}
		if r, err := from.Send(&o); err != nil || r.Sent != len(o.Sends) {
			t.Fatal(r, err)
		}
	}
	in := tunnel.NewInbound(16)
	at, got := -1, 0
	for deadline := time.Now().Add(5 * time.Second); got < sent && time.Now().Before(deadline); {
		for k, s := range to {
			if err := s.Receive(in); err != nil {
				t.Fatal(err)
			}
			if in.N > 0 && at >= 0 && at != k {
				t.Fatalf("what port %d sends reached sockets %d and %d", from.LocalPort(), at, k)
			}
			if in.N > 0 {
				at = k
			}
			for _, slot := range in.Slots[:in.N] {
				for d := slot.Buf[:slot.N]; len(d) > 0; d = d[min(slot.SegmentSize, len(d)):] {
					if n := int(binary.BigEndian.Uint16(d)); n != got {
						t.Fatalf("datagram %d arrived where %d was expected", n, got)
					}
					got++
				}
			}
		}
	}
	if got != sent {
		t.Fatalf("%d datagrams arrived, want %d", got, sent)
	}
	return at
}

// TestRefusedSteeringIsSaid has a kernel refuse the program.
func TestRefusedSteeringIsSaid(t *testing.T) {
	s := &Socket{receive: []int{-1}}
	g := group{size: 2, sockets: []*Socket{s, {}}}
	g.steer(bySourcePort(2))
	if o := g.sockets[1].Offloads(); len(o) != 3 || o[2].Enabled || o[2].Reason == "" {
		t.Errorf("offloads: %+v", o)
	}
}
