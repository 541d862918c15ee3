package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/device/tun"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/internal/nodefile"
	"github.com/warren-net/warren/internal/poll"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/node/worker"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/tapgso"
	"github.com/warren-net/warren/tunnel/udp"
	"github.com/warren-net/warren/tunnel/vxlan"
)

func udpMode(use bool) udp.Mode {
	if use {
		return udp.Auto
	}
	return udp.Off
}

func tunMode(use bool) tun.Mode {
	if use {
		return tun.Auto
	}
	return tun.Off
}

// openSockets opens the lanes' sockets for VXLAN: always, as a peer may become a plaintext one while the node runs.
// What fails ends the start only where they are needed now.
func (n *Node) openSockets(lanes int) error {
	err := n.tryVXLAN(lanes)
	if err == nil || uses(n.cfg, n.nodes, false) {
		return err
	}
	n.noVXLAN = err
	n.opt.Log.Info("no VXLAN until a restart; no node asks for it now", "error", err)
	return nil
}

func (n *Node) tryVXLAN(lanes int) error {
	cfg := n.cfg
	port := cfg.PortOf(&cfg.Self)
	sockets, err := udp.OpenGroup(lanes, udp.Config{
		Port: port, Addrs: cfg.Self.Addresses, Reserved: cfg.WireGuardPortOf(&cfg.Self),
		GSO: udpMode(cfg.Offloads.UDPGSO), GRO: udpMode(cfg.Offloads.UDPGRO),
	})
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("UDP port %d is in use by another program or by a kernel VXLAN device; "+
			"stop that (`ss -ulpn`, `ip -d link show type vxlan`), or set another vxlan.port on all nodes", port)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("underlay address not usable, perhaps still being checked for duplicates: %w", err)
	case err != nil:
		return err
	}
	n.sockets = sockets
	for _, s := range sockets {
		n.closers = append(n.closers, s.Close)
	}
	return nil
}

// openDevice opens the TUN device with a queue per lane, or takes over the one that a predecessor left.
func (n *Node) openDevice(lanes int) error {
	cfg := n.cfg
	d, err := tun.Open(tun.Config{
		Name: cfg.Device, Queues: lanes, MTU: n.podMTU, QueueLength: deviceQueueLength,
		Checksum: tunMode(cfg.Offloads.Checksum), TSO: tunMode(cfg.Offloads.TSO), USO: tunMode(cfg.Offloads.USO),
	})
	if err != nil {
		return err
	}
	n.device = d
	if err := d.ProbeError(); err != nil {
		n.opt.Log.Info("the device's offloads could not be tried beforehand; they are watched in use", "error", err)
	}
	return nil
}

// makeWorkers makes the workers and deals the lanes out to them: each its own, or all of them to each where they give
// them to each other.
func (n *Node) makeWorkers(workers int) error {
	own, err := vxlan.Address(macOf(&n.cfg.Self))
	if err != nil {
		return fmt.Errorf("this node: %w", err)
	}
	var exchange *worker.Exchange
	threads := n.threadCount(workers)
	if threads > workers {
		exchange = worker.NewExchange(workers, len(n.device.Queues()))
	}
	for id := range threads {
		var lanes []worker.Lane
		var fds [][]poll.FD
		for i := range n.device.Queues() {
			if exchange != nil || i%workers == id {
				l, fd := n.lane(i, len(lanes))
				lanes, fds = append(lanes, l), append(fds, fd)
			}
		}
		var waited []poll.FD
		if exchange == nil {
			waited = slices.Concat(fds...)
		}
		p, err := poll.New(waited...)
		if err != nil {
			return err
		}
		n.closers = append(n.closers, p.Close)
		thread := &worker.OSThread{Hold: n.opt.OwnProcess}
		n.closers = append(n.closers, thread.Close)
		n.workers = append(n.workers, worker.New(worker.Config{
			ID: id, Lanes: lanes, Exchange: exchange, Writers: writers(n.device.Queues()), Whole: n.gso.sender(id),
			Waiter: &worker.PollWaiter{Poller: p, Lanes: fds, Hold: n.opt.OwnProcess},
			Thread: thread, Moderate: n.cfg.Moderation, NotPreferred: n.notPreferred, Table: &n.table,
			Decoder: vxlan.Decoder{VNI: n.cfg.VNI, MAC: own}, Crypt: n.secure.tunnel,
			PathEvents: n.pathEvents, LockThread: true,
		}))
	}
	return nil
}

// lane is lane i of the node, which is lane k of a worker, with what that waits for.
func (n *Node) lane(i, k int) (worker.Lane, []poll.FD) {
	q := n.device.Queues()[i]
	l := worker.Lane{Number: i, Queue: q}
	fds := []poll.FD{{FD: q.FD(), Bit: worker.QueueBit(k)}}
	if n.sockets != nil {
		l.Socket = n.sockets[i]
		fds = appendFDs(fds, n.sockets[i], worker.SocketBit(k))
	}
	if n.secure.sockets != nil {
		l.Secure = n.secure.sockets.Lanes[i]
		fds = appendFDs(fds, n.secure.sockets.Lanes[i], worker.SecureBit(k))
	}
	return l, fds
}

