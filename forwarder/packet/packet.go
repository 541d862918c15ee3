// Package packet holds the pure packet code of Warren's data path: parsing, checksums, segmentation, coalescing,
// IPv4 fragmentation, ICMP errors, TCP MSS clamping and ECN. It has no file descriptor, lock, clock or goroutine, and
// nothing in it allocates once its reusable values have grown to their working size.
//
// # Terms
//
//   - A packet is one IP packet (IPv4 or IPv6), from the first byte of its IP header; no link-layer header.
//   - A segment is a packet as it crosses the wire: at most one path MTU long.
//   - A superpacket is what one read of an offloading TUN device delivers: IP and transport header once, then the
//     payload of up to many segments (TSO, USO), at most 65,535 bytes. A lone packet is a superpacket of one segment.
//   - Meta is the superpacket's offload metadata, in the meaning of struct virtio_net_hdr (VIRTIO 1.2, 5.1.6).
//   - A run is a list of segments of one flow that a Coalescer joined into one superpacket.
//   - A piece is a byte slice that is one part of a scatter-gather list; pieces are sent in order, without gaps.
//
// # Buffers
//
// Functions here never keep a slice beyond the call unless their comment says so (Coalescer.Add does, until Reset).
// Values of type Segments and Coalescer belong to one worker; they are not safe for concurrent use.
package packet

import "net/netip"

// GSOType says how a superpacket is to be cut into segments.
type GSOType uint8

// The kinds of superpackets. USO needs Linux 6.2 on the TUN.
const (
	GSONone GSOType = iota // one segment
	GSOTCP4                // TCP over IPv4
	GSOTCP6                // TCP over IPv6
	GSOUDP                 // UDP datagrams of one flow (USO), IPv4 or IPv6
)

// MaxPacket is the largest packet or superpacket, in bytes: what the 16-bit IPv4 total length can say.
const MaxPacket = 65535

// Meta is the offload metadata of a superpacket. The zero value is a lone packet with complete checksums.
//
// NeedsChecksum means: the transport checksum field holds the folded, not complemented sum of the pseudo header
// (CHECKSUM_PARTIAL); the checksum over [ChecksumStart, end) is to be stored at ChecksumStart+ChecksumOffset.
// A superpacket with Type other than GSONone always has NeedsChecksum set.
type Meta struct {
	Type           GSOType
	NeedsChecksum  bool
	SegmentSize    uint16 // transport payload bytes per segment; 0 when Type is GSONone
	ChecksumStart  uint16 // bytes from the first byte of the IP header
	ChecksumOffset uint16 // bytes from ChecksumStart
}

// Flags of an Info.
type Flags uint8

// What Parse found in a packet.
const (
	HasPorts      Flags = 1 << iota // SrcPort and DstPort are valid (TCP or UDP, not a later fragment)
	Fragment                        // any fragment, also the first
	LaterFragment                   // a fragment with an offset other than 0: no transport header
	DontFragment                    // IPv4 DF; always set for IPv6
	HasOptions                      // IPv4 options or IPv6 extension headers stand before the transport header
)

// Info is what Parse reads of a packet's headers. It is reused from packet to packet; it refers to no buffer.
type Info struct {
	Src, Dst         netip.Addr
	Len              uint16 // bytes of the packet, as its header says; for IPv6 the 40-byte header included
	L4               uint16 // offset of the transport header, bytes from the first byte of the IP header
	L4Len            uint16 // bytes of the transport header: TCP with options, 8 for UDP and ICMP, 0 when unknown
	SrcPort, DstPort uint16
	Version          uint8 // 4 or 6
	Proto            uint8 // transport protocol, after IPv6 extension headers (IANA protocol number)
	TOS              uint8 // IPv4 TOS or IPv6 traffic class: DSCP and ECN
	TTL              uint8 // IPv4 TTL or IPv6 hop limit
	TCPFlags         uint8 // byte 13 of the TCP header; 0 for other protocols
	Flags            Flags
}

// Is reports whether all bits of f are set.
func (i *Info) Is(f Flags) bool { return i.Flags&f == f }

// HeaderLen is the number of bytes before the transport payload.
func (i *Info) HeaderLen() int { return int(i.L4) + int(i.L4Len) }

// SegmentLen is the length in bytes of the longest segment that a superpacket of i and m puts on the wire.
func (i *Info) SegmentLen(m Meta) int {
	if m.Type == GSONone {
		return int(i.Len)
	}
	return min(int(i.Len), i.HeaderLen()+int(m.SegmentSize))
}

// Error is a reason why a packet is refused. Errors are comparable constants: refusing a packet allocates nothing.
type Error uint8

// Why Parse or Segment refuses a packet. OK is the zero value.
const (
	OK           Error = iota
	ErrTruncated       // shorter than its headers say, or than the shortest header
	ErrVersion         // neither IPv4 nor IPv6
	ErrHeader          // IHL, total length, data offset or extension header length that cannot be
	ErrGSO             // offload metadata that does not fit the packet
)

// Error implements error.
func (e Error) Error() string {
	switch e {
	case OK:
		return "ok"
	case ErrTruncated:
		return "truncated packet"
	case ErrVersion:
		return "not an IPv4 or IPv6 packet"
	case ErrHeader:
		return "inconsistent header"
	case ErrGSO:
		return "inconsistent offload metadata"
	}
	return "unknown packet error"
}
