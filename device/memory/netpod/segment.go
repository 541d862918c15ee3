package netpod

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/warren-net/warren/forwarder/packet"
)

// This file is a second, naive opinion on what a superpacket means. It shares no code with package packet and copies
// every byte; where it follows Linux, the function is named.

// Offsets and lengths in the headers.
const (
	ipv4Len, ipv6Len          = 20, 40
	protoTCP, protoUDP        = 6, 17
	tcpSumAt, udpSumAt        = 16, 6
	flagFIN, flagPSH, flagCWR = 0x01, 0x08, 0x80
)

var errHeader = errors.New("IP header does not fit the packet")

// checkIP examines an IP header as ip_rcv and ipv6_rcv do, but stricter: the length must be exact.
func checkIP(p []byte) error {
	switch {
	case len(p) >= ipv4Len && p[0]>>4 == 4:
		h := int(p[0]&15) * 4
		if h < ipv4Len || h > len(p) || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			return fmt.Errorf("%w: IPv4, %d bytes, IHL %d, total length %d", errHeader, len(p), h,
				binary.BigEndian.Uint16(p[2:]))
		}
		if s := fold(sum(p[:h])); s != 0xffff {
			return fmt.Errorf("%w: IPv4 header checksum is wrong by %#x", errHeader, ^s)
		}
		return nil
	case len(p) >= ipv6Len && p[0]>>4 == 6:
		if n := int(binary.BigEndian.Uint16(p[4:])); n+ipv6Len != len(p) {
			return fmt.Errorf("%w: IPv6, %d bytes, payload length %d", errHeader, len(p), n)
		}
		return nil
	}
	return fmt.Errorf("%w: neither IPv4 nor IPv6, or too short: %d bytes", errHeader, len(p))
}

// hop lowers the time to live as a router does; false: it has run out.
func hop(p []byte) bool {
	if p[0]>>4 == 6 {
		if p[7] <= 1 {
			return false
		}
		p[7]--
		return true
	}
	if p[8] <= 1 {
		return false
	}
	p[8]--
	setIPv4Checksum(p)
	return true
}

func setIPv4Checksum(p []byte) {
	h := p[:int(p[0]&15)*4]
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^fold(sum(h)))
}

// segment returns the packets that p stands for, with complete checksums. It takes m at its word where the kernel does.
func segment(p []byte, m packet.Meta) ([][]byte, error) {
	if m.Type == packet.GSONone {
		q := append([]byte(nil), p...)
		if m.NeedsChecksum {
			start := int(m.ChecksumStart)
			at := start + int(m.ChecksumOffset)
			if at+2 > len(q) {
				return nil, fmt.Errorf("checksum at %d in a packet of %d bytes", at, len(q))
			}
			complete(q, start, at) // skb_checksum_help
		}
		return [][]byte{q}, nil
	}
	start := int(m.ChecksumStart)
	if err := checkProtocol(p, m); err != nil {
		return nil, err
	}
	headers := start + 8
	if m.Type != packet.GSOUDP {
		headers = start + int(p[start+12]>>4)*4
	}
	if headers > len(p) {
		return nil, fmt.Errorf("headers of %d bytes in a packet of %d", headers, len(p))
	}
	payload := p[headers:]
	var out [][]byte
	for at := 0; at == 0 || at < len(payload); at += int(m.SegmentSize) {
		end := min(at+int(m.SegmentSize), len(payload))
		s := append(append([]byte(nil), p[:headers]...), payload[at:end]...)
		stamp(s, start, len(p)-start, m.Type, position{index: len(out), offset: at, last: end == len(payload)})
		out = append(out, s)
	}
	return out, nil
}

