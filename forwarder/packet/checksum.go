package packet

import (
	"encoding/binary"

	"github.com/warren-net/warren/forwarder/packet/checksum"
)

// Transport protocols whose checksum this package knows (IANA protocol numbers).
const (
	protoTCP = 6
	protoUDP = 17
)

// Offsets of the checksum field, in bytes from the transport header.
const (
	tcpChecksumOffset = 16
	udpChecksumOffset = 6
)

// Lengths of the fixed headers, in bytes.
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	udpHeaderLen  = 8
)

// Sum returns the ones-complement sum (RFC 1071) of initial and the 16-bit words of b, folded to 16 bits and not
// complemented. A last odd byte counts as the high byte of a word. Every sum over payload goes through here.
func Sum(initial uint16, b []byte) uint16 { return checksum.Sum(initial, b) }

// fold adds the carries of a sum of up to 65,536 words back into its low 16 bits.
func fold(sum uint32) uint16 {
	sum = sum&0xffff + sum>>16
	return uint16(sum + sum>>16)
}

// sumHeader is Sum(0, b) for a header: b is at most 65,536 bytes and a multiple of 4 long. For so few bytes a plain
// loop is faster.
func sumHeader(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 4; b = b[4:] {
		word := binary.BigEndian.Uint32(b)
		sum += word>>16 + word&0xffff
	}
	return fold(sum)
}

// PseudoHeader returns the folded, not complemented sum of the pseudo header (RFC 9293 section 3.1, RFC 8200
// section 8.1) of i's addresses and protocol and a transport length of l4len bytes, header included.
func PseudoHeader(i *Info, l4len int) uint16 {
	sum := uint32(i.Proto) + uint32(l4len)&0xffff + uint32(l4len)>>16
	srcHigh, srcLow := AddrWords(i.Src)
	dstHigh, dstLow := AddrWords(i.Dst)
	// Each is less than 2^18, so the sum fits.
	return fold(sum + sum64(srcHigh) + sum64(srcLow) + sum64(dstHigh) + sum64(dstLow))
}

// sum64 is the sum of the four words of v.
func sum64(v uint64) uint32 {
	return uint32(v>>48) + uint32(v>>32&0xffff) + uint32(v>>16&0xffff) + uint32(v&0xffff)
}

