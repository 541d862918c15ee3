package control

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// Rules are what a Ledger decides by.
type Rules struct {
	Self    string         // the own node's name
	Cluster []netip.Prefix // the cluster's ranges: all pod CIDRs are inside, no underlay address is
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
	rules    Rules
	entries  map[string]*entry
	waiting  map[string]*entry // of these, those whose claim is not in force
	machines map[string]*entry // of these, those of this host's configuration
	cidrs    bart.Table[*entry]
	holders  map[any]*entry // by netip.Addr, key.Public, or MAC as mac
}

// mac is an Ethernet address as a key of a map.
type mac string

// An entry is what a Ledger knows of one node.
type entry struct {
	claim    Node   // the latest that could be read; no more than the name: there was none
	inForce  *Node  // nil: nothing
	why      string // why claim is not in force
	broken   string // why the latest claim could not be read
	namesake *Node  // of a machine of this host's configuration: the claim of a node of that name; nil: there is none
}

// NewLedger makes one without claims.
func NewLedger(r Rules) *Ledger {
	return &Ledger{rules: r, entries: map[string]*entry{}, waiting: map[string]*entry{}, machines: map[string]*entry{},
		holders: map[any]*entry{}}
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
	Name    string // of the node
	Machine bool   // it is a machine of this host's configuration, see Configure
	Why     string // what is wrong, and what to do
}

// Refusals lists what is refused now, sorted by name.
func (l *Ledger) Refusals() []Refusal {
	out := make([]Refusal, 0, len(l.waiting))
	for name, e := range l.waiting {
		out = append(out, Refusal{name, l.machines[name] != nil, cmp.Or(e.broken, e.why)})
	}
	for name, e := range l.machines {
		if e.namesake != nil {
			out = append(out, Refusal{Name: name, Why: "a peer in this host's configuration has that name, and holds here: " +
				"rename one of the two"})
		}
	}
	slices.SortFunc(out, func(a, b Refusal) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Why, b.Why))
	})
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
	gone := slices.Clip(u.Gone)
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
		if m := l.machines[name]; m != nil {
			m.namesake = nil
		} else if e := l.entries[name]; e != nil {
			before.note(e)
			l.drop(e)
		}
	}
	for k := range u.Nodes {
		l.take(&u.Nodes[k])
	}
	l.admit(before)
	return l.change(before)
}

// Configure says which machines that are no nodes this host's configuration has, all of them. No update changes them:
// the claim of a node of such a name is refused.
func (l *Ledger) Configure(machines []Node) Change {
	before := former{}
	stay := make(map[string]bool, len(machines))
	for k := range machines {
		stay[machines[k].Name] = true
	}
	for name, e := range l.machines {
		if stay[name] {
			continue
		}
		before.note(e)
		l.drop(e)
		if e.namesake != nil {
			l.take(e.namesake)
		}
	}
	for k := range machines {
		m := &machines[k]
		if m.Name == l.rules.Self {
			continue // of a configuration that calls this node by another name: that needs a restart
		}
		if l.machines[m.Name] == nil {
			e := &entry{claim: Node{Name: m.Name}}
			if node := l.entries[m.Name]; node != nil {
				before.note(node)
				e.namesake = node.latest()
				l.drop(node)
			}
			l.entries[m.Name], l.machines[m.Name] = e, e
		}
		l.claimed(l.machines[m.Name], m)
	}
	l.admit(before)
	return l.change(before)
}

// SetCluster changes the cluster's ranges. Whoever is then misplaced is refused, and who was for the ranges is not. The
// own node keeps its pod CIDRs, as its pods have their addresses, until it claims others; a refusal says so. Ranges
// that hold an underlay address of it are refused, as it could reach nobody with them: then nothing has changed.
func (l *Ledger) SetCluster(ranges []netip.Prefix) (Change, error) {
	before := former{}
	own := l.entries[l.rules.Self]
	if own != nil && own.inForce != nil {
		if why := swallowed(own.inForce, ranges); why != "" {
			return Change{}, fmt.Errorf("the cluster's ranges %v are not in force here: %s", ranges, why)
		}
	}
	l.rules.Cluster = ranges
	for name, e := range l.entries {
		if e.inForce == nil || l.misplaced(e.inForce) == "" {
			continue
		}
		if e != own {
			before.note(e)
			l.release(e)
		}
		l.waiting[name] = e
	}
	l.admit(before)
	return l.change(before), nil
}

// take notes the claim of a node. It waits until admit.
func (l *Ledger) take(n *Node) {
	e := l.entries[n.Name]
	if e == nil {
		e = &entry{claim: Node{Name: n.Name}}
		l.entries[n.Name] = e
	}
	if l.machines[n.Name] == nil {
		l.claimed(e, n)
		return
	}
	namesake := *n
	e.namesake = &namesake
}

// claimed notes the claim of an entry.
func (l *Ledger) claimed(e *entry, n *Node) {
	if e.broken = n.Broken; n.Broken != "" {
		l.waiting[n.Name] = e
		return
	}
	if e.claim = *n; e.inForce != nil && e.inForce.Equal(n) && l.misplaced(n) == "" {
		delete(l.waiting, n.Name)
		return
	}
	l.waiting[n.Name] = e
}

// latest is what was claimed last.
func (e *entry) latest() *Node {
	n := e.claim
	if e.broken != "" {
		n = Node{Name: n.Name, Broken: e.broken}
	}
	return &n
}

// drop forgets an entry.
func (l *Ledger) drop(e *entry) {
	l.release(e)
	delete(l.entries, e.claim.Name)
	delete(l.waiting, e.claim.Name)
	delete(l.machines, e.claim.Name)
}
