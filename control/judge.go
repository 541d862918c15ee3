package control

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/warren-net/warren/internal/key"
)

// admit puts in force what can be, until nothing more can be: what one gives up another may wait for.
func (l *Ledger) admit(before former) {
	for progress := true; progress; {
		progress = false
		for _, e := range l.inTurn() {
			if l.waiting[e.claim.Name] != e || e.broken != "" {
				continue
			}
			var losers map[*entry]bool
			if losers, e.why = l.judge(e); e.why != "" {
				continue
			}
			for loser := range losers {
				before.note(loser)
				l.release(loser)
				l.waiting[loser.claim.Name] = loser
			}
			before.note(e)
			l.release(e)
			l.hold(e)
			delete(l.waiting, e.claim.Name)
			progress = len(l.waiting) > 0
		}
	}
	if len(l.waiting) == 0 {
		l.waiting = map[string]*entry{} // going through one that held thousands costs as if it still did
	}
}

// inTurn lists who waits, in the order in which they may take what is free.
func (l *Ledger) inTurn() []*entry {
	own := func(e *entry) int {
		if e.claim.Name == l.rules.Self {
			return 0
		}
		return 1
	}
	return slices.SortedFunc(maps.Values(l.waiting), func(a, b *entry) int {
		return cmp.Or(own(a)-own(b), cmp.Compare(a.claim.Order, b.claim.Order),
			cmp.Compare(a.claim.Name, b.claim.Name))
	})
}

// judge says whether a claim may be put in force and whose goes for it, or why it may not.
func (l *Ledger) judge(e *entry) (losers map[*entry]bool, why string) {
	c := &e.claim
	if why := l.misplaced(c); why != "" {
		if e.inForce != nil && e.inForce.Equal(c) { // the own node, see SetCluster
			why += "; until then it stays as it is"
		}
		return nil, why
	}
	losers = map[*entry]bool{}
	for _, p := range c.PodCIDRs {
		for q, other := range l.overlapping(p) {
			switch {
			case other == e:
			case c.Name == l.rules.Self || !slices.ContainsFunc(other.claim.PodCIDRs, p.Overlaps):
				losers[other] = true
			default:
				return nil, fmt.Sprintf("pod CIDR %s overlaps %s of %s: every pod CIDR belongs to one node only", p, q,
					other.claim.Name)
			}
		}
	}
	for what, name := range things(c) {
		other := l.holders[what]
		switch {
		case other == nil || other == e:
		case c.Name == l.rules.Self || things(&other.claim)[what] == "":
			losers[other] = true
		default:
			return nil, fmt.Sprintf("%s is the one of %s already: two nodes cannot share one", name, other.claim.Name)
		}
	}
	return losers, ""
}

// misplaced says what of a claim no node may have.
func (l *Ledger) misplaced(c *Node) string {
	for _, p := range c.PodCIDRs {
		if !Within(p, l.rules.Cluster) {
			return fmt.Sprintf("pod CIDR %s is outside the cluster's ranges %v: widen `cluster`, or give the node another one",
				p, l.rules.Cluster)
		}
	}
	return swallowed(c, l.rules.Cluster)
}

// Within reports whether one of the ranges holds all of p.
func Within(p netip.Prefix, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) })
}

// swallowed says which underlay address of a claim lies inside the ranges.
func swallowed(c *Node, ranges []netip.Prefix) string {
	for _, a := range c.Addresses {
		for _, r := range ranges {
			if r.Contains(a) {
				return fmt.Sprintf("address %s lies inside the cluster's range %s, so the tunnel would carry its own packets: the "+
					"ranges of pods and of the underlay must not overlap", a, r)
			}
		}
	}
	return ""
}

// things are what a claim holds alone beside its pod CIDRs, with what people call them.
func things(c *Node) map[any]string {
	out := make(map[any]string, len(c.Addresses)+2)
	for _, a := range c.Addresses {
		out[a] = "address " + a.String()
	}
	if c.PublicKey != (key.Public{}) {
		out[c.PublicKey] = "public key " + c.PublicKey.String()
	}
	if c.MAC != nil {
		out[mac(c.MAC)] = "MAC address " + c.MAC.String()
	}
	return out
}

// overlapping are the pod CIDRs in force that have addresses of p.
func (l *Ledger) overlapping(p netip.Prefix) map[netip.Prefix]*entry {
	out := map[netip.Prefix]*entry{}
	for q, e := range l.cidrs.Supernets(p) {
		out[q] = e
	}
	for q, e := range l.cidrs.Subnets(p) {
		out[q] = e
	}
	return out
}

// hold puts an entry's claim in force. What it holds is free.
func (l *Ledger) hold(e *entry) {
	n := e.claim
	e.inForce = &n
	for _, p := range n.PodCIDRs {
		l.cidrs.Insert(p, e)
	}
	for what := range things(&n) {
		l.holders[what] = e
	}
}

// release ends what is in force of an entry.
func (l *Ledger) release(e *entry) {
	if e.inForce == nil {
		return
	}
	for _, p := range e.inForce.PodCIDRs {
		l.cidrs.Delete(p)
	}
	for what := range things(e.inForce) {
		delete(l.holders, what)
	}
	e.inForce = nil
}

// change compares what is in force with what was.
func (l *Ledger) change(before former) Change {
	var c Change
	for _, name := range slices.Sorted(maps.Keys(before)) {
		was, is := before[name], l.Node(name)
		switch {
		case is == nil && was != nil:
			c.Gone = append(c.Gone, name)
		case is != nil && (was == nil || !was.Equal(is)):
			c.Set = append(c.Set, *is)
		}
	}
	return c
}
