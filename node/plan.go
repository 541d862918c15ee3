package node

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/internal/key"
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
	grace    map[string]time.Time     // by peer name: until when a change of its encapsulation takes, see graces
	numbers  *numbers                 // of peers in the encrypted tunnel
	shared   map[string]key.Preshared // by file: what it held when it could last be read
	unread   map[string]string        // by file: why it could not be read the last time
	noVXLAN  error                    // why there is no plaintext tunnel
	workers  int

	peers    map[string]*planned // by name
	reached  map[netip.Addr]int  // underlay addresses that peers are at, and how many of them
	warnings map[string][]string // by peer name, of those that have any
	secured  int                 // how many peers are encrypted
	builder  *forwarder.Builder
}

// A planned is a peer, and what the plan made of it.
type planned struct {
	node   control.Node
	peer   *forwarder.Peer       // nil: it is left out, which a warning says
	tunnel *wireguard.PeerConfig // nil: none
	at     netip.Addr            // where it is reached; zero: unknown, or left out
	narrow string                // the warning that the path to it is narrow
}

// An outcome is a computed snapshot and what the encrypted tunnel has to be told before it is in force.
type outcome struct {
	snapshot *forwarder.Snapshot
	tunnels  []wireguard.PeerConfig // all of them, or those that are new or changed
	gone     []int32                // numbers of those that left
	whole    bool                   // tunnels are all there are
}

// macOf is the VTEP address of a node.
func macOf(n *control.Node) net.HardwareAddr {
	if n.MAC != nil {
		return n.MAC
	}
	return vxlan.MAC(n.Addresses[0])
}

// build computes the whole snapshot of this generation, with these peers.
func (p *plan) build(generation uint64, nodes []control.Node) (*outcome, error) {
	next := *p
	next.peers, next.reached = make(map[string]*planned, len(nodes)), make(map[netip.Addr]int, len(nodes))
	next.warnings, next.secured = map[string][]string{}, 0
	out := &outcome{whole: true}
	peers := make([]*forwarder.Peer, 0, len(nodes))
	for _, n := range nodes {
		made, err := next.make(&n, p.peers[n.Name])
		if err != nil {
			return nil, fmt.Errorf("peer %s: %w", n.Name, err)
		}
		next.enter(made)
		if made.peer != nil {
			peers = append(peers, made.peer)
		}
		if made.tunnel != nil {
			out.tunnels = append(out.tunnels, *made.tunnel)
		}
	}
	var err error
	next.builder, out.snapshot, err = forwarder.NewBuilder(forwarder.Spec{
		Generation:   generation,
		PodCIDRs:     p.cfg.Self.PodCIDRs,
		NodeAddrs:    p.cfg.Self.Addresses,
		Gateways:     p.cfg.Gateways(),
		ClusterCIDRs: p.cfg.Cluster,
		Peers:        peers,
	})
	if err != nil {
		return nil, err
	}
	for name := range p.peers {
		if next.peers[name] == nil {
			next.numbers.release(name, time.Now())
			delete(next.grace, name)
		}
	}
	*p = next
	return out, nil
}