// CompleteChecksum stores the final transport checksum of p, a lone packet whose m has NeedsChecksum set: the sum over
// everything from ChecksumStart on, the pseudo header's sum in the checksum field included. A UDP checksum of 0 becomes
// 0xFFFF, as 0 means "none" (RFC 768). Without NeedsChecksum it does nothing and returns true.
//
// It returns false, with p unchanged, when the field is not inside p or when ChecksumStart lies inside the IP header.
// ChecksumStart may be beyond the first transport header: a pod's own tunnel leaves the inner checksum to the device.
func CompleteChecksum(p []byte, m Meta) bool {
	if !m.NeedsChecksum {
		return true
	}
	if !checksumFieldInside(p, m) {
		return false
	}
	check := ^Sum(0, p[m.ChecksumStart:])
	if check == 0 && m.ChecksumOffset == udpChecksumOffset {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(p[int(m.ChecksumStart)+int(m.ChecksumOffset):], check)
	return true
}

// checksumFieldInside reports whether m's checksum field lies inside p and behind its IP header.
func checksumFieldInside(p []byte, m Meta) bool {
	if len(p) == 0 || int(m.ChecksumStart)+int(m.ChecksumOffset)+2 > len(p) {
		return false
	}
	header := ipv6HeaderLen
	if p[0]>>4 == 4 {
		header = max(ipv4HeaderLen, int(p[0]&15)*4)
	}
	return int(m.ChecksumStart) >= header
}

// VerifyTransport reports whether the transport checksum of p is right. i is what Parse read of p. A UDP checksum of 0
// over IPv4 is absent, which counts as right (RFC 768); over IPv6 it is wrong (RFC 8200 section 8.1). What has no
// checksum that could be verified counts as wrong: fragments, protocols other than TCP and UDP, and a UDP length that
// does not fit into the packet.
func VerifyTransport(p []byte, i *Info) bool {
	if i.Is(Fragment) || int(i.Len) > len(p) || i.HeaderLen() > int(i.Len) || i.L4Len < udpHeaderLen {
		return false
	}
	l4 := p[i.L4:i.Len]
	switch i.Proto {
	case protoTCP:
	case protoUDP:
		n := int(binary.BigEndian.Uint16(l4[4:]))
		if n < udpHeaderLen || n > len(l4) {
			return false
		}
		if binary.BigEndian.Uint16(l4[udpChecksumOffset:]) == 0 {
			return i.Version == 4
		}
		l4 = l4[:n]
	default:
		return false
	}
	if i.Is(HasOptions) {
		return Sum(PseudoHeader(i, len(l4)), l4) == 0xffff
	}
	// The addresses stand right before the transport header: one sum does for both.
	addresses := int(i.L4) - 8
	if i.Version == 6 {
		addresses = int(i.L4) - 32
	}
	sum := Sum(uint16(i.Proto), p[addresses:int(i.L4)+len(l4)])
	return fold(uint32(sum)+uint32(len(l4))) == 0xffff
}

// CompletePartial completes the transport checksum of p, of which Parse read i, when the field holds the pseudo
// header's sum and nothing else, and reports whether it was so.
//
// That is what a datagram socket gets of a kernel tunnel whose device was to fill the inner checksum in and never had
// to, as the packet did not leave the machine: over veth and virtio the sender's kernel only notes what is left to do,
// and recvmsg hands the bytes out as they are (seen with Linux 6.18, VXLAN over veth). For one right packet in 65,536
// the field holds that sum by chance: completing it gives the same checksum again.
func CompletePartial(p []byte, i *Info) bool {
	m, ok := partial(p, i)
	return ok && CompleteChecksum(p[:i.Len], m)
}

// IsPartial reports whether p's transport checksum is to be completed: it is the pseudo header's sum and nothing else.
func IsPartial(p []byte, i *Info) bool {
	_, ok := partial(p, i)
	return ok
}

// partial reports whether p's transport checksum is the pseudo header's sum and nothing else, and what completes it.
func partial(p []byte, i *Info) (Meta, bool) {
	m := Meta{NeedsChecksum: true, ChecksumStart: i.L4, ChecksumOffset: tcpChecksumOffset}
	if i.Flags&(HasPorts|Fragment) != HasPorts || int(i.Len) > len(p) || i.HeaderLen() > int(i.Len) {
		return m, false
	}
	l4 := p[i.L4:i.Len]
	switch i.Proto {
	case protoTCP:
	case protoUDP:
		m.ChecksumOffset = udpChecksumOffset
		if int(binary.BigEndian.Uint16(l4[4:])) != len(l4) {
			return m, false
		}
	default:
		return m, false
	}
	return m, binary.BigEndian.Uint16(l4[m.ChecksumOffset:]) == PseudoHeader(i, len(l4))
}

// Update16 returns the checksum field check after a 16-bit word that it covers changed from old to new (RFC 1624,
// equation 3).
func Update16(check, old, new uint16) uint16 {
	return ^fold(uint32(^check) + uint32(^old) + uint32(new))
}

// IPv4Checksum returns the checksum of an IPv4 header, whatever its checksum field holds now. header has at least 20
// bytes, and its length is the header's.
func IPv4Checksum(header []byte) uint16 {
	field := binary.BigEndian.Uint16(header[10:])
	return ^fold(uint32(sumHeader(header)) + uint32(^field))
}

// SetIPv4Checksum stores the checksum of an IPv4 header. header is as in IPv4Checksum.
func SetIPv4Checksum(header []byte) {
	binary.BigEndian.PutUint16(header[10:], IPv4Checksum(header))
}

// VerifyIPv4 reports whether the checksum of an IPv4 header is right. header is as in IPv4Checksum.
func VerifyIPv4(header []byte) bool { return sumHeader(header) == 0xffff }
