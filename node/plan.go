package node

import (
	"errors"
	"fmt"
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
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/vxlan"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// A plan is everything that a snapshot is computed from. Computing changes nothing but stats.
type plan struct {
	cfg      *config.Config
	podMTU   int // bytes, of the device and the pods
	underlay []api.Underlay
	paths    pathLimits
	secure   *secure
	grace    map[string]time.Time            // by peer name: until when a change of its encapsulation takes, see graces
	tunnels  map[string]int32                // by peer name: its number in the encrypted tunnel; never used again
	shared   map[string]key.Preshared        // by file: what it held when it could last be read
	unread   map[string]string               // by file: why it could not be read the last time
	reached  map[netip.Addr]bool             // underlay addresses that peers are at
	stats    map[string]*forwarder.PeerStats // by peer name; entries survive as long as the peer
	whole    map[netip.AddrPort]*atomic.Bool // by endpoint: superpackets may go to it uncut; as stats
	noVXLAN  error                           // why there is no plaintext tunnel
	workers  int
}

// An outcome is a computed snapshot and what people want to know of it.
type outcome struct {
	snapshot *forwarder.Snapshot
	macs     map[string]string // peer name → VTEP address
	tunnels  []wireguard.PeerConfig
	warnings []string
}

// macOf is the VTEP address of a node.
func macOf(n *control.Node) net.HardwareAddr {
	if n.MAC != nil {
		return n.MAC
	}
	return vxlan.MAC(n.Addresses[0])
}

// overhead is what a tunnel adds to an inner packet on its way to the address, in bytes.
func overhead(to netip.Addr, encrypted bool) int {
	switch {
	case encrypted && to.Is4():
		return wireguard.Overhead4
	case encrypted:
		return wireguard.Overhead6
	case to.Is4():
		return vxlan.Overhead4
	}
	return vxlan.Overhead6
}

// build computes the snapshot of this generation.
func (p *plan) build(generation uint64) (*outcome, error) {
	cfg := p.cfg
	out := &outcome{macs: map[string]string{}, warnings: p.underlayWarnings()}
	next := *p
	next.reached = map[netip.Addr]bool{}
	next.stats, next.whole = map[string]*forwarder.PeerStats{}, map[netip.AddrPort]*atomic.Bool{}
	var peers []*forwarder.Peer
	for _, n := range cfg.Peers(cfg.State) {
		peer, err := p.peerOf(&n, &next, out)
		if err != nil {
			return nil, fmt.Errorf("peer %s: %w", n.Name, err)
		}
		peers = append(peers, peer)
	}
	var err error
	out.snapshot, err = forwarder.Build(forwarder.Spec{
		Generation:   generation,
		PodCIDRs:     cfg.Self.PodCIDRs,
		NodeAddrs:    cfg.Self.Addresses,
		Gateways:     cfg.Gateways(),
		ClusterCIDRs: cfg.Cluster,
		Peers:        peers,
	})
	if err != nil {
		return nil, err
	}
	p.stats, p.whole, p.reached = next.stats, next.whole, next.reached
	return out, nil
}

// peerOf is what the data path knows of a node. What it shares with the snapshot before goes into next.
func (p *plan) peerOf(n *control.Node, next *plan, out *outcome) (*forwarder.Peer, error) {
	peer := &forwarder.Peer{Name: n.Name, PodCIDRs: n.PodCIDRs, NodeAddrs: n.Addresses, Stats: p.stats[n.Name]}
	peer.Encrypted, peer.RefusesPlaintext = p.encrypts(n)
	if warning := p.graceWarning(n); warning != "" {
		out.warnings = append(out.warnings, warning)
	}
	if peer.Stats == nil {
		peer.Stats = forwarder.NewPeerStats(p.workers)
	}
	next.stats[n.Name] = peer.Stats
	if err := p.addTunnel(n, peer, out); err != nil {
		return nil, err
	}
	if !n.Roams {
		to, ok := p.endpoint(n)
		if !ok {
			return nil, errors.New("no common address family with this node")
		}
		if err := p.addVXLAN(n, peer, to, next, out); err != nil {
			return nil, err
		}
	}
	at := p.reachedAt(peer)
	next.reached[at] = true
	var warning string
	peer.MTU, warning = p.peerMTU(n, at, peer.Encrypted)
	if warning != "" {
		out.warnings = append(out.warnings, warning)
	}
	return peer, nil
}

// addVXLAN gives a node's peer its part of the plaintext tunnel, by which it is reached, or takes what is still on its
// way when it has just become an encrypted one.
func (p *plan) addVXLAN(n *control.Node, peer *forwarder.Peer, to netip.Addr, next *plan, out *outcome) error {
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
	if !peer.Encrypted {
		if next.whole[peer.Endpoint] = p.whole[peer.Endpoint]; next.whole[peer.Endpoint] == nil {
			next.whole[peer.Endpoint] = new(atomic.Bool)
		}
		peer.Whole = next.whole[peer.Endpoint]
	}
	out.macs[n.Name] = net.HardwareAddr(mac[:]).String()
	return nil
}

// addTunnel gives a peer that has a key its part of the encrypted tunnel, also when it is not used for sending yet.
func (p *plan) addTunnel(n *control.Node, peer *forwarder.Peer, out *outcome) error {
	if n.PublicKey.IsZero() {
		return nil
	}
	if p.secure.tunnel == nil {
		if peer.Encrypted {
			return fmt.Errorf("it is to be encrypted, which this node cannot until a restart: %w", p.secure.why)
		}
		return nil
	}
	c := wireguard.PeerConfig{Name: n.Name, Public: n.PublicKey, Greet: peer.Encrypted && !n.Roams}
	if peer.Encrypted {
		c.Keepalive = p.cfg.PersistentKeepalive
	}
	if n.PresharedKeyFile != "" {
		k, err := p.preshared(n.PresharedKeyFile)
		if err != nil && k.IsZero() {
			return err
		}
		if err != nil {
			out.warnings = append(out.warnings,
				fmt.Sprintf("peer %s goes on with the preshared key that it had: %v", n.Name, err))
		}
		c.Preshared = k
	}
	if to, ok := p.endpoint(n); ok {
		c.Endpoint = netip.AddrPortFrom(to, p.cfg.WireGuardPortOf(n))
	}
	id, ok := p.tunnels[n.Name]
	if !ok {
		id = int32(len(p.tunnels) + 1)
		p.tunnels[n.Name] = id
	}
	c.ID, peer.Tunnel = id, id
	out.tunnels = append(out.tunnels, c)
	return nil
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

// underlayMTU is the MTU in bytes of the device that packets to the address leave from, as far as it is known.
func (p *plan) underlayMTU(to netip.Addr) int {
	for _, u := range p.underlay {
		if u.Address.Is4() == to.Is4() && u.MTU > 0 {
			return u.MTU
		}
	}
	return p.podMTU + overhead(to, true)
}

// elsewhereMTU is the MTU in bytes that is taken for the path to a machine that may be anywhere: Ethernet's.
const elsewhereMTU = 1500

// peerMTU is the largest inner packet that reaches the peer, and a warning when the path is narrower than its device.
// A figure below 576 is not believed: what every IPv4 host has to be able to receive passes everywhere. That IPv6 must
// not be told less than 1280 is the forwarder's to heed.
func (p *plan) peerMTU(n *control.Node, to netip.Addr, encrypted bool) (mtu int, warning string) {
	outer := p.underlayMTU(to)
	if n.Roams {
		outer = min(outer, elsewhereMTU)
	}
	if limit, ok := p.paths[to]; ok && limit.mtu < outer {
		outer = limit.mtu
		warning = fmt.Sprintf("the path to peer %s (%s) carries packets of at most %d bytes, so its pods get %d", n.Name, to,
			outer, max(outer-overhead(to, encrypted), config.MinMTU4))
	}
	inner := outer - overhead(to, encrypted)
	least := config.MinMTU4
	if hasIPv6(p.cfg.Self.PodCIDRs) && hasIPv6(n.PodCIDRs) {
		least = config.MinMTU6
	}
	if inner < least {
		warning = fmt.Sprintf("the path to peer %s (%s) carries packets of at most %d bytes, but %d are needed for the %d "+
			"that its pods are entitled to: larger packets are lost; raise the MTU of the underlay", n.Name, to, outer,
			least+overhead(to, encrypted), least)
	}
	return min(max(inner, config.MinMTU4), p.podMTU), warning
}

func hasIPv6(list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(c netip.Prefix) bool { return c.Addr().Is6() })
}

// underlayWarnings says which of the node's underlay devices cannot carry what the pods' MTU promises.
func (p *plan) underlayWarnings() []string {
	var out []string
	encrypted := uses(p.cfg, true)
	for _, u := range p.underlay {
		more := overhead(u.Address, encrypted)
		need := p.podMTU + more
		switch {
		case u.Device == "":
			out = append(out, fmt.Sprintf("underlay address %s is on no device of this host any more", u.Address))
		case u.MTU < need:
			out = append(out, fmt.Sprintf("underlay device %s (%s) has MTU %d, but pods with MTU %d need %d: pods are told to "+
				"send smaller packets; raise it to %d, or set `mtu: %d` and restart", u.Device, u.Address, u.MTU, p.podMTU,
				need, need, u.MTU-more))
		}
	}
	return out
}

// podMTU is the MTU of the pods: the configured one, or the narrowest underlay's less the margin.
func podMTU(cfg *config.Config, underlay []api.Underlay) (int, error) {
	if cfg.MTU != 0 {
		return cfg.MTU, nil
	}
	narrow := underlay[0]
	for _, u := range underlay[1:] {
		if u.MTU < narrow.MTU {
			narrow = u
		}
	}
	mtu := min(narrow.MTU, 1<<16-1) - config.PodMTUMargin
	if least := cfg.MinMTU(); mtu < least {
		return 0, fmt.Errorf("underlay device %s (%s) has MTU %d, which leaves the pods %d bytes, below the least of %d; "+
			"raise it to %d or more", narrow.Device, narrow.Address, narrow.MTU, mtu, least, least+config.PodMTUMargin)
	}
	return mtu, nil
}

// deviceGSOMaxSize is the gso_max_size in bytes of the device: as large as superpackets get. With a smaller one the
// kernel would cut a larger superpacket into single packets before the device: 0.57 of the rate, measured with pods
// whose veths had the kernel's own limit.
const deviceGSOMaxSize = 65536

// deviceQueueLength is how many packets wait in each queue of the device before the kernel drops. Its own default of
// 500 is 2 ms of small packets, less than a thread may have to wait for its processor. The price: senders that nothing
// slows down can fill a queue with superpackets, 62 MiB of the kernel's memory, and with many flows all queues: 1 GiB
// with 16 lanes. A TCP connection keeps to its window.
const deviceQueueLength = 1000

// gsoMaxSize is the size in bytes of superpackets whose segments, with the tunnel's headers, fit one send: a longer one
// costs a second system call for a few segments. 72 bytes are the longest usual headers (IPv6, TCP with timestamps).
func gsoMaxSize(podMTU int) int {
	const headers = 72
	n := min(tunnel.MaxSendBytes/(podMTU+vxlan.HeaderLen), tunnel.MaxSendSegments)
	return min(max(n, 1)*(podMTU-headers)+headers, 1<<16-1)
}
