package node

import (
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/worker"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// answers is the api.Source over a node: it reads the view that the writer published and the workers' counters.
type answers struct{ n *Node }

var _ api.Source = answers{}

// Status implements api.Source.
func (a answers) Status() api.Status {
	n, v := a.n, a.n.view.Load()
	cfg := v.cfg
	s := api.Status{
		Node: cfg.Node, Version: n.opt.Version, PID: os.Getpid(), Config: cfg.File,
		Started: n.started, UptimeSeconds: time.Since(n.started).Seconds(),
		Device: api.Device{Name: cfg.Device, Queues: len(n.device.Queues()), MTU: n.podMTU},
		Tunnel: api.Tunnel{
			Encapsulation: string(cfg.Encapsulation()), VNI: cfg.VNI, Port: cfg.PortOf(&cfg.Self),
			MAC: macOf(&cfg.Self).String(), Underlay: v.underlay,
			WireGuardPort: cfg.WireGuardPortOf(&cfg.Self), PublicKeys: v.publicKeys,
			Handshakes: a.handshakes(),
		},
		PodCIDRs: cfg.Self.PodCIDRs, Gateways: cfg.Gateways(), ClusterCIDRs: cfg.Cluster,
		Offloads: a.offloads(),
		Workers:  make([]api.Worker, 0, len(n.workers)),
		Snapshot: api.Snapshot{
			Generation: v.snapshot.Generation, Since: v.since, Peers: v.snapshot.PeerCount, Routes: v.snapshot.RouteCount,
		},
		Control:    v.control,
		LastReload: v.lastReload,
		Warnings:   append([]string{}, v.warnings...),
	}
	if n.opt.Problems != nil {
		s.Warnings = append(s.Warnings, n.opt.Problems()...)
	}
	for _, w := range n.workers {
		s.Workers = append(s.Workers, workerAnswer(w))
	}
	return s
}

func workerAnswer(w *worker.Worker) api.Worker {
	c := &w.Counters
	out := api.Worker{
		ID: w.ID, Express: w.IsExpress(), Preferred: w.Preferred(),
		TxSuperpackets: c.ToPeers.Load(), TxBytes: c.ToPeersBytes.Load(), TxSegments: c.SegmentsOut.Load(),
		TxCalls: c.SendCalls.Load(), TxWhole: c.Whole.Load(), TxWholeRefused: c.WholeRefused.Load(),
		TxSuperframes: c.FramesSealed.Load(), RxSuperframes: c.FramesOpened.Load(),
		RxSuperpackets: c.RunsIn.Load(), RxBytes: c.BytesIn.Load(), RxSegments: c.SegmentsIn.Load(),
		LocalPackets: c.LocalPackets.Load(), LocalBytes: c.LocalBytes.Load(),
		OutsidePackets: c.KernelOut.Load(), OutsideBytes: c.KernelBytes.Load(),
		DeviceReads: c.QueueReads.Load(), DeviceWrites: c.QueueWrites.Load(),
		ICMPSent: c.ICMPSent.Load(), ICMPRateLimited: c.ICMPLimited.Load(), Wakeups: c.Wakeups.Load(),
		Pauses: c.Pauses.Load(), LanesGiven: c.LanesGiven.Load(), FlowsMoved: c.FlowsMoved.Load(),
	}
	for r := range c.Drops {
		out.Drops += c.Drops[r].Load()
	}
	return out
}

// offloads lists the device's offloads and those of the sockets, each name once: on when it is on in every socket.
func (a answers) offloads() []api.Offload {
	out := []api.Offload{}
	index := map[string]int{}
	add := func(name, reason string, enabled bool) {
		i, ok := index[name]
		switch {
		case !ok:
			index[name] = len(out)
			out = append(out, api.Offload{Name: name, Enabled: enabled, Reason: reason})
		case out[i].Enabled && !enabled:
			out[i].Enabled, out[i].Reason = false, reason
		}
	}
	for _, o := range a.n.device.Offloads() {
		add(o.Name, o.Reason, o.Enabled)
	}
	for _, s := range slices.Concat(a.n.sockets, a.n.secure.lanes()) {
		for _, o := range s.Offloads() {
			add(o.Name, o.Reason, o.Enabled)
		}
	}
	g := a.n.gso.state.Load()
	add("tunnel-gso", g.reason, g.enabled)
	for _, o := range a.n.secure.offloads {
		add(o.Name, o.Reason, o.Enabled)
	}
	return out
}

// Peers implements api.Source.
func (a answers) Peers() []api.Peer {
	v := a.n.view.Load()
	out := make([]api.Peer, 0, v.snapshot.PeerCount)
	for p := range v.snapshot.Peers() {
		t := p.Stats.Totals()
		peer := api.Peer{
			Name: p.Name, Encapsulation: string(control.VXLAN), Endpoint: p.Endpoint, PodCIDRs: p.PodCIDRs,
			MAC: vxlan.Destination(p.Header4).String(),
			MTU: p.MTU, TunnelGSO: p.TakesWhole(),
			TxPackets: t.TxPackets, TxBytes: t.TxBytes, RxPackets: t.RxPackets, RxBytes: t.RxBytes, Addresses: p.NodeAddrs,
		}
		a.secure(p, &peer)
		a.n.direct.tell(&peer)
		if t.LastSeen > 0 {
			seen := time.Unix(0, t.LastSeen)
			peer.LastSeen = &seen
		}
		out = append(out, peer)
	}
	return out
}

// secure adds what the encrypted tunnel knows of a peer.
func (a answers) secure(p *forwarder.Peer, out *api.Peer) {
	if p.Tunnel == 0 {
		return
	}
	s, ok := a.n.secure.tunnel.Status(p.Tunnel)
	if !ok {
		return
	}
	out.PublicKey, out.Session, out.Superframes, out.Paused = s.Public.String(), s.Session, s.Frames, s.Paused
	if !s.Handshake.IsZero() {
		out.LastHandshake = &s.Handshake
	}
	if p.Encrypted {
		out.Encapsulation, out.MAC, out.Endpoint = string(control.WireGuard), "", s.Endpoint
	}
}

// handshakes are the counters of the encrypted tunnel's goroutine.
func (a answers) handshakes() map[string]uint64 {
	out := map[string]uint64{}
	t := a.n.secure.tunnel
	if t == nil {
		return out
	}
	c := &t.Counters
	for name, v := range map[string]*atomic.Uint64{
		"initiated": &c.Initiated, "completed": &c.Completed, "responded": &c.Responded, "given-up": &c.GivenUp,
		"keepalives": &c.Keepalives, "cookies-sent": &c.CookiesSent, "cookies-got": &c.CookiesGot, "invalid": &c.Invalid,
		"unknown-key": &c.UnknownKey, "replayed": &c.Replayed, "rate-limited": &c.RateLimited, "overflowed": &c.Overflowed,
	} {
		out[name] = v.Load()
	}
	return out
}

// Routes implements api.Source.
func (a answers) Routes() []api.Route {
	routes := a.n.view.Load().snapshot.Routes()
	out := make([]api.Route, 0, len(routes))
	for _, r := range routes {
		route := api.Route{Prefix: r.Prefix, Kind: r.Kind, Peer: r.Peer}
		a.n.direct.tellRoute(&route)
		out = append(out, route)
	}
	return out
}

// Drops implements api.Source.
func (a answers) Drops() []api.Drop {
	out := make([]api.Drop, 0, forwarder.NumReasons)
	for r := forwarder.NoReason + 1; r < forwarder.NumReasons; r++ {
		d := api.Drop{Reason: r.Name(), Meaning: r.Text()}
		for _, w := range a.n.workers {
			d.Count += w.Counters.Drops[r].Load()
		}
		out = append(out, d)
	}
	return append(out, a.n.kernelDrops()...)
}
