package udp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/poll"
	"github.com/warren-net/warren/tunnel"
)

// An idleNode waits for the sockets of a group as a worker without traffic does.
type idleNode struct {
	t       *testing.T
	sockets []*Socket
	poller  *poll.Poller
}

func newIdleNode(t *testing.T, g *WireGuardGroup) *idleNode {
	t.Helper()
	n := &idleNode{t: t, sockets: g.sockets()}
	var fds []poll.FD
	for i, s := range n.sockets {
		for _, fd := range s.FDs() {
			fds = append(fds, poll.FD{FD: fd, Bit: i})
		}
	}
	var err error
	if n.poller, err = poll.New(fds...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.poller.Close() })
	return n
}

// serve waits for an error and has its socket take it, unless the kernel gave it to one that is only sent from, which
// nobody waits for. The kernel calls a socket ready twice for one ICMP error, so the second Receive may come too early
// for the latter half of it; after the third nothing may be ready.
func (n *idleNode) serve(what string) {
	n.t.Helper()
	in := tunnel.NewInbound(4)
	for try, wait := 0, 200*time.Millisecond; ; try, wait = try+1, 0 {
		ready, _, err := n.poller.Wait(wait)
		switch {
		case err != nil:
			n.t.Fatalf("%s: %v", what, err)
		case ready == 0:
			return
		case try == 3:
			n.t.Fatalf("%s: sockets %b are still ready", what, ready)
		}
		for i, s := range n.sockets {
			if ready&(1<<i) == 0 {
				continue
			}
			if err := s.Receive(in); err != nil || in.N != 0 {
				n.t.Fatalf("%s: %d datagrams, %v", what, in.N, err)
			}
		}
	}
}

// event expects one event and no other from all sockets together.
func (n *idleNode) event(want tunnel.PathEvent) {
	n.t.Helper()
	var all []tunnel.PathEvent
	for end := time.Now().Add(3 * time.Second); len(all) == 0 && time.Now().Before(end); {
		for _, s := range n.sockets {
			all = s.PathEvents(all)
		}
	}
	if !slices.Equal(all, []tunnel.PathEvent{want}) {
		n.t.Errorf("path events %+v, want %+v", all, want)
	}
}

