package node

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/tunnel/vxlan"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// A plan is everything that a snapshot is computed from, and what came of it for each peer, so that a change of one
// peer costs no more than that.
type plan struct {
	cfg      *config.Config
	podMTU   int // bytes, of the device and the pods
	underlay []api.Underlay
	paths    pathLimits
	secure   *secure
	grace    map[string]time.Time // by peer name: until when a change of its encapsulation takes, see graces
	numbers  *numbers             // of peers in the encrypted tunnel
	files    presharedFiles
	noVXLAN  error // why there is no plaintext tunnel
	workers  int

	peers    map[string]*planned // by name
	reached  map[netip.Addr]int  // underlay addresses that peers are at, and how many of them
	warnings map[string][]string // by peer name, of those that have any
	refused  map[string]bool     // names of peers that have no place beside the others, see admit
	secured  int                 // how many peers are encrypted
	builder  *forwarder.Builder
}

// A planned is a peer, and what the plan made of it.
type planned struct {
	node     control.Node
	peer     *forwarder.Peer       // nil: it is left out, which a warning says
	tunnel   *wireguard.PeerConfig // nil: none
	at       netip.Addr            // where it is reached; zero: unknown, or left out
	narrow   string                // the warning that the path to it is narrow
	warnings []string              // what people should know of it
	numbered bool                  // its number in the tunnel was taken for it now
	refused  bool                  // it is left out as it has no place beside the others
}

// warn notes what people should know of a peer.
func (m *planned) warn(text string) {
	if text != "" {
		m.warnings = append(m.warnings, text)
	}
}

// An outcome is a computed snapshot and what the encrypted tunnel has to be told before it is in force.
type outcome struct {
	snapshot *forwarder.Snapshot
	tunnels  []wireguard.PeerConfig // all of them, or those that are new or changed
	gone     []int32                // numbers of those that left
	whole    bool                   // tunnels are all there are
	same     bool                   // nobody in force has come, changed or left
}

// macOf is the VTEP address of a node.
func macOf(n *control.Node) net.HardwareAddr {
	if n.MAC != nil {
		return n.MAC
	}
	return vxlan.MAC(n.Addresses[0])
}

// build computes the whole snapshot of this generation, with these peers. When it fails, nothing has changed.
func (p *plan) build(generation uint64, nodes []control.Node) (*outcome, error) {
	next := *p
	next.peers, next.reached = make(map[string]*planned, len(nodes)), make(map[netip.Addr]int, len(nodes))
	next.warnings, next.refused, next.secured = map[string][]string{}, map[string]bool{}, 0
	next.files = p.files.again()
	made, err := next.makeAll(nodes, p.peers, nil)
	if err != nil {
		return nil, err
	}
	out := &outcome{whole: true}
	if next.builder, out.snapshot, err = next.start(generation, made, p.peers); err != nil {
		next.unmake(made...)
		return nil, err
	}
	for _, m := range made {
		next.enter(m)
		if m.tunnel != nil {
			out.tunnels = append(out.tunnels, *m.tunnel)
		}
	}
	now := time.Now()
	for name, was := range p.peers {
		is := next.peers[name]
		next.retire(was, is, now)
		if is == nil {
			delete(next.grace, name)
		}
	}
	next.files.last = nil
	*p = next
	return out, nil
}

// start makes the builder and the first snapshot. In a cluster that changes by itself those whom the forwarding table
// refuses are left out; who was there before comes before others then.
func (p *plan) start(generation uint64, made []*planned, before map[string]*planned) (*forwarder.Builder,
	*forwarder.Snapshot, error) {
	spec := forwarder.Spec{
		Generation:   generation,
		PodCIDRs:     p.cfg.Self.PodCIDRs,
		NodeAddrs:    p.cfg.Self.Addresses,
		Gateways:     p.cfg.Gateways(),
		ClusterCIDRs: p.cfg.Cluster,
	}
	spec.Peers, _ = inPlace(made, nil)
	builder, snapshot, err := forwarder.NewBuilder(spec)
	if err == nil || p.cfg.Control == config.Static {
		return builder, snapshot, err
	}
	spec.Peers = nil
	if builder, _, err = forwarder.NewBuilder(spec); err != nil {
		return nil, nil, err // it is of this node itself
	}
	fresh := func(m *planned) int {
		if was := before[m.node.Name]; was != nil && was.peer != nil {
			return 0
		}
		return 1
	}
	inTurn := slices.SortedStableFunc(slices.Values(made), func(a, b *planned) int { return fresh(a) - fresh(b) })
	snapshot, err = p.admit(builder, generation, inTurn, nil)
	return builder, snapshot, err
}

