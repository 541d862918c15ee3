package packet

import "encoding/binary"

// MaxSegments is the largest number of segments of one superpacket. Linux makes no TCP segment with less than 8 bytes
// of payload (TCP_MIN_GSO_SIZE) and no more than 128 datagrams of one USO send, so more of them is metadata that lies.
const MaxSegments = 8192

// Bits of byte 13 of the TCP header (RFC 9293 section 3.1, RFC 3168 section 6.1).
const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
	tcpURG
	tcpECE
	tcpCWR
)

// ChecksumMode says what Segment writes into the transport checksum field of each segment.
type ChecksumMode uint8

// What a Segments writes into the transport checksum field.
const (
	ChecksumFull    ChecksumMode = iota // the final checksum: the payload is summed
	ChecksumPartial                     // the segment's pseudo header sum, for whoever completes it later (see Meta)
)

// Segments is a superpacket cut into segments, or a lone packet as its only segment, without moving the payload: the
// k-th segment is Header(k) followed by Payload(k). The zero value is ready; it is reused from superpacket to
// superpacket. Payloads are parts of the packet given to Segment, and headers lie in the Arena, so both stay valid when
// the Segments is used again: until the packet's buffer is reused, or the Arena is reset.
type Segments struct {
	// Arena stores the headers. With nil the Segments has storage of its own, which the next Segment call overwrites.
	Arena *Arena
	// Checksum is what becomes of the transport checksums.
	Checksum ChecksumMode

	own     Arena
	headers []byte // n headers of headerLen bytes
	packet  []byte
	n       int
	prefix  int // bytes of prefix in each header
	header  int // bytes of each header, prefix included
	start   int // offset of the first payload byte in packet
	size    int // payload bytes of each segment but the last
}

// N is the number of segments, 0 after Segment refused the packet.
func (s *Segments) N() int { return s.n }

// HeaderLen is the length in bytes of each segment's header: prefix, IP and transport header; of a lone packet the
// prefix alone, as its own headers stay where they are.
func (s *Segments) HeaderLen() int { return s.header }

// Header is the k-th segment's header, k < N. It is the caller's to change until the Arena is reset.
func (s *Segments) Header(k int) []byte {
	end := (k + 1) * s.header
	return s.headers[end-s.header : end : end]
}

// Payload is the k-th segment's payload, k < N: for a lone packet the whole packet.
func (s *Segments) Payload(k int) []byte {
	start := s.start + k*s.size
	return s.packet[start:min(start+s.size, len(s.packet))]
}

// Together is the k-th segment in one piece: its header is written over the bytes before its payload, which are the end
// of the segment before it. So segments are asked for in order, each once, and one is gone when the next one is asked
// for. Segment must have had no prefix.
func (s *Segments) Together(k int) []byte {
	at := s.start + k*s.size - s.header
	p := s.packet[at:min(at+s.header+s.size, len(s.packet))]
	copy(p, s.Header(k))
	return p
}

// Segment cuts the superpacket p, of which Parse read i and whose offload metadata is m. Each segment's header begins
// with prefix, which is opaque: the encapsulation's headers. Bytes of p beyond i.Len are left out.
//
// Segments are what Linux would make (inet_gso_segment, tcp_gso_segment, __udp_gso_segment): FIN and PSH on the last
// one only, CWR on the first one only, IPv4 IDs counting up from the superpacket's, complete IPv4 header checksums. p
// is changed only when it is a lone packet with NeedsChecksum, whose checksum is completed in place.
//
// m is not trusted: it is ErrGSO when it does not fit the packet. The kernel's own header length is not asked for, as
// it is wrong for forwarded packets.
func (s *Segments) Segment(p []byte, i *Info, m Meta, prefix []byte) Error {
	s.n = 0
	if int(i.Len) > len(p) {
		return ErrTruncated
	}
	p = p[:i.Len]
	arena := s.Arena
	if arena == nil {
		arena = &s.own
		arena.Reset()
	}
	s.packet, s.prefix = p, len(prefix)
	if m.Type == GSONone {
		if m.NeedsChecksum && !s.completeLone(p, i, m) {
			return ErrGSO
		}
		s.n, s.header, s.start, s.size = 1, len(prefix), 0, len(p)
		s.headers = arena.take(s.header)
		copy(s.headers, prefix)
		return OK
	}

	n := CountSegments(p, i, m)
	if n == 0 {
		return ErrGSO
	}
	s.n, s.start, s.size = n, i.HeaderLen(), int(m.SegmentSize)
	s.header = len(prefix) + s.start
	s.headers = arena.take(n * s.header)
	copy(s.headers, prefix)
	copy(s.headers[len(prefix):], p[:s.start])
	// All headers begin as copies of the first one. Doubling the copied part needs 6 calls for 45 headers.
	for done := s.header; done < len(s.headers); done *= 2 {
		copy(s.headers[done:], s.headers[:done])
	}
	s.stampIP(i)
	if i.Proto == protoTCP {
		s.stampTCP(i)
	} else {
		s.stampUDP(i)
	}
	return OK
}

