package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

var sizes = []load{
	{total: 0},
	{total: 1},
	{total: 1472},
	{total: 1450, segment: 1450},
	{total: 100, segment: 1400},
	{total: 1401, segment: 1400},
	{total: 45 * 1450, segment: 1450},
	{total: 64 * 100, segment: 100},
	{total: 65 * 100, segment: 100},
	{total: 128 * 100, segment: 100},
	{total: 129 * 100, segment: 100},
	{total: 300*100 + 7, segment: 100},
	{total: 65507, segment: 1450},
	{total: 65487, segment: 1450},
	{total: 65508, segment: 1450},
	{total: 100000, segment: 1450},
	{total: 128 * 1, segment: 1},
	{total: 40 * 1450, segment: 1450, piece: 50},
	{total: 40 * 1450, segment: 1450, piece: 2000},
}

// TestSameDatagrams sends every size with every combination of offloads, in both families, and expects the same
// datagrams in the same order.
func TestSameDatagrams(t *testing.T) {
	a, b := newPair(t)
	for _, gso := range []Mode{Auto, Off} {
		for _, gro := range []Mode{Auto, Off} {
			from := a.open(Config{Port: tunnelPort, GSO: gso})
			to := b.open(Config{Port: tunnelPort, GRO: gro})
			for _, addrs := range [][2]netip.Addr{{a4, b4}, {a6, b6}} {
				t.Run(fmt.Sprintf("gso %v gro %v to %v", gso, gro, addrs[1]), func(t *testing.T) {
					joined := sameDatagrams(t, from, to, addrs)
					// A veth does not join plain datagrams, but hands on what the sender left joined.
					if want := gso == Auto && gro == Auto; joined != want {
						t.Errorf("joined datagrams received: %v, want %v", joined, want)
					}
				})
			}
			for _, s := range []*Socket{from, to} {
				for i, state := range s.Offloads() {
					off := s == from && i == 0 && gso == Off || s == to && i == 1 && gro == Off
					if state.Enabled == off || off && state.Reason != "configuration" {
						t.Errorf("offload state %+v, want off: %v", state, off)
					}
				}
				_ = s.Close()
			}
		}
	}
}

func sameDatagrams(t *testing.T, from, to *Socket, addrs [2]netip.Addr) (joined bool) {
	for _, l := range sizes {
		l.to = netip.AddrPortFrom(addrs[1], tunnelPort)
		if addrs[1].Is6() && l.segment == 0 {
			l.total = min(l.total, 1452)
		} else if addrs[1].Is6() {
			l.segment = min(l.segment, 1452)
		}
		var o tunnel.Outbound
		want := l.add(&o)
		res, err := from.Send(&o)
		if err != nil || res.Sent != 1 || res.Dropped+res.TooBig != 0 {
			t.Fatalf("%+v: %+v, %v", l, res, err)
		}
		got := receive(t, to, len(want))
		if all := datagrams(got); !slices.Equal(all, want) {
			t.Fatalf("%+v: %d datagrams received differ from %d sent", l, len(all), len(want))
		}
		for _, d := range got {
			joined = joined || d.SegmentSize < d.N
			if d.From != netip.AddrPortFrom(addrs[0], from.LocalPort()) {
				t.Fatalf("received from %v, want %v port %d", d.From, addrs[0], from.LocalPort())
			}
		}
	}
	return joined
}

// TestOneSyscall holds the socket to what it is for: a superpacket is one message, and several leave together.
func TestOneSyscall(t *testing.T) {
	a, b := newPair(t)
	from, to := a.open(Config{Port: tunnelPort}), b.open(Config{Port: tunnelPort})
	var o tunnel.Outbound
	var want []string
	for range 3 {
		want = append(want, load{to: netip.AddrPortFrom(b4, tunnelPort), total: 65250, segment: 1450}.add(&o)...)
	}
	res, err := from.Send(&o)
	if err != nil || res.Sent != 3 || res.Syscalls != 1 {
		t.Errorf("three superpackets: %+v, %v; want one system call", res, err)
	}
	got := receive(t, to, len(want))
	if len(got) != 3 || !slices.Equal(datagrams(got), want) {
		t.Errorf("%d batches of %d datagrams received, want 3 of %d", len(got), len(datagrams(got)), len(want))
	}
}

