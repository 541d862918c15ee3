package forwarder

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/warren-net/warren/forwarder/packet"
)

// A prefixRoute is a prefix and what it leads to, in the form that sorts and compares fast.
type prefixRoute struct {
	hi, lo uint64 // the address, see packet.AddrWords
	bits   int    // of the prefix
	target target
}

// An lpmBuilder takes prefixes in any order and makes an lpm of them. The zero value is ready.
type lpmBuilder struct {
	v4, v6 []prefixRoute
	slots  []entry
}

// reserve makes room for all prefixes of spec.
func (b *lpmBuilder) reserve(spec *Spec) {
	n4, n6 := 0, 0
	count := func(is4 bool) {
		if is4 {
			n4++
		} else {
			n6++
		}
	}
	for _, p := range spec.Peers {
		for k := range p.PodCIDRs {
			count(p.PodCIDRs[k].Addr().Is4())
		}
		count(p.Endpoint.Addr().Is4())
		for k := range p.NodeAddrs {
			count(p.NodeAddrs[k].Is4())
		}
	}
	b.v4, b.v6 = make([]prefixRoute, 0, n4), make([]prefixRoute, 0, n6)
}

// add takes a prefix. It must be masked and not in IPv4-mapped form.
func (b *lpmBuilder) add(p netip.Prefix, t target) error {
	if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
		return fmt.Errorf("prefix %v: want a masked prefix, not in IPv4-mapped form", p)
	}
	hi, lo := packet.AddrWords(p.Addr())
	r := prefixRoute{hi, lo, p.Bits(), t}
	if p.Addr().Is4() {
		b.v4 = append(b.v4, r)
	} else {
		b.v6 = append(b.v6, r)
	}
	return nil
}

// A twoOwners says that a prefix was added with two targets.
type twoOwners struct {
	prefix netip.Prefix
	a, b   target
}

// unique leaves one route of each prefix. A hole gives way to another target of the same prefix; what else has two
// targets is returned.
func (b *lpmBuilder) unique() (clash *twoOwners) {
	if b.v4, clash = unique(b.v4, 32); clash == nil {
		b.v6, clash = unique(b.v6, 128)
	}
	return clash
}

// build makes the lpm of routes that are unique.
func (b *lpmBuilder) build() (lpm, error) {
	var t lpm
	b.slots = make([]entry, 0, 2*(len(b.v4)+len(b.v6))+64) // what dense ranges need; sparse ones make it grow
	t.root4 = b.sub(b.v4, 0, nowhere)
	t.root6 = b.sub(b.v6, 0, nowhere)
	if len(b.slots) > maxSlots {
		return lpm{}, fmt.Errorf("%d routes: the table would have %d slots, want at most %d", len(b.v4)+len(b.v6),
			len(b.slots), maxSlots)
	}
	t.slots = slices.Clone(b.slots) // without what growing left
	return t, nil
}

// unique sorts the routes, a prefix before those that it contains, and leaves one of each prefix.
func unique(routes []prefixRoute, width int) ([]prefixRoute, *twoOwners) {
	slices.SortFunc(routes, func(a, b prefixRoute) int {
		switch {
		case a.hi != b.hi:
			return cmp.Compare(a.hi, b.hi)
		case a.lo != b.lo:
			return cmp.Compare(a.lo, b.lo)
		}
		return a.bits - b.bits
	})
	out := routes[:0]
	for _, r := range routes {
		if len(out) == 0 || out[len(out)-1].hi != r.hi || out[len(out)-1].lo != r.lo || out[len(out)-1].bits != r.bits {
			out = append(out, r)
			continue
		}
		last := &out[len(out)-1]
		switch {
		case last.target.kind() == kindHole:
			last.target = r.target
		case r.target.kind() != kindHole && r.target != last.target:
			return nil, &twoOwners{r.prefix(width), last.target, r.target}
		}
	}
	return out, nil
}

