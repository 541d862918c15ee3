package forwarder

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/warren-net/warren/forwarder/packet"
)

// A Peer is another node as the data path sees it. It is immutable once it is part of a Snapshot; only the counters
// behind Stats move.
type Peer struct {
	Name      string
	Endpoint  netip.AddrPort // underlay address and UDP port; zero: known once it has called, see Tunnel
	PodCIDRs  []netip.Prefix // masked
	NodeAddrs []netip.Addr   // the node's own addresses, which its host traffic and ICMP errors carry
	MTU       int            // bytes of the largest inner IP packet that the path to it carries
	Header4   []byte         // what the encapsulation puts before an inner IPv4 packet; opaque here, read-only
	Header6   []byte         // the same for IPv6
	Stats     *PeerStats     // survives the snapshot, so that counters go on when other peers change
	Whole     *atomic.Bool   // superpackets may leave to it uncut, now; survives the snapshot. nil: never
	Index     int32          // what Snapshot.Peer finds it by; set by Build and Builder.Change

	Tunnel           int32 // its number in the encrypted tunnel; 0: it has none
	Encrypted        bool  // what is sent to it is encrypted
	RefusesPlaintext bool  // VXLAN from it is refused
}

// Header is the encapsulation header for an inner packet of this IP version.
func (p *Peer) Header(version uint8) []byte {
	if version == 4 {
		return p.Header4
	}
	return p.Header6
}

// TakesWhole reports whether superpackets may leave to the peer uncut.
func (p *Peer) TakesWhole() bool { return p.Whole != nil && p.Whole.Load() }

// A Spec is what a Snapshot is built from.
type Spec struct {
	Generation   uint64         // grows by one with every snapshot; for status and metrics
	PodCIDRs     []netip.Prefix // this node's
	NodeAddrs    []netip.Addr   // this node's underlay addresses
	Gateways     []netip.Addr   // this node's gateway addresses, at most one per family: ICMP errors come from them
	ClusterCIDRs []netip.Prefix // never handed to the kernel
	Peers        []*Peer
}

// A Snapshot is an immutable view of the cluster. Build makes one, and a Builder one after the other.
type Snapshot struct {
	Generation uint64
	PeerCount  int
	Gateway4   netip.Addr // zero when the node has no IPv4 pod CIDR
	Gateway6   netip.Addr
	RouteCount int // of different prefixes, as many as Routes lists

	routes  lpm
	local4  span // of addresses that are this node's, so that most need no lookup
	local6  span
	peers   []*Peer        // by Peer.Index; nil: a peer that is gone
	tunnels []*Peer        // by Peer.Tunnel
	cluster []netip.Prefix // what Routes lists besides the peers'
	pods    []netip.Prefix
	self    []netip.Addr
}

var emptySnapshot = Snapshot{routes: lpm{root4: nowhere, root6: nowhere}}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// kind classifies an address.
type kind uint32

const (
	kindOutside kind = iota // no match: the world outside
	kindHole                // in the cluster's CIDRs, but of no known node
	kindPod                 // in this node's pod CIDRs
	kindSelf                // the node itself: underlay or gateway address
	kindPeer                // a peer's pod or the peer itself
)

// isLocal reports whether a is a pod of this node or the node itself.
func (s *Snapshot) isLocal(a netip.Addr) bool {
	hi, _ := packet.AddrWords(a)
	if a.Is4() && s.local4.contains(hi) || !a.Is4() && s.local6.contains(hi) {
		return true
	}
	k := s.routes.lookup(a).kind()
	return k == kindPod || k == kindSelf
}

// Gateway is the source address of ICMP errors of this IP version; the zero Addr when the node has none.
func (s *Snapshot) Gateway(version uint8) netip.Addr {
	if version == 4 {
		return s.Gateway4
	}
	return s.Gateway6
}

// Peers are all peers, in the order of their Index.
func (s *Snapshot) Peers() iter.Seq[*Peer] {
	return func(yield func(*Peer) bool) {
		for _, p := range s.peers {
			if p != nil && !yield(p) {
				return
			}
		}
	}
}