// checkProtocol says whether the packet has what its type promises.
func checkProtocol(p []byte, m packet.Meta) error {
	var proto byte
	var transport int
	switch p[0] >> 4 {
	case 4:
		proto, transport = p[9], int(p[0]&15)*4
	default: // extension headers are not played
		proto, transport = p[6], ipv6Len
	}
	want, version, sumAt := byte(protoTCP), byte(0), tcpSumAt
	switch m.Type {
	case packet.GSOTCP4:
		version = 4
	case packet.GSOTCP6:
		version = 6
	case packet.GSOUDP:
		want, sumAt = protoUDP, udpSumAt
	default:
		return fmt.Errorf("offload type %d", m.Type)
	}
	if proto != want || version != 0 && p[0]>>4 != version {
		return fmt.Errorf("offload type %d on IP version %d, protocol %d", m.Type, p[0]>>4, proto)
	}
	if !m.NeedsChecksum || m.SegmentSize == 0 || int(m.ChecksumStart) != transport || int(m.ChecksumOffset) != sumAt {
		return fmt.Errorf("%+v on a packet with its transport header at %d", m, transport)
	}
	if transport+ipv4Len > len(p) && m.Type != packet.GSOUDP || transport+8 > len(p) {
		return fmt.Errorf("transport header at %d in a packet of %d bytes", transport, len(p))
	}
	return nil
}

// A position is where a segment stands in its superpacket.
type position struct {
	index  int // segments before it
	offset int // payload bytes before it
	last   bool
}

// stamp turns a copy of the superpacket's headers into those of one segment (inet_gso_segment, tcp_gso_segment,
// __udp_gso_segment). oldLen is the length of the superpacket from its transport header on.
func stamp(s []byte, start, oldLen int, t packet.GSOType, pos position) {
	if s[0]>>4 == 4 {
		binary.BigEndian.PutUint16(s[2:], uint16(len(s)))
		binary.BigEndian.PutUint16(s[4:], binary.BigEndian.Uint16(s[4:])+uint16(pos.index))
		setIPv4Checksum(s)
	} else {
		binary.BigEndian.PutUint16(s[4:], uint16(len(s)-ipv6Len))
	}
	l4 := s[start:]
	sumAt := tcpSumAt
	if t == packet.GSOUDP {
		sumAt = udpSumAt
		oldLen = int(binary.BigEndian.Uint16(l4[4:]))
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	} else {
		binary.BigEndian.PutUint32(l4[4:], binary.BigEndian.Uint32(l4[4:])+uint32(pos.offset))
		if !pos.last {
			l4[13] &^= flagFIN | flagPSH
		}
		if pos.index > 0 {
			l4[13] &^= flagCWR
		}
	}
	// The pseudo header's sum stands in the checksum field: only its length changes.
	pseudo := uint64(binary.BigEndian.Uint16(l4[sumAt:])) + uint64(^uint16(oldLen)) + uint64(len(l4))
	binary.BigEndian.PutUint16(l4[sumAt:], fold(pseudo))
	complete(s, start, start+sumAt)
}

// complete puts the checksum over p[start:], whose field at holds the pseudo header's sum, into that field.
func complete(p []byte, start, at int) {
	s := ^fold(sum(p[start:]))
	if s == 0 && at-start == udpSumAt {
		s = 0xffff // RFC 768: zero means none
	}
	binary.BigEndian.PutUint16(p[at:], s)
}

// sum adds up b in 16-bit words (RFC 1071).
func sum(b []byte) uint64 {
	var s uint64
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// makePartial turns a complete TCP or UDP packet into the form that a pod on Linux sends: the sum of the pseudo header
// stands in the checksum field, and the metadata says what is missing. Other packets, fragments, and UDP without a
// checksum stay as they are.
func makePartial(p []byte) packet.Meta {
	var proto byte
	var start int
	var addresses []byte
	if p[0]>>4 == 4 {
		if binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
			return packet.Meta{}
		}
		proto, start, addresses = p[9], int(p[0]&15)*4, p[12:20]
	} else {
		proto, start, addresses = p[6], ipv6Len, p[8:40]
	}
	var sumAt int
	switch proto {
	case protoTCP:
		sumAt = tcpSumAt
	case protoUDP:
		sumAt = udpSumAt
	default:
		return packet.Meta{}
	}
	if start+sumAt+2 > len(p) || proto == protoUDP && binary.BigEndian.Uint16(p[start+sumAt:]) == 0 {
		return packet.Meta{}
	}
	pseudo := sum(addresses) + uint64(proto) + uint64(len(p)-start)
	binary.BigEndian.PutUint16(p[start+sumAt:], fold(pseudo))
	return packet.Meta{NeedsChecksum: true, ChecksumStart: uint16(start), ChecksumOffset: uint16(sumAt)}
}