// completeLone completes the checksum of a lone packet if that is wanted, and reports whether m fits the packet.
func (s *Segments) completeLone(p []byte, i *Info, m Meta) bool {
	// A checksum cannot be left to be completed over a fragment, as it covers the other fragments too.
	if i.Is(Fragment) || m.ChecksumStart < i.L4 || !checksumFieldInside(p, m) {
		return false
	}
	if m.ChecksumStart == i.L4 && (i.Proto == protoTCP && m.ChecksumOffset != tcpChecksumOffset ||
		i.Proto == protoUDP && m.ChecksumOffset != udpChecksumOffset) {
		return false
	}
	return s.Checksum == ChecksumPartial || CompleteChecksum(p, m)
}

// CountSegments returns the number of segments of the superpacket p, or 0 when m does not fit it.
func CountSegments(p []byte, i *Info, m Meta) int {
	var proto uint8
	var l4min, offset uint16
	switch m.Type {
	case GSOTCP4, GSOTCP6:
		proto, l4min, offset = protoTCP, tcpHeaderLen, tcpChecksumOffset
	case GSOUDP:
		proto, l4min, offset = protoUDP, udpHeaderLen, udpChecksumOffset
	default:
		return 0
	}
	l3min := uint16(ipv4HeaderLen)
	if i.Version == 6 {
		l3min = ipv6HeaderLen
	}
	payload := len(p) - i.HeaderLen()
	switch {
	case m.Type == GSOTCP4 && i.Version != 4, m.Type == GSOTCP6 && i.Version != 6:
		return 0
	case i.Proto != proto, i.L4 < l3min, i.L4Len < l4min, i.Is(Fragment), payload <= 0:
		return 0
	case !m.NeedsChecksum, m.ChecksumStart != i.L4, m.ChecksumOffset != offset, m.SegmentSize == 0:
		return 0
	case proto == protoUDP && int(binary.BigEndian.Uint16(p[i.L4+4:])) != len(p)-int(i.L4):
		return 0
	}
	n := (payload + int(m.SegmentSize) - 1) / int(m.SegmentSize)
	// SYN takes a sequence number of its own and RST ends the connection: neither can be on several segments.
	if n > MaxSegments || n > 1 && i.TCPFlags&(tcpSYN|tcpRST) != 0 {
		return 0
	}
	return n
}

// inner is the k-th segment's header without the prefix.
func (s *Segments) inner(k int) []byte {
	end := (k + 1) * s.header
	return s.headers[end-s.header+s.prefix : end]
}

// stampIP writes what differs between the segments' IP headers.
func (s *Segments) stampIP(i *Info) {
	if i.Version == 6 {
		for k := range s.n {
			h := s.inner(k)
			binary.BigEndian.PutUint16(h[4:], uint16(len(h)+len(s.Payload(k))-ipv6HeaderLen))
		}
		return
	}
	first := s.inner(0)[:i.L4]
	id := binary.BigEndian.Uint16(first[4:])
	// The sum of what all have in common: all but total length, ID and checksum.
	common := uint32(binary.BigEndian.Uint16(first)) + uint32(sumHeader(first[6:10])) + uint32(sumHeader(first[12:]))
	for k := range s.n {
		h := s.inner(k)
		length := uint16(len(h) + len(s.Payload(k)))
		binary.BigEndian.PutUint16(h[2:], length)
		binary.BigEndian.PutUint16(h[4:], id)
		binary.BigEndian.PutUint16(h[10:], ^fold(common+uint32(length)+uint32(id)))
		id++
	}
}

