package worker

import (
	"encoding/binary"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// uncutDatagram hands a datagram that holds a whole superpacket to the coalescer, and reports whether it was one.
//
// A kernel VXLAN device leaves the cutting to the device below. Where packets never leave the machine (veth, as between
// containers), nobody cuts, and a UDP socket gets one datagram of up to 64 KiB with the inner superpacket as it is. Of
// inner UDP the socket says the segment size, as if UDP_GRO had joined outer datagrams (udp_cmsg_recv, Linux 6.18); of
// inner TCP it says nothing, so the path's MTU decides, which a stream of bytes does not mind. A datagram must not be
// cut: without a segment size inner UDP is a lone packet, also when the peer's MTU is larger than ours.
func (w *Worker) uncutDatagram(s *tunnel.Datagrams, peer *forwarder.Peer) bool {
	const headers = vxlan.HeaderLen + minIPHeader
	d, several := s.Buf[:s.N], s.SegmentSize > 0 && s.SegmentSize < s.N
	if s.N < headers || !several && s.N <= vxlan.HeaderLen+peer.MTU ||
		vxlan.HeaderLen+ipLength(d[vxlan.HeaderLen:]) != s.N {
		return false // a datagram of the usual size, or several whose first one says its own length
	}
	inner, why := w.Decoder.Decode(d)
	if why != vxlan.Accepted || packet.Parse(inner, &w.info) != packet.OK {
		return false // to be counted as any other
	}
	if s.TOS&packet.ECNMask != 0 && !w.congestion(inner, s.TOS) {
		return true
	}
	size := peer.MTU - w.info.HeaderLen()
	if several {
		size = s.SegmentSize
	} else if w.info.Proto == protoUDP {
		size = s.N
	}
	if e := w.join.AddUncut(inner, peer.Index, size); e != packet.OK {
		w.drop(forwarder.FromError(e), 1)
	}
	return true
}

const (
	minIPHeader = 20
	protoTCP    = 6 // IANA protocol numbers
	protoUDP    = 17
	tcpSYN      = 0x02 // RFC 9293, 3.1
)

// ipLength is the length that an IP header claims; p has at least 6 bytes.
func ipLength(p []byte) int {
	if p[0]>>4 == 6 {
		const header = 40
		return header + int(binary.BigEndian.Uint16(p[4:]))
	}
	return int(binary.BigEndian.Uint16(p[2:]))
}
