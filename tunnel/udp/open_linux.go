package udp

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// portTries is how often a free port is looked for that both families have free.
const portTries = 16

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
	gso, gro := probe(c, try)
	g := group{Config: c, lanes: n}
	for len(g.sockets) < n {
		s := newSocket(c)
		if gso != "" {
			s.gso.disable(gso)
		}
		if gro != "" {
			s.gro.disable(gro)
		}
		g.sockets = append(g.sockets, s)
		if err := g.open(s); err != nil {
			g.close()
			return nil, err
		}
	}
	g.steer()
	return g.sockets, nil
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

// A group is a set of Sockets while it is being opened.
type group struct {
	Config
	lanes   int
	sockets []*Socket
}

func (g *group) close() {
	for _, s := range g.sockets {
		_ = s.Close()
	}
}

// open opens the descriptors of s, the last of the group so far.
func (g *group) open(s *Socket) error {
	tries := 1
	if g.Port == 0 {
		tries = portTries // the port that one family's bind got may be taken in the other
	}
	err := retryInUse(tries, func() error {
		for _, fd := range s.receive {
			_ = unix.Close(fd)
		}
		s.receive, s.port = nil, g.Port
		return g.openReceive(s)
	})
	if err != nil {
		return err
	}
	g.Port = s.port
	s.receiver.idle = make([]idle, len(s.receive))
	return retryInUse(portTries, func() error {
		for f, fd := range s.send {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
			s.send[f] = -1
		}
		s.localPort = 0
		return g.openSend(s)
	})
}

// retryInUse calls f until it does not fail for a port in use, but at most so many times.
func retryInUse(tries int, f func() error) (err error) {
	for range tries {
		if err = f(); !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
	}
	return err
}

func (g *group) openReceive(s *Socket) error {
	err := g.eachAddr(func(addr netip.Addr) error {
		fd, err := newUDP(addr)
		if err != nil {
			return err
		}
		s.receive = append(s.receive, fd)
		if s.port, err = g.bindReceive(s, fd, addr); err != nil {
			return err
		}
		if s.rcvBuf, err = setBuffer(fd, receiveBuffer(), g.SocketBuffer); err != nil {
			return err
		}
		level, opt := unix.SOL_IP, unix.IP_RECVTOS
		if addr.Is6() {
			level, opt = unix.SOL_IPV6, unix.IPV6_RECVTCLASS
			// A tunnel may leave its UDP checksum out over IPv6 too (RFC 6935), and what VXLAN sends so must be accepted (RFC
			// 7348, 5). Without this option the kernel drops it and tells nobody.
			if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_NO_CHECK6_RX, 1); err != nil {
				return fmt.Errorf("setting UDP_NO_CHECK6_RX: %w", err)
			}
		}
		if err := unix.SetsockoptInt(fd, level, opt, 1); err != nil {
			return fmt.Errorf("asking for the TOS of datagrams: %w", err)
		}
		if s.gro.enabled() {
			if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1); err != nil {
				s.gro.disable("setting UDP_GRO: " + err.Error())
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("receiving on UDP port %d: %w", g.Port, err)
	}
	return nil
}

// bindReceive binds fd, and returns the port.
func (g *group) bindReceive(s *Socket, fd int, addr netip.Addr) (uint16, error) {
	first := len(g.sockets) == 1
	if !first {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return s.port, fmt.Errorf("setting SO_REUSEPORT: %w", err)
		}
	}
	port, err := bind(fd, netip.AddrPortFrom(addr, s.port))
	if errors.Is(err, unix.EADDRINUSE) {
		return s.port, fmt.Errorf("%w: another program or a kernel VXLAN device has it; `ss -ulnp sport = :%d` and "+
			"`ip -d link show type vxlan` show which: stop it, or set another port on all nodes", err, s.port)
	}
	if err != nil {
		return s.port, err
	}
	if first && g.lanes > 1 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return port, fmt.Errorf("setting SO_REUSEPORT: %w", err)
		}
	}
	return port, nil
}

func (g *group) openSend(s *Socket) error {
	err := g.eachAddr(func(addr netip.Addr) error {
		family := v4
		if addr.Is6() {
			family = v6
		}
		if s.send[family] >= 0 {
			return nil // an address of this family came first
		}
		fd, err := newUDP(addr)
		if err != nil {
			return err
		}
		s.send[family] = fd
		if s.sndBuf, err = setBuffer(fd, sendBuffer(), g.SocketBuffer); err != nil {
			return err
		}
		if err := setPathOptions(fd, family); err != nil {
			return err
		}
		if s.gso.enabled() {
			if _, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT); err != nil {
				s.gso.disable("asking for UDP_SEGMENT: " + err.Error())
			}
		}
		if s.localPort == 0 {
			if s.localPort, err = g.sendPort(addr); err != nil {
				return err
			}
		}
		s.localPort, err = bind(fd, netip.AddrPortFrom(addr, s.localPort))
		return err
	})
	if err != nil {
		return fmt.Errorf("opening a UDP socket for sending: %w", err)
	}
	return nil
}

// eachAddr calls f for the configured addresses; without any for the wildcard address of each family that the host
// has.
func (g *group) eachAddr(f func(netip.Addr) error) error {
	for _, addr := range g.Addrs {
		if err := f(addr); err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
	}
	if len(g.Addrs) > 0 {
		return nil
	}
	err4, err6 := f(netip.IPv4Unspecified()), f(netip.IPv6Unspecified())
	missing4, missing6 := errors.Is(err4, unix.EAFNOSUPPORT), errors.Is(err6, unix.EAFNOSUPPORT)
	switch {
	case err4 != nil && (!missing4 || missing6):
		return err4
	case err6 != nil && !missing6:
		return err6
	}
	return nil
}
