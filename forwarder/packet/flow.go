package packet

// FlowHash is a number that both directions of a flow share: of the addresses, and of the ports of TCP and UDP. Packets
// without ports, fragments, and packets with options or extension headers hash by their addresses alone, so that a
// flow's fragments at least stay together.
func (i *Info) FlowHash() uint32 {
	srcHigh, srcLow := AddrWords(i.Src)
	dstHigh, dstLow := AddrWords(i.Dst)
	y := srcHigh ^ dstHigh ^ srcLow ^ dstLow
	x := uint32(y>>32) ^ uint32(y)
	if i.Flags&(HasPorts|Fragment|HasOptions) == HasPorts {
		x ^= uint32(i.SrcPort ^ i.DstPort)
	}
	return x * flowHashFactor >> 16
}

// flowHashFactor spreads the differences between flows over the upper bits (Knuth's multiplicative hash, 2^32 divided
// by the golden ratio).
const flowHashFactor = 0x9E3779B1
