package packet

import (
	"encoding/binary"
	"net/netip"
)

// Protocols and extension headers that parsing looks at besides TCP and UDP (IANA protocol numbers).
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMPv6   = 58
	protoDestOpts = 60
)

const (
	ipv4MaxLen    = 60
	ipv6ExtMinLen = 8
	ipv6AHMinLen  = 12 // RFC 4302, 2: the fixed part, before the integrity check value
	icmpLen       = 8

	// Of the IPv4 header's word at byte 6. The top bit is reserved (RFC 791).
	ipv4FlagDF     = 0x4000
	ipv4FlagMF     = 0x2000
	ipv4OffsetMask = 0x1fff
)

// maxExtensionHeaders bounds the walk through IPv6 extension headers. RFC 8200, 4.1 lists six kinds, one of which may
// stand twice; what has more than eight is made to keep routers busy.
const maxExtensionHeaders = 8

// Parse reads the headers of the packet that p begins with and fills every field of i. Bytes of p beyond the length
// that the IP header states are ignored; Info.Len says the true length. Neither the IPv4 header checksum nor the UDP
// length field is looked at. Lengths of superpackets are those of lone packets: a total length of 0 and a jumbogram
// (RFC 2675), the ways of stating more than MaxPacket bytes, are refused.
//
// Every truncation of a good packet is ErrTruncated. A packet whose transport header is cut off by the end of the
// packet is refused with ErrTruncated too, unless it is a first fragment: fragmentation may cut anywhere (RFC 791), so
// that one has no ports and L4Len 0. For a later fragment Proto is what the IP header or the fragment header names,
// which for IPv6 may be an extension header, L4 is where the fragment's data begins, and L4Len is 0.
//
// An IPv6 fragment header that says offset 0 and no more fragments (an atomic fragment, RFC 6946) makes no Fragment:
// the packet is whole. An IPv4-mapped IPv6 address stays what it is, netip.Addr.Is4In6.
//
// On an error i holds what was read before the error was found, and zeros.
func Parse(p []byte, i *Info) Error {
	*i = Info{}
	if len(p) == 0 {
		return ErrTruncated
	}
	switch p[0] >> 4 {
	case 4:
		return parse4(p, i)
	case 6:
		return parse6(p, i)
	}
	return ErrVersion
}

func parse4(p []byte, i *Info) Error {
	if len(p) < ipv4HeaderLen {
		return ErrTruncated
	}
	i.Version = 4
	i.TOS = p[1]
	i.TTL = p[8]
	i.Proto = p[9]
	i.Src = netip.AddrFrom4([4]byte(p[12:16]))
	i.Dst = netip.AddrFrom4([4]byte(p[16:20]))
	total := int(binary.BigEndian.Uint16(p[2:4]))
	frag := binary.BigEndian.Uint16(p[6:8])
	ihl := int(p[0]&0xf) * 4
	if ihl < ipv4HeaderLen || total < ihl {
		return ErrHeader
	}
	if total > len(p) {
		return ErrTruncated
	}
	i.Len = uint16(total)
	i.L4 = uint16(ihl)
	if ihl > ipv4HeaderLen {
		i.Flags |= HasOptions
	}
	if frag&ipv4FlagDF != 0 {
		i.Flags |= DontFragment
	}
	if frag&(ipv4FlagMF|ipv4OffsetMask) != 0 {
		i.Flags |= Fragment
		if offset := int(frag&ipv4OffsetMask) * 8; offset != 0 {
			i.Flags |= LaterFragment
			// Nobody can reassemble this: the whole would not fit its own length field ("ping of death").
			if offset+total > MaxPacket {
				return ErrHeader
			}
			return OK
		}
	}
	return parseTransport(p[ihl:total], i)
}

