package netpod

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Offload says in what form a pod's packets come to the device.
type Offload uint8

// The forms of a pod's packets.
const (
	OffloadFull     Offload = iota // TCP superpackets, partial checksums: Linux with its defaults
	OffloadChecksum                // lone packets, partial checksums: `ethtool -K eth0 tso off gso off`
	OffloadNone                    // lone packets, complete checksums: `tx off` as well
)

const (
	defaultMTU = 1420
	nicID      = 1
)

// PodConfig says what a pod is like.
type PodConfig struct {
	Name      string       // for messages
	Addresses []netip.Addr // at least one, of either family
	MTU       int          // bytes; 0: 1420
	Offload   Offload
}

// A Pod is a network stack behind a host's device.
type Pod struct {
	name      string
	addresses []netip.Addr
	mtu       int
	host      *Host
	link      *link
	stack     *stack.Stack
	close     sync.Once
}

// AddPod starts a pod.
func (h *Host) AddPod(c PodConfig) (*Pod, error) {
	if len(c.Addresses) == 0 {
		return nil, fmt.Errorf("netpod: pod %s has no address", c.Name)
	}
	if c.MTU == 0 {
		c.MTU = defaultMTU
	}
	p := &Pod{name: c.Name, addresses: append([]netip.Addr(nil), c.Addresses...), mtu: c.MTU, host: h}
	p.link = &link{host: h, offload: c.Offload}
	p.link.mtu.Store(uint32(c.MTU))
	p.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocol,
			// Without router solicitations, duplicate address detection and a link-local address the stack sends nothing of
			// its own accord, and an address is usable at once.
			ipv6.NewProtocolWithOptions(ipv6.Options{}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
		HandleLocal: true,
	})
	if err := p.configure(); err != nil {
		p.stack.Destroy()
		return nil, fmt.Errorf("netpod: pod %s: %w", c.Name, err)
	}
	if err := h.add(p); err != nil {
		p.stack.Destroy()
		return nil, err
	}
	return p, nil
}

// configure gives the stack its interface, addresses, routes and TCP options.
func (p *Pod) configure() error {
	if err := p.stack.CreateNIC(nicID, p.link); err != nil {
		return fmt.Errorf("create interface: %s", err)
	}
	for _, a := range p.addresses {
		pa := tcpip.ProtocolAddress{Protocol: network(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := p.stack.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add address %v: %s", a, err)
		}
	}
	p.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID}, {Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	sack := tcpip.TCPSACKEnabled(true) // as Linux; without it a loss costs a retransmission timeout
	if err := p.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return fmt.Errorf("enable SACK: %s", err)
	}
	return nil
}

// Name is the pod's name.
func (p *Pod) Name() string { return p.name }

// Addresses are the pod's addresses.
func (p *Pod) Addresses() []netip.Addr { return p.addresses }

// Stack is the pod's network stack, for its counters and for what this package has no method for.
func (p *Pod) Stack() *stack.Stack { return p.stack }

// BadChecksums counts packets that reached a socket of the pod with a wrong transport checksum. It must stay 0.
func (p *Pod) BadChecksums() uint64 {
	s := p.stack.Stats()
	return s.TCP.ChecksumErrors.Value() + s.UDP.ChecksumErrors.Value()
}

// Malformed counts packets that the pod refused for what is in their headers, and those with a wrong checksum for which
// there is no socket. It must stay 0.
func (p *Pod) Malformed() uint64 {
	s := p.stack.Stats()
	return s.IP.MalformedPacketsReceived.Value() + s.TCP.InvalidSegmentsReceived.Value() +
		s.UDP.MalformedPacketsReceived.Value() + s.NICs.MalformedL4RcvdPackets.Value()
}

// Close ends the pod: its connections are reset, its addresses are gone, its goroutines stop.
func (p *Pod) Close() {
	p.close.Do(func() {
		p.host.remove(p)
		p.stack.Destroy()
	})
}

// network is the gVisor number of an address's protocol.
func network(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

// full turns an address and a port into gVisor's form.
func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// addressLike returns the pod's first address of the same family as peer.
func (p *Pod) addressLike(peer netip.Addr) (netip.Addr, error) {
	for _, a := range p.addresses {
		if a.Is4() == peer.Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("netpod: pod %s has no address of the family of %v", p.name, peer)
}

// asError turns gVisor's error into Go's.
func asError(err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return errors.New(err.String())
}
