package netpod

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/warren-net/warren/forwarder/packet"
)

// A link is a pod's interface: it joins the pod's stack to the host, as a veth pair does. It announces no checksum
// offload for receiving, so the stack verifies every checksum. It announces none for sending either: with it gVisor
// would leave checksum fields empty, where Linux puts the sum of the pseudo header.
type link struct {
	host    *Host
	offload Offload
	mtu     atomic.Uint32
	closed  atomic.Bool

	mu         sync.RWMutex // guards dispatcher
	dispatcher stack.NetworkDispatcher
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// deliver hands a packet to the stack, which copies it.
func (l *link) deliver(p []byte) {
	l.mu.RLock()
	d := l.dispatcher
	l.mu.RUnlock()
	if d == nil {
		return
	}
	proto := header.IPv4ProtocolNumber
	if p[0]>>4 == 6 {
		proto = header.IPv6ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
	d.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// WritePackets implements stack.LinkWriter. A full queue loses packets without a word, as a network does.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	if l.closed.Load() {
		return 0, &tcpip.ErrClosedForSend{}
	}
	for _, pkt := range pkts.AsSlice() {
		view := pkt.ToView()
		p := view.AsSlice()
		l.host.toQueue(p, l.meta(pkt, p))
		view.Release()
	}
	return pkts.Len(), nil
}

// meta says what is missing in a packet that the stack sent, and takes away what Linux would leave out.
func (l *link) meta(pkt *stack.PacketBuffer, p []byte) packet.Meta {
	gso := pkt.GSOOptions
	if gso.Type == stack.GSONone || !gso.NeedsCsum {
		if l.offload == OffloadNone {
			return packet.Meta{}
		}
		return makePartial(p)
	}
	// The stack has put the sum of the pseudo header in already (buildTCPHdr).
	m := packet.Meta{
		NeedsChecksum:  true,
		ChecksumStart:  uint16(len(pkt.NetworkHeader().Slice())),
		ChecksumOffset: gso.CsumOffset,
	}
	if pkt.Data().Size() > int(gso.MSS) {
		m.SegmentSize = gso.MSS
		m.Type = packet.GSOTCP4
		if gso.Type == stack.GSOTCPv6 {
			m.Type = packet.GSOTCP6
		}
	}
	return m
}

// GSOMaxSize implements stack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return packet.MaxPacket }

// SupportedGSO implements stack.GSOEndpoint.
func (l *link) SupportedGSO() stack.SupportedGSO {
	if l.offload == OffloadFull {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

// Attach implements stack.NetworkLinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (l *link) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

// MTU implements stack.NetworkLinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu.Load() }

// SetMTU implements stack.NetworkLinkEndpoint.
func (l *link) SetMTU(mtu uint32) { l.mtu.Store(mtu) }

// Close implements stack.NetworkLinkEndpoint.
func (l *link) Close() { l.closed.Store(true) }

// The rest of stack.LinkEndpoint: a link without link-layer headers, addresses or goroutines.

func (*link) MaxHeaderLength() uint16                      { return 0 }
func (*link) LinkAddress() tcpip.LinkAddress               { return "" }
func (*link) SetLinkAddress(tcpip.LinkAddress)             {}
func (*link) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityNone }
func (*link) Wait()                                        {}
func (*link) ARPHardwareType() header.ARPHardwareType      { return header.ARPHardwareNone }
func (*link) AddHeader(*stack.PacketBuffer)                {}
func (*link) ParseHeader(*stack.PacketBuffer) bool         { return true }
func (*link) SetOnCloseAction(func())                      {}