func TestTOS(t *testing.T) {
	a, b := newPair(t)
	from, to := a.open(Config{Port: tunnelPort}), b.open(Config{Port: tunnelPort})
	for _, addr := range []netip.Addr{b4, b6} {
		var o tunnel.Outbound
		tos := []uint8{0, 0x02, 0xb8, 0xff}
		for _, v := range tos {
			load{to: netip.AddrPortFrom(addr, tunnelPort), total: 2800, segment: 1400, tos: v}.add(&o)
		}
		if res, err := from.Send(&o); err != nil || res.Sent != len(tos) {
			t.Fatalf("to %v: %+v, %v", addr, res, err)
		}
		var got []uint8
		for _, d := range receive(t, to, 2*len(tos)) {
			got = append(got, d.TOS)
		}
		if !slices.Equal(got, tos) {
			t.Errorf("to %v: TOS %x received, %x sent", addr, got, tos)
		}
	}
}

// events waits for a path event that is accepted by ok.
func events(t *testing.T, s *Socket, ok func(tunnel.PathEvent) bool) {
	t.Helper()
	var all []tunnel.PathEvent
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		all = s.PathEvents(all)
		if slices.ContainsFunc(all, ok) {
			return
		}
	}
	t.Errorf("path events %+v: not the expected one", all)
}

// TestDeviceMTU shrinks the own device: the sends that fit must go, the others be counted and reported with the MTU,
// and GSO must stay on.
func TestDeviceMTU(t *testing.T) {
	for _, gso := range []Mode{Auto, Off} {
		a, b := newPair(t)
		from, to := a.open(Config{Port: tunnelPort, GSO: gso}), b.open(Config{Port: tunnelPort})
		a.must(a.handle.LinkSetMTU(a.link("wrnudp"), 1300), "shrinking the MTU")
		b.must(b.handle.LinkSetMTU(b.link("wrnudp"), 1300), "shrinking the MTU")
		for _, addr := range []netip.Addr{b4, b6} {
			peer := netip.AddrPortFrom(addr, tunnelPort)
			var o tunnel.Outbound
			want := load{to: peer, total: 10 * 1252, segment: 1252}.add(&o)
			load{to: peer, total: 10 * 1400, segment: 1400}.add(&o)
			load{to: peer, total: 1400}.add(&o)
			want = append(want, load{to: peer, total: 1252}.add(&o)...)
			res, err := from.Send(&o)
			if err != nil || res.Sent != 2 || res.TooBig != 2 || !errors.Is(res.LastError, tunnel.ErrTooBig) {
				t.Errorf("gso %v to %v: %+v, %v; want 2 sent, 2 too big", gso, addr, res, err)
			}
			if got := datagrams(receive(t, to, len(want))); !slices.Equal(got, want) {
				t.Errorf("gso %v to %v: %d datagrams received, want %d", gso, addr, len(got), len(want))
			}
			all := from.PathEvents(nil)
			if !slices.Equal(all, []tunnel.PathEvent{{To: addr, MTU: 1300, Err: tunnel.ErrTooBig}}) {
				t.Errorf("gso %v: path events %+v, want one of 1300 bytes to %v", gso, all, addr)
			}
		}
		if state := from.Offloads()[0]; state.Enabled != (gso == Auto) {
			t.Errorf("GSO after EMSGSIZE: %+v", state)
		}
	}
}

