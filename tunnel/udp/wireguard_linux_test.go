package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

const wireguardPort = 51820

// sockets are those of the group by their index in the kernel's.
func (g *WireGuardGroup) sockets() []*Socket { return append(slices.Clone(g.Lanes), g.Control) }

func (ns *netNS) openWireGuard(lanes int, c Config) *WireGuardGroup {
	ns.t.Helper()
	return ns.openWireGuardWith(lanes, c, byReceiverIndex)
}

// openWireGuardWith steers by another program.
func (ns *netNS) openWireGuardWith(lanes int, c Config, program func(int) []unix.SockFilter) *WireGuardGroup {
	ns.t.Helper()
	var g *WireGuardGroup
	var err error
	ns.do(func() { g, err = openWireGuard(lanes, c, program) })
	ns.must(err, "opening sockets for wireguard")
	ns.t.Cleanup(func() {
		for _, s := range g.sockets() {
			if err := s.Close(); err != nil {
				ns.t.Errorf("closing: %v", err)
			}
		}
	})
	return g
}

// wireguardMessage is the beginning of a message of so many bytes.
func wireguardMessage(typ byte, receiver uint32, size int) []byte {
	m := make([]byte, max(size, 8))
	m[0] = typ
	binary.LittleEndian.PutUint32(m[4:], receiver)
	return m[:size]
}

// sendEach sends the messages one by one, so that nothing joins them.
func sendEach(t testing.TB, s *Socket, to netip.AddrPort, messages ...[]byte) {
	t.Helper()
	for _, m := range messages {
		var o tunnel.Outbound
		o.Append(tunnel.Send{To: to}, m, nil)
		if r, err := s.Send(&o); err != nil || r.Sent != 1 {
			t.Fatalf("%d bytes to %v: %+v, %v", len(m), to, r, err)
		}
	}
}

// receiveAll empties a socket.
func receiveAll(t testing.TB, s *Socket) (all []tunnel.Datagrams) {
	t.Helper()
	in := tunnel.NewInbound(16)
	for {
		if err := s.Receive(in); err != nil {
			t.Fatal(err)
		}
		if in.N == 0 {
			return all
		}
		for _, slot := range in.Slots[:in.N] {
			slot.Buf = bytes.Clone(slot.Buf[:slot.N])
			all = append(all, slot)
		}
	}
}

// TestWireGuardSourcePort sends from every socket of a node to another one and back to where that came from: the
// tunnel's port, of the first address of the family.
func TestWireGuardSourcePort(t *testing.T) {
	a, b := newPair(t)
	a.command("ip", "address", "add", "192.0.2.11/24", "dev", "wrnudp")
	a.command("ip", "address", "add", "2001:db8::11/64", "dev", "wrnudp", "nodad")
	first4, first6 := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")
	left := a.openWireGuard(2, Config{Port: wireguardPort + 1, Addrs: []netip.Addr{first4, a4, first6, a6}})
	right := b.openWireGuard(3, Config{Port: wireguardPort})
	for i, s := range left.sockets() {
		if s.Port() != wireguardPort+1 || s.LocalPort() != s.Port() || len(s.FDs()) != 4 {
			t.Errorf("socket %d: port %d, sends from %d, %d descriptors", i, s.Port(), s.LocalPort(), len(s.FDs()))
		}
		for _, path := range [][2]netip.Addr{{first4, b4}, {first6, b6}} {
			sendEach(t, s, netip.AddrPortFrom(path[1], wireguardPort), wireguardMessage(4, 1, 100))
			got := receive(t, right.Lanes[1], 1)
			if len(got) != 1 || got[0].From != netip.AddrPortFrom(path[0], wireguardPort+1) {
				t.Fatalf("socket %d: %+v arrived, want one datagram from %v port %d", i, got, path[0], wireguardPort+1)
			}
			sendEach(t, right.Control, got[0].From, wireguardMessage(2, 1, 92))
			back := receive(t, left.Control, 1)
			if len(back) != 1 || back[0].From != netip.AddrPortFrom(path[1], wireguardPort) {
				t.Fatalf("%+v came back, want one datagram from %v port %d", back, path[1], wireguardPort)
			}
		}
	}
	// What peers send to the second address arrives as well.
	for _, addr := range []netip.Addr{a4, a6} {
		sendEach(t, right.Lanes[0], netip.AddrPortFrom(addr, wireguardPort+1), wireguardMessage(4, 1, 100))
		if got := receive(t, left.Lanes[1], 1); len(got) != 1 {
			t.Errorf("%d datagrams arrived at %v, want 1", len(got), addr)
		}
	}
}

