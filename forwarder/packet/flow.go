package packet

import "encoding/binary"

// FlowHash is a number that both directions of a flow share: of the addresses, and of the ports of TCP and UDP. Packets
// without ports, fragments, and packets with options or extension headers hash by their addresses alone, so that a
// flow's fragments at least stay together.
func (i *Info) FlowHash() uint32 {
	var x uint32
	if i.Version == 4 {
		s, d := i.Src.As4(), i.Dst.As4()
		x = binary.BigEndian.Uint32(s[:]) ^ binary.BigEndian.Uint32(d[:])
	} else {
		s, d := i.Src.As16(), i.Dst.As16()
		for k := 0; k < 16; k += 4 {
			x ^= binary.BigEndian.Uint32(s[k:]) ^ binary.BigEndian.Uint32(d[k:])
		}
	}
	if i.Flags&(HasPorts|Fragment|HasOptions) == HasPorts {
		x ^= uint32(i.SrcPort ^ i.DstPort)
	}
	return x * flowHashFactor >> 16
}

// flowHashFactor spreads the differences between flows over the upper bits (Knuth's multiplicative hash, 2^32 divided
// by the golden ratio).
const flowHashFactor = 0x9E3779B1
