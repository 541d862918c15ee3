package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

func TestConfigErrors(t *testing.T) {
	for name, c := range map[string]Config{
		"multicast": {Addrs: []netip.Addr{netip.MustParseAddr("224.0.0.1")}},
		"zone":      {Addrs: []netip.Addr{netip.MustParseAddr("fe80::1%lo")}},
		"mapped":    {Addrs: []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1")}},
		"zero":      {Addrs: []netip.Addr{{}}},
		"twice":     {Addrs: []netip.Addr{a4, b4, a4}},
		"buffer":    {SocketBuffer: -1},
		"absent":    {Addrs: []netip.Addr{netip.MustParseAddr("203.0.113.77")}},
	} {
		if s, err := Open(c); err == nil {
			t.Errorf("%s: accepted", name)
			_ = s.Close()
		} else if t.Log(err); name == "absent" && !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("%s: %v, want EADDRNOTAVAIL", name, err)
		}
	}
	if _, err := OpenGroup(0, Config{}); err == nil {
		t.Error("a group of nobody: accepted")
	}
	for s, want := range map[string]Mode{"": Auto, "auto": Auto, "off": Off} {
		if m, err := ParseMode(s); err != nil || m != want {
			t.Errorf("ParseMode(%q) = %v, %v", s, m, err)
		}
	}
	if _, err := ParseMode("on"); err == nil {
		t.Error(`ParseMode("on"): accepted`)
	}
}

func TestPortInUse(t *testing.T) {
	ns := newNetNS(t)
	ns.command("ip", "link", "set", "lo", "up")
	reusing := net.ListenConfig{Control: reusePort}
	holders := map[string]func() (release func(), err error){
		"socket": func() (func(), error) {
			c, err := net.ListenPacket("udp4", ":4789")
			return func() { _ = c.Close() }, err
		},
		"reusing socket": func() (func(), error) {
			c, err := reusing.ListenPacket(t.Context(), "udp4", "127.0.0.1:4789")
			return func() { _ = c.Close() }, err
		},
		"reusing IPv6 socket": func() (func(), error) {
			c, err := reusing.ListenPacket(t.Context(), "udp6", "[::]:4789")
			return func() { _ = c.Close() }, err
		},
		"another group": func() (func(), error) {
			g, err := OpenGroup(2, Config{Port: tunnelPort})
			return func() { closeAll(g) }, err
		},
		"wireguard group": func() (func(), error) {
			g, err := OpenWireGuard(1, Config{Port: tunnelPort})
			if err != nil {
				return nil, err
			}
			return func() { closeAll(g.sockets()) }, nil
		},
	}
	for name, hold := range holders {
		ns.do(func() {
			release, err := hold()
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			wantInUse(t, name)
			release()
			g, err := OpenGroup(3, Config{Port: tunnelPort})
			if err != nil {
				t.Errorf("%s released: %v", name, err)
			}
			closeAll(g)
		})
	}
	ns.command("ip", "link", "add", "wrnvx", "type", "vxlan", "id", "1", "dstport", "4789", "local", "127.0.0.1")
	ns.command("ip", "link", "set", "wrnvx", "up")
	ns.do(func() { wantInUse(t, "kernel VXLAN device") })
}

func wantInUse(t *testing.T, holder string) {
	for form, open := range map[string]func() ([]*Socket, error){
		"group": func() ([]*Socket, error) { return OpenGroup(2, Config{Port: tunnelPort}) },
		"wireguard group": func() ([]*Socket, error) {
			g, err := OpenWireGuard(1, Config{Port: tunnelPort})
			if err != nil {
				return nil, err
			}
			return g.sockets(), nil
		},
	} {
		all, err := open()
		if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(fmt.Sprint(err), "4789") {
			t.Errorf("port held by a %s: %s: %v, want EADDRINUSE naming the port", holder, form, err)
		}
		closeAll(all)
	}
}

func closeAll(all []*Socket) {
	for _, s := range all {
		_ = s.Close()
	}
}

