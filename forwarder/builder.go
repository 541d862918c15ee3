package forwarder

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// A Builder makes one snapshot after the other, at a price that depends on what has changed and not on how large the
// cluster is, but for a copy of two slices of pointers. It belongs to one goroutine; its snapshots are everybody's.
type Builder struct {
	last   *Snapshot
	byName map[string]*Peer
	free   []int32 // indexes that no peer has
	lpm    *renewer
}

// NewBuilder makes one whose first snapshot is what Build makes of spec.
func NewBuilder(spec Spec) (*Builder, *Snapshot, error) {
	s, err := Build(spec)
	if err != nil {
		return nil, nil, err
	}
	b := &Builder{last: s, byName: make(map[string]*Peer, len(spec.Peers))}
	for _, p := range spec.Peers {
		if b.byName[p.Name] != nil {
			return nil, nil, fmt.Errorf("peer %s: want names that are different", p.Name)
		}
		b.byName[p.Name] = p
	}
	return b, s, nil
}

// Change makes the snapshot in which the peers in set have come, or taken the place of those with their names, and
// those named in gone have left. It refuses what Build refuses; then nothing has changed, and where that is for some of
// the peers the error is a *RefusedError. The peers get their Index set and belong to the snapshot from then on.
func (b *Builder) Change(generation uint64, set []*Peer, gone []string) (*Snapshot, error) {
	if b.lpm == nil {
		b.lpm = &renewer{}
		b.lpm.fill(b.last)
	}
	c := change{builder: b, leaving: map[string]*Peer{}, freed: map[netip.Prefix]bool{}, was: map[netip.Prefix]place{}}
	c.leave(set, gone)
	if err := c.check(set); err != nil {
		return nil, err
	}
	next := *b.last
	next.Generation, next.peers, next.tunnels = generation, slices.Clone(next.peers), slices.Clone(next.tunnels)
	c.end(&next)
	for _, p := range set {
		c.begin(&next, p)
	}
	for _, p := range c.leaving {
		b.free = append(b.free, p.Index)
	}
	routes, err := b.lpm.renew(b.last.routes, c.changed())
	if err != nil {
		b.restore()
		return nil, err
	}
	next.routes, next.PeerCount, next.RouteCount = routes, len(b.byName), b.lpm.routes.Size()
	next.local4, next.local6 = b.lpm.localSpan(next.pods, true), b.lpm.localSpan(next.pods, false)
	b.last = &next
	return b.last, nil
}

// restore makes what is known of the peers what the last snapshot has.
func (b *Builder) restore() {
	clear(b.byName)
	b.free, b.lpm = nil, nil // which the next change fills anew
	for i, p := range b.last.peers {
		if p == nil {
			b.free = append(b.free, int32(i))
		} else {
			b.byName[p.Name] = p
		}
	}
}

// A change is one call of Builder.Change.
type change struct {
	builder *Builder
	leaving map[string]*Peer       // also those whose place others of the same name take
	freed   map[netip.Prefix]bool  // what those have
	was     map[netip.Prefix]place // what was written over
}

// A place is what a table has at a prefix.
type place struct {
	target target
	there  bool
}

// leave notes who leaves.
func (c *change) leave(set []*Peer, gone []string) {
	names := slices.Clone(gone)
	for _, p := range set {
		names = append(names, p.Name)
	}
	for _, name := range names {
		if p := c.builder.byName[name]; p != nil {
			c.leaving[name] = p
			for q := range p.prefixes() {
				c.freed[q] = true
			}
		}
	}
}

// A RefusedError says which peers of a change nothing can be made of, and why. The same change is good with those named
// in gone in place of set.
type RefusedError struct {
	Peers map[string]error // by name
}

// Error names all of them.
func (e *RefusedError) Error() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(e.Peers)) {
		out = append(out, fmt.Sprintf("peer %s: %v", name, e.Peers[name]))
	}
	return strings.Join(out, "; ")
}

