package udp

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// newUDP makes a non-blocking UDP socket of the address's family.
func newUDP(addr netip.Addr) (int, error) {
	domain, name := unix.AF_INET, "IPv4"
	if addr.Is6() {
		domain, name = unix.AF_INET6, "IPv6"
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("making an %s socket: %w", name, err)
	}
	if addr.Is6() {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("setting IPV6_V6ONLY: %w", err)
		}
	}
	return fd, nil
}

// bind binds fd, and returns the port, which the kernel chose when 0 was asked for.
func bind(fd int, at netip.AddrPort) (uint16, error) {
	var want unix.Sockaddr
	if at.Addr().Is4() {
		want = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	} else {
		want = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	if err := unix.Bind(fd, want); err != nil {
		return 0, fmt.Errorf("binding to %s: %w", at, err)
	}
	got, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("reading the port bound to: %w", err)
	}
	switch got := got.(type) {
	case *unix.SockaddrInet4:
		return uint16(got.Port), nil
	case *unix.SockaddrInet6:
		return uint16(got.Port), nil
	}
	return 0, fmt.Errorf("reading the port bound to: an address of unknown family (%T)", got)
}

// A bufferKind is the pair of socket options that set a buffer's size.
type bufferKind struct {
	name            string
	force, ordinary int
}

func receiveBuffer() bufferKind {
	return bufferKind{name: "receive", force: unix.SO_RCVBUFFORCE, ordinary: unix.SO_RCVBUF}
}

func sendBuffer() bufferKind {
	return bufferKind{name: "send", force: unix.SO_SNDBUFFORCE, ordinary: unix.SO_SNDBUF}
}

// setBuffer sets a buffer's size and returns what the kernel granted. Above net.core.rmem_max and wmem_max only the
// forcing option goes, which needs CAP_NET_ADMIN; the ordinary one grants less without an error.
func setBuffer(fd int, kind bufferKind, bytes int) (int, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, kind.force, bytes); err != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, kind.ordinary, bytes); err != nil {
			return 0, fmt.Errorf("setting the %s buffer to %d bytes: %w", kind.name, bytes, err)
		}
	}
	granted, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, kind.ordinary)
	if err != nil {
		return 0, fmt.Errorf("reading the size of the %s buffer: %w", kind.name, err)
	}
	return granted, nil
}

// setPathOptions makes a socket that sends report what it learns of paths, and never fragment.
func setPathOptions(fd, family int) error {
	type option struct {
		name            string
		level, opt, val int
	}
	options := []option{
		// DF on every packet, and the device's MTU as the only limit: a smaller path MTU is for the forwarder to
		// handle, which answers the pod, not for this socket's route cache to remember.
		{"IP_MTU_DISCOVER", unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE},
		{"IP_RECVERR", unix.SOL_IP, unix.IP_RECVERR, 1},
	}
	if family == v6 {
		options = []option{
			{"IPV6_MTU_DISCOVER", unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE},
			{"IPV6_RECVERR", unix.SOL_IPV6, unix.IPV6_RECVERR, 1},
		}
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.val); err != nil {
			return fmt.Errorf("setting %s: %w", o.name, err)
		}
	}
	if family == v6 {
		// No flow label. The kernel would make one of the addresses and ports, which it cannot for what tunnel/tapgso sends
		// for the same flow: routers and devices that spread flows by the label (RFC 6438) would send the two different
		// ways, and reorder. The source port tells flows apart. A kernel without the option makes none either.
		_ = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_AUTOFLOWLABEL, 0)
	}
	return nil
}

// dropAll has a send socket receive nothing. Nobody has a reason to send to its port. What comes all the same must not
// fill the receive buffer, as the error queue is charged to it. A filter of one instruction drops everything. Without
// it (seccomp) the socket is as good.
func dropAll(fd int) {
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	_ = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
}
