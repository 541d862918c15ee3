package control

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/warren-net/warren/internal/key"
)

// Rules are what a Ledger decides by.
type Rules struct {
	Self    string         // the own node's name
	Cluster []netip.Prefix // the cluster's ranges: all pod CIDRs are inside, no underlay address is

	// Check says what else is wrong with the claim of a node other than the own one, and what to do. nil: nothing is.
	Check func(*Node) error
}

// A Ledger decides which claims are in force. It refuses what could take over somebody's traffic or have none of its
// own: a pod CIDR that overlaps another node's or lies outside the cluster's ranges, an address that is another node's
// or lies inside them, a key or a MAC twice. A claim is refused as a whole, and what the node had before stays in force
// unless somebody else gets it; when the cause is gone the claim is admitted by itself.
//
// Who has something keeps it as long as it claims it, whatever others claim: nobody takes over a neighbour's traffic by
// a claim. Of claims that are new together, as at the start, the one with the lowest Order comes first, so that all
// nodes decide alike. The own node's claim comes before all others.
//
// An update costs as much as it changes, and as many claims as are refused. A Ledger is not safe for concurrent use.
type Ledger struct {
	rules   Rules
	entries map[string]*entry
	waiting map[string]*entry // of these, those whose claim is not in force
	cidrs   bart.Table[*entry]
	holders map[any]*entry // by netip.Addr, key.Public, or MAC as mac
}

// mac is an Ethernet address as a key of a map.
type mac string

// An entry is what a Ledger knows of one node.
type entry struct {
	claim   Node   // the latest that could be read; no more than the name: there was none
	inForce *Node  // nil: nothing
	why     string // why claim is not in force
	broken  string // why the latest claim could not be read
}

// NewLedger makes one without claims.
func NewLedger(r Rules) *Ledger {
	return &Ledger{rules: r, entries: map[string]*entry{}, waiting: map[string]*entry{}, holders: map[any]*entry{}}
}

// A Change is what an update did to what is in force.
type Change struct {
	Set  []Node   // new or changed, sorted by name
	Gone []string // sorted
}

// Empty reports whether nothing has changed.
func (c *Change) Empty() bool { return len(c.Set) == 0 && len(c.Gone) == 0 }

// A Refusal says which claim is not in force.
type Refusal struct {
	Name string // of the node
	Why  string // what is wrong, and what to do
}

// Refusals lists what is refused now, sorted by name.
func (l *Ledger) Refusals() []Refusal {
	out := make([]Refusal, 0, len(l.waiting))
	for name, e := range l.waiting {
		out = append(out, Refusal{name, cmp.Or(e.broken, e.why)})
	}
	slices.SortFunc(out, func(a, b Refusal) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Node is what is in force of a node; nil: nothing.
func (l *Ledger) Node(name string) *Node {
	if e := l.entries[name]; e != nil {
		return e.inForce
	}
	return nil
}

// Nodes is all that is in force, sorted by name.
func (l *Ledger) Nodes() []Node {
	var out []Node
	for _, name := range slices.Sorted(maps.Keys(l.entries)) {
		if n := l.entries[name].inForce; n != nil {
			out = append(out, *n)
		}
	}
	return out
}

// A former is what was in force of those who are touched, by name.
type former map[string]*Node

// note remembers what is in force of an entry, the first time.
func (f former) note(e *entry) {
	if _, seen := f[e.claim.Name]; !seen {
		f[e.claim.Name] = e.inForce
	}
}

// Apply takes an update in.
func (l *Ledger) Apply(u Update) Change {
	before := former{}
	gone := u.Gone
	if u.Whole {
		there := make(map[string]bool, len(u.Nodes))
		for k := range u.Nodes {
			there[u.Nodes[k].Name] = true
		}
		for name := range l.entries {
			if !there[name] {
				gone = append(gone, name)
			}
		}
	}
	for _, name := range gone {
		if e := l.entries[name]; e != nil {
			before.note(e)
			l.release(e)
			delete(l.entries, name)
			delete(l.waiting, name)
		}
	}
	for k := range u.Nodes {
		l.take(&u.Nodes[k])
	}
	l.admit(before)
	return l.change(before)
}

// SetCluster changes the cluster's ranges. Whoever is then misplaced is refused, and who was for the ranges is not.
func (l *Ledger) SetCluster(ranges []netip.Prefix) Change {
	before := former{}
	l.rules.Cluster = ranges
	for name, e := range l.entries {
		if e.inForce != nil && l.misplaced(e.inForce) != "" {
			before.note(e)
			l.release(e)
			l.waiting[name] = e
		}
	}
	l.admit(before)
	return l.change(before)
}

// take notes a claim. It waits until admit.
func (l *Ledger) take(n *Node) {
	e := l.entries[n.Name]
	if e == nil {
		e = &entry{claim: Node{Name: n.Name}}
		l.entries[n.Name] = e
	}
	if e.broken = n.Broken; n.Broken != "" {
		l.waiting[n.Name] = e
		return
	}
	if e.claim = *n; e.inForce != nil && e.inForce.Equal(n) {
		delete(l.waiting, n.Name)
		return
	}
	l.waiting[n.Name] = e
}

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
	if c.Name != l.rules.Self && l.rules.Check != nil {
		if err := l.rules.Check(c); err != nil {
			return nil, err.Error()
		}
	}
	if why := l.misplaced(c); why != "" {
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
		inside := func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) }
		if !slices.ContainsFunc(l.rules.Cluster, inside) {
			return fmt.Sprintf("pod CIDR %s is outside the cluster's ranges %v: widen `cluster`, or give the node another one",
				p, l.rules.Cluster)
		}
	}
	for _, a := range c.Addresses {
		for _, r := range l.rules.Cluster {
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
