package node

import (
	"context"
	"log/slog"

	"github.com/warren-net/warren/internal/hostnet"
)

// watch starts the watches of the kernel's events, which run until ctx ends.
func (w *writer) watch(ctx context.Context) {
	n, log := w.node, w.log
	watchUnderlay(ctx, w.plan.cfg.Self.Addresses, w.pokeLink, func(err error) {
		log.Warn("changes of the underlay are noticed late", "error", err)
	})
	n.watching.Go(func() { n.followTunnelGSO(ctx) })
	var turn uint64
	wanted := n.wantedHost(log)
	opt := hostnet.WatchOptions{Log: log, Lock: &n.hostMu, Nodes: &n.nodeAddrs}
	opt.Applied = func(c hostnet.Changes, err error) {
		n.direct.note(c.Direct)
		select {
		case n.applied <- applied{c.Lost, err, turn}:
		case <-ctx.Done():
		}
	}
	n.watching.Go(func() {
		numbered := func() hostnet.Spec { // with the lock held, so in the order of what is set up
			turn = n.hostTurn.Add(1)
			return wanted()
		}
		if err := hostnet.Watch(ctx, numbered, opt); err != nil {
			log.Warn("what others change in the kernel is not put back", "error", err)
		}
	})
}

// wantedHost returns a function that says what the kernel should be now, from the view in force and the pods' records.
func (n *Node) wantedHost(log *slog.Logger) func() hostnet.Spec {
	return func() hostnet.Spec {
		cfg := n.view.Load().cfg
		return n.hostSpec(cfg, attachedPods(cfg, log))
	}
}
