package packet

import (
	"bytes"
	"encoding/binary"
)

// addNext adds p when it goes on with the run of the packet before, and reports whether it did. Otherwise nothing has
// changed but what info says, and p is to be added as any other.
//
// Most packets of a batch are such, and take no parsing and no search: info says of them what it said of the packet
// before, but for the length and the TCP flags, when they follow.
func (c *Coalescer) addNext(p []byte, tag int32) bool {
	slot, i := c.latest-1, &c.info
	r := &c.runs[c.open[slot].run]
	if r.Tag != tag || len(p) <= i.HeaderLen() {
		return false
	}
	n := int(binary.BigEndian.Uint16(p[2:]))
	if i.Version == 6 {
		n = ipv6HeaderLen + int(binary.BigEndian.Uint16(p[4:]))
	}
	if n <= i.HeaderLen() || n > min(len(p), MaxPacket) {
		return false
	}
	// What most often tells another flow, so that packets of many flows lose little here.
	if binary.BigEndian.Uint32(p[i.L4:]) != uint32(i.SrcPort)<<16|uint32(i.DstPort) {
		return false
	}
	p = p[:n:n]
	i.Len = uint16(n)
	if i.Proto == protoTCP {
		i.TCPFlags = p[i.L4+13]
	}
	if !c.mayJoin(p, i) || !c.follows(r, p, i) || !c.verifyFirst(r) || !c.verify(p, i) {
		return false
	}
	c.join(r, slot, p, i)
	return true
}

// What the packets of a run have in common in the first two words of an IPv4 header, all but the total length, the ID
// and the checksum; in the first one of an IPv6 header, all but the payload length; and in the word at byte 8 of a TCP
// header, all but the flags of which the run's superpacket has all. Words are little-endian.
const (
	sameIPv4First  = 0xffff_0000_0000_ffff
	sameIPv4Second = 0xffff_ffff_0000_ffff
	sameIPv6       = 0xffff_0000_ffff_ffff
	sameTCP        = ^uint64((tcpPSH | tcpFIN) << 40)
)

// differ is the bits in which 8 bytes of a and b differ.
func differ(a, b []byte) uint64 { return binary.LittleEndian.Uint64(a) ^ binary.LittleEndian.Uint64(b) }

// follows reports whether p, which mayJoin and has r's ports, goes on where r ends, apart from its checksums. Of i it
// takes where the headers are and how long p is; it compares all else, addresses too.
func (c *Coalescer) follows(r *Run, p []byte, i *Info) bool {
	payload, most := int(i.Len)-i.HeaderLen(), c.opts.MaxSegments
	if i.Proto == protoUDP {
		most = c.opts.MaxDatagrams
	}
	if payload > int(r.size) || r.Bytes+payload > c.opts.MaxBytes || r.Segments >= most ||
		r.Info.L4 != i.L4 || r.Info.L4Len != i.L4Len {
		return false
	}
	first := c.pieces[r.head].b
	if i.Version == 4 {
		a, b := first[:ipv4HeaderLen], p[:ipv4HeaderLen]
		if differ(a, b)&sameIPv4First|differ(a[8:], b[8:])&sameIPv4Second != 0 || [4]byte(a[16:]) != [4]byte(b[16:]) {
			return false
		}
		step := binary.BigEndian.Uint16(p[4:]) - r.id
		if r.Segments == 1 {
			r.idStep = step
			if step != 1 && !(step == 0 && i.Is(DontFragment)) {
				return false
			}
		}
		if step != r.idStep {
			return false
		}
	} else {
		a, b := first[:ipv6HeaderLen], p[:ipv6HeaderLen]
		if differ(a, b)&sameIPv6|differ(a[8:], b[8:])|differ(a[16:], b[16:])|
			differ(a[24:], b[24:])|differ(a[32:], b[32:]) != 0 {
			return false
		}
	}
	if i.Proto != protoTCP {
		return true
	}
	a, b := first[i.L4:i.HeaderLen()], p[i.L4:i.HeaderLen()]
	// Acknowledgement, data offset, flags and window; then urgent pointer and options.
	return binary.BigEndian.Uint32(b[4:]) == r.seq && differ(a[8:], b[8:])&sameTCP == 0 && bytes.Equal(a[18:], b[18:])
}
