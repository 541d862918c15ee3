package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/warren-net/warren/device/tun"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/tapgso"
)

// How often the way of uncut superpackets is proved, and how often it is looked for where no event told of a change.
const (
	proveEvery   = 3 * time.Second
	egressEvery  = 30 * time.Second
	gsoSettle    = 50 * time.Millisecond // events are gathered for so long
	gsoRestShare = 20                    // and for so many times as long as looking at all peers took the last time
)

// A tunnelGSO decides to which peers superpackets leave uncut (tunnel/tapgso). One goroutine decides and sets the
// peers' flags; the workers read those.
type tunnelGSO struct {
	device    *tapgso.Device // nil: off for good
	anyDriver bool
	own       []netip.Addr // the node's underlay addresses, at most one of each family
	state     *atomic.Pointer[gsoState]
	poked     chan struct{} // something may have changed

	// Of the deciding goroutine.
	looked   time.Time
	took     time.Duration       // to look in this round, without waits
	snapshot *forwarder.Snapshot // what was looked at; nil: nothing
	egress   []hostnet.Egress    // by peer of snapshot
	prober   prober
}

// A gsoState is what people are told.
type gsoState struct {
	enabled bool
	reason  string
}

func newTunnelGSO() tunnelGSO {
	g := tunnelGSO{state: new(atomic.Pointer[gsoState]), poked: make(chan struct{}, 1)}
	g.state.Store(&gsoState{reason: "configuration"})
	return g
}

// openTunnelGSO opens the TAP device, if it is to be used and can be. Without it everything works, more slowly.
func (n *Node) openTunnelGSO(workers int) {
	if !n.cfg.Offloads.TunnelGSO {
		return
	}
	d, err := tapgso.Open(tapgso.Config{
		Name: tapgso.Name(n.cfg.Device), Alias: tun.Alias, Queues: workers, Addrs: n.cfg.Self.Addresses,
	})
	if err != nil {
		n.gso.state.Store(&gsoState{reason: err.Error()})
		n.opt.Log.Info("superpackets are not sent uncut", "error", err)
		return
	}
	n.gso.device, n.gso.anyDriver, n.gso.own = d, n.cfg.Offloads.AnyDriver, n.cfg.Self.Addresses
	n.gso.state.Store(&gsoState{reason: "not tried yet"})
	n.closers = append(n.closers, d.Close)
}

// sender is what worker i sends uncut superpackets with; nil when there is nothing.
func (g *tunnelGSO) sender(i int) tunnel.WholeSender {
	if g.device == nil {
		return nil
	}
	return g.device.Queues()[i]
}

// followTunnelGSO decides again and again, until ctx ends.
func (n *Node) followTunnelGSO(ctx context.Context) {
	g := &n.gso
	if g.device == nil || n.sockets == nil {
		return
	}
	n.watching.Go(func() {
		err := hostnet.WatchForwarding(ctx, func() {
			poke(g.poked)
		})
		if err != nil {
			n.opt.Log.Warn("changes of routes and firewall are noticed late", "error", err)
		}
	})
	g.prober = prober{way: tapProbes{g.device, n.sockets[0].LocalPort()}, rest: wait}
	events := true
	for ctx.Err() == nil {
		g.took = 0
		n.proveTunnelGSO(ctx, events)
		wait(ctx, max(gsoSettle, min(gsoRestShare*g.took, egressEvery)))
		select {
		case <-ctx.Done():
		case <-g.poked:
			events = true
		case <-time.After(proveEvery):
			events = false
		}
	}
}

// proveTunnelGSO decides once. With events the kernel's routes and devices are looked at anew.
func (n *Node) proveTunnelGSO(ctx context.Context, events bool) {
	g := &n.gso
	snapshot := n.view.Load().snapshot
	peers := plaintext(snapshot)
	why, err := g.prove(ctx, snapshot, peers, events || time.Since(g.looked) > egressEvery)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		for k := range why {
			why[k] = err.Error()
		}
	}
	on := 0
	for k, p := range peers {
		p.Whole.Store(why[k] == "")
		if why[k] == "" {
			on++
		}
	}
	next := &gsoState{enabled: on > 0, reason: summary(peers, why)}
	switch {
	case err != nil:
		next.reason = err.Error()
	case len(why) == 0:
		next.reason = "no peers by VXLAN"
	}
	if last := g.state.Swap(next); *last != *next {
		n.opt.Log.Info("superpackets to peers uncut (tunnel-gso)", "peers", on, "of", len(why), "reason", next.reason)
	}
}

// tapProbes goes by the device from a UDP port of the node's.
type tapProbes struct {
	device *tapgso.Device
	port   uint16
}

func (t tapProbes) Probe(to netip.AddrPort) error { return t.device.Probe(t.port, to) }

func (t tapProbes) Arrived() (uint64, error) { return hostnet.TunnelGSOProbes(t.device.Name()) }

