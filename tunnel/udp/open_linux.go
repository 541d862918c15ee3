package udp

import (
	"fmt"
	"net/netip"
)

// Open makes a Socket of its own; see OpenGroup.
func Open(c Config) (*Socket, error) {
	group, err := OpenGroup(1, c)
	if err != nil {
		return nil, err
	}
	return group[0], nil
}

// OpenGroup makes the Sockets of n lanes, which share the tunnel's port. The error wraps EADDRINUSE when another
// program or a kernel VXLAN device has the port, and EADDRNOTAVAIL when one of the addresses is not on this host or,
// for IPv6, is still being checked for duplicates.
//
// The group never shares its port with another process by accident, although SO_REUSEPORT would allow that to one of
// the same user: the first socket is bound without the option, which fails when anybody has the port, and gets it
// only then, so that its own siblings may join.
func OpenGroup(n int, c Config) ([]*Socket, error) { return openGroup(n, c, tryLoopback) }

func openGroup(n int, c Config, try trier) ([]*Socket, error) {
	if n < 1 {
		return nil, fmt.Errorf("opening %d UDP sockets: at least one is needed", n)
	}
	g, err := newGroup(n, c, try)
	if err != nil {
		return nil, err
	}
	for range n {
		if err := g.add(g.newSocket()); err != nil {
			return nil, err
		}
	}
	g.steer(bySourcePort(n))
	return g.sockets, nil
}

// newGroup makes a group that is to have so many Sockets, checks its configuration and tries the offloads.
func newGroup(size int, c Config, try trier) (*group, error) {
	if c.SocketBuffer < 0 || c.SocketBuffer > 1<<30 {
		return nil, fmt.Errorf("socket buffer of %d bytes: use 0 (for %d) to 1 GiB", c.SocketBuffer, DefaultBuffer)
	}
	if c.SocketBuffer == 0 {
		c.SocketBuffer = DefaultBuffer
	}
	if c.SendWait <= 0 {
		c.SendWait = DefaultSendWait
	}
	if err := checkAddrs(c.Addrs); err != nil {
		return nil, err
	}
	g := &group{Config: c, size: size}
	g.noGSO, g.noGRO = probe(c, try)
	return g, nil
}

func checkAddrs(addrs []netip.Addr) error {
	seen := map[netip.Addr]bool{}
	for _, a := range addrs {
		switch {
		case !a.IsValid() || a.IsMulticast() || a.Is4In6() || a.Zone() != "":
			return fmt.Errorf("underlay address %s: use a unicast IPv4 or IPv6 address without zone", a)
		case seen[a]:
			return fmt.Errorf("underlay address %s is listed twice: remove one", a)
		}
		seen[a] = true
	}
	return nil
}

func newSocket(c Config) *Socket {
	s := &Socket{send: [families]int{-1, -1}}
	s.sender.sendmmsg = sendmmsg
	s.sender.maxSegments = maxSegmentsNew
	s.sender.deadline.wait = c.SendWait
	if c.GSO == Off {
		s.gso.disable("configuration")
	}
	if c.GRO == Off {
		s.gro.disable("configuration")
	}
	return s
}