// TestGroup opens four lanes' sockets: they share the port, and between them get everything that many senders send.
func TestGroup(t *testing.T) {
	a, b := newPair(t)
	from, to := a.openGroup(40, Config{}), b.openGroup(4, Config{Port: tunnelPort})
	ports := map[uint16]bool{}
	for _, s := range from {
		if s.Port() != from[0].Port() || len(s.FDs()) != 2 {
			t.Errorf("socket on port %d with %d descriptors, want port %d and 2", s.Port(), len(s.FDs()), from[0].Port())
		}
		if ports[s.LocalPort()] {
			t.Errorf("two lanes send from port %d", s.LocalPort())
		}
		ports[s.LocalPort()] = true
		if rcv, snd := s.Buffers(); rcv < DefaultBuffer || snd < DefaultBuffer {
			t.Errorf("buffers of %d and %d bytes granted to root, want %d", rcv, snd, DefaultBuffer)
		}
	}
	want := 0
	for _, s := range from {
		for _, addr := range []netip.Addr{b4, b6} {
			var o tunnel.Outbound
			load{to: netip.AddrPortFrom(addr, tunnelPort), total: 100}.add(&o)
			if res, err := s.Send(&o); err != nil || res.Sent != 1 {
				t.Fatalf("%+v, %v", res, err)
			}
			want++
		}
	}
	got, counts := 0, make([]int, len(to))
	in := tunnel.NewInbound(16)
	for end := time.Now().Add(3 * time.Second); got < want && time.Now().Before(end); {
		for i, s := range to {
			if err := s.Receive(in); err != nil {
				t.Fatal(err)
			}
			got += in.N
			counts[i] += in.N
		}
	}
	// Of 80 flows, nobody gets none; above all not the first socket, which took the port before it was shared.
	if slices.Contains(counts, 0) {
		t.Errorf("the group's sockets received %v", counts)
	}
	if got != want {
		t.Errorf("the group received %d datagrams of %d", got, want)
	}
}

// TestAddresses binds to given addresses: what is sent comes from them, and others' are not received.
func TestAddresses(t *testing.T) {
	a, b := newPair(t)
	a.command("ip", "address", "add", "192.0.2.11/24", "dev", "wrnudp")
	own := netip.MustParseAddr("192.0.2.11")
	from := a.open(Config{Port: tunnelPort, Addrs: []netip.Addr{own}})
	to := b.open(Config{Port: tunnelPort, Addrs: []netip.Addr{b6, b4}})
	var o tunnel.Outbound
	load{to: netip.AddrPortFrom(b4, tunnelPort), total: 100}.add(&o)
	load{to: netip.AddrPortFrom(b6, tunnelPort), total: 100}.add(&o)
	if res, err := from.Send(&o); err != nil || res.Sent != 1 || res.LastError != unix.EAFNOSUPPORT {
		t.Errorf("%+v, %v; want the IPv6 send to be refused", res, err)
	}
	if got := receive(t, to, 1); len(got) != 1 || got[0].From.Addr() != own {
		t.Errorf("received %+v, want one datagram from %v", got, own)
	}
	o.Reset()
	load{to: netip.AddrPortFrom(a4, tunnelPort), total: 100}.add(&o)
	if res, err := to.Send(&o); err != nil || res.Sent != 1 {
		t.Errorf("%+v, %v", res, err)
	}
	events(t, to, func(e tunnel.PathEvent) bool { return e.To == a4 && e.Err == unix.ECONNREFUSED })
}

// TestNoFlowLabel wants datagrams over IPv6 to leave without a flow label, as superpackets of the same flows do that
// leave uncut.
func TestNoFlowLabel(t *testing.T) {
	a, _ := newPair(t)
	s := a.open(Config{Port: tunnelPort})
	both := a.openWireGuard(1, Config{Port: wireguardPort}).Lanes[0]
	for name, c := range map[string]struct{ fd, want int }{
		"sends": {s.send[v6], 0}, "receives": {s.receive[1], 1}, "does both": {both.send[v6], 0},
	} {
		on, err := unix.GetsockoptInt(c.fd, unix.SOL_IPV6, unix.IPV6_AUTOFLOWLABEL)
		if err != nil || on != c.want {
			t.Errorf("the socket that %s has IPV6_AUTOFLOWLABEL %d (%v), want %d", name, on, err, c.want)
		}
	}
}

// TestIPv6Off runs on a host without IPv6 addresses.
func TestIPv6Off(t *testing.T) {
	a, b := newPair(t)
	a.command("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
	from, to := a.open(Config{Port: tunnelPort}), b.open(Config{Port: tunnelPort})
	var o tunnel.Outbound
	want := load{to: netip.AddrPortFrom(b4, tunnelPort), total: 5000, segment: 1000}.add(&o)
	load{to: netip.AddrPortFrom(b6, tunnelPort), total: 100}.add(&o)
	if res, err := from.Send(&o); err != nil || res.Sent != 1 || res.Dropped != 1 {
		t.Errorf("%+v, %v", res, err)
	}
	if got := datagrams(receive(t, to, 5)); len(got) != len(want) {
		t.Errorf("%d datagrams received, want %d", len(got), len(want))
	}
}
