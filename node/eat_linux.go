package node

import (
	"bytes"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-net/warren/control"
)

// eat takes in what a control plane has said. The result is errAgain when the node can only go on as another one.
func (w *writer) eat(f fed) error {
	if !slices.Equal(f.warnings, w.feedSaid) || f.problem != w.feedTrouble {
		w.feedSaid, w.feedTrouble = f.warnings, f.problem
		w.showAgain()
	}
	if f.restart || f.self != nil && !w.stays(f.self) {
		w.log.Info("this node is another one in the cluster now, so it starts again")
		return errAgain
	}
	if f.self != nil {
		w.become(f.self)
	}
	before := w.plan.addresses(f.set, f.gone)
	if w.eatNodes(f) {
		w.applyAddresses(before, w.plan.addresses(f.set, nil))
		w.applyDirect(w.node.direct.change(w.plan.cfg, f.set, f.gone))
	}
	return nil
}

// eatNodes takes in what has changed of the peers, and reports whether it is in force.
func (w *writer) eatNodes(f fed) bool {
	if len(f.set)+len(f.gone) == 0 {
		return false
	}
	now := time.Now()
	for k := range f.set {
		w.plan.graceOf(&f.set[k], w.plan.cfg, now)
	}
	if err := w.publishChange(f.set, f.gone); err != nil {
		w.log.Error("what the cluster says of some nodes is not in force", "error", err)
		return false
	}
	w.log.Info("nodes have changed", "generation", w.generation, "changed", len(f.set), "gone", len(f.gone),
		"peers", w.node.view.Load().snapshot.PeerCount)
	return true
}

// stays reports whether what the cluster knows of this node can be taken in while it runs.
func (w *writer) stays(n *control.Node) bool {
	self := &w.plan.cfg.Self
	return slices.Equal(n.Addresses, self.Addresses) && slices.Equal(n.PodCIDRs, self.PodCIDRs) &&
		bytes.Equal(n.MAC, self.MAC) && n.Port == self.Port && n.WireGuardPort == self.WireGuardPort
}

// become takes in what the cluster knows of this node: its key and its encapsulation.
func (w *writer) become(n *control.Node) {
	next, self := *w.plan.cfg, *n
	self.PresharedKeyFile = next.Self.PresharedKeyFile
	next.Self = self
	if err := w.adopt(&next, w.plan.nodes()); err != nil {
		w.log.Error("what the cluster says of this node is not in force", "error", err)
		return
	}
	w.setUpAnew()
}

// setUpAnew makes the kernel what is wanted, all of it.
func (w *writer) setUpAnew() {
	if err := w.applyHost(); err != nil {
		w.log.Error("set-up of the kernel", "error", err)
	}
}

// addresses are the underlay addresses of the peers that a change is about, as they are now.
func (p *plan) addresses(set []control.Node, gone []string) []netip.Addr {
	names := slices.Clone(gone)
	for k := range set {
		names = append(names, set[k].Name)
	}
	var out []netip.Addr
	for _, name := range names {
		if m := p.peers[name]; m != nil {
			out = append(out, m.node.Addresses...)
		}
	}
	return out
}

// applyAddresses tells the kernel of underlay addresses that peers had and have.
func (w *writer) applyAddresses(before, after []netip.Addr) {
	without := func(list, others []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return slices.Contains(others, a) })
	}
	added, gone := without(after, before), without(before, after)
	if len(added)+len(gone) == 0 {
		return
	}
	w.node.hostMu.Lock()
	err := w.node.nodeAddrs.Change(added, gone)
	w.node.hostMu.Unlock()
	if err == nil {
		return
	}
	w.log.Warn("addresses of nodes are not where the kernel looks for them; everything is looked at", "error", err)
	w.setUpAnew()
}