// check refuses peers that could not be told from others. Nothing has changed yet. Of two that want the same the first
// one gets it; one that is refused is in nobody's way.
func (c *change) check(set []*Peer) error {
	seen, numbers, taken := map[string]bool{}, map[int32]string{}, map[netip.Prefix]string{}
	refused := map[string]error{}
	room := maxTargets - len(c.builder.last.peers) + len(c.builder.free) // who leaves makes room for the next change
	for _, p := range set {
		if seen[p.Name] {
			return fmt.Errorf("peer %s: it is in the change twice", p.Name)
		}
		seen[p.Name] = true
		if err := c.checkPeer(p, room, numbers, taken); err != nil {
			refused[p.Name] = err
			continue
		}
		if c.leaving[p.Name] == nil {
			room--
		}
		if p.Tunnel > 0 {
			numbers[p.Tunnel] = p.Name
		}
		for q := range p.prefixes() {
			taken[q] = p.Name
		}
	}
	if len(refused) > 0 {
		return &RefusedError{refused}
	}
	return nil
}

// checkPeer refuses a peer that nothing can be sent to, for which there is no room, and one that wants what somebody
// has who stays, or what those of the change have who came before it.
func (c *change) checkPeer(p *Peer, room int, numbers map[int32]string, taken map[netip.Prefix]string) error {
	if err := p.check(); err != nil {
		return err
	}
	if room == 0 && c.leaving[p.Name] == nil {
		return fmt.Errorf("there are as many peers as there can be, %d, without it", maxTargets)
	}
	for q := range p.prefixes() {
		if !q.IsValid() || q != q.Masked() || q.Addr().Is4In6() {
			return fmt.Errorf("prefix %v: want a masked prefix, not in IPv4-mapped form", q)
		}
		var owner string
		if name, ok := taken[q]; ok {
			owner = "peer " + name
		} else if t, ok := c.builder.lpm.routes.Get(q); ok && t.kind() != kindHole && !c.freed[q] {
			owner = c.builder.last.owner(t)
		}
		if owner != "" {
			return fmt.Errorf("prefix %v has two owners: %s and this one", q, owner)
		}
	}
	if p.Tunnel == 0 {
		return nil
	}
	other := numbers[p.Tunnel]
	if was := c.builder.last.PeerByTunnel(p.Tunnel); other == "" && was != nil && c.leaving[was.Name] == nil {
		other = was.Name
	}
	if other != "" {
		return fmt.Errorf("number %d in the tunnel is already peer %s's", p.Tunnel, other)
	}
	return nil
}

// end takes those who leave out of the snapshot.
func (c *change) end(next *Snapshot) {
	b := c.builder
	for name, p := range c.leaving {
		delete(b.byName, name)
		next.peers[p.Index] = nil
		if p.Tunnel > 0 {
			next.tunnels[p.Tunnel] = nil
		}
		for q := range p.prefixes() {
			c.note(q)
			if slices.Contains(next.cluster, q) {
				b.lpm.routes.Insert(q, newTarget(kindHole, 0))
			} else {
				b.lpm.routes.Delete(q)
			}
		}
	}
}

// begin puts a peer into the snapshot. It was checked. Who takes another one's place gets its Index, so that routes
// that stay lead where they led.
func (c *change) begin(next *Snapshot, p *Peer) {
	b := c.builder
	if was := c.leaving[p.Name]; was != nil {
		delete(c.leaving, p.Name)
		p.Index = was.Index
	} else if last := len(b.free) - 1; last >= 0 {
		p.Index, b.free = b.free[last], b.free[:last]
	} else {
		p.Index = int32(len(next.peers))
		next.peers = append(next.peers, nil)
	}
	b.byName[p.Name], next.peers[p.Index] = p, p
	_ = next.addTunnel(p) // its number was checked to be free
	for q := range p.prefixes() {
		c.note(q)
		b.lpm.routes.Insert(q, newTarget(kindPeer, int(p.Index)))
	}
}

// note remembers what is written over, the first time.
func (c *change) note(q netip.Prefix) {
	if _, noted := c.was[q]; !noted {
		t, there := c.builder.lpm.routes.Get(q)
		c.was[q] = place{t, there}
	}
}

// changed are the prefixes that lead elsewhere than before.
func (c *change) changed() []netip.Prefix {
	var out []netip.Prefix
	for q, was := range c.was {
		if t, there := c.builder.lpm.routes.Get(q); was != (place{t, there}) {
			out = append(out, q)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}