// prefix is the route's prefix, of an address of width bits.
func (r *prefixRoute) prefix(width int) netip.Prefix {
	var b [16]byte
	for k := range b {
		word := r.hi
		if k >= 8 {
			word = r.lo
		}
		b[k] = byte(word >> (56 - k%8*8))
	}
	a := netip.AddrFrom16(b)
	if width == 32 {
		a = netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.PrefixFrom(a, r.bits)
}

// sub makes the trie for routes and returns the entry that leads to it. The routes are as unique leaves them; they all
// agree in the first depth bits and have at least as many. other is what holds where none of them does.
func (b *lpmBuilder) sub(routes []prefixRoute, depth int, other entry) entry {
	if len(routes) > 0 && routes[0].bits == depth {
		other = entryTarget | entry(routes[0].target)
		routes = routes[1:]
	}
	if len(routes) == 0 {
		return other
	}
	// A route that contains another comes before it, so none but the first can be shorter than what all have in common.
	first := &routes[0]
	common := min(first.bits, commonBits(first, &routes[len(routes)-1]))
	if depth < 64 {
		common = min(common, 64) // no node is about bits of both words
	}
	if common-depth < leastStride {
		return b.branch(routes, depth, other)
	}
	return b.compare(routes, depth, common, other)
}

// compare makes a node that compares the bits from depth to common, in which the routes agree.
func (b *lpmBuilder) compare(routes []prefixRoute, depth, common int, other entry) entry {
	at := len(b.slots)
	b.slots = append(b.slots, make([]entry, compareSlots)...)
	then := b.sub(routes, common, other)
	mask := ^(^uint64(0) >> (common - depth))
	want := routes[0].from(depth) & mask
	n := b.slots[at:]
	n[compareElse], n[compareThen], n[compareBits] = other, then, entry(common-depth)
	if common == 64 {
		n[compareTurn] = 1
	}
	n[compareWant], n[compareWant+1] = entry(want>>32), entry(want&0xffffffff)
	n[compareMask], n[compareMask+1] = entry(mask>>32), entry(mask&0xffffffff)
	return entryCompare | entry(at/slotUnit)
}

// branch makes a node that branches.
func (b *lpmBuilder) branch(routes []prefixRoute, depth int, other entry) entry {
	stride := strideOf(routes, depth)
	at := len(b.slots)
	b.slots = append(b.slots, make([]entry, max(1<<stride, slotUnit))...)
	for k := range b.slots[at:] {
		b.slots[at+k] = other
	}
	slotOf := func(r *prefixRoute) int { return int(r.from(depth) >> (64 - stride)) }
	for len(routes) > 0 {
		r := &routes[0]
		slot := slotOf(r)
		if r.bits < depth+stride {
			// It fills slots; those within it come later and take theirs back.
			for k := range 1 << (depth + stride - r.bits) {
				b.slots[at+slot+k] = entryTarget | entry(r.target)
			}
			routes = routes[1:]
			continue
		}
		end := 1
		for end < len(routes) && slotOf(&routes[end]) == slot {
			end++
		}
		e := b.child(routes[:end], depth+stride, b.slots[at+slot])
		b.slots[at+slot] = e
		routes = routes[end:]
	}
	return entry(stride<<strideShift | at/slotUnit)
}

// child makes what a slot of a branch leads to; as sub, but that it may be at the end of the first word.
func (b *lpmBuilder) child(routes []prefixRoute, depth int, other entry) entry {
	if depth == 64 && len(routes) > 0 && routes[len(routes)-1].bits > 64 {
		return b.compare(routes, 64, 64, other) // nothing: it turns to the second word
	}
	return b.sub(routes, depth, other)
}

// Strides are chosen so that steps are few and slots not too many: a node has at most slotsPerRoute for each route that
// has one of its own, or those of leastStride. Beyond leastStride a comparison is the smaller node.
const (
	leastStride   = 4
	slotsPerRoute = 4
)

// strideOf is the number of bits that a node at depth for routes should branch by.
func strideOf(routes []prefixRoute, depth int) int {
	end := 64
	if depth >= 64 {
		end = 128
	}
	// differ[k] is the number of routes that part from the one before them at the k-th bit.
	var differ [maxStride]int
	longest := 0
	for k := range routes {
		longest = max(longest, routes[k].bits)
		if k > 0 {
			if at := commonBits(&routes[k-1], &routes[k]) - depth; at < maxStride {
				differ[at]++
			}
		}
	}
	stride, used := 1, 1
	for s := 1; s <= min(maxStride, longest-depth, end-depth); s++ {
		if used += differ[s-1]; s <= leastStride || 1<<s <= used*slotsPerRoute {
			stride = s
		}
	}
	return stride
}

// from is the rest of the address's word from bit depth on.
func (r *prefixRoute) from(depth int) uint64 {
	if depth < 64 {
		return r.hi << depth
	}
	return r.lo << (depth - 64)
}

// commonBits is how many bits two addresses agree in from the first one on.
func commonBits(a, b *prefixRoute) int {
	if differ := a.hi ^ b.hi; differ != 0 {
		return bits.LeadingZeros64(differ)
	}
	return 64 + bits.LeadingZeros64(a.lo^b.lo)
}
