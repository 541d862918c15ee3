package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// This file builds packets of every kind that parsing and the single-packet operations meet, byte by byte and without
// the code under test. naiveSpec in naive_test.go builds the TCP and UDP packets of segmentation and coalescing.

// extension is an IPv6 extension header: its body is what follows the next header byte.
type extension struct {
	proto byte
	body  []byte
}

// Extension headers of 8 bytes, PadN options inside where there are options.
func hopByHop() extension    { return extension{0, []byte{0, 1, 4, 0, 0, 0, 0}} }
func routing() extension     { return extension{43, []byte{0, 4, 0, 0, 0, 0, 0}} } // segments left: 0
func destOptions() extension { return extension{60, []byte{1, 1, 12, 14: 0}} }     // 16 bytes
func authHeader() extension  { return extension{51, []byte{4, 22: 1}} }            // 24 bytes

// fragmentHeader has its offset in bytes.
func fragmentHeader(offset uint16, more bool) extension {
	word := offset &^ 7
	if more {
		word |= 1
	}
	return extension{44, []byte{0, byte(word >> 8), byte(word), 0, 0, 0, 9}}
}

// ipSpec describes an IP packet; data is all that comes after the IP header and the extension headers. The zero values
// of src, dst and ttl stand for addresses of pods and 64.
type ipSpec struct {
	v6       bool
	src, dst string
	proto    byte
	tos, ttl byte
	id, frag uint16 // IPv4; frag: flags and offset
	options  []byte // IPv4, a multiple of 4 bytes
	ext      []extension
	data     []byte
}

func (s ipSpec) addresses() (src, dst netip.Addr) {
	if s.src == "" {
		s.src = "10.244.1.2"
		if s.v6 {
			s.src = "fd00:10:244:1::2"
		}
	}
	if s.dst == "" {
		s.dst = "10.244.2.3"
		if s.v6 {
			s.dst = "fd00:10:244:2::3"
		}
	}
	return netip.MustParseAddr(s.src), netip.MustParseAddr(s.dst)
}

// build makes the packet; the checksum of a known transport is complete, over this packet's data.
func (s ipSpec) build() []byte {
	src, dst := s.addresses()
	if s.ttl == 0 {
		s.ttl = 64
	}
	data := slices.Clone(s.data)
	if at := checksumAt(s.proto); at > 0 && len(data) >= at+2 {
		pseudo := append(src.AsSlice(), dst.AsSlice()...)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(data)))
		pseudo = append(pseudo, 0, 0, 0, s.proto)
		if s.proto == 1 {
			pseudo = nil
		}
		data[at], data[at+1] = 0, 0
		binary.BigEndian.PutUint16(data[at:], ^naiveSum(pseudo, data))
	}
	if s.v6 {
		p := binary.BigEndian.AppendUint32(nil, 6<<28|uint32(s.tos)<<20|0xabcde)
		p = append(p, 0, 0, s.proto, s.ttl)
		p = append(append(p, src.AsSlice()...), dst.AsSlice()...)
		next := 6 // where the protocol of the next header stands
		for _, e := range s.ext {
			p[next], next = e.proto, len(p)
			p = append(append(p, s.proto), e.body...)
		}
		p = append(p, data...)
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		return p
	}
	p := []byte{0x45 + byte(len(s.options)/4), s.tos, 0, 0}
	p = binary.BigEndian.AppendUint16(p, s.id)
	p = binary.BigEndian.AppendUint16(p, s.frag)
	p = append(p, s.ttl, s.proto, 0, 0)
	p = append(append(append(p, src.AsSlice()...), dst.AsSlice()...), s.options...)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)+len(data)))
	binary.BigEndian.PutUint16(p[10:], ^naiveSum(p))
	return append(p, data...)
}

// checksumAt is where in a transport header the checksum stands, or 0.
func checksumAt(proto byte) int {
	switch proto {
	case 6:
		return 16
	case 17:
		return 6
	case 1, 58:
		return 2
	}
	return 0
}

// tcpData is a TCP segment from port 40000 to 443; options is a multiple of 4 bytes.
func tcpData(flags byte, options []byte, payload int) []byte {
	t := []byte{0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 2, byte(20+len(options)) << 2, flags, 0xff, 0xff, 0, 0, 0, 0}
	return append(append(t, options...), filler(payload)...)
}

// udpData is a UDP datagram from port 40000 to 53.
func udpData(payload int) []byte {
	t := binary.BigEndian.AppendUint16([]byte{0x9c, 0x40, 0, 53}, uint16(8+payload))
	return append(append(t, 0, 0), filler(payload)...)
}

// icmpData is an ICMP or ICMPv6 message.
func icmpData(typ, code byte, payload int) []byte {
	return append([]byte{typ, code, 0, 0, 0, 7, 0, 1}, filler(payload)...)
}

// filler is n bytes that differ from their neighbours.
func filler(n int) []byte {
	b := make([]byte, n)
	for k := range b {
		b[k] = byte(k*7 + k>>8)
	}
	return b
}

// infoOf is what Parse reads of p, which must be good.
func infoOf(p []byte) *Info {
	i := new(Info)
	if e := Parse(p, i); e != OK {
		panic("a packet of the test is bad: " + e.Error())
	}
	return i
}

// be16 is a word of a header.
func be16(b []byte) int { return int(binary.BigEndian.Uint16(b)) }