// change computes the snapshot in which these peers are new or changed, and those named have left. A peer that is in
// both has left and come again. When it fails, nothing has changed.
func (p *plan) change(generation uint64, nodes []control.Node, gone []string) (*outcome, error) {
	left := setOf(gone)
	made, err := p.makeAll(nodes, p.peers, left)
	if err != nil {
		return nil, err
	}
	if len(left) > 0 {
		for k := range nodes {
			delete(left, nodes[k].Name)
		}
		gone = slices.DeleteFunc(slices.Clone(gone), func(name string) bool { return !left[name] })
	}
	out := &outcome{same: true}
	if out.snapshot, err = p.admit(p.builder, generation, made, gone); err != nil {
		p.unmake(made...)
		return nil, err
	}
	now := time.Now()
	swap := func(name string, is *planned) {
		was := p.peers[name]
		out.same = out.same && (was == nil || was.peer == nil) && (is == nil || is.peer == nil)
		if p.retire(was, is, now) {
			out.gone = append(out.gone, was.tunnel.ID)
		}
		p.leave(name)
	}
	for _, name := range gone {
		swap(name, nil)
		delete(p.grace, name)
	}
	for _, m := range made {
		swap(m.node.Name, m)
		p.enter(m)
		if m.tunnel != nil {
			out.tunnels = append(out.tunnels, *m.tunnel)
		}
	}
	return out, nil
}

// inPlace are the peers of those that are not left out, and the names of those that leave.
func inPlace(made []*planned, gone []string) (set []*forwarder.Peer, leave []string) {
	leave = slices.Clone(gone)
	for _, m := range made {
		if m.peer != nil {
			set = append(set, m.peer)
		} else {
			leave = append(leave, m.node.Name)
		}
	}
	return set, leave
}

// admit makes the snapshot of a change. One peer that has no place beside the others must not keep those out: in a
// cluster that changes by itself it is left out, until it or they change, or another try finds it a place.
func (p *plan) admit(b *forwarder.Builder, generation uint64, made []*planned, gone []string) (*forwarder.Snapshot,
	error) {
	for {
		set, leave := inPlace(made, gone)
		snapshot, err := b.Change(generation, set, leave)
		var some *forwarder.RefusedError
		if !errors.As(err, &some) || p.cfg.Control == config.Static {
			return snapshot, err
		}
		for _, m := range made {
			if why := some.Peers[m.node.Name]; why != nil {
				p.leaveOut(m, why)
				m.refused = true
			}
		}
	}
}

// refusals are the peers that have no place beside the others, as they were said to be.
func (p *plan) refusals() []control.Node {
	var out []control.Node
	for _, name := range slices.Sorted(maps.Keys(p.refused)) {
		out = append(out, p.peers[name].node)
	}
	return out
}

// sift parts those who have a place beside the others from the names of those who have none.
func (p *plan) sift(nodes []control.Node) (placed []control.Node, refused []string) {
	if len(p.refused) == 0 {
		return nodes, nil
	}
	for _, n := range nodes {
		if p.refused[n.Name] {
			refused = append(refused, n.Name)
		} else {
			placed = append(placed, n)
		}
	}
	return placed, refused
}

// retire takes the number back of a peer in whose place another one is now, or nobody (nil), and reports whether it had
// one that is nobody's now.
func (p *plan) retire(was, is *planned, now time.Time) bool {
	if was == nil || was.tunnel == nil || is != nil && is.tunnel != nil && is.tunnel.ID == was.tunnel.ID {
		return false
	}
	p.numbers.release(was.tunnel.ID, now)
	return true
}

// outdated are the peers that have moved, or whose path has become wider or narrower, since they were planned.
func (p *plan) outdated() []control.Node {
	var out []control.Node
	for _, m := range p.peers {
		if m.peer == nil {
			continue
		}
		at := p.reachedAt(m.peer)
		if mtu, narrow := p.peerMTU(&m.node, at, m.peer.Encrypted); at != m.at || mtu != m.peer.MTU || narrow != m.narrow {
			out = append(out, m.node)
		}
	}
	return out
}

// nodes are all peers, as they were said to be.
func (p *plan) nodes() []control.Node {
	out := make([]control.Node, 0, len(p.peers))
	for _, name := range slices.Sorted(maps.Keys(p.peers)) {
		out = append(out, p.peers[name].node)
	}
	return out
}

// enter counts a peer in.
func (p *plan) enter(m *planned) {
	p.peers[m.node.Name] = m
	m.numbered = false // it is known by it now
	if len(m.warnings) > 0 {
		p.warnings[m.node.Name] = m.warnings
	}
	if m.refused {
		p.refused[m.node.Name] = true
	}
	if m.at.IsValid() {
		p.reached[m.at]++
	}
	if p.cfg.Encrypted(&m.node) {
		p.secured++
	}
}

// leave counts a peer out, if it is there.
func (p *plan) leave(name string) {
	m := p.peers[name]
	if m == nil {
		return
	}
	delete(p.peers, name)
	delete(p.warnings, name)
	delete(p.refused, name)
	if p.cfg.Encrypted(&m.node) {
		p.secured--
	}
	if !m.at.IsValid() {
		return
	}
	if p.reached[m.at]--; p.reached[m.at] == 0 {
		delete(p.reached, m.at)
	}
}

// allWarnings is what people should know of the underlay and of all peers.
func (p *plan) allWarnings() []string {
	out := p.underlayWarnings()
	for _, name := range slices.Sorted(maps.Keys(p.warnings)) {
		out = append(out, p.warnings[name]...)
	}
	return out
}
