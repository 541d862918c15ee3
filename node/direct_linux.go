package node

import (
	"net/netip"
	"sync/atomic"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
)

// A direct peer, one that asks for direct or auto as this node does, has its tunnel all the same: what it still sends
// that way is taken, and what reaches the TUN device for it, while routes change, leaves by it. All that makes it direct
// is the kernel's routes, which are hostnet's to set.

// directPeers are the peers that may be reached without a tunnel.
func directPeers(cfg *config.Config) []hostnet.DirectPeer {
	var out []hostnet.DirectPeer
	for _, n := range cfg.Peers(cfg.State) {
		if d := cfg.Direct(&n); d != control.Never {
			out = append(out, hostnet.DirectPeer{
				Name: n.Name, PodCIDRs: n.PodCIDRs, NodeAddrs: n.Addresses, OnLink: d == control.OnLink,
			})
		}
	}
	return out
}

// directWays are how direct peers were reached when the kernel was last set up, by name. The zero value knows of none;
// it is safe for concurrent use.
type directWays struct {
	byPeer atomic.Pointer[map[string][]hostnet.DirectRoute]
}

func (d *directWays) note(routes []hostnet.DirectRoute) {
	byPeer := map[string][]hostnet.DirectRoute{}
	for _, r := range routes {
		byPeer[r.Peer] = append(byPeer[r.Peer], r)
	}
	d.byPeer.Store(&byPeer)
}

func (d *directWays) of(peer string) []hostnet.DirectRoute {
	if byPeer := d.byPeer.Load(); byPeer != nil {
		return (*byPeer)[peer]
	}
	return nil
}

// tell adds to a peer's answer how it is reached without a tunnel.
func (d *directWays) tell(out *api.Peer) {
	own := func(p netip.Prefix) bool { // and not a node's address
		for _, c := range out.PodCIDRs {
			if c == p {
				return true
			}
		}
		return false
	}
	direct, tunnelled := false, false
	for _, r := range d.of(out.Name) {
		out.Direct = append(out.Direct, api.DirectRoute{Prefix: r.Prefix, NextHop: r.Via, Device: r.Device, Tunnel: r.Why})
		if own(r.Prefix) {
			direct, tunnelled = direct || r.Why == "", tunnelled || r.Why != ""
		}
	}
	switch {
	case direct && tunnelled:
		out.Encapsulation = string(control.Direct) + "+" + out.Encapsulation
	case direct:
		out.Encapsulation = string(control.Direct)
	}
}

// tellRoute adds to a line of the table how the kernel takes another way.
func (d *directWays) tellRoute(out *api.Route) {
	for _, r := range d.of(out.Peer) {
		if r.Prefix == out.Prefix && r.Why == "" {
			out.NextHop, out.Device = r.Via, r.Device
		}
	}
}
