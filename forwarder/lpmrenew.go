package forwarder

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// A renewer makes the next lpm from the last one, for a few prefixes that have come, gone or changed their target. What
// is not about them stays where it is: new nodes are appended to the slots that the last lpm has a part of, and nothing
// that it reads is written to. A change costs a copy of each node on the way to it; several in one call share those.
type renewer struct {
	routes bart.Table[target] // what is to be found, all of it
	build  lpmBuilder         // its slots are the last lpm's and those that are new
	kept   int                // slots that the last lpm that was made whole had
	shared int                // slots that the last lpm has a part of; nobody else reads those behind them yet
}

// When the slots that nothing leads to any more are so many times those that were needed, and so many more, all are
// made anew. Until then the shape of the trie is that of earlier routes, which is as right and less good.
const (
	renewShare = 4
	renewRoom  = 1 << 18
)

// fill takes the routes of a snapshot in, all of which its lpm finds.
func (r *renewer) fill(s *Snapshot) {
	for _, c := range s.cluster {
		r.routes.Insert(c, newTarget(kindHole, 0))
	}
	for _, c := range s.pods {
		r.routes.Insert(c, newTarget(kindPod, 0))
	}
	for _, a := range s.self {
		r.routes.Insert(host(a), newTarget(kindSelf, 0))
	}
	for p := range s.Peers() {
		for c := range p.prefixes() {
			r.routes.Insert(c, newTarget(kindPeer, int(p.Index)))
		}
	}
	r.build.slots, r.kept = s.routes.slots, len(s.routes.slots)
}

// renew makes the lpm that finds r.routes from the last one, which found the same but for the prefixes in changed.
func (r *renewer) renew(last lpm, changed []netip.Prefix) (lpm, error) {
	if len(r.build.slots) > renewShare*r.kept+renewRoom {
		return r.whole()
	}
	next := last
	r.shared = len(r.build.slots)
	for _, p := range changed {
		root := &next.root6
		if p.Addr().Is4() {
			root = &next.root4
		}
		w := renewWalk{renewer: r, is4: p.Addr().Is4(), want: routeOf(p)}
		e, ok := w.entry(*root, 0)
		if !ok {
			e = r.build.sub(w.below(0), 0, nowhere)
		}
		*root = e
		if len(r.build.slots) > maxSlots {
			return r.whole()
		}
	}
	next.slots = r.build.slots
	return next, nil
}

// whole makes the lpm anew.
func (r *renewer) whole() (lpm, error) {
	r.build = lpmBuilder{}
	for p, t := range r.routes.AllSorted() {
		if err := r.build.add(p, t); err != nil {
			return lpm{}, err
		}
	}
	next, err := r.build.build()
	r.build = lpmBuilder{slots: next.slots}
	r.kept = len(next.slots)
	return next, err
}

// routeOf is a prefix without a target.
func routeOf(p netip.Prefix) prefixRoute {
	var b lpmBuilder
	_ = b.add(p, 0) // it was checked when it came
	return append(b.v4, b.v6...)[0]
}

// A renewWalk goes down the trie to where a changed prefix is.
type renewWalk struct {
	*renewer
	is4  bool
	want prefixRoute
}

// entry renews what e leads to, at this depth on the way to the prefix. Not ok: it is to be made anew.
func (w *renewWalk) entry(e entry, depth int) (next entry, ok bool) {
	if w.want.bits <= depth || e >= entryTarget {
		return 0, false
	}
	if e >= entryCompare {
		return w.compare(e, depth)
	}
	return w.branch(e, depth), true
}

func (w *renewWalk) compare(e entry, depth int) (next entry, ok bool) {
	at := int(e&placeMask) * slotUnit
	old := w.build.slots[at : at+compareSlots : at+compareSlots]
	table := lpm{slots: w.build.slots}
	until := depth + int(old[compareBits])
	if w.want.bits < until || (w.want.from(depth)^table.pair(at+compareWant))&table.pair(at+compareMask) != 0 {
		return 0, false
	}
	then, ok := w.entry(old[compareThen], until)
	if !ok {
		then = w.build.sub(w.below(until), until, old[compareElse])
	}
	place := w.copy(at, compareSlots)
	w.build.slots[place+compareThen] = then
	return entryCompare | entry(place/slotUnit), true
}

func (w *renewWalk) branch(e entry, depth int) entry {
	stride := int(e >> strideShift)
	at := int(e&placeMask) * slotUnit
	size := max(1<<stride, slotUnit)
	slot := int(w.want.from(depth) >> (64 - stride))
	next := depth + stride
	// Nodes below come first: they may move the slots.
	var renewed entry
	if w.want.bits >= next {
		var ok bool
		if renewed, ok = w.entry(w.build.slots[at+slot], next); !ok {
			renewed = w.child(depth, stride, slot)
		}
		place := w.copy(at, size)
		w.build.slots[place+slot] = renewed
		return entry(stride<<strideShift | place/slotUnit)
	}
	place := w.copy(at, size)
	for k := slot; k < slot+1<<(next-w.want.bits); k++ {
		renewed = w.child(depth, stride, k)
		w.build.slots[place+k] = renewed
	}
	return entry(stride<<strideShift | place/slotUnit)
}

// copy appends a copy of a node's slots, unless nobody reads it yet, and says where it is.
func (w *renewWalk) copy(at, size int) int {
	if at >= w.shared {
		return at
	}
	place := len(w.build.slots)
	w.build.slots = append(w.build.slots, w.build.slots[at:at+size]...)
	return place
}

// child makes what a slot of a branch at depth leads to.
func (w *renewWalk) child(depth, stride, slot int) entry {
	r := w.want
	mask := ^uint64(0) << (64 - depth%64) // of the bits before the branch; none at a word's begin
	if depth < 64 {
		r.hi, r.lo = r.hi&mask|uint64(slot)<<(64-stride)>>depth, 0
	} else {
		r.lo = r.lo&mask | uint64(slot)<<(64-stride)>>(depth-64)
	}
	r.bits = depth + stride
	p := r.prefix(w.width())
	routes := w.collect(p)
	return w.build.child(routes, r.bits, w.inherited(p))
}

// below are the routes in the first bits of the prefix.
func (w *renewWalk) below(bits int) []prefixRoute {
	p := w.want.prefix(w.width())
	return w.collect(netip.PrefixFrom(p.Addr(), bits).Masked())
}

func (w *renewWalk) collect(p netip.Prefix) []prefixRoute {
	var b lpmBuilder
	for q, t := range w.routes.Subnets(p) {
		_ = b.add(q, t)
	}
	return append(b.v4, b.v6...)
}

// inherited is the target of the longest prefix that contains p.
func (w *renewWalk) inherited(p netip.Prefix) entry {
	if t, ok := w.routes.LookupPrefix(p); ok {
		return entryTarget | entry(t)
	}
	return nowhere
}

func (w *renewWalk) width() int {
	if w.is4 {
		return 32
	}
	return 128
}

// localSpan is as the other localSpan, of the own pod CIDRs.
func (r *renewer) localSpan(own []netip.Prefix, is4 bool) span {
	for _, c := range own {
		if c.Addr().Is4() != is4 {
			continue
		}
		var routes []prefixRoute
		for q, t := range r.routes.Subnets(c) {
			route := routeOf(q)
			route.target = t
			routes = append(routes, route)
		}
		if s := localSpan(routes); s != (span{}) {
			return s
		}
	}
	return span{}
}
