package checksum

import (
	"math/bits"

	"golang.org/x/sys/cpu"
)

const (
	// minVector is the length in bytes from which the vector code is the faster one.
	minVector = 64
	// leastBlock is the shortest input of sumAVX2.
	leastBlock = 32
	// mostBlock is the longest one: with it, no 32-bit lane of a sum overflows.
	mostBlock = 1 << 16
)

// hasVector reports whether vectorSum may be called: the processor and the operating system know AVX2.
func hasVector() bool { return cpu.X86.HasAVX2 }

// vectorSum is Sum for input of any length.
func vectorSum(initial uint16, b []byte) uint16 {
	// The sum of byte-swapped words is the byte-swapped sum (RFC 1071 section 2 (B)), so words are added up as this
	// machine loads them.
	sum := uint64(bits.ReverseBytes16(initial))
	for len(b) >= leastBlock {
		n := min(len(b)&^1, mostBlock)
		sum += sumAVX2(&b[0], n)
		b = b[n:]
	}
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	folded := bits.ReverseBytes16(uint16(sum))
	switch len(b) {
	case 0:
		return folded
	case 1:
		sum := uint32(folded) + uint32(b[0])<<8
		return uint16(sum>>16 + sum)
	}
	return scalarSum(folded, b)
}

// sumAVX2 returns the sum of the n/2 little-endian words at p; not folded, so it is at most 2^31. n is even, at least
// leastBlock and at most mostBlock. The caller sees to hasVector.
//
//go:noescape
func sumAVX2(p *byte, n int) uint64
