package memory

import (
	"fmt"
	"net/netip"
	"syscall"
)

// maxWireGuardLanes is the number of lanes that a byte can tell apart.
const maxWireGuardLanes = 256

// A WireGuardGroup is the twin of udp.WireGuardGroup: the Sockets of one node, which share its addresses and send from
// their port. As there, datagrams of one Send arrive joined, and the first one chooses the Socket for all, unless GSO
// or GRO is off.
type WireGuardGroup struct {
	Lanes   []*Socket // lane i of n receives data whose receiver index has i in its lowest byte, modulo n
	Control *Socket   // receives all else, one by one
}

// WireGuard makes the Sockets of a node with so many lanes. They receive at the given addresses, which have to be
// complete, of one port, and nobody else's (EADDRINUSE), and send from the first one of the family that the receiver
// has.
func (n *Network) WireGuard(lanes int, addrs ...netip.AddrPort) (*WireGuardGroup, error) {
	if lanes < 1 || lanes > maxWireGuardLanes {
		return nil, fmt.Errorf("%d WireGuard lanes: use 1 to %d", lanes, maxWireGuardLanes)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("no address for %d WireGuard lanes: name at least one", lanes)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	port := addrs[0].Port()
	for _, a := range addrs {
		if a.Port() != port {
			return nil, fmt.Errorf("addresses %v and %v: use one port for all", addrs[0], a)
		}
		if _, taken := n.hosts[a]; taken {
			return nil, fmt.Errorf("address %v: %w: close the sockets that have it", a, syscall.EADDRINUSE)
		}
	}
	g := &WireGuardGroup{}
	for range lanes {
		g.Lanes = append(g.Lanes, n.add(addrs))
	}
	g.Control = n.add(addrs)
	g.Control.port, g.Control.apart = port, true
	for _, s := range g.Lanes {
		s.port = port
	}
	for _, a := range addrs {
		n.hosts[a] = host{sockets: n.hosts[a].sockets, group: g}
	}
	return g, nil
}

// receiver returns the Socket that a message is for. A closed one refuses it.
func (g *WireGuardGroup) receiver(message []byte) *Socket {
	const (
		transportData   = 4    // the message's type, in byte 0
		superframePiece = 0x57 // one of those that Warren adds
		receiverIndex   = 4    // offset of its lowest byte
		headerBytes     = 8    // up to the end of the receiver index
	)
	if len(message) < headerBytes || message[0] != transportData && message[0] != superframePiece {
		return g.Control
	}
	return g.Lanes[int(message[receiverIndex])%len(g.Lanes)]
}