// TestWireGuardSteering sends every kind of message from one source.
func TestWireGuardSteering(t *testing.T) {
	a, b := newPair(t)
	from := a.open(Config{Port: wireguardPort})
	for _, lanes := range []int{1, 3, 16, MaxWireGuardLanes} {
		g := b.openWireGuard(lanes, Config{Port: wireguardPort})
		type wanted struct {
			message []byte
			socket  int
		}
		var all []wanted
		for _, receiver := range []uint32{0, 1, 2, 3, 15, 16, 17, 100, 254, 255, 0xffffff00, 0xffffff01, 0x01020304} {
			data := int(receiver&0xff) % lanes
			for _, size := range []int{8, 32, 1400} { // the shortest is no message, but one that names a lane
				all = append(all, wanted{wireguardMessage(4, receiver, size), data})
				all = append(all, wanted{wireguardMessage(0x57, receiver, size), data}) // a piece of a superframe
			}
			for typ, size := range map[byte]int{1: 148, 2: 92, 3: 64, 0: 100, 5: 100, 0x47: 100, 0x84: 100, 0xff: 100} {
				all = append(all, wanted{wireguardMessage(typ, receiver, size), lanes})
			}
			for size := range 8 {
				all = append(all, wanted{wireguardMessage(4, receiver, size), lanes})
			}
		}
		for _, addr := range []netip.Addr{b4, b6} {
			to := netip.AddrPortFrom(addr, wireguardPort)
			for _, w := range all {
				sendEach(t, from, to, w.message)
				want := g.sockets()[w.socket]
				if got := datagrams(receive(t, want, 1)); len(got) != 1 || got[0] != string(w.message) {
					t.Fatalf("%d lanes, to %v: %d bytes %.8x did not reach socket %d",
						lanes, addr, len(w.message), w.message, w.socket)
				}
			}
		}
		for i, s := range g.sockets() {
			if rest := receiveAll(t, s); len(rest) > 0 {
				t.Errorf("%d lanes: %d further datagrams at socket %d", lanes, len(rest), i)
			}
			if o := s.Offloads(); len(o) != 3 || o[2].Name != "udp-steering" || !o[2].Enabled {
				t.Errorf("%d lanes: offloads of socket %d: %+v", lanes, i, o)
			}
			if err := s.Close(); err != nil {
				t.Errorf("closing socket %d: %v", i, err)
			}
		}
	}
}

// TestWireGuardWithoutSteering has the kernel refuse the program: everything still arrives, and nothing at Control,
// which goes on sending from the port.
func TestWireGuardWithoutSteering(t *testing.T) {
	a, b := newPair(t)
	g := b.openWireGuardWith(3, Config{Port: wireguardPort}, func(int) []unix.SockFilter {
		return []unix.SockFilter{{Code: 0xffff}}
	})
	if o := g.Lanes[0].Offloads(); o[2].Enabled {
		t.Fatalf("the kernel took the program: %+v", o)
	}
	for _, addr := range []netip.Addr{a4, a6} {
		other := a.openGroup(1, Config{})[0]
		sendEach(t, g.Control, netip.AddrPortFrom(addr, other.Port()), wireguardMessage(2, 0, 92))
		if got := receive(t, other, 1); len(got) != 1 || got[0].From.Port() != wireguardPort {
			t.Errorf("from Control to %v came %+v", addr, got)
		}
	}
	const senders = 40
	for _, s := range a.openGroup(senders, Config{}) {
		for _, addr := range []netip.Addr{b4, b6} {
			sendEach(t, s, netip.AddrPortFrom(addr, wireguardPort), wireguardMessage(1, 0, 148), wireguardMessage(4, 1, 32))
		}
	}
	arrived, counts := 0, make([]int, 3)
	for end := time.Now().Add(3 * time.Second); arrived < 4*senders && time.Now().Before(end); {
		if n := len(receiveAll(t, g.Control)); n > 0 {
			t.Errorf("Control received %d datagrams", n)
		}
		for i, s := range g.Lanes {
			n := len(receiveAll(t, s))
			counts[i] += n
			arrived += n
		}
	}
	if arrived != 4*senders || slices.Contains(counts, 0) {
		t.Errorf("the sockets received %v of %d", counts, 4*senders)
	}
}