// pseudo is the sum of the superpacket's pseudo header without its length. The checksum field of l4 holds the sum with
// the length. Taking it from there, as Linux does, is right behind an IPv6 routing header too, where the pseudo header
// has another destination than the IP header.
func (s *Segments) pseudo(i *Info, l4 []byte, offset int) uint32 {
	length := len(s.packet) - int(i.L4)
	return uint32(fold(uint32(binary.BigEndian.Uint16(l4[offset:])) + uint32(^uint16(length))))
}

// stampTCP writes what differs between the segments' TCP headers.
func (s *Segments) stampTCP(i *Info) {
	l4 := s.inner(0)[i.L4:]
	pseudo := s.pseudo(i, l4, tcpChecksumOffset)
	// What all have in common: ports, acknowledgement, window and options.
	common := pseudo + uint32(sumHeader(l4[:4])) + uint32(sumHeader(l4[8:12])) +
		uint32(binary.BigEndian.Uint16(l4[14:])) + uint32(sumHeader(l4[20:]))
	seq := binary.BigEndian.Uint32(l4[4:])
	flags := binary.BigEndian.Uint16(l4[12:]) // data offset and flags
	urgent := binary.BigEndian.Uint16(l4[18:])
	for k := range s.n {
		h, payload := s.inner(k)[i.L4:], s.Payload(k)
		f, u := flags, urgent
		if k > 0 {
			f &^= tcpCWR
			f, u = urgentAt(f, u, k*s.size)
		}
		if k < s.n-1 {
			f &^= tcpFIN | tcpPSH
		}
		binary.BigEndian.PutUint32(h[4:], seq)
		binary.BigEndian.PutUint16(h[12:], f)
		binary.BigEndian.PutUint16(h[18:], u)
		length := uint32(len(h) + len(payload))
		var check uint16
		if s.Checksum == ChecksumFull {
			sum := common + length + seq>>16 + seq&0xffff + uint32(f) + uint32(u)
			check = ^fold(sum + uint32(Sum(0, payload)))
		} else {
			check = fold(pseudo + length)
		}
		binary.BigEndian.PutUint16(h[tcpChecksumOffset:], check)
		seq += uint32(s.size)
	}
}

// urgentAt returns flags and urgent pointer of a segment that begins at payload offset at of a superpacket. The pointer
// counts from the segment's own sequence number (RFC 9293 section 3.1).
func urgentAt(flags, urgent uint16, at int) (uint16, uint16) {
	if flags&tcpURG == 0 {
		return flags, urgent
	}
	if int(urgent) <= at {
		return flags &^ tcpURG, 0
	}
	return flags, urgent - uint16(at)
}

// stampUDP writes what differs between the segments' UDP headers.
func (s *Segments) stampUDP(i *Info) {
	l4 := s.inner(0)[i.L4:]
	pseudo := s.pseudo(i, l4, udpChecksumOffset)
	ports := uint32(sumHeader(l4[:4]))
	for k := range s.n {
		h, payload := s.inner(k)[i.L4:], s.Payload(k)
		length := uint16(len(h) + len(payload))
		binary.BigEndian.PutUint16(h[4:], length)
		var check uint16
		if s.Checksum == ChecksumFull {
			check = ^fold(pseudo + ports + 2*uint32(length) + uint32(Sum(0, payload)))
			if check == 0 {
				check = 0xffff // 0 means "no checksum" (RFC 768)
			}
		} else {
			check = fold(pseudo + uint32(length))
		}
		binary.BigEndian.PutUint16(h[udpChecksumOffset:], check)
	}
}