// TestWireGuardErrorsLeaveNothingReady has every kind of error come in: whoever waits for the descriptors must not be
// woken by it more than once.
func TestWireGuardErrorsLeaveNothingReady(t *testing.T) {
	a, r, b := newNetNS(t), newNetNS(t), newNetNS(t)
	connect(a, r, "wrnudp", 1500, "192.0.2.0/24", "2001:db8:1::/64")
	connect(r, b, "wrnudp2", 1300, "198.51.100.0/24", "2001:db8:2::/64")
	r.command("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	// Every error has to come in, and not only some a second.
	for _, ns := range []*netNS{r, b} {
		ns.command("sh", "-c", "echo 0 >/proc/sys/net/ipv4/icmp_ratemask; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
	}
	a.command("ip", "route", "add", "default", "via", "192.0.2.2")
	a.command("ip", "-6", "route", "add", "default", "via", "2001:db8:1::2")
	b.command("ip", "route", "add", "default", "via", "198.51.100.1")
	b.command("ip", "-6", "route", "add", "default", "via", "2001:db8:2::1")
	n := newIdleNode(t, a.openWireGuard(3, Config{Port: wireguardPort}))
	for _, s := range []string{"198.51.100.2", "2001:db8:2::2"} {
		addr := netip.MustParseAddr(s)
		for i, s := range n.sockets {
			to := netip.AddrPortFrom(addr, uint16(wireguardPort+i))
			what := fmt.Sprintf("socket %d to %v: ", i, addr)

			sendEach(t, s, to, wireguardMessage(4, 1, 100))
			n.serve(what + "port unreachable")
			n.event(tunnel.PathEvent{To: addr, Err: unix.ECONNREFUSED})

			sendEach(t, s, to, wireguardMessage(4, 1, 1400))
			n.serve(what + "too big for a router")
			n.event(tunnel.PathEvent{To: addr, MTU: 1300, Err: tunnel.ErrTooBig})

			var o tunnel.Outbound
			o.Append(tunnel.Send{To: to}, wireguardMessage(4, 1, 1600), nil)
			if r, err := s.Send(&o); err != nil || r.TooBig != 1 {
				t.Fatalf("%s%+v, %v", what, r, err)
			}
			n.serve(what + "too big for the own device")
			n.event(tunnel.PathEvent{To: addr, MTU: 1500, Err: tunnel.ErrTooBig})
		}
	}
}

// TestWireGuardErrorsAndData has errors wait beside data: neither hides the other, and the errors don't fill the buffer
// of a socket that always has data.
func TestWireGuardErrorsAndData(t *testing.T) {
	at := netip.MustParseAddr("127.0.0.1") // where no ICMP message is held back for its rate
	g, err := OpenWireGuard(1, Config{Addrs: []netip.Addr{at}, SocketBuffer: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	peer, err := Open(Config{Addrs: []netip.Addr{at}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(append(g.sockets(), peer)) })
	lane := g.Lanes[0]
	closed := closedPort(t, g, at)
	const burst = 8
	in := tunnel.NewInbound(burst)
	for n := range 500 {
		for range burst {
			sendEach(t, g.Control, netip.AddrPortFrom(at, closed), wireguardMessage(4, 0, 100)) // comes back to the lane
			sendEach(t, peer, netip.AddrPortFrom(at, lane.Port()), wireguardMessage(4, 0, 1000))
		}
		if err := lane.Receive(in); err != nil || in.N != burst {
			t.Fatalf("round %d: %d datagrams, %v; %d overflows", n, in.N, err, lane.Overflows())
		}
	}
	if n := lane.Overflows(); n != 0 {
		t.Errorf("%d datagrams lost", n)
	}
	if all := lane.PathEvents(nil); !slices.Equal(all, []tunnel.PathEvent{{To: at, Err: unix.ECONNREFUSED}}) {
		t.Errorf("path events %+v, want one connection refused", all)
	}
}

// closedPort looks for a port that nobody has and whose ICMP errors the kernel gives to the first lane, where it
// receives.
func closedPort(t *testing.T, g *WireGuardGroup, at netip.Addr) uint16 {
	t.Helper()
	for port := uint16(1); port < 100; port++ {
		sendEach(t, g.Control, netip.AddrPortFrom(at, port), wireguardMessage(4, 0, 100))
		for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); {
			if len(g.Control.PathEvents(nil)) > 0 {
				break
			}
			ready := []unix.PollFd{{Fd: int32(g.Lanes[0].receive[0])}}
			n, err := unix.Poll(ready, 0)
			if err == unix.EINTR { // the Go runtime's signals
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if all := g.Lanes[0].PathEvents(nil); n > 0 && len(all) == 1 && all[0].Err == unix.ECONNREFUSED {
				return port
			}
		}
	}
	t.Fatal("no ICMP error reaches the lane")
	return 0
}

// TestWireGuardErrorFlood leaves thousands of errors to one Receive, which takes a bounded number; every one after it
// takes some too, until nothing is ready.
func TestWireGuardErrorFlood(t *testing.T) {
	at := netip.MustParseAddr("127.0.0.1")
	g, err := OpenWireGuard(1, Config{Addrs: []netip.Addr{at}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(g.sockets()) })
	n := newIdleNode(t, g)
	closed := closedPort(t, g, at)
	const errors = 3*maxDrain + 1
	for range errors {
		sendEach(t, g.Control, netip.AddrPortFrom(at, closed), wireguardMessage(4, 0, 100))
	}
	in, receives := tunnel.NewInbound(1), 0
	for {
		ready, _, err := n.poller.Wait(0)
		if err != nil {
			t.Fatal(err)
		}
		if ready == 0 {
			break
		}
		if err := g.Lanes[0].Receive(in); err != nil || in.N != 0 {
			t.Fatalf("%d datagrams, %v", in.N, err)
		}
		receives++
	}
	if receives < 4 || receives > 6 {
		t.Errorf("%d errors took %d receives, want 4", errors, receives)
	}
	if all := g.Lanes[0].PathEvents(nil); len(all) != 1 || all[0].Err != unix.ECONNREFUSED {
		t.Errorf("path events %+v, want one connection refused", all)
	}
}