// TestRouterMTU has a router answer with ICMP: the first send seems to go, the event says otherwise, and the error
// that waits in the socket does not cost the next send.
func TestRouterMTU(t *testing.T) {
	a, r, b := newNetNS(t), newNetNS(t), newNetNS(t)
	connect(a, r, "wrnudp", 1500, "192.0.2.0/24", "2001:db8:1::/64")
	connect(r, b, "wrnudp2", 1300, "198.51.100.0/24", "2001:db8:2::/64")
	r.command("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	a.command("ip", "route", "add", "default", "via", "192.0.2.2")
	a.command("ip", "-6", "route", "add", "default", "via", "2001:db8:1::2")
	b.command("ip", "route", "add", "default", "via", "198.51.100.1")
	b.command("ip", "-6", "route", "add", "default", "via", "2001:db8:2::1")
	from, to := a.open(Config{Port: tunnelPort}), b.open(Config{Port: tunnelPort})
	for _, s := range []string{"198.51.100.2", "2001:db8:2::2"} {
		addr := netip.MustParseAddr(s)
		peer := netip.AddrPortFrom(addr, tunnelPort)
		var o tunnel.Outbound
		load{to: peer, total: 1400}.add(&o)
		if res, err := from.Send(&o); err != nil || res.Sent != 1 {
			t.Errorf("first send to %v: %+v, %v", addr, res, err)
		}
		time.Sleep(50 * time.Millisecond) // for the error to arrive
		o.Reset()
		want := load{to: peer, total: 5000, segment: 1200}.add(&o)
		if res, err := from.Send(&o); err != nil || res.Sent != 1 {
			t.Errorf("send to %v after an ICMP error: %+v, %v", addr, res, err)
		}
		if got := datagrams(receive(t, to, len(want))); !slices.Equal(got, want) {
			t.Errorf("to %v: %d datagrams received, want %d", addr, len(got), len(want))
		}
		events(t, from, func(e tunnel.PathEvent) bool {
			return e == tunnel.PathEvent{To: addr, MTU: 1300, Err: tunnel.ErrTooBig}
		})
	}
	if state := from.Offloads()[0]; !state.Enabled {
		t.Errorf("GSO after an ICMP error: %+v", state)
	}
}

// TestPeerGone has one of two peers refuse: the other must not lose anything by it.
func TestPeerGone(t *testing.T) {
	a, b := newPair(t)
	from, to := a.open(Config{Port: tunnelPort}), b.open(Config{Port: tunnelPort})
	for _, addr := range []netip.Addr{b4, b6} {
		var want []string
		for range 20 {
			var o tunnel.Outbound
			load{to: netip.AddrPortFrom(addr, tunnelPort+1), total: 100}.add(&o)
			want = append(want, load{to: netip.AddrPortFrom(addr, tunnelPort), total: 100}.add(&o)...)
			if _, err := from.Send(&o); err != nil {
				t.Fatal(err)
			}
		}
		if got := datagrams(receive(t, to, len(want))); !slices.Equal(got, want) {
			t.Errorf("%v: %d datagrams received, want %d", addr, len(got), len(want))
		}
		events(t, from, func(e tunnel.PathEvent) bool { return e == tunnel.PathEvent{To: addr, Err: unix.ECONNREFUSED} })
	}
}

func TestRouteGone(t *testing.T) {
	a, b := newPair(t)
	from, to := a.open(Config{Port: tunnelPort}), b.open(Config{Port: tunnelPort})
	far := netip.MustParseAddr("198.51.100.1")
	for _, how := range []string{"", "unreachable"} {
		want := unix.ENETUNREACH
		if how != "" {
			a.command("ip", "route", "add", how, "198.51.100.0/24")
			want = unix.EHOSTUNREACH
		}
		var o tunnel.Outbound
		load{to: netip.AddrPortFrom(far, tunnelPort), total: 100}.add(&o)
		sent := load{to: netip.AddrPortFrom(b4, tunnelPort), total: 100}.add(&o)
		res, err := from.Send(&o)
		if err != nil || res.Sent != 1 || res.Dropped != 1 || res.LastError != want {
			t.Errorf("no route: %+v, %v; want %v", res, err, want)
		}
		if got := datagrams(receive(t, to, 1)); !slices.Equal(got, sent) {
			t.Errorf("the other send: %q received", got)
		}
		events(t, from, func(e tunnel.PathEvent) bool { return e == tunnel.PathEvent{To: far, Err: want} })
	}
	a.command("ip", "link", "set", "wrnudp", "down")
	var o tunnel.Outbound
	load{to: netip.AddrPortFrom(b4, tunnelPort), total: 100}.add(&o)
	load{to: netip.AddrPortFrom(b6, tunnelPort), total: 100}.add(&o)
	if res, err := from.Send(&o); err != nil || res.Dropped != 2 {
		t.Errorf("device down: %+v, %v", res, err)
	}
}

// TestDeviceOffloads switches the devices' own offloads off: the kernel has to do their work, or the socket.
func TestDeviceOffloads(t *testing.T) {
	for _, features := range [][]string{
		{"tx-udp-segmentation", "off"},
		{"gso", "off", "tso", "off"},
		{"tx", "off", "rx", "off"},
		{"tx-udp-segmentation", "off", "gro", "off", "gso", "off", "tx", "off", "rx", "off"},
		{"gro", "on", "rx-udp-gro-forwarding", "on", "tx-udp-segmentation", "off"},
	} {
		t.Run(fmt.Sprint(features), func(t *testing.T) {
			a, b := newPair(t)
			for _, ns := range []*netNS{a, b} {
				ns.command(append([]string{"ethtool", "-K", "wrnudp"}, features...)...)
			}
			from, to := a.open(Config{Port: tunnelPort}), b.open(Config{Port: tunnelPort})
			sameDatagrams(t, from, to, [2]netip.Addr{a4, b4})
			sameDatagrams(t, from, to, [2]netip.Addr{a6, b6})
			t.Logf("offloads afterwards: %+v", from.Offloads())
		})
	}
}
