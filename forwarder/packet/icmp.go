package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Reject says which ICMP error answers a packet that is not delivered.
type Reject uint8

// The errors. In brackets type and code for ICMP (RFC 792, RFC 1812) and ICMPv6 (RFC 4443).
const (
	RejectNone            Reject = iota // no answer
	RejectNoRoute                       // no route to the network (3/0, 1/0)
	RejectHostUnreachable               // the network is there, the host is not (3/1, 1/3)
	RejectProhibited                    // administratively prohibited (3/13, 1/1)
	RejectTooBig                        // fragmentation needed and DF set, or packet too big (3/4, 2/0)
)

// An ICMPError is what AppendICMPError is to say.
type ICMPError struct {
	Reject Reject
	MTU    int        // bytes; for RejectTooBig the largest packet that would have passed, else unused
	From   netip.Addr // the router's own address, which the error comes from; of the packet's family
	Meta   Meta       // offload metadata of the packet that the error is about
}

const (
	icmpTTL     = 64
	icmpMaxLen4 = 576  // RFC 1812, 4.3.2.3: as much of the packet as fits this size
	icmpMaxLen6 = 1280 // RFC 4443, 3.1: as much as fits the minimum IPv6 MTU
	icmpTOS4    = 0xc0 // RFC 1812, 4.3.2.5: precedence 6, internetwork control

	icmpUnreachable   = 3
	icmp6Unreachable  = 1
	icmp6PacketTooBig = 2
	icmp6Query        = 128 // RFC 4443, 2.1: types from here on are no errors
	icmp6Redirect     = 137 // RFC 4861, 4.5: yet this one is never answered (RFC 4443, 2.4 e.2)
)

// AppendICMPError appends the ICMP or ICMPv6 error e about orig to dst: a whole IP packet from e.From to orig's
// source, with TTL 64 and right checksums, at most 576 bytes for IPv4 and 1,280 for IPv6. oi is what Parse read of
// orig. dst's free capacity must not be a part of orig; with 1,280 bytes of it nothing is allocated.
//
// It returns dst as it was and false when no error must be sent (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 e):
// orig is an ICMP error or redirect, or of an unknown ICMP type, or too short to tell; it is a later fragment; its
// source is no host's address (unspecified, loopback, multicast, broadcast, reserved); it was sent to a multicast or
// broadcast address, other than IPv6 multicast that is too big. And when e.From is not of orig's family.
//
// Hosts look for the flow in what the error quotes, so it is quoted as it would have been on the wire. Of a
// superpacket that is its first segment: total or payload length, UDP length, TCP flags (no FIN or PSH) and the IPv4
// header checksum are that segment's. A partial transport checksum is completed, over all of the segment even if the
// quotation is shorter. Bytes of orig beyond oi.Len are not quoted.
func AppendICMPError(dst []byte, e ICMPError, orig []byte, oi *Info) ([]byte, bool) {
	typ, code, ok := e.Reject.message(oi.Version)
	if !ok || len(orig) < int(oi.Len) || e.From.Is4() != (oi.Version == 4) || !e.From.IsValid() {
		return dst, false
	}
	if !maySendError(e.Reject, orig, oi) {
		return dst, false
	}
	ip, limit := ipv6HeaderLen, icmpMaxLen6
	if oi.Version == 4 {
		ip, limit = ipv4HeaderLen, icmpMaxLen4
	}
	wire := orig[:oi.SegmentLen(e.Meta)]
	quote := min(len(wire), limit-ip-icmpLen)

	at := len(dst)
	dst = slices.Grow(dst, ip+icmpLen+quote)[:at+ip+icmpLen+quote]
	b := dst[at:]
	clear(b[:ip+icmpLen])
	icmp := b[ip:]
	copy(icmp[icmpLen:], wire)
	asOnWire(icmp[icmpLen:], wire, oi, e.Meta)

	icmp[0], icmp[1] = typ, code
	if e.Reject == RejectTooBig {
		if oi.Version == 4 {
			binary.BigEndian.PutUint16(icmp[6:8], uint16(max(0, min(e.MTU, 0xffff)))) // RFC 1191, 4
		} else {
			binary.BigEndian.PutUint32(icmp[4:8], uint32(max(0, e.MTU)))
		}
	}
	sum := uint16(0)
	if oi.Version == 4 {
		b[0], b[1] = 4<<4|ipv4HeaderLen/4, icmpTOS4
		binary.BigEndian.PutUint16(b[2:4], uint16(len(b)))
		// With DF set nobody looks at the ID (RFC 6864, 4.1), so no counter is needed for it.
		binary.BigEndian.PutUint16(b[6:8], ipv4FlagDF)
		b[8], b[9] = icmpTTL, protoICMP
		from, to := e.From.As4(), oi.Src.As4()
		copy(b[12:16], from[:])
		copy(b[16:20], to[:])
		SetIPv4Checksum(b[:ipv4HeaderLen])
	} else {
		b[0] = 6 << 4
		binary.BigEndian.PutUint16(b[4:6], uint16(len(icmp)))
		b[6], b[7] = protoICMPv6, icmpTTL
		from, to := e.From.As16(), oi.Src.As16()
		copy(b[8:24], from[:])
		copy(b[24:40], to[:])
		sum = PseudoHeader(&Info{Version: 6, Proto: protoICMPv6, Src: e.From, Dst: oi.Src}, len(icmp))
	}
	binary.BigEndian.PutUint16(icmp[2:4], ^Sum(sum, icmp))
	return dst, true
}