// TestWireGuardGRO has a device join datagrams. It asks the group's socket that the hash of the flow's addresses and
// ports finds, so all of them have to want that.
func TestWireGuardGRO(t *testing.T) {
	a, b := newPair(t)
	a.command("ethtool", "-K", "wrnudp", "tso", "off", "tx-udp-segmentation", "off") // or veth hands on what is joined
	b.command("ethtool", "-K", "wrnudp", "gro", "on")
	g := b.openWireGuard(1, Config{Port: wireguardPort})
	for _, from := range a.openGroup(16, Config{}) {
		for _, addr := range []netip.Addr{b4, b6} {
			var o tunnel.Outbound
			const sent = 20
			for range sent {
				o.Append(tunnel.Send{To: netip.AddrPortFrom(addr, wireguardPort)}, wireguardMessage(4, 1, 1000), nil)
			}
			if r, err := from.Send(&o); err != nil || r.Sent != 1 {
				t.Fatalf("%+v, %v", r, err)
			}
			got := receive(t, g.Lanes[0], sent)
			if n := len(datagrams(got)); n != sent || len(got) > sent/2 {
				t.Errorf("from port %d to %v: %d datagrams of %d arrived in %d batches", from.LocalPort(), addr, n, sent, len(got))
			}
		}
	}
}

// TestWireGuardControlSplits sends a handshake message, and what is joined to it: control gets all of it, in order,
// each datagram in a slot of its own, and nothing is lost for one that is too large for its slot or for slots that are
// few.
func TestWireGuardControlSplits(t *testing.T) {
	a, b := newPair(t)
	g := b.openWireGuard(2, Config{Port: wireguardPort})
	from := a.open(Config{})
	for _, path := range [][2]netip.Addr{{a4, b4}, {a6, b6}} {
		to := netip.AddrPortFrom(path[1], wireguardPort)
		var o tunnel.Outbound
		var want []string
		add := func(m []byte, tos uint8) {
			o.Append(tunnel.Send{To: to, TOS: tos}, m, nil)
			if len(m) <= 148 {
				want = append(want, string(m))
			}
		}
		for n := range uint32(50) { // joined
			add(wireguardMessage(1, n, 148), 0)
		}
		add(wireguardMessage(4, 1, 112), 0) // still
		for n := range uint32(3) {          // joined, and too large
			add(wireguardMessage(2, n, 149), 0)
		}
		add(wireguardMessage(2, 0, 92), 0) // still
		for n := range uint32(20) {        // by themselves
			add(wireguardMessage(3, n, 64), uint8(4*n))
		}
		add(nil, 0)
		if r, err := from.Send(&o); err != nil || r.Sent != len(o.Sends) {
			t.Fatalf("%+v, %v", r, err)
		}
		var got []string
		in := &tunnel.Inbound{Slots: make([]tunnel.Datagrams, 7)}
		for k := range in.Slots {
			in.Slots[k].Buf = make([]byte, 148)
		}
		tos := uint8(0)
		for end := time.Now().Add(3 * time.Second); len(got) < len(want) && time.Now().Before(end); {
			if err := g.Control.Receive(in); err != nil {
				t.Fatal(err)
			}
			for _, s := range in.Slots[:in.N] {
				got = append(got, string(s.Buf[:s.N]))
				tos = max(tos, s.TOS)
				if s.SegmentSize != s.N || s.From != netip.AddrPortFrom(path[0], from.LocalPort()) {
					t.Fatalf("a slot of %d bytes has segments of %d bytes, from %v", s.N, s.SegmentSize, s.From)
				}
			}
		}
		if !slices.Equal(got, want) || tos != 4*19 {
			t.Errorf("to %v: %d datagrams arrived, want %d in order; TOS up to %d", to, len(got), len(want), tos)
		}
		if n := testing.AllocsPerRun(10, func() { _ = g.Control.Receive(in) }); n != 0 {
			t.Errorf("%v allocations in a receive", n)
		}
	}
}

