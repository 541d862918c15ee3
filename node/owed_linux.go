package node

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/warren-net/warren/control"
)

// retryEvery is how often what is not in force is tried again at most. The writer does when it looks.
const retryEvery = lookEvery / 2

// An owed is what the control plane has said of nodes and what is not in force, for a reason that is not one of them
// alone. (Who has no place beside the others is left out, see plan.admit.) The feed does not say it again.
type owed struct {
	self    *control.Node // nil: nothing
	whySelf error
	peers   map[string]pending
	why     error // of the last that failed
	tried   time.Time
}

// settle notes whether a change of peers is in force, and reports whether it or a former one is not.
func (o *owed) settle(set []control.Node, gone []string, err error) bool {
	if err == nil && len(o.peers) == 0 {
		return false
	}
	if o.peers == nil {
		o.peers = map[string]pending{}
	}
	for _, name := range gone {
		o.peers[name] = pending{}
	}
	for k := range set {
		n := &set[k]
		o.peers[n.Name] = pending{n, o.left(n.Name)}
	}
	if err != nil {
		o.why, o.tried = err, time.Now()
		return true
	}
	for _, name := range gone {
		delete(o.peers, name)
	}
	for k := range set {
		delete(o.peers, set[k].Name)
	}
	return true
}

// left reports whether it is owed that a peer has left, whether or not it came again.
func (o *owed) left(name string) bool {
	p, ok := o.peers[name]
	return ok && (p.node == nil || p.left)
}

// goneBefore are the peers of a change that have left: and those of set of whom that is owed.
func (o *owed) goneBefore(set []control.Node, gone []string) []string {
	if len(o.peers) == 0 {
		return gone
	}
	named, out := setOf(gone), slices.Clone(gone)
	for k := range set {
		if name := set[k].Name; o.left(name) && !named[name] {
			out = append(out, name)
		}
	}
	return out
}

// settleSelf notes whether what was said of this node is in force, and reports whether it or what was said before is
// not.
func (o *owed) settleSelf(self *control.Node, err error) bool {
	before := o.self
	if o.self, o.whySelf = nil, err; err != nil {
		o.self, o.tried = self, time.Now()
	}
	return err != nil || before != nil
}

// changes are the peers that are to be changed, and those that have left, also those that came again and are in set.
func (o *owed) changes() (set []control.Node, gone []string) {
	for _, name := range slices.Sorted(maps.Keys(o.peers)) {
		if n := o.peers[name].node; n != nil {
			set = append(set, *n)
		}
		if o.left(name) {
			gone = append(gone, name)
		}
	}
	return set, gone
}

// namedOwed is how many peers a warning names.
const namedOwed = 10

func (o *owed) warnings() []string {
	var out []string
	if o.self != nil {
		out = append(out, fmt.Sprintf("what the cluster says of this node is not in force, and is tried again: %v",
			o.whySelf))
	}
	if len(o.peers) > 0 {
		names := slices.Sorted(maps.Keys(o.peers))
		more := ""
		if len(names) > namedOwed {
			more = fmt.Sprintf(" and of %d others", len(names)-namedOwed)
			names = names[:namedOwed]
		}
		out = append(out, fmt.Sprintf("what the cluster says of %s%s is not in force, and is tried again: %v",
			strings.Join(names, ", "), more, o.why))
	}
	return out
}

// retry tries what is not in force again, and those who had no place beside the others, and returns what the kernel has
// to be told of both, in this order.
func (w *writer) retry(now time.Time) []kernelNews {
	set, gone := w.owed.changes()
	if w.owed.self == nil && len(set)+len(gone)+len(w.plan.refused) == 0 || now.Sub(w.owed.tried) < retryEvery {
		return nil
	}
	w.owed.tried = now
	if self := w.owed.self; self != nil {
		w.become(self)
	}
	out := []kernelNews{w.eatNodes(set, gone)}
	if refused := w.plan.refusals(); len(refused) > 0 {
		news, err := w.putInForce(refused, nil)
		if err != nil {
			w.log.Error("nodes that were left out cannot be tried again", "error", err)
		}
		out = append(out, news)
	}
	return out
}