// Peer is the peer with this Index, which is one of the snapshot's.
func (s *Snapshot) Peer(index int32) *Peer { return s.peers[index] }

// PeerByAddr finds the peer whose underlay address is a; nil when there is none.
func (s *Snapshot) PeerByAddr(a netip.Addr) *Peer {
	if !a.IsValid() {
		return nil
	}
	t := s.routes.lookup(a)
	if t.kind() != kindPeer {
		return nil
	}
	if p := s.peers[t.peer()]; p.Endpoint.Addr() == a || slices.Contains(p.NodeAddrs, a) {
		return p
	}
	return nil // a pod's
}

// PeerByTunnel finds the peer with this number in the encrypted tunnel; nil when there is none.
func (s *Snapshot) PeerByTunnel(id int32) *Peer {
	if id > 0 && int(id) < len(s.tunnels) {
		return s.tunnels[id]
	}
	return nil
}

// A Route is one line of the table, for people.
type Route struct {
	Prefix netip.Prefix
	Kind   string // "pod", "node", "peer", "unreachable"
	Peer   string // name, when Kind is "peer"
}

// Routes lists the table, sorted by prefix.
func (s *Snapshot) Routes() []Route {
	out := make([]Route, 0, s.RouteCount)
	// A prefix with several places here has one owner: a hole gives way, and others are the same one.
	owned := make(map[netip.Prefix]bool, s.RouteCount)
	add := func(r Route) {
		if !owned[r.Prefix] {
			owned[r.Prefix] = true
			out = append(out, r)
		}
	}
	for _, c := range s.pods {
		add(Route{Prefix: c, Kind: "pod"})
	}
	for _, a := range s.self {
		add(Route{Prefix: host(a), Kind: "node"})
	}
	for p := range s.Peers() {
		for c := range p.prefixes() {
			add(Route{Prefix: c, Kind: "peer", Peer: p.Name})
		}
	}
	for _, c := range s.cluster {
		add(Route{Prefix: c, Kind: "unreachable"})
	}
	slices.SortFunc(out, func(a, b Route) int { return a.Prefix.Compare(b.Prefix) })
	return out
}

// Build makes a snapshot. It refuses what would make decisions ambiguous: two owners of one prefix, address or number
// in the tunnel, a peer that nothing can be sent to, addresses in IPv4-mapped form. The Peers of spec get their Index
// set and belong to the snapshot from then on, as do the slices.
func Build(spec Spec) (*Snapshot, error) {
	s := &Snapshot{
		Generation: spec.Generation,
		PeerCount:  len(spec.Peers),
		peers:      spec.Peers,
		cluster:    spec.ClusterCIDRs,
		pods:       spec.PodCIDRs,
		self:       slices.Concat(spec.NodeAddrs, spec.Gateways),
	}
	for _, g := range spec.Gateways {
		switch {
		case g.Is4() && !s.Gateway4.IsValid():
			s.Gateway4 = g
		case g.Is6() && !g.Is4In6() && !s.Gateway6.IsValid():
			s.Gateway6 = g
		default:
			return nil, fmt.Errorf("gateway %v: want at most one IPv4 and one IPv6 address", g)
		}
	}
	if len(spec.Peers) > maxTargets {
		return nil, fmt.Errorf("%d peers: want at most %d", len(spec.Peers), maxTargets)
	}
	var b lpmBuilder
	b.reserve(&spec)
	for _, c := range spec.ClusterCIDRs {
		if err := b.add(c, newTarget(kindHole, 0)); err != nil {
			return nil, fmt.Errorf("cluster CIDR: %w", err)
		}
	}
	for _, c := range spec.PodCIDRs {
		if err := b.add(c, newTarget(kindPod, 0)); err != nil {
			return nil, fmt.Errorf("own pod CIDR: %w", err)
		}
	}
	for _, a := range s.self {
		if err := b.add(host(a), newTarget(kindSelf, 0)); err != nil {
			return nil, fmt.Errorf("own address: %w", err)
		}
	}
	for n, p := range spec.Peers {
		if err := s.addPeer(&b, p, n); err != nil {
			return nil, fmt.Errorf("peer %s: %w", p.Name, err)
		}
	}
	if clash := b.unique(); clash != nil {
		return nil, fmt.Errorf("prefix %v has two owners: %s and %s", clash.prefix, s.owner(clash.a), s.owner(clash.b))
	}
	s.RouteCount = len(b.v4) + len(b.v6)
	s.local4, s.local6 = localSpan(b.v4), localSpan(b.v6)
	var err error
	if s.routes, err = b.build(); err != nil {
		return nil, err
	}
	return s, nil
}