func (n *Node) notPreferred(err error) {
	n.opt.Log.Info("the express worker may not have the highest priority: quiet flows wait longer beside large "+
		"transfers; allow it with a limit RLIMIT_NICE of 40 (LimitNICE=-20 in a unit) or the capability CAP_SYS_NICE, or "+
		"write `express: off`", "error", err)
}

func appendFDs(fds []poll.FD, s *udp.Socket, bit int) []poll.FD {
	for _, fd := range s.FDs() {
		fds = append(fds, poll.FD{FD: fd, Bit: bit})
	}
	return fds
}

// writers are handles of all queues for one worker.
func writers(queues []*tun.Queue) []device.Queue {
	var shared []device.Queue
	for _, q := range queues {
		shared = append(shared, q.Share())
	}
	return shared
}

// pathEvents passes events on to the writer. When it cannot keep up some are lost: the underlay says them again.
func (n *Node) pathEvents(events []tunnel.PathEvent) {
	for _, e := range events {
		select {
		case n.paths <- e:
		default:
			return
		}
	}
}

// runWorkers runs the workers until ctx ends; the result is closed when all of them have returned.
func (n *Node) runWorkers(ctx context.Context) <-chan struct{} {
	var wg sync.WaitGroup
	for _, w := range n.workers {
		wg.Go(func() {
			if err := w.Run(ctx); err != nil {
				n.fail(err)
			}
		})
	}
	wg.Go(func() {
		if err := n.secure.run(ctx); err != nil {
			n.fail(err)
		}
	})
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	return done
}

// serve answers on l until n.close.
func (n *Node) serve(l net.Listener, h http.Handler) {
	s := api.NewServer(h)
	n.serverMu.Lock()
	n.servers = append(n.servers, s)
	n.serverMu.Unlock()
	n.serving.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.opt.Log.Error("server ends", "address", l.Addr().String(), "error", err)
		}
	})
}

// hostSpec is what the kernel should be for a configuration.
func (n *Node) hostSpec(cfg *config.Config, pods []hostnet.Pod) hostnet.Spec {
	spec := specOf(cfg)
	spec.MTU, spec.GSOMaxSize, spec.TxQueueLen = n.podMTU, deviceGSOMaxSize, deviceQueueLength
	spec.Pods, spec.Guarded = pods, n.direct.guards(cfg, time.Now())
	if v := n.view.Load(); v != nil {
		spec.PeerNodeAddrs = nil
		for p := range v.snapshot.Peers() {
			spec.PeerNodeAddrs = append(spec.PeerNodeAddrs, p.NodeAddrs...)
		}
		spec.Direct = n.direct.wanted()
	}
	spec.Attached = func() bool {
		any, _ := attached(cfg)
		return any
	}
	spec.Bridged = func(bridge string) bool { return podrecord.OnBridge(cfg.StateDir, bridge) }
	if n.gso.device == nil {
		spec.TunnelGSO = ""
	}
	if n.secure.tunnel == nil {
		spec.CookiePort = 0
	}
	return spec
}

// specOf is what a configuration says of the kernel, by itself.
func specOf(cfg *config.Config) hostnet.Spec {
	spec := hostnet.Spec{
		Device: cfg.Device, MTU: cfg.MTU,
		Gateways: cfg.Gateways(), PodCIDRs: cfg.Self.PodCIDRs, ClusterCIDRs: cfg.Cluster, NodeAddrs: cfg.Self.Addresses,
		Table: cfg.Table, RulePriority: cfg.RulePriority, Masquerade: cfg.Masquerade,
		CookiePort: cfg.WireGuardPortOf(&cfg.Self), Direct: directPeers(cfg, cfg.Peers(cfg.State)),
	}
	if cfg.Offloads.TunnelGSO {
		spec.TunnelGSO = tapgso.Name(cfg.Device)
	}
	for _, peer := range cfg.Peers(cfg.State) {
		spec.PeerNodeAddrs = append(spec.PeerNodeAddrs, peer.Addresses...)
	}
	return spec
}

// writeNodeFile tells the CNI plugin what it needs.
func (n *Node) writeNodeFile(cfg *config.Config) error {
	return nodefile.Write(cfg.RunDir, nodefile.File{
		Node: cfg.Node, Device: cfg.Device, PodCIDRs: cfg.Self.PodCIDRs, Gateways: cfg.Gateways(),
		ClusterCIDRs: cfg.Cluster, MTU: n.podMTU, GSOMaxSize: gsoMaxSize(n.podMTU), Masquerade: cfg.Masquerade,
		Table: cfg.Table, RulePriority: cfg.RulePriority, StateDir: cfg.StateDir,
	})
}
