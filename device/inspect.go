package device

import "github.com/warren-net/warren/forwarder/packet"

// Shape is what a device must know of a superpacket to take it.
type Shape struct {
	Total    int  // bytes of all pieces
	Header   int  // bytes before the transport payload; 0 when the type is GSONone
	Segments int  // segments that it will be cut into; 1 when the type is GSONone
	CWR      bool // a TCP superpacket with the CWR flag, which only its first segment may carry (RFC 3168, 6.1.2)
}

// The offsets of the checksum field in the transport header, and other facts about these headers.
const (
	tcpChecksum, tcpMinHeader = 16, 20
	tcpDataOffset, tcpFlags   = 12, 13
	tcpCWR                    = 0x80
	udpChecksum, udpHeader    = 6, 8
	ipv4MinHeader, ipv6Header = 20, 40
	gsoByFragments            = 0xffff // GSO_BY_FRAGS, a size with a meaning of its own inside the kernel
)

// Inspect checks that m fits the packet that pieces make up, as the kernel does before it takes one, and measures it.
// Whoever writes to a kernel device needs this: the kernel says EINVAL to a lie as it does to an offload that it lacks,
// and a lie must not switch an offload off. Inspect returns ErrBadPacket or nil; it does not verify the IP header
// beyond its version, nor any checksum.
func Inspect(m packet.Meta, pieces [][]byte) (Shape, error) {
	s := Shape{Segments: 1}
	for _, p := range pieces {
		s.Total += len(p)
	}
	if s.Total > packet.MaxPacket {
		return s, ErrBadPacket
	}
	first, ok := byteAt(pieces, 0)
	version := first >> 4
	if !ok || version != 4 && version != 6 {
		return s, ErrBadPacket
	}
	start := int(m.ChecksumStart)
	if m.NeedsChecksum && start+int(m.ChecksumOffset)+2 > s.Total {
		return s, ErrBadPacket
	}
	if m.Type == packet.GSONone {
		return s, nil
	}

	ipHeader := ipv4MinHeader
	if version == 6 {
		ipHeader = ipv6Header
	}
	if !m.NeedsChecksum || start < ipHeader || m.SegmentSize == 0 || m.SegmentSize == gsoByFragments {
		return s, ErrBadPacket
	}
	switch m.Type {
	case packet.GSOTCP4, packet.GSOTCP6:
		if (m.Type == packet.GSOTCP4) != (version == 4) || m.ChecksumOffset != tcpChecksum {
			return s, ErrBadPacket
		}
		offset, _ := byteAt(pieces, start+tcpDataOffset)
		flags, _ := byteAt(pieces, start+tcpFlags)
		if offset>>4 < tcpMinHeader/4 {
			return s, ErrBadPacket
		}
		s.Header = start + int(offset>>4)*4
		s.CWR = flags&tcpCWR != 0
	case packet.GSOUDP:
		if m.ChecksumOffset != udpChecksum {
			return s, ErrBadPacket
		}
		s.Header = start + udpHeader
	default:
		return s, ErrBadPacket
	}
	if s.Header > s.Total {
		return s, ErrBadPacket
	}
	size := int(m.SegmentSize)
	s.Segments = max(1, (s.Total-s.Header+size-1)/size)
	return s, nil
}

// byteAt returns the byte at an offset in the bytes that pieces make up.
func byteAt(pieces [][]byte, offset int) (b byte, ok bool) {
	for _, p := range pieces {
		if offset < len(p) {
			return p[offset], true
		}
		offset -= len(p)
	}
	return 0, false
}
