package udp

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// portTries is how often a free port is looked for that both families have free.
const portTries = 16

// A group is a set of Sockets while it is being opened.
type group struct {
	Config
	size         int    // how many Sockets it is to have
	onePort      bool   // they send from the port that they receive on
	noGSO, noGRO string // why an offload must not be used; "": it may
	sockets      []*Socket
}

func (g *group) close() {
	for _, s := range g.sockets {
		_ = s.Close()
	}
}

// newSocket makes a Socket without descriptors.
func (g *group) newSocket() *Socket {
	s := newSocket(g.Config)
	s.onePort = g.onePort
	if g.noGSO != "" {
		s.gso.disable(g.noGSO)
	}
	if g.noGRO != "" {
		s.gro.disable(g.noGRO)
	}
	return s
}

// add opens the descriptors of s, which becomes the last of the group. After an error the group is closed.
func (g *group) add(s *Socket) error {
	g.sockets = append(g.sockets, s)
	if err := g.open(s); err != nil {
		g.close()
		return err
	}
	return nil
}

func (g *group) open(s *Socket) error {
	tries := 1
	if g.Port == 0 {
		tries = portTries // the port that one family's bind got may be taken in the other
	}
	err := retryInUse(tries, func() error {
		_ = s.closeAll()
		s.receive, s.send, s.port = nil, [families]int{-1, -1}, g.Port
		return g.openReceive(s)
	})
	if err != nil {
		return err
	}
	g.Port = s.port
	s.receiver.idle = make([]idle, len(s.receive))
	if g.onePort {
		s.localPort = s.port
		return nil
	}
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
		if f := familyOf(addr); g.onePort {
			if s.send[f] < 0 {
				s.send[f] = fd
			}
			return g.prepareSend(s, fd, f)
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
		device, kind := "VXLAN", "vxlan"
		if g.onePort {
			device, kind = "WireGuard", "wireguard"
		}
		return s.port, fmt.Errorf("%w: another program or a kernel %s device has it; `ss -ulnp sport = :%d` and "+
			"`ip -d link show type %s` show which: stop it, or set another port on all nodes", err, device, s.port, kind)
	}
	if err != nil {
		return s.port, err
	}
	if first && g.size > 1 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return port, fmt.Errorf("setting SO_REUSEPORT: %w", err)
		}
	}
	return port, nil
}

func (g *group) openSend(s *Socket) error {
	err := g.eachAddr(func(addr netip.Addr) error {
		family := familyOf(addr)
		if s.send[family] >= 0 {
			return nil // an address of this family came first
		}
		fd, err := newUDP(addr)
		if err != nil {
			return err
		}
		s.send[family] = fd
		if err := g.prepareSend(s, fd, family); err != nil {
			return err
		}
		dropAll(fd)
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

// openSenders gives each Socket, whose descriptors have the same port for both directions, others of that port to send
// from. The group's program never chooses them, so nothing has to be received from them. They are there because nobody
// waits for them: whoever waits for a socket is looked up whenever the kernel is done with a datagram of it, 45 times
// for a superpacket where the wire is given its segments one by one, 3 % of all processor time. The order of the
// sockets that the program chooses from must not change any more: closing one has the kernel put the last one, one of
// these, in its place, so a group is closed as a whole.
func (g *group) openSenders(sockets []*Socket) error {
	for _, s := range sockets {
		own := [families]int{-1, -1}
		err := g.eachAddr(func(addr netip.Addr) error {
			f := familyOf(addr)
			if own[f] >= 0 {
				return nil
			}
			fd, err := newUDP(addr)
			if err != nil {
				return err
			}
			own[f] = fd
			dropAll(fd)
			if _, err := g.bindReceive(s, fd, addr); err != nil {
				return err
			}
			if s.gro.enabled() { // the device asks any socket of the group whether to join datagrams, see OpenWireGuard
				_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
			}
			return g.prepareSend(s, fd, f)
		})
		if err != nil {
			for _, fd := range own {
				if fd >= 0 {
					_ = unix.Close(fd)
				}
			}
			return fmt.Errorf("a second socket of UDP port %d: %w", s.port, err)
		}
		s.send = own
	}
	return nil
}

// prepareSend sets what a descriptor of s needs for sending.
func (g *group) prepareSend(s *Socket, fd, family int) (err error) {
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
	return nil
}

func familyOf(addr netip.Addr) int {
	if addr.Is6() {
		return v6
	}
	return v4
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