// plaintext are the peers that superpackets can leave to uncut.
func plaintext(s *forwarder.Snapshot) []*forwarder.Peer {
	var out []*forwarder.Peer
	for p := range s.Peers() {
		if p.Whole != nil {
			out = append(out, p)
		}
	}
	return out
}

// prove says for each of the snapshot's plaintext peers why no superpacket is to go to it uncut, "" where it may. An
// error concerns all. With anew the kernel's routes and devices are looked at again, and every peer is probed.
func (g *tunnelGSO) prove(ctx context.Context, s *forwarder.Snapshot, peers []*forwarder.Peer, anew bool) (
	why []string, err error,
) {
	why = make([]string, len(peers))
	g.device.Look()
	if broken := g.device.Broken(); broken != "" {
		return why, errors.New(broken)
	}
	if len(peers) == 0 {
		return why, nil
	}
	if anew = anew || g.snapshot != s; anew {
		began := time.Now()
		g.snapshot = nil
		var whole bool
		if g.egress, whole, err = g.look(peers); err != nil {
			return why, err
		}
		if g.looked, g.took = time.Now(), time.Since(began); whole {
			g.snapshot = s
		}
	}
	var members []*forwarder.Peer
	for k, e := range g.egress {
		if why[k] = e.Why; e.Why != "" {
			peers[k].Whole.Store(false) // what follows takes its time
			continue
		}
		members = append(members, peers[k])
	}
	err = g.prober.round(ctx, members, anew)
	if anew {
		g.took += g.prober.sending
	}
	if broken := g.device.Broken(); err != nil && broken != "" {
		err = errors.New(broken)
	}
	if err != nil {
		return why, err
	}
	for k, peer := range peers {
		if why[k] != "" {
			continue
		}
		arrives, told := g.prober.known[peer.Endpoint]
		switch tap := g.device.Name(); {
		case !told:
			why[k] = "a firewall drops forwarded packets to some peers, and to this one that is still being found out"
		case !arrives:
			why[k] = fmt.Sprintf("what %s hands in does not leave by %s: a firewall drops forwarded packets; let it accept "+
				"those from %s (`iptables -I FORWARD -i %s -j ACCEPT`, or the like in nftables)", tap, g.egress[k].Device, tap,
				tap)
		}
	}
	return why, nil
}

// look has the kernel forward what the device hands in, and finds where that leaves to each peer. A family that cannot
// be set up leaves the other one alone; the set-up is not whole then, and to be tried again.
func (g *tunnelGSO) look(peers []*forwarder.Peer) (egress []hostnet.Egress, whole bool, err error) {
	refused := map[netip.Addr]string{}
	for _, own := range g.own {
		if err := hostnet.SetUpTunnelGSO(g.device.Name(), tapgso.HardwareAddr(), own); err != nil {
			refused[own] = err.Error()
		}
	}
	flows := make([]hostnet.Flow, len(peers))
	for k, peer := range peers {
		flows[k] = hostnet.Flow{From: g.device.From(peer.Endpoint.Addr()), To: peer.Endpoint.Addr()}
	}
	if egress, err = hostnet.Egresses(g.device.Name(), flows); err != nil {
		return nil, false, err
	}
	for k, f := range flows {
		if text := refused[f.From]; text != "" {
			egress[k] = hostnet.Egress{Why: text}
		}
	}
	if !g.anyDriver {
		onlyTried(egress)
	}
	return egress, len(refused) == 0, nil
}

// summary says why not to all peers; empty when to all.
func summary(peers []*forwarder.Peer, why []string) string {
	names := map[string][]string{}
	var reasons []string
	for k, reason := range why {
		if reason == "" {
			continue
		}
		if names[reason] == nil {
			reasons = append(reasons, reason)
		}
		names[reason] = append(names[reason], peers[k].Name)
	}
	if len(reasons) == 1 && len(names[reasons[0]]) == len(peers) {
		return reasons[0]
	}
	const most = 3
	var parts []string
	for _, reason := range reasons[:min(len(reasons), most)] {
		who := names[reason]
		text := strings.Join(who[:min(len(who), most)], ", ")
		if more := len(who) - most; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
		parts = append(parts, fmt.Sprintf("not to %s: %s", text, reason))
	}
	return strings.Join(parts, "; ")
}

// onlyTried keeps to devices whose drivers are known to leave alone, or to cut, what the TAP hands in: veth was
// measured, and virtio_net is the other end of the same code in the kernel. Others may have the features and yet take
// only what the kernel's own VXLAN device makes (vxlan_features_check), so that the kernel cuts, at a cost.
func onlyTried(egress []hostnet.Egress) {
	for k := range egress {
		e := &egress[k]
		if e.Why == "" && e.Driver != "veth" && e.Driver != "virtio_net" {
			e.Why = fmt.Sprintf("%s has the driver %s, which was not tried with it: `offloads: {tunnelGSO: on}` does",
				e.Device, e.Driver)
		}
	}
}
