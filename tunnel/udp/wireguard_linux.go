package udp

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// MaxWireGuardLanes is the number of lanes that a byte can tell apart.
const MaxWireGuardLanes = 256

// controlBuffer is how many bytes may wait in the socket for handshakes, at most: some hundred of these.
const controlBuffer = 256 << 10

// A WireGuardGroup is the sockets of the wireguard encapsulation. They share the tunnel's port and send from it too, as
// a WireGuard peer answers to the address and port that the last authentic datagram came from.
//
// UDP_SEGMENT at the sender and GRO on the way join datagrams of one outer flow whatever they carry, and the first one
// chooses the socket for all: a handshake message right behind larger data arrives with the data. Without steering the
// kernel chooses by addresses and ports among the lanes, and Control only sends. So whoever serves a socket has to take
// every kind of message; what the group sees to is that a strange one is rare.
//
// ICMP errors about what one socket sent arrive at any of them, so all have to be asked for PathEvents.
type WireGuardGroup struct {
	// Lanes receive transport data, and pieces of superframes (see tunnel/wireguard): lane i of n what has i in the
	// lowest byte of its receiver index, modulo n.
	Lanes []*Socket

	// Control receives all else: handshakes, cookies, garbage. A flood of these fills its small buffer and no lane's. It
	// hands datagrams out one by one. After a Receive that filled all slots there may be more, although its descriptors
	// are not ready.
	Control *Socket
}

// OpenWireGuard makes the sockets of a node with so many lanes. Errors are those of OpenGroup.
func OpenWireGuard(lanes int, c Config) (*WireGuardGroup, error) {
	return openWireGuard(lanes, c, byReceiverIndex)
}

// openWireGuard is OpenWireGuard with another program.
func openWireGuard(lanes int, c Config, program func(lanes int) []unix.SockFilter) (*WireGuardGroup, error) {
	if lanes < 1 || lanes > MaxWireGuardLanes {
		return nil, fmt.Errorf("opening the sockets of %d WireGuard lanes: use 1 to %d", lanes, MaxWireGuardLanes)
	}
	g, err := newGroup(lanes+1, c, tryLoopback)
	if err != nil {
		return nil, err
	}
	g.onePort = true
	for range lanes {
		if err := g.add(g.newSocket()); err != nil {
			return nil, err
		}
	}
	buffer := g.SocketBuffer
	g.SocketBuffer = min(g.SocketBuffer, controlBuffer)
	control := g.newSocket()
	// One by one, but not without UDP_GRO: whether the device joins datagrams of a flow (udp_gro_receive in the kernel)
	// depends on the socket of the group that the hash of its addresses and ports finds. The program is asked later.
	control.splitter = newSplitter()
	if err := g.add(control); err != nil {
		return nil, err
	}
	g.steer(program(lanes))
	out := &WireGuardGroup{Lanes: g.sockets[:lanes:lanes], Control: control}
	if !control.steering.enabled() {
		if err := out.unsteered(); err != nil {
			g.close()
			return nil, err
		}
		return out, nil
	}
	g.SocketBuffer = buffer
	if err := g.openSenders(out.Lanes); err != nil {
		g.close()
		return nil, err
	}
	return out, nil
}

// unsteered has Control only send, where nothing keeps data from it: the lanes' workers take messages of every kind,
// whoever reads Control does not.
func (g *WireGuardGroup) unsteered() error {
	c := g.Control
	_ = c.closeAll() // its port stays that of the others
	c.receive, c.receiver.idle, c.send, c.onePort = nil, nil, [families]int{-1, -1}, false
	for family, fd := range g.Lanes[0].send {
		if fd < 0 {
			continue
		}
		double, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("a second descriptor of a UDP socket: %w", err)
		}
		c.send[family] = double
	}
	return nil
}

// byReceiverIndex gives transport data and pieces of superframes to one of so many lanes, by the lowest byte of the
// receiver index, which this node chose at the handshake. Everything else is for the socket behind the lanes'. A
// message's length is looked at first, as a read beyond the end would give what is too short to lane 0.
func byReceiverIndex(lanes int) []unix.SockFilter {
	const (
		transportData   = 4    // the message's type, in byte 0
		superframePiece = 0x57 // one of those that Warren adds, see tunnel/wireguard
		receiverIndex   = 4    // offset of its lowest byte
		headerBytes     = 8    // up to the end of the receiver index
	)
	return []unix.SockFilter{
		{Code: loadLength},
		{Code: ifAtLeast, K: headerBytes, Jf: 6},
		{Code: loadByte, K: 0},
		{Code: ifEqual, K: transportData, Jt: 1},
		{Code: ifEqual, K: superframePiece, Jf: 3},
		{Code: loadByte, K: receiverIndex},
		{Code: modulo, K: uint32(lanes)},
		{Code: unix.BPF_RET | unix.BPF_A},
		{Code: unix.BPF_RET | unix.BPF_K, K: uint32(lanes)},
	}
}