// TestWireGuardControlJunk sends what is too large for a slot, and nothing else: one Receive throws away a bounded part
// of it.
func TestWireGuardControlJunk(t *testing.T) {
	a, b := newPair(t)
	g := b.openWireGuard(1, Config{Port: wireguardPort})
	from := a.open(Config{})
	for range 3 * splitSlots {
		sendEach(t, from, netip.AddrPortFrom(b4, wireguardPort), wireguardMessage(0, 0, 1000))
	}
	in := &tunnel.Inbound{Slots: []tunnel.Datagrams{{Buf: make([]byte, 148)}}}
	left := func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(g.Control.FDs()[0]), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	}
	for n := range 3 {
		if !left() {
			t.Errorf("nothing is left after %d receives", n)
		}
		if err := g.Control.Receive(in); err != nil || in.N != 0 {
			t.Fatalf("%d datagrams, %v", in.N, err)
		}
	}
	if left() {
		t.Error("something is left after 3 receives")
	}
}

// TestWireGuardControlFlood floods a node with handshakes that nobody answers: data is not lost.
func TestWireGuardControlFlood(t *testing.T) {
	a, b := newPair(t)
	g := b.openWireGuard(2, Config{Port: wireguardPort})
	from := a.open(Config{})
	for i, s := range g.sockets() {
		rcv, snd := s.Buffers()
		want := 2 * DefaultBuffer // the kernel doubles it
		if s == g.Control {
			want = 2 * controlBuffer
		}
		if rcv != want || snd != want {
			t.Errorf("socket %d has buffers of %d and %d bytes, want %d", i, rcv, snd, want)
		}
	}
	const floods = 5000
	received := [2]int{}
	for _, addr := range []netip.Addr{b4, b6} {
		to := netip.AddrPortFrom(addr, wireguardPort)
		for n := range floods {
			sendEach(t, from, to, wireguardMessage(1, 0, 148))
			if n%10 == 0 {
				sendEach(t, from, to, wireguardMessage(4, 0, 1000), wireguardMessage(4, 1, 1000))
				for i, s := range g.Lanes {
					received[i] += len(receive(t, s, 1))
				}
			}
		}
	}
	if want := 2 * floods / 10; received != [2]int{want, want} {
		t.Errorf("the lanes received %v datagrams, want %d each", received, want)
	}
	for i, s := range g.Lanes {
		if n := s.Overflows(); n != 0 {
			t.Errorf("lane %d lost %d datagrams", i, n)
		}
	}
	kept := len(datagrams(receiveAll(t, g.Control)))
	if lost := g.Control.Overflows(); lost == 0 || kept == 0 || kept+int(lost) != 2*floods {
		t.Errorf("control kept %d and lost %d of %d", kept, lost, 2*floods)
	}
}

func TestWireGuardErrors(t *testing.T) {
	for _, lanes := range []int{-1, 0, MaxWireGuardLanes + 1} {
		if _, err := OpenWireGuard(lanes, Config{}); err == nil {
			t.Errorf("%d lanes: accepted", lanes)
		}
	}
	for name, c := range map[string]Config{
		"buffer":     {SocketBuffer: -1},
		"address":    {Addrs: []netip.Addr{{}}},
		"no address": {Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("203.0.113.77")}},
	} {
		if _, err := OpenWireGuard(2, c); err == nil || name == "no address" && !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWireGuardClose closes a group twice: no descriptor is closed that may be another file's by then.
func TestWireGuardClose(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	g, err := OpenWireGuard(2, Config{Addrs: own})
	if err != nil {
		t.Fatal(err)
	}
	for _, round := range []string{"first", "second"} {
		for i, s := range g.sockets() {
			if err := s.Close(); err != nil {
				t.Errorf("%s close of socket %d: %v", round, i, err)
			}
		}
	}
	if again, err := OpenWireGuard(1, Config{Port: g.Control.Port(), Addrs: own}); err != nil {
		t.Errorf("the port is not free again: %v", err)
	} else {
		closeAll(again.sockets())
	}
	if got := fmt.Sprint(g.Control.PathEvents(nil)); got != "[]" {
		t.Errorf("events of a closed socket: %s", got)
	}
}
