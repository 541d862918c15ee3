package forwarder

import (
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
)

// A Peer is another node as the data path sees it. It is immutable once it is part of a Snapshot; only the counters
// behind Stats move.
type Peer struct {
	Name      string
	Endpoint  netip.AddrPort // underlay address and UDP port
	PodCIDRs  []netip.Prefix // masked
	NodeAddrs []netip.Addr   // the node's own addresses, which its host traffic and ICMP errors carry
	MTU       int            // bytes of the largest inner IP packet that the path to it carries
	Header4   []byte         // what the encapsulation puts before an inner IPv4 packet; opaque here, read-only
	Header6   []byte         // the same for IPv6
	Stats     *PeerStats     // survives the snapshot, so that counters go on when other peers change
	Index     int32          // its place in Snapshot.Peers; set by Build
}

// Header is the encapsulation header for an inner packet of this IP version.
func (p *Peer) Header(version uint8) []byte {
	if version == 4 {
		return p.Header4
	}
	return p.Header6
}

// A Spec is what a Snapshot is built from.
type Spec struct {
	Generation   uint64         // grows by one with every snapshot; for status and metrics
	PodCIDRs     []netip.Prefix // this node's
	NodeAddrs    []netip.Addr   // this node's underlay addresses
	Gateways     []netip.Addr   // this node's gateway addresses, at most one per family: ICMP errors come from them
	ClusterCIDRs []netip.Prefix // never handed to the kernel
	Peers        []*Peer
}

// A Snapshot is an immutable view of the cluster. Build makes one.
type Snapshot struct {
	Generation uint64
	Peers      []*Peer
	Gateway4   netip.Addr // zero when the node has no IPv4 pod CIDR
	Gateway6   netip.Addr

	routes bart.Fast[target]
	byAddr map[netip.Addr]*Peer
}

var emptySnapshot Snapshot

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

type target struct {
	kind kind
	peer int32
}

func (s *Snapshot) lookup(a netip.Addr) target {
	t, _ := s.routes.Lookup(a)
	return t
}

// Gateway is the source address of ICMP errors of this IP version; the zero Addr when the node has none.
func (s *Snapshot) Gateway(version uint8) netip.Addr {
	if version == 4 {
		return s.Gateway4
	}
	return s.Gateway6
}

// PeerByAddr finds the peer whose underlay address is a; nil when there is none.
func (s *Snapshot) PeerByAddr(a netip.Addr) *Peer { return s.byAddr[a] }

// A Route is one line of the table, for people.
type Route struct {
	Prefix netip.Prefix
	Kind   string // "pod", "node", "peer", "unreachable"
	Peer   string // name, when Kind is "peer"
}

// Routes lists the table, sorted by prefix.
func (s *Snapshot) Routes() []Route {
	var out []Route
	for pfx, t := range s.routes.AllSorted() {
		r := Route{Prefix: pfx}
		switch t.kind {
		case kindPod:
			r.Kind = "pod"
		case kindSelf:
			r.Kind = "node"
		case kindHole:
			r.Kind = "unreachable"
		case kindPeer:
			r.Kind, r.Peer = "peer", s.Peers[t.peer].Name
		}
		out = append(out, r)
	}
	return out
}

// Build makes a snapshot. It refuses what would make decisions ambiguous: two owners of one prefix or address, a peer
// without an endpoint, addresses in IPv4-mapped form. The Peers of spec get their Index set and belong to the
// snapshot from then on.
func Build(spec Spec) (*Snapshot, error) {
	s := &Snapshot{
		Generation: spec.Generation,
		Peers:      spec.Peers,
		byAddr:     make(map[netip.Addr]*Peer, len(spec.Peers)),
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
	for _, c := range spec.ClusterCIDRs {
		if err := s.insert(c, target{kind: kindHole}); err != nil {
			return nil, fmt.Errorf("cluster CIDR: %w", err)
		}
	}
	for _, c := range spec.PodCIDRs {
		if err := s.insert(c, target{kind: kindPod}); err != nil {
			return nil, fmt.Errorf("own pod CIDR: %w", err)
		}
	}
	for n, p := range spec.Peers {
		if err := s.addPeer(p, int32(n)); err != nil {
			return nil, fmt.Errorf("peer %s: %w", p.Name, err)
		}
	}
	// Last, so that the node's own addresses win over any prefix that contains them.
	for _, list := range [][]netip.Addr{spec.NodeAddrs, spec.Gateways} {
		for _, a := range list {
			if err := s.insert(host(a), target{kind: kindSelf}); err != nil {
				return nil, fmt.Errorf("own address: %w", err)
			}
		}
	}
	return s, nil
}

func (s *Snapshot) addPeer(p *Peer, index int32) error {
	if !p.Endpoint.IsValid() || p.Endpoint.Addr().Is4In6() || p.Endpoint.Port() == 0 {
		return fmt.Errorf("underlay address %v: want an address and a port, not in IPv4-mapped form", p.Endpoint)
	}
	if p.Stats == nil {
		return fmt.Errorf("no Stats")
	}
	p.Index = index
	t := target{kind: kindPeer, peer: index}
	for _, c := range p.PodCIDRs {
		if err := s.insert(c, t); err != nil {
			return fmt.Errorf("pod CIDR: %w", err)
		}
	}
	for _, a := range append([]netip.Addr{p.Endpoint.Addr()}, p.NodeAddrs...) {
		if other := s.byAddr[a]; other != nil && other != p {
			return fmt.Errorf("address %v is already peer %s's", a, other.Name)
		}
		s.byAddr[a] = p
		if err := s.insert(host(a), t); err != nil {
			return err
		}
	}
	return nil
}

// insert adds a prefix; only a hole may be replaced (a cluster range may be exactly one node's CIDR).
func (s *Snapshot) insert(c netip.Prefix, t target) error {
	if !c.IsValid() || c != c.Masked() || c.Addr().Is4In6() {
		return fmt.Errorf("prefix %v: want a masked prefix, not in IPv4-mapped form", c)
	}
	var err error
	s.routes.Modify(c, func(old target, exists bool) (target, bool) {
		if exists && old.kind != kindHole && old != t {
			err = fmt.Errorf("prefix %v has two owners", c)
			return old, false
		}
		return t, false
	})
	return err
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
