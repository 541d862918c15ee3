package node

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
)

// A direct peer, one that asks for direct or auto as this node does, has its tunnel all the same: what it still sends
// that way is taken, and what reaches the TUN device for it, while routes change, leaves by it. All that makes it
// direct is the kernel's routes, which are hostnet's to set.

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

	open    time.Time // see openUntil
	guarded bool      // what was said last
}

// guards reports whether packets of others' pods are to be refused that arrive without a tunnel, but those of direct
// peers. A node that asks for direct or auto itself hears neighbours that have become direct before it knows; and one
// that did so a moment ago those who do not know yet that it no longer does. Where all nodes stand in files, each of
// them has an opinion of its own about what the others ask for, until all files are the same.
func (d *direct) guards(cfg *config.Config, now time.Time) bool {
	open := d.openUntil(cfg, now)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.guarded = cfg.Control != config.Static && now.After(open)
	return d.guarded
}

// openUntil is until when packets of pods may arrive without a tunnel whoever is direct. A node that starts again has
// it from the one that it was.
func (d *direct) openUntil(cfg *config.Config, now time.Time) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if cfg.Own.Untunnelled() || cfg.Self.Untunnelled() {
		d.open = now.Add(graceTime)
	}
	return d.open
}

// guardsSince reports whether guards has become true since it was last asked.
func (d *direct) guardsSince(cfg *config.Config, now time.Time) bool {
	d.mu.Lock()
	before := d.guarded
	d.mu.Unlock()
	return !before && d.guards(cfg, now)
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

// change takes in those that are new, changed or gone, and returns those of them that were direct and that are.
func (d *direct) change(cfg *config.Config, set []control.Node, gone []string) (before, after []hostnet.DirectPeer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	drop := func(name string) {
		if was, ok := d.peers[name]; ok {
			before = append(before, was)
			delete(d.peers, name)
			delete(d.ways, name)
		}
	}
	left := setOf(gone)
	for k := range set {
		delete(left, set[k].Name) // it came again
		next, ok := directPeer(cfg, &set[k])
		if was, there := d.peers[next.Name]; ok && there && reflect.DeepEqual(was, next) {
			continue
		}
		drop(next.Name)
		if ok {
			d.peers[next.Name] = next
			after = append(after, next)
		}
	}
	for _, name := range gone {
		if left[name] {
			drop(name)
		}
	}
	return before, after
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

// note takes in how peers are reached, as of the last time that the kernel was set up for all of them. One of whom it
// says nothing has come since.
func (d *direct) note(routes []hostnet.DirectRoute) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ways := map[string][]hostnet.DirectRoute{}
	for _, r := range routes {
		ways[r.Peer] = append(ways[r.Peer], r)
	}
	if d.ways == nil {
		d.ways = ways
	}
	for name := range d.ways {
		if _, wanted := d.peers[name]; !wanted {
			delete(d.ways, name)
		}
	}
	for name, way := range ways {
		if _, wanted := d.peers[name]; wanted {
			d.ways[name] = way
		}
	}
}

// warnings says which pods of peers that are to be direct whatever is between are not.
func (d *direct) warnings() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for name, routes := range d.ways {
		for _, r := range routes {
			if r.Why != "" && !d.peers[name].OnLink {
				out = append(out, fmt.Sprintf("peer %s is to be direct, but its pods in %s are reached through the tunnel: %s",
					name, r.Prefix, r.Why))
			}
		}
	}
	slices.Sort(out)
	return out
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

// applyDirect tells the kernel of direct peers that were, and are.
func (w *writer) applyDirect(before, after []hostnet.DirectPeer) {
	if len(before)+len(after) == 0 {
		return
	}
	w.node.hostMu.Lock()
	changes, err := hostnet.ChangeDirect(specOf(w.plan.cfg), before, after)
	w.node.hostMu.Unlock()
	if err != nil {
		if !errors.Is(err, hostnet.ErrWholeDirect) {
			w.log.Warn("the kernel does not go the way to direct peers; everything is looked at", "error", err)
		}
		w.setUpAnew()
	} else {
		w.node.direct.note(changes.Direct)
	}
	w.showAgain()
}