// check refuses a peer that nothing can be sent to.
func (p *Peer) check() error {
	if p.Encrypted && p.Tunnel == 0 {
		return fmt.Errorf("encrypted, but without a number in the tunnel: want one above 0")
	}
	// What is encrypted goes to where the tunnel heard the peer last, so it need not be known before.
	called := p.Encrypted && p.Endpoint == netip.AddrPort{}
	if !called && (!p.Endpoint.IsValid() || p.Endpoint.Addr().Is4In6() || p.Endpoint.Port() == 0) {
		return fmt.Errorf("underlay address %v: want an address and a port, not in IPv4-mapped form", p.Endpoint)
	}
	if p.Stats == nil {
		return fmt.Errorf("no Stats")
	}
	if p.Tunnel < 0 {
		return fmt.Errorf("number %d in the tunnel: want one above 0, or 0 for none", p.Tunnel)
	}
	return nil
}

// prefixes are what the peer has in the table, each once unless its pod CIDRs have one twice.
func (p *Peer) prefixes() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, c := range p.PodCIDRs {
			if !yield(c) {
				return
			}
		}
		at := p.Endpoint.Addr()
		if at.IsValid() && !yield(host(at)) {
			return
		}
		for _, a := range p.NodeAddrs {
			if a != at && !yield(host(a)) {
				return
			}
		}
	}
}

func (s *Snapshot) addPeer(b *lpmBuilder, p *Peer, index int) error {
	if err := p.check(); err != nil {
		return err
	}
	if err := s.addTunnel(p); err != nil {
		return err
	}
	p.Index = int32(index)
	for c := range p.prefixes() {
		if err := b.add(c, newTarget(kindPeer, index)); err != nil {
			return err
		}
	}
	return nil
}

// addTunnel makes PeerByTunnel find the peer.
func (s *Snapshot) addTunnel(p *Peer) error {
	if p.Tunnel == 0 {
		return nil
	}
	if more := int(p.Tunnel) + 1 - len(s.tunnels); more > 0 {
		s.tunnels = append(s.tunnels, make([]*Peer, more)...)
	}
	if other := s.tunnels[p.Tunnel]; other != nil {
		return fmt.Errorf("number %d in the tunnel is already peer %s's", p.Tunnel, other.Name)
	}
	s.tunnels[p.Tunnel] = p
	return nil
}

// A span is a range of addresses by the first of their words, see packet.AddrWords. The zero span is empty.
type span struct {
	first, size uint64
}

func (s span) contains(hi uint64) bool { return hi-s.first < s.size }

// localSpan is the first pod CIDR of this node in which nobody else has a part. The routes are unique and sorted.
func localSpan(routes []prefixRoute) span {
	for k, r := range routes {
		if r.target.kind() != kindPod || r.bits > 64 {
			continue
		}
		s := span{r.hi, 1 << (64 - r.bits)}
		foreign := func(r prefixRoute) bool { return r.target.kind() != kindPod && r.target.kind() != kindSelf }
		end := k
		for end < len(routes) && s.contains(routes[end].hi) {
			end++
		}
		if !slices.ContainsFunc(routes[k:end], foreign) {
			return s
		}
	}
	return span{}
}

// owner names a target for people.
func (s *Snapshot) owner(t target) string {
	switch t.kind() {
	case kindPod:
		return "this node's pods"
	case kindSelf:
		return "this node"
	case kindPeer:
		return "peer " + s.peers[t.peer()].Name
	}
	return "nobody"
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
