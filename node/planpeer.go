package node

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/tunnel/vxlan"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// survivor is the peer that goes on as n: before, unless that was another machine of its name, or nil. Another key and
// another address, none of those before, are another machine's; a key alone changes when it is rotated, an address
// alone when a machine moves. What left in between comes again only with the key that it had.
func survivor(before *planned, n *control.Node, left bool) *planned {
	if before == nil || before.node.PublicKey == n.PublicKey {
		return before
	}
	there := func(a netip.Addr) bool { return slices.Contains(before.node.Addresses, a) }
	if left || !slices.ContainsFunc(n.Addresses, there) {
		return nil
	}
	return before
}

// setOf is a list to look names up in.
func setOf(names []string) map[string]bool {
	if len(names) == 0 {
		return nil
	}
	out := make(map[string]bool, len(names))
	for _, name := range names {
		out[name] = true
	}
	return out
}

// makeAll computes peers, each with what survives of the one that it was before. Those in left were gone in between.
func (p *plan) makeAll(nodes []control.Node, before map[string]*planned, left map[string]bool) ([]*planned, error) {
	made := make([]*planned, 0, len(nodes))
	for k := range nodes {
		n := &nodes[k]
		m, err := p.make(n, survivor(before[n.Name], n, left[n.Name]))
		if err != nil {
			p.unmake(made...)
			return nil, fmt.Errorf("peer %s: %w", n.Name, err)
		}
		made = append(made, m)
	}
	return made, nil
}

// make computes a peer, with the counters that it had before. In a cluster that changes by itself a peer that nothing
// can be sent to is left out; in one that somebody wrote down that is an error.
func (p *plan) make(n *control.Node, before *planned) (*planned, error) {
	m := &planned{node: *n}
	err := p.peerOf(m, before)
	switch {
	case err != nil && p.cfg.Control == config.Static:
		p.unmake(m)
		return nil, err
	case err != nil:
		p.leaveOut(m, err)
		return m, nil
	}
	m.at = p.reachedAt(m.peer)
	m.peer.MTU, m.narrow = p.peerMTU(n, m.at, m.peer.Encrypted)
	m.warn(m.narrow)
	return m, nil
}

// unmake gives back what was taken for peers that do not come to be.
func (p *plan) unmake(made ...*planned) {
	for _, m := range made {
		if m.numbered {
			p.numbers.giveBack(m.tunnel.ID)
			m.numbered = false
		}
	}
}

// leaveOut leaves of a peer what is said of it, and why it is no more than that.
func (p *plan) leaveOut(m *planned, why error) {
	p.unmake(m)
	*m = planned{node: m.node}
	m.warn(fmt.Sprintf("peer %s is left out: %v", m.node.Name, why))
}

// peerOf makes what the data path knows of a node, and the encrypted tunnel. It shares with the peer of before what
// survives.
func (p *plan) peerOf(m *planned, before *planned) error {
	n := &m.node
	m.peer = &forwarder.Peer{Name: n.Name, PodCIDRs: n.PodCIDRs, NodeAddrs: n.Addresses}
	var last *forwarder.Peer
	if before != nil && before.peer != nil {
		last = before.peer
		m.peer.Stats = last.Stats
	} else {
		m.peer.Stats = forwarder.NewPeerStats(p.workers)
	}
	m.peer.Encrypted, m.peer.RefusesPlaintext = p.encrypts(n)
	m.warn(p.graceWarning(n))
	if err := p.addTunnel(m, before); err != nil || n.Roams {
		return err
	}
	to, ok := p.endpoint(n)
	if !ok {
		return errors.New("no common address family with this node")
	}
	return p.addVXLAN(n, m.peer, to, last)
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
func (p *plan) addTunnel(m *planned, before *planned) error {
	n, peer := &m.node, m.peer
	if n.PublicKey.IsZero() {
		if peer.Encrypted {
			return errors.New("it has no public key yet, so nothing can be encrypted to it")
		}
		return nil
	}
	if p.secure.tunnel == nil {
		if peer.Encrypted {
			return fmt.Errorf("it is to be encrypted, which this node cannot until a restart: %w", p.secure.why)
		}
		return nil
	}
	c := &wireguard.PeerConfig{Name: n.Name, Public: n.PublicKey, Greet: peer.Encrypted && !n.Roams}
	if peer.Encrypted {
		c.Keepalive = p.cfg.PersistentKeepalive
	}
	// What a control plane says of a node names no file of this host.
	if file := cmp.Or(n.PresharedKeyFile, p.cfg.PresharedKeyFile); file != "" {
		k, err := p.files.of(file)
		if err != nil && k.IsZero() {
			return err
		}
		if err != nil {
			m.warn(fmt.Sprintf("peer %s goes on with the preshared key that it had: %v", n.Name, err))
		}
		c.Preshared = k
	}
	if to, ok := p.endpoint(n); ok {
		c.Endpoint = netip.AddrPortFrom(to, p.cfg.WireGuardPortOf(n))
	}
	if before != nil && before.tunnel != nil {
		c.ID = before.tunnel.ID
	} else {
		c.ID, m.numbered = p.numbers.take(time.Now()), true
	}
	peer.Tunnel, m.tunnel = c.ID, c
	return nil
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
