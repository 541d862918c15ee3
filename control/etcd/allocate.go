package etcd

import (
	"math/rand/v2"
	"net/netip"
)

// pick finds a pod CIDR in the range that is not taken; ok is false when there is none. It looks from start on, any
// number, and wraps around; so it ends after at most one step more than there are taken ones. Nodes that lease at the
// same time start at different places, so they seldom want the same one.
func pick(in netip.Prefix, length int, taken map[netip.Prefix]bool, start uint64) (p netip.Prefix, ok bool) {
	if length < in.Bits() || length-in.Bits() > maxBits {
		return netip.Prefix{}, false
	}
	n := uint64(1) << (length - in.Bits())
	for i := range min(n, uint64(len(taken))+1) {
		if p := nth(in, length, (start+i)%n); !taken[p] {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// nth is the part number i of the range, counted from 0, with prefixes of the given length.
func nth(in netip.Prefix, length int, i uint64) netip.Prefix {
	b := in.Addr().AsSlice()
	// The lowest bit of i goes to bit length-1, counted from the left.
	for bit := length - 1; bit >= in.Bits() && i > 0; bit-- {
		if i&1 == 1 {
			b[bit/8] |= 0x80 >> (bit % 8)
		}
		i >>= 1
	}
	a, _ := netip.AddrFromSlice(b) // as long as it was
	return netip.PrefixFrom(a, length)
}

// pickAny tries the ranges of one family in their order.
func pickAny(s *Settings, is4 bool, taken map[netip.Prefix]bool) (netip.Prefix, bool) {
	for _, r := range s.Ranges {
		if r.Addr().Is4() != is4 {
			continue
		}
		// Taken ones of other lengths cannot be: the settings never change.
		if p, ok := pick(r, s.nodePrefix(r), taken, rand.Uint64()); ok {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
