package netpod

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/warren-net/warren/forwarder/packet"
)

// ListenTCP listens on one of the pod's addresses. Port 0 chooses a free one.
func (p *Pod) ListenTCP(at netip.AddrPort) (net.Listener, error) {
	l, err := gonet.ListenTCP(p.stack, full(at), network(at.Addr()))
	if err != nil {
		return nil, fmt.Errorf("netpod: pod %s: listen on %v: %w", p.name, at, err)
	}
	return l, nil
}

// DialTCP connects to another pod. The connection is a *gonet.TCPConn, with CloseWrite and deadlines.
func (p *Pod) DialTCP(ctx context.Context, to netip.AddrPort) (*gonet.TCPConn, error) {
	c, err := gonet.DialContextTCP(ctx, p.stack, full(to), network(to.Addr()))
	if err != nil {
		return nil, fmt.Errorf("netpod: pod %s: connect to %v: %w", p.name, to, err)
	}
	return c, nil
}

// ListenUDP makes a UDP socket on one of the pod's addresses, for ReadFrom and WriteTo. Port 0 chooses a free one.
func (p *Pod) ListenUDP(at netip.AddrPort) (*gonet.UDPConn, error) {
	local := full(at)
	c, err := gonet.DialUDP(p.stack, &local, nil, network(at.Addr()))
	if err != nil {
		return nil, fmt.Errorf("netpod: pod %s: UDP socket on %v: %w", p.name, at, err)
	}
	return c, nil
}

// DialUDP makes a UDP socket that is connected to another pod.
func (p *Pod) DialUDP(to netip.AddrPort) (*gonet.UDPConn, error) {
	remote := full(to)
	c, err := gonet.DialUDP(p.stack, nil, &remote, network(to.Addr()))
	if err != nil {
		return nil, fmt.Errorf("netpod: pod %s: UDP socket to %v: %w", p.name, to, err)
	}
	return c, nil
}

// echoLen is the length of an ICMP or ICMPv6 echo header.
const echoLen = 8

// Ping sends one echo request with so many bytes of payload and waits for its answer. The IP packet is 28 bytes longer
// than the payload, or 48 for IPv6.
func (p *Pod) Ping(ctx context.Context, to netip.Addr, payload int) error {
	proto, request, reply := icmp.ProtocolNumber4, byte(header.ICMPv4Echo), byte(header.ICMPv4EchoReply)
	if to.Is6() {
		proto, request, reply = icmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest), byte(header.ICMPv6EchoReply)
	}
	var wq waiter.Queue
	ep, terr := p.stack.NewEndpoint(proto, network(to), &wq)
	if terr != nil {
		return fmt.Errorf("netpod: pod %s: ping socket: %w", p.name, asError(terr))
	}
	c := gonet.NewUDPConn(&wq, ep) // it works for any datagram endpoint
	defer func() { _ = c.Close() }()
	if terr := ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(to.AsSlice())}); terr != nil {
		return fmt.Errorf("netpod: pod %s: ping %v: %w", p.name, to, asError(terr))
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	message := make([]byte, echoLen+payload)
	message[0] = request
	binary.BigEndian.PutUint16(message[6:], 1) // sequence number; the identifier and the checksum are the stack's
	for i := range payload {
		message[echoLen+i] = byte(i)
	}
	if _, err := c.Write(message); err != nil {
		return fmt.Errorf("netpod: pod %s: ping %v: %w", p.name, to, err)
	}
	answer := make([]byte, len(message)+1)
	n, err := c.Read(answer)
	if ctx.Err() != nil {
		return fmt.Errorf("netpod: pod %s: ping %v: no answer: %w", p.name, to, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("netpod: pod %s: ping %v: %w", p.name, to, err)
	}
	if n != len(message) || answer[0] != reply || !bytes.Equal(answer[6:n], message[6:]) {
		return fmt.Errorf("netpod: pod %s: ping %v: the answer of %d bytes, type %d, is not what was sent (%d bytes)",
			p.name, to, n, answer[0], len(message))
	}
	return nil
}

// A UDPBatch is what a Linux socket sends at once with UDP_SEGMENT: datagrams of one size, the last may be shorter.
type UDPBatch struct {
	From    uint16 // source port
	To      netip.AddrPort
	Payload []byte
	Size    int // payload bytes of each datagram
	TOS     uint8
}

// SendUDPBatch sends a USO superpacket, or, for a pod without OffloadFull, what Linux would make of one: lone
// datagrams. gVisor's sockets know no UDP_SEGMENT, so this passes by the stack.
func (p *Pod) SendUDPBatch(b UDPBatch) error {
	from, err := p.addressLike(b.To.Addr())
	if err != nil {
		return err
	}
	ip, protoAt := ipv4Len, 9
	if from.Is6() {
		ip, protoAt = ipv6Len, 6
	}
	total := ip + 8 + len(b.Payload)
	if total > packet.MaxPacket || b.Size <= 0 || ip+8+b.Size > p.mtu || len(b.Payload) == 0 {
		return fmt.Errorf("netpod: pod %s: UDP batch of %d bytes in datagrams of %d", p.name, len(b.Payload), b.Size)
	}
	s := make([]byte, total)
	if from.Is4() {
		s[0], s[1], s[8] = 0x45, b.TOS, 64
		binary.BigEndian.PutUint16(s[2:], uint16(total))
		copy(s[12:], from.AsSlice())
		copy(s[16:], b.To.Addr().AsSlice())
	} else {
		s[0], s[1], s[7] = 0x60|b.TOS>>4, b.TOS<<4, 64
		binary.BigEndian.PutUint16(s[4:], uint16(total-ip))
		copy(s[8:], from.AsSlice())
		copy(s[24:], b.To.Addr().AsSlice())
	}
	s[protoAt] = protoUDP
	binary.BigEndian.PutUint16(s[ip:], b.From)
	binary.BigEndian.PutUint16(s[ip+2:], b.To.Port())
	binary.BigEndian.PutUint16(s[ip+4:], uint16(total-ip))
	s[ip+udpSumAt] = 1 // any checksum but none
	copy(s[ip+8:], b.Payload)
	if from.Is4() {
		setIPv4Checksum(s)
	}
	m := makePartial(s)
	if len(b.Payload) > b.Size {
		m.Type, m.SegmentSize = packet.GSOUDP, uint16(b.Size)
	}
	if p.link.offload == OffloadFull {
		p.host.toQueue(s, m)
		return nil
	}
	segments, err := segment(s, m)
	if err != nil {
		return err
	}
	for _, s := range segments {
		m = packet.Meta{}
		if p.link.offload == OffloadChecksum {
			m = makePartial(s)
		}
		p.host.toQueue(s, m)
	}
	return nil
}