// message returns the ICMP type and code that say r in an IP version.
func (r Reject) message(version uint8) (typ, code uint8, ok bool) {
	if version == 4 {
		switch r {
		case RejectNoRoute:
			return icmpUnreachable, 0, true
		case RejectHostUnreachable:
			return icmpUnreachable, 1, true
		case RejectProhibited:
			return icmpUnreachable, 13, true
		case RejectTooBig:
			return icmpUnreachable, 4, true
		}
		return 0, 0, false
	}
	switch r {
	case RejectNoRoute:
		return icmp6Unreachable, 0, true
	case RejectHostUnreachable:
		return icmp6Unreachable, 3, true
	case RejectProhibited:
		return icmp6Unreachable, 1, true
	case RejectTooBig:
		return icmp6PacketTooBig, 0, true
	}
	return 0, 0, false
}

// maySendError reports whether p, of which Parse read i, may be answered with an ICMP error.
func maySendError(r Reject, p []byte, i *Info) bool {
	if i.Is(LaterFragment) {
		return false
	}
	if i.Version == 4 {
		// RFC 1812, 5.3.7: 0/8 and 127/8 are no sources; from 224 on there are groups, reserved ones and broadcast.
		if src := i.Src.As4(); src[0] == 0 || src[0] == 127 || src[0] >= 224 {
			return false
		}
		if dst := i.Dst.As4(); i.Dst.IsMulticast() || dst == [4]byte{255, 255, 255, 255} {
			return false
		}
		return i.Proto != protoICMP || i.L4 < i.Len && isQuery4(p[i.L4])
	}
	if i.Src.IsUnspecified() || i.Src.IsLoopback() || i.Src.IsMulticast() || i.Src.Is4In6() {
		return false
	}
	if i.Dst.IsMulticast() && r != RejectTooBig {
		return false
	}
	return i.Proto != protoICMPv6 || i.L4 < i.Len && p[i.L4] >= icmp6Query && p[i.L4] != icmp6Redirect
}

// isQuery4 reports whether an ICMP type is a query or its answer (RFC 1122, 3.2.2; RFC 8335 for the extended echo).
// What is unknown may be an error of the future.
func isQuery4(typ uint8) bool {
	switch typ {
	case 0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43:
		return true
	}
	return false
}

// asOnWire makes q, a copy of the beginning of wire, what the wire would have carried. wire is the part of a packet,
// of which Parse read i, that would have been its first segment. Metadata that lies makes q wrong, nothing worse.
func asOnWire(q, wire []byte, i *Info, m Meta) {
	shorter := len(wire) < int(i.Len)
	if shorter && i.Version == 4 {
		before, now := binary.BigEndian.Uint16(q[2:4]), uint16(len(wire))
		binary.BigEndian.PutUint16(q[2:4], now)
		binary.BigEndian.PutUint16(q[10:12], Update16(binary.BigEndian.Uint16(q[10:12]), before, now))
	} else if shorter {
		binary.BigEndian.PutUint16(q[4:6], uint16(len(wire)-ipv6HeaderLen))
	}
	if m.Type == GSONone {
		if m.NeedsChecksum && checksumFieldInside(q, m) {
			putChecksum(q, int(m.ChecksumStart), int(m.ChecksumOffset), Sum(0, wire[m.ChecksumStart:]))
		}
		return
	}
	l4, end := int(i.L4), i.HeaderLen()
	if end > len(q) {
		return // extension headers fill the quotation
	}
	offset := tcpChecksumOffset
	switch {
	case i.Proto == protoTCP && i.L4Len >= tcpHeaderLen:
		if shorter {
			q[l4+13] &^= tcpFIN | tcpPSH
		}
	case i.Proto == protoUDP && i.L4Len == udpHeaderLen:
		offset = udpChecksumOffset
		binary.BigEndian.PutUint16(q[l4+4:], uint16(len(wire)-l4))
	default:
		return
	}
	// The field holds the pseudo header's sum with the superpacket's length.
	field := q[l4+offset : l4+offset+2]
	pseudo := fold(uint32(binary.BigEndian.Uint16(field)) + uint32(^(i.Len - i.L4)) + uint32(len(wire)-l4))
	clear(field)
	putChecksum(q, l4, offset, Sum(Sum(pseudo, q[l4:end]), wire[end:]))
}

// putChecksum stores the complement of sum at q[start+offset]; a UDP checksum is never 0 (RFC 768).
func putChecksum(q []byte, start, offset int, sum uint16) {
	check := ^sum
	if check == 0 && offset == udpChecksumOffset {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(q[start+offset:], check)
}
