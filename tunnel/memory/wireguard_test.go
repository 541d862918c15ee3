package memory

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
)

func wireguard(t *testing.T, n *Network, lanes int, addrs ...netip.AddrPort) *WireGuardGroup {
	t.Helper()
	g, err := n.WireGuard(lanes, addrs...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// message is the beginning of a WireGuard message of so many bytes.
func message(typ byte, receiver uint32, size int) string {
	m := make([]byte, max(size, 8))
	m[0] = typ
	binary.LittleEndian.PutUint32(m[4:], receiver)
	return string(m[:size])
}

// TestWireGuardSteering sends every kind of message from one node to another, which sees it come from the port that it
// receives on.
func TestWireGuardSteering(t *testing.T) {
	for _, lanes := range []int{1, 3, maxWireGuardLanes} {
		n := network(t, Config{})
		a, b := wireguard(t, n, 2, addrA, addrA6), wireguard(t, n, lanes, addrB, addrB6)
		all := append(slices.Clone(b.Lanes), b.Control)
		for _, from := range []*Socket{a.Lanes[0], a.Lanes[1], a.Control} {
			for _, path := range [][2]netip.AddrPort{{addrA, addrB}, {addrA6, addrB6}} {
				expect := func(m string, want int) {
					t.Helper()
					mustSend(t, from, outbound(path[1], m))
					batches, got := receiveAll(t, all[want])
					if !slices.Equal(got, []string{m}) || batches[0].From != path[0] {
						t.Fatalf("%d lanes: %.8x is for socket %d, which received %d datagrams", lanes, m, want, len(got))
					}
				}
				for _, receiver := range []uint32{0, 1, 2, 3, 100, 255, 0xffffff00, 0x01020304} {
					for _, size := range []int{8, 32, 1400} {
						expect(message(4, receiver, size), int(receiver&0xff)%lanes)
					}
					for _, typ := range []byte{0, 1, 2, 3, 5, 0x84} {
						expect(message(typ, receiver, 148), lanes)
					}
					for size := range 8 {
						expect(message(4, receiver, size), lanes)
					}
				}
			}
		}
		for i, s := range all {
			if _, got := receiveAll(t, s); len(got) > 0 {
				t.Errorf("%d lanes: %d further datagrams at socket %d", lanes, len(got), i)
			}
		}
		if a.Control.LocalPort() != addrA.Port() || a.Lanes[1].LocalPort() != addrA.Port() {
			t.Errorf("sent from ports %d and %d, want %d", a.Control.LocalPort(), a.Lanes[1].LocalPort(), addrA.Port())
		}
	}
}

// TestWireGuardJoined sends a handshake message right behind data: it arrives with the data where that is joined.
// Behind a handshake message data arrives with that, but by itself.
func TestWireGuardJoined(t *testing.T) {
	for _, c := range []Config{{}, {NoGSO: true}, {NoGRO: true}} {
		n := network(t, c)
		a, b := n.Socket(addrA), wireguard(t, n, 2, addrB)
		data, handshake := message(4, 1, 1000), message(1, 0, 148)
		mustSend(t, a, outbound(addrB, data, data, handshake))
		_, lane := receiveAll(t, b.Lanes[1])
		_, control := receiveAll(t, b.Control)
		wantLane, wantControl := []string{data, data, handshake}, []string(nil)
		if c.NoGSO || c.NoGRO {
			wantLane, wantControl = []string{data, data}, []string{handshake}
		}
		if !slices.Equal(lane, wantLane) || !slices.Equal(control, wantControl) {
			t.Errorf("%+v: %d datagrams at the lane, %d at control", c, len(lane), len(control))
		}
		mustSend(t, a, outbound(addrB, handshake, message(4, 1, 112)))
		batches, control := receiveAll(t, b.Control)
		if want := 2 - len(wantControl); len(control) != want || len(batches) != want {
			t.Errorf("%+v: %d datagrams in %d slots at control, want %d", c, len(control), len(batches), want)
		}
	}
}

func TestWireGuardClose(t *testing.T) {
	n := network(t, Config{})
	a, b := n.Socket(addrA), wireguard(t, n, 2, addrB, addrB6)
	for range 2 {
		if err := b.Lanes[0].Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.Lanes[0].Send(outbound(addrA, "x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send: %v", err)
	}
	for receiver := range uint32(2) {
		mustSend(t, a, outbound(addrB, message(4, receiver, 32)))
	}
	if _, got := receiveAll(t, b.Lanes[1]); len(got) != 1 || n.Stats().NoReceiver != 1 {
		t.Errorf("%d datagrams at the open lane, %+v; want 1, and 1 without receiver", len(got), n.Stats())
	}
	for _, s := range []*Socket{b.Lanes[1], b.Control} {
		if _, err := n.WireGuard(2, addrB6); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a taken address: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	wireguard(t, n, 2, addrB6)
	for _, addrs := range [][]netip.AddrPort{nil, {addrB, netip.MustParseAddrPort("192.0.2.2:1")}, {addrA}} {
		if _, err := n.WireGuard(2, addrs...); err == nil {
			t.Errorf("%v: accepted", addrs)
		}
	}
	for _, lanes := range []int{0, maxWireGuardLanes + 1} {
		if _, err := n.WireGuard(lanes, addrB); err == nil {
			t.Errorf("%d lanes: accepted", lanes)
		}
	}
}
