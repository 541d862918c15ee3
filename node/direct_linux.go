package node

import (
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
)

// A direct peer, one that asks for direct or auto as this node does, has its tunnel all the same: what it still sends
// that way is taken, and what reaches the TUN device for it, while routes change, leaves by it. All that makes it direct
// is the kernel's routes, which are hostnet's to set.

// directPeers are those of the nodes that may be reached without a tunnel.
func directPeers(cfg *config.Config, nodes []control.Node) []hostnet.DirectPeer {
	var out []hostnet.DirectPeer
	for k := range nodes {
		if p, ok := directPeer(cfg, &nodes[k]); ok {
			out = append(out, p)
		}
	}
	return out
}

func directPeer(cfg *config.Config, n *control.Node) (hostnet.DirectPeer, bool) {
	d := cfg.Direct(n)
	return hostnet.DirectPeer{
		Name: n.Name, PodCIDRs: n.PodCIDRs, NodeAddrs: n.Addresses, OnLink: d == control.OnLink,
	}, d != control.Never
}

// direct is which peers are to be direct, for whoever sets the kernel up, and how they were reached when that was last
// done, for who asks. The zero value knows of none; it is safe for concurrent use.
type direct struct {
	mu    sync.Mutex
	peers map[string]hostnet.DirectPeer    // by name
	ways  map[string][]hostnet.DirectRoute // by name of the peer
}

// reset takes all peers in.
func (d *direct) reset(cfg *config.Config, nodes []control.Node) {
	peers := map[string]hostnet.DirectPeer{}
	for _, p := range directPeers(cfg, nodes) {
		peers[p.Name] = p
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers = peers
}

// change takes in those that are new, changed or gone, and reports whether one of them is direct or was.
func (d *direct) change(cfg *config.Config, set []control.Node, gone []string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := false
	drop := func(name string) {
		_, was := d.peers[name]
		delete(d.peers, name)
		changed = changed || was
	}
	for k := range set {
		next, ok := directPeer(cfg, &set[k])
		if !ok {
			drop(set[k].Name)
			continue
		}
		if before, was := d.peers[next.Name]; !was || !reflect.DeepEqual(before, next) {
			d.peers[next.Name], changed = next, true
		}
	}
	for _, name := range gone {
		drop(name)
	}
	return changed
}

// wanted lists them.
func (d *direct) wanted() []hostnet.DirectPeer {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]hostnet.DirectPeer, 0, len(d.peers))
	for _, name := range slices.Sorted(maps.Keys(d.peers)) {
		out = append(out, d.peers[name])
	}
	return out
}

// note takes in what the kernel was set up with.
func (d *direct) note(routes []hostnet.DirectRoute) {
	ways := map[string][]hostnet.DirectRoute{}
	for _, r := range routes {
		ways[r.Peer] = append(ways[r.Peer], r)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ways = ways
}

func (d *direct) of(peer string) []hostnet.DirectRoute {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ways[peer]
}

// tell adds to a peer's answer how it is reached without a tunnel.
func (d *direct) tell(out *api.Peer) {
	without, within := false, false
	for _, r := range d.of(out.Name) {
		out.Direct = append(out.Direct, api.DirectRoute{Prefix: r.Prefix, NextHop: r.Via, Device: r.Device, Tunnel: r.Why})
		if slices.Contains(out.PodCIDRs, r.Prefix) { // and not the node's address
			without, within = without || r.Why == "", within || r.Why != ""
		}
	}
	switch {
	case without && within:
		out.Encapsulation = string(control.Direct) + "+" + out.Encapsulation
	case without:
		out.Encapsulation = string(control.Direct)
	}
}

// tellRoute adds to a line of the table how the kernel takes another way.
func (d *direct) tellRoute(out *api.Route) {
	for _, r := range d.of(out.Peer) {
		if r.Prefix == out.Prefix && r.Why == "" {
			out.NextHop, out.Device = r.Via, r.Device
		}
	}
}