// change computes the snapshot in which these peers are new or changed, and those named have left.
func (p *plan) change(generation uint64, nodes []control.Node, gone []string) (*outcome, error) {
	out := &outcome{}
	made := make([]*planned, 0, len(nodes))
	var set []*forwarder.Peer
	leave := slices.Clone(gone)
	warned := map[string][]string{}
	for _, n := range nodes {
		before := p.peers[n.Name]
		warned[n.Name] = p.warnings[n.Name]
		m, err := p.make(&n, before)
		if err != nil {
			maps.Copy(p.warnings, warned)
			return nil, fmt.Errorf("peer %s: %w", n.Name, err)
		}
		if made = append(made, m); m.peer != nil {
			set = append(set, m.peer)
		} else {
			leave = append(leave, n.Name)
		}
		switch {
		case m.tunnel != nil:
			out.tunnels = append(out.tunnels, *m.tunnel)
		case before != nil && before.tunnel != nil:
			out.gone = append(out.gone, before.tunnel.ID)
		}
	}
	var err error
	if out.snapshot, err = p.builder.Change(generation, set, leave); err != nil {
		maps.Copy(p.warnings, warned)
		return nil, err
	}
	now := time.Now()
	for _, name := range gone {
		if before := p.peers[name]; before != nil && before.tunnel != nil {
			out.gone = append(out.gone, before.tunnel.ID)
		}
		p.leave(name)
		p.numbers.release(name, now)
		delete(p.warnings, name)
		delete(p.grace, name)
	}
	for _, m := range made {
		p.leave(m.node.Name)
		p.enter(m)
	}
	return out, nil
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

// warn notes what people should know of a peer.
func (p *plan) warn(n *control.Node, text string) {
	if text != "" {
		p.warnings[n.Name] = append(p.warnings[n.Name], text)
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

// make computes a peer, with the counters that it had before. In a cluster that changes by itself a peer that nothing
// can be sent to is left out; in one that somebody wrote down that is an error.
func (p *plan) make(n *control.Node, before *planned) (*planned, error) {
	delete(p.warnings, n.Name)
	m := &planned{node: *n}
	peer, tunnel, err := p.peerOf(n, before)
	switch {
	case err != nil && p.cfg.Control == config.Static:
		return nil, err
	case err != nil:
		p.warn(n, fmt.Sprintf("peer %s is left out: %v", n.Name, err))
		return m, nil
	}
	m.peer, m.tunnel, m.at = peer, tunnel, p.reachedAt(peer)
	peer.MTU, m.narrow = p.peerMTU(n, m.at, peer.Encrypted)
	p.warn(n, m.narrow)
	return m, nil
}

// peerOf is what the data path knows of a node, and the encrypted tunnel. It shares with the peer of before what
// survives.
func (p *plan) peerOf(n *control.Node, before *planned) (*forwarder.Peer, *wireguard.PeerConfig, error) {
	peer := &forwarder.Peer{Name: n.Name, PodCIDRs: n.PodCIDRs, NodeAddrs: n.Addresses}
	var last *forwarder.Peer
	if before != nil && before.peer != nil {
		last = before.peer
		peer.Stats = last.Stats
	} else {
		peer.Stats = forwarder.NewPeerStats(p.workers)
	}
	peer.Encrypted, peer.RefusesPlaintext = p.encrypts(n)
	p.warn(n, p.graceWarning(n))
	tunnel, err := p.addTunnel(n, peer)
	if err != nil || n.Roams {
		return peer, tunnel, err
	}
	to, ok := p.endpoint(n)
	if !ok {
		return nil, nil, errors.New("no common address family with this node")
	}
	return peer, tunnel, p.addVXLAN(n, peer, to, last)
}

// addVXLAN gives a node's peer its part of the plaintext tunnel, by which it is reached, or takes what is still on its
// way when it has just become an encrypted one.
func (p *plan) addVXLAN(n *control.Node, peer *forwarder.Peer, to netip.Addr, last *forwarder.Peer) error {
	if !p.cfg.Encrypted(n) && p.noVXLAN != nil {
		return fmt.Errorf("it is to be reached by VXLAN, which this node has none of until a restart: %w", p.noVXLAN)
	}
	own, err := vxlan.Address(macOf(&p.cfg.Self))
	if err != nil {
		return fmt.Errorf("this node: %w", err)
	}
	mac, err := vxlan.Address(macOf(n))
	if err != nil {
		return err
	}
	port := p.cfg.PortOf(n)
	if peer.Encrypted {
		port = p.cfg.WireGuardPortOf(n)
	}
	peer.Endpoint = netip.AddrPortFrom(to, port)
	header := vxlan.NewTemplate(p.cfg.VNI, mac, own)
	peer.Header4, peer.Header6 = header.V4[:], header.V6[:]
	switch {
	case peer.Encrypted:
	case last != nil && last.Whole != nil && last.Endpoint == peer.Endpoint:
		peer.Whole = last.Whole
	default:
		peer.Whole = new(atomic.Bool)
	}
	return nil
}

// addTunnel gives a peer that has a key its part of the encrypted tunnel, also when it is not used for sending yet.
func (p *plan) addTunnel(n *control.Node, peer *forwarder.Peer) (*wireguard.PeerConfig, error) {
	if n.PublicKey.IsZero() {
		if peer.Encrypted {
			return nil, errors.New("it has no public key yet, so nothing can be encrypted to it")
		}
		return nil, nil
	}
	if p.secure.tunnel == nil {
		if peer.Encrypted {
			return nil, fmt.Errorf("it is to be encrypted, which this node cannot until a restart: %w", p.secure.why)
		}
		return nil, nil
	}
	c := &wireguard.PeerConfig{Name: n.Name, Public: n.PublicKey, Greet: peer.Encrypted && !n.Roams}
	if peer.Encrypted {
		c.Keepalive = p.cfg.PersistentKeepalive
	}
	// What a control plane says of a node names no file of this host.
	if file := cmp.Or(n.PresharedKeyFile, p.cfg.PresharedKeyFile); file != "" {
		k, err := p.preshared(file)
		if err != nil && k.IsZero() {
			return nil, err
		}
		if err != nil {
			p.warn(n, fmt.Sprintf("peer %s goes on with the preshared key that it had: %v", n.Name, err))
		}
		c.Preshared = k
	}
	if to, ok := p.endpoint(n); ok {
		c.Endpoint = netip.AddrPortFrom(to, p.cfg.WireGuardPortOf(n))
	}
	c.ID = p.numbers.of(n.Name, time.Now())
	peer.Tunnel = c.ID
	return c, nil
}

// preshared is the key in a file, with an error the one that was in it before; zero: none was.
func (p *plan) preshared(file string) (key.Preshared, error) {
	k, err := key.LoadPreshared(file)
	if err != nil {
		p.unread[file] = err.Error()
		return p.shared[file], fmt.Errorf("presharedKeyFile: %w", err)
	}
	delete(p.unread, file)
	p.shared[file] = k
	return k, nil
}

// presharedChanged reports whether a file holds another key than when it was read last, or is no longer, or again, or
// for another reason not to be read: then there is something else to warn of.
func (p *plan) presharedChanged() bool {
	for file, before := range p.shared {
		k, err := key.LoadPreshared(file)
		switch {
		case err != nil && err.Error() != p.unread[file]:
			return true
		case err == nil && (k != before || p.unread[file] != ""):
			return true
		}
	}
	for file, why := range p.unread {
		if _, once := p.shared[file]; once {
			continue
		}
		if _, err := key.LoadPreshared(file); err == nil || err.Error() != why {
			delete(p.unread, file) // or nobody may ever ask for it again
			return true            // whom it is for was left out
		}
	}
	return false
}

// reachedAt is the underlay address where the peer is now; the zero Addr when nobody knows.
func (p *plan) reachedAt(peer *forwarder.Peer) netip.Addr {
	if peer.Encrypted {
		if t := p.secure.tunnel.Peer(peer.Tunnel); t != nil && t.Endpoint().IsValid() {
			return t.Endpoint().Addr()
		}
	}
	return peer.Endpoint.Addr()
}

// endpoint is the peer's first address of a family that this node has too.
func (p *plan) endpoint(n *control.Node) (netip.Addr, bool) {
	for _, a := range n.Addresses {
		if slices.ContainsFunc(p.cfg.Self.Addresses, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			return a, true
		}
	}
	return netip.Addr{}, false
}
