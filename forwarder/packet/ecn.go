package packet

import "encoding/binary"

// ECNMask is the part of an IPv4 TOS or IPv6 traffic class byte that is the ECN field; the rest is the DSCP.
const ECNMask = 0x03

// The ECN codepoints (RFC 3168 section 5).
const (
	ecnNotECT = 0
	ecnECT1   = 1
	ecnECT0   = 2
	ecnCE     = 3
)

// EncapTOS returns the outer header's TOS or traffic class for an inner packet: the ECN field is copied (RFC 6040
// section 4.1, normal mode) and so is the DSCP (the uniform model of RFC 2983 section 3), so that the underlay treats
// pod traffic as the pod marked it.
func EncapTOS(inner uint8) (outer uint8) { return inner }

// DecapECN returns what the inner packet's TOS or traffic class becomes after the outer header is taken off, as figure
// 4 of RFC 6040 has it. The DSCP stays the inner one: what the underlay made of the outer one is the underlay's. drop
// means that the packet must go: congestion was experienced, and the pod's transport does not understand the mark.
func DecapECN(inner, outer uint8) (tos uint8, drop bool) {
	in, out := inner&ECNMask, outer&ECNMask
	switch {
	case out == ecnCE:
		if in == ecnNotECT {
			return inner, true
		}
		return inner | ecnCE, false
	case out == ecnECT1 && in == ecnECT0:
		return inner&^ECNMask | ecnECT1, false
	}
	return inner, false
}

// SetTOS writes tos into the IPv4 TOS or IPv6 traffic class of p and of i, which is what Parse read of p. The IPv4
// header checksum is updated, not computed anew (RFC 1624): one that was wrong stays wrong. Of p only the first 12
// bytes must be there.
func SetTOS(p []byte, i *Info, tos uint8) {
	if len(p) < 12 || tos == i.TOS {
		return
	}
	i.TOS = tos
	if i.Version == 6 {
		p[0] = p[0]&0xf0 | tos>>4
		p[1] = p[1]&0x0f | tos<<4
		return
	}
	before := binary.BigEndian.Uint16(p[0:2])
	p[1] = tos
	check := Update16(binary.BigEndian.Uint16(p[10:12]), before, before&0xff00|uint16(tos))
	binary.BigEndian.PutUint16(p[10:12], check)
}
