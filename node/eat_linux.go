package node

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/hostnet"
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
	w.tellKernel(w.eatNodes(f.set, f.gone))
	return nil
}

// A kernelNews is what the kernel has to be told of a change.
type kernelNews struct {
	before, after             []netip.Addr // of nodes
	directBefore, directAfter []hostnet.DirectPeer
}

func (w *writer) tellKernel(k kernelNews) {
	w.applyAddresses(k.before, k.after)
	w.applyDirect(k.directBefore, k.directAfter)
}

// eatNodes takes in which peers are new or changed, and which have left.
func (w *writer) eatNodes(set []control.Node, gone []string) kernelNews {
	if len(set)+len(gone) == 0 {
		return kernelNews{}
	}
	gone = w.owed.goneBefore(set, gone)
	news, err := w.putInForce(set, gone)
	if err != nil && len(set) > 0 && len(gone) > 0 {
		left, again := parted(set, gone)
		// Whoever has left need not stay for what cannot be in force.
		if alone, failed := w.putInForce(nil, left); failed == nil {
			w.owed.settle(nil, left, nil)
			news, gone = alone, again
		}
	}
	if w.owed.settle(set, gone, err) {
		w.showAgain()
	}
	if err != nil {
		w.log.Error("what the cluster says of some nodes is not in force", "error", err)
		return news
	}
	w.log.Info("nodes have changed", "generation", w.generation, "changed", len(set), "gone", len(gone),
		"peers", w.node.view.Load().snapshot.PeerCount)
	return news
}

// parted parts those of a change who have left from those who have come again.
func parted(set []control.Node, gone []string) (left, again []string) {
	named := make(map[string]bool, len(set))
	for k := range set {
		named[set[k].Name] = true
	}
	for _, name := range gone {
		if named[name] {
			again = append(again, name)
		} else {
			left = append(left, name)
		}
	}
	return left, again
}

// putInForce changes what is in force of these peers.
func (w *writer) putInForce(set []control.Node, gone []string) (kernelNews, error) {
	graces, now, left := map[string]time.Time{}, time.Now(), setOf(gone)
	for k := range set {
		n := &set[k]
		if until, ok := w.plan.grace[n.Name]; ok {
			graces[n.Name] = until
		}
		w.plan.graceOf(n, w.plan.cfg, now)
		if survivor(w.plan.peers[n.Name], n, left[n.Name]) == nil {
			delete(w.plan.grace, n.Name)
		}
	}
	news := kernelNews{before: w.plan.addresses(set, gone)}
	if err := w.publishChange(set, gone); err != nil {
		for k := range set {
			delete(w.plan.grace, set[k].Name)
		}
		maps.Copy(w.plan.grace, graces)
		return kernelNews{}, err
	}
	news.after = w.plan.addresses(set, nil)
	set, refused := w.plan.sift(set)
	news.directBefore, news.directAfter = w.node.direct.change(w.plan.cfg, set, slices.Concat(gone, refused))
	return news, nil
}

// stays reports whether what the cluster knows of this node can be taken in while it runs.
func (w *writer) stays(n *control.Node) bool {
	self := &w.plan.cfg.Self
	return slices.Equal(n.Addresses, self.Addresses) && slices.Equal(n.PodCIDRs, self.PodCIDRs) &&
		bytes.Equal(n.MAC, self.MAC) && n.Port == self.Port && n.WireGuardPort == self.WireGuardPort
}

// become takes in what the cluster knows of this node: its key and its encapsulation.
func (w *writer) become(n *control.Node) {
	if w.adoptSelf(n) {
		w.setUpAnew()
	}
}

// adoptSelf goes by it, and reports whether it is in force.
func (w *writer) adoptSelf(n *control.Node) bool {
	next, self := *w.plan.cfg, *n
	self.PresharedKeyFile = next.Self.PresharedKeyFile
	next.Self = self
	err := w.adopt(&next, w.plan.nodes())
	if w.owed.settleSelf(n, err) {
		w.showAgain()
	}
	if err != nil {
		w.log.Error("what the cluster says of this node is not in force", "error", err)
	}
	return err == nil
}

// setUpAnew makes the kernel what is wanted, all of it, and shows what came of it: to the watch of the kernel, which
// looks next, that is no news.
func (w *writer) setUpAnew() {
	if err := w.applyHost(); err != nil {
		w.log.Error("set-up of the kernel", "error", err)
	}
	w.showAgain()
}

// addresses are the underlay addresses of the peers in force that a change is about, as they are now.
func (p *plan) addresses(set []control.Node, gone []string) []netip.Addr {
	var out []netip.Addr
	add := func(name string) {
		if m := p.peers[name]; m != nil && m.peer != nil {
			out = append(out, m.node.Addresses...)
		}
	}
	for k := range set {
		add(set[k].Name)
	}
	for _, name := range gone {
		add(name)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out) // who left and came again is in both
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