func parse6(p []byte, i *Info) Error {
	if len(p) < ipv6HeaderLen {
		return ErrTruncated
	}
	i.Version = 6
	i.TOS = p[0]<<4 | p[1]>>4
	i.TTL = p[7]
	i.Proto = p[6]
	i.Src = netip.AddrFrom16([16]byte(p[8:24]))
	i.Dst = netip.AddrFrom16([16]byte(p[24:40]))
	i.Flags = DontFragment
	total := ipv6HeaderLen + int(binary.BigEndian.Uint16(p[4:6]))
	if total > MaxPacket {
		return ErrHeader
	}
	if total > len(p) {
		return ErrTruncated
	}
	i.Len = uint16(total)
	i.L4 = ipv6HeaderLen
	p = p[:total]
	switch i.Proto {
	case protoTCP, protoUDP, protoICMPv6:
		return parseTransport(p[ipv6HeaderLen:], i)
	}
	if err := walkExtensions(p, i); err != OK {
		return err
	}
	if i.Flags&LaterFragment != 0 {
		return OK
	}
	return parseTransport(p[i.L4:], i)
}

// walkExtensions follows the extension headers of the IPv6 packet p, which ends where its payload length says, until a
// header that is none or until the data of a later fragment. It sets Proto, L4 and the flags. RFC 7112 wants the whole
// chain in the first fragment, so a chain that leaves the packet is refused there too.
func walkExtensions(p []byte, i *Info) Error {
	next, off := i.Proto, ipv6HeaderLen
	for n := 0; ; n++ {
		switch next {
		case protoHopByHop:
			if n != 0 { // RFC 8200, 4.1: only right after the IPv6 header
				return ErrHeader
			}
		case protoRouting, protoDestOpts, protoFragment, protoAH:
		default:
			i.Proto, i.L4 = next, uint16(off)
			return OK
		}
		if n == maxExtensionHeaders {
			return ErrHeader
		}
		h := p[off:]
		if len(h) < ipv6ExtMinLen {
			// A payload length of 0 with a hop-by-hop header, the jumbogram, ends here as well.
			return ErrTruncated
		}
		i.Flags |= HasOptions
		size := int(h[1])*8 + 8
		switch next {
		case protoAH:
			if size = int(h[1])*4 + 8; size < ipv6AHMinLen { // RFC 4302, 2.2: in 4-byte words, less 2
				return ErrHeader
			}
		case protoFragment:
			size = ipv6ExtMinLen
			frag := int(binary.BigEndian.Uint16(h[2:4]))
			offset := frag &^ 7
			if offset == 0 && frag&1 == 0 {
				break // atomic
			}
			if i.Flags&Fragment != 0 || offset+len(h)-size > MaxPacket {
				return ErrHeader
			}
			i.Flags |= Fragment
			if offset != 0 {
				i.Flags |= LaterFragment
				i.Proto, i.L4 = h[0], uint16(off+size)
				return OK
			}
		}
		if size > len(h) {
			return ErrHeader
		}
		next, off = h[0], off+size
	}
}

// parseTransport reads the transport header that t, the rest of the packet, begins with.
func parseTransport(t []byte, i *Info) Error {
	switch i.Proto {
	case protoTCP:
		if len(t) < tcpHeaderLen {
			return i.shortTransport()
		}
		size := int(t[12]>>4) * 4
		if size < tcpHeaderLen {
			return ErrHeader
		}
		if size > len(t) {
			if i.Flags&Fragment != 0 {
				return OK
			}
			return ErrHeader
		}
		i.L4Len = uint16(size)
		i.TCPFlags = t[13]
	case protoUDP:
		if len(t) < udpHeaderLen {
			return i.shortTransport()
		}
		i.L4Len = udpHeaderLen
	case protoICMP, protoICMPv6:
		if len(t) >= icmpLen && (i.Proto == protoICMP) == (i.Version == 4) {
			i.L4Len = icmpLen
		}
		return OK
	default:
		return OK
	}
	i.SrcPort = binary.BigEndian.Uint16(t[0:2])
	i.DstPort = binary.BigEndian.Uint16(t[2:4])
	i.Flags |= HasPorts
	return OK
}

// shortTransport is the verdict on a TCP or UDP packet that ends inside its transport header.
func (i *Info) shortTransport() Error {
	if i.Flags&Fragment != 0 {
		return OK
	}
	return ErrTruncated
}
