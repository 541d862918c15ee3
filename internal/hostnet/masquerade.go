package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A Masquerade gives what pods send out of the cluster the node's address. It is there as long as the node has pods:
// EnsurePod makes it with the first one, Apply puts it back while there are some and takes it away when there are none,
// and RemoveMasquerade comes after the last. Nothing is translated that goes to the cluster, to one of its nodes, or to
// a multicast group.
type Masquerade struct {
	Device       string         // the TUN device
	ClusterCIDRs []netip.Prefix // the whole cluster's
	PodCIDRs     []netip.Prefix // the node's own
}

// Names of the chain and its sets. Apply fills the sets: so the chain is the same for the daemon and the CNI plugin,
// which does not know the other nodes, and a node that joins changes an element.
const (
	chainOutgoing = "outgoing"
	setNodes4     = "nodes4"
	setNodes6     = "nodes6"
)

func nodeSet(f family) string {
	if f == v4 {
		return setNodes4
	}
	return setNodes6
}

// nodeSets are the underlay addresses of all nodes; table inet only.
func nodeSets(t *nftables.Table) []*nftables.Set {
	return []*nftables.Set{
		{Table: t, Name: setNodes4, KeyType: nftables.TypeIPAddr}, {Table: t, Name: setNodes6, KeyType: nftables.TypeIP6Addr},
	}
}

// RemoveMasquerade takes the translation away. It is no error when there is none, or no nftables.
func RemoveMasquerade() error { return withInetTable("masquerade", (*firewall).removeMasquerade) }

func (fw *firewall) removeMasquerade() error {
	chains, err := fw.chains(inetTable())
	if err != nil {
		return err
	}
	at := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Name == chainOutgoing })
	if at < 0 {
		return nil
	}
	tx := fw.change(inetTable())
	tx.removeChains(chains[at : at+1])
	if err := tx.commit(); err != nil && !errors.Is(err, unix.ENOENT) { // somebody else was faster
		return fmt.Errorf("masquerade: removing the nftables chain %s: %w", chainOutgoing, err)
	}
	return nil
}

// EnsureMasquerade makes the translation when it is missing. ErrNoNftables: the kernel can't translate so.
func EnsureMasquerade(m Masquerade) error {
	fw := newFirewall()
	defer fw.close()
	inet, _, err := fw.tables()
	if err != nil {
		return fmt.Errorf("masquerade: listing nftables tables: %w", err)
	}
	state, err := fw.read(inetTable(), inet)
	if err != nil || state.chain(chainOutgoing) != nil {
		return err
	}
	tx := fw.begin(inetTable())
	tx.putChain(m.chain(), state)
	if err := tx.commit(); err != nil {
		return fmt.Errorf("masquerade: making the nftables chain %s: %w", chainOutgoing, missing(err))
	}
	return nil
}

// podNameBytes is the length of a pod's interface name: PodPrefix and eleven digits.
const podNameBytes = len(PodPrefix) + 11

// attached is whether there may be pods: by their records, or, as those may be lost, by their interfaces.
func (s Spec) attached(links linkNames) bool {
	if s.Attached == nil || s.Attached() {
		return true
	}
	names, err := links()
	if err != nil {
		return true
	}
	for name := range names {
		if strings.HasPrefix(name, PodPrefix) && len(name) == podNameBytes {
			return true
		}
	}
	return false
}

// followPods looks again, after the translation was made or removed, whether there are pods: the last one may have left
// since Pods was read, and its DEL was too early to remove what came after; or an ADD found a translation that was
// about to go. Those look again after their own changes as well.
func (s Spec) followPods(there bool, links linkNames, c *Changes) error {
	if s.Attached == nil {
		return nil
	}
	for s.attached(links) != there {
		there = !there
		change, say, what := RemoveMasquerade, c.tidy, "removed, as no pod is left"
		if there {
			change, say = func() error { return EnsureMasquerade(s.masquerade()) }, c.add
			what = "set up, as there is a pod"
		}
		if err := change(); err != nil {
			return err
		}
		say("nftables: chain %s %s", chainOutgoing, what)
	}
	return nil
}

func (s Spec) masquerade() Masquerade {
	return Masquerade{Device: s.Device, ClusterCIDRs: s.ClusterCIDRs, PodCIDRs: s.PodCIDRs}
}

// families are those of the pods, as far as the kernel has them.
func (m Masquerade) families() []family {
	return slices.DeleteFunc(kernelFamilies(), func(f family) bool {
		return !slices.ContainsFunc(m.PodCIDRs, func(p netip.Prefix) bool { return familyOf(p.Addr()) == f })
	})
}

func (m Masquerade) chain() chain {
	var rules []chainRule
	add := func(why string, ms ...match) { rules = append(rules, chainRule{why, join(ms...)}) }
	add("to the TUN", oifIs(m.Device), accept())
	for _, f := range m.families() {
		for _, c := range cidrsOf(f, m.ClusterCIDRs) {
			add("inside the cluster", isFamily(f), destinationIn(c), accept())
		}
		add("to a node", isFamily(f), destinationOneOf(f, nodeSet(f)), accept())
		if f == v4 {
			add("multicast", isFamily(f), destinationIn(multicast4), accept())
		} else {
			add("multicast", isFamily(f), destinationIn(multicast6), accept())
		}
		for _, p := range cidrsOf(f, m.PodCIDRs) {
			// Random ports: two nodes behind one address, or many connections at once, otherwise collide.
			add("from a pod to the outside", isFamily(f), sourceIn(p), match{&expr.Masq{FullyRandom: true}})
		}
	}
	return chain{
		name: chainOutgoing, kind: nftables.ChainTypeNAT, hook: *nftables.ChainHookPostrouting,
		priority: *nftables.ChainPriorityNATSource, rules: rules,
		lost: "pods reach the outside only if it has routes to them: nothing is masqueraded (or set `masquerade: false`)",
	}
}

// syncNodes makes the sets hold the addresses of all nodes.
func (fw *firewall) syncNodes(spec Spec, c *Changes) error {
	tx, added, dropped := fw.begin(inetTable()), 0, 0
	for _, s := range nodeSets(inetTable()) {
		have, err := fw.elements(s)
		if err != nil {
			return err
		}
		var want [][]byte
		for _, a := range slices.Concat(spec.NodeAddrs, spec.PeerNodeAddrs) {
			if nodeSet(familyOf(a)) == s.Name {
				want = append(want, a.AsSlice())
			}
		}
		add, del := difference(want, have), difference(have, want)
		added, dropped = added+len(add), dropped+len(del)
		tx.change(s, add, (*nftables.Conn).SetAddElements)
		tx.change(s, del, (*nftables.Conn).SetDeleteElements)
	}
	if added+dropped == 0 {
		return nil
	}
	if err := tx.commit(); err != nil {
		return fmt.Errorf("nftables sets of nodes: %w", err)
	}
	c.add("nftables: addresses of nodes: %d added, %d removed", added, dropped)
	return nil
}

// difference lists the keys that are in a and not in b, each one once.
func difference(a, b [][]byte) [][]byte {
	known := make(map[string]bool, len(a)+len(b))
	for _, k := range b {
		known[string(k)] = true
	}
	var keys [][]byte
	for _, k := range a {
		if !known[string(k)] {
			known[string(k)] = true
			keys = append(keys, k)
		}
	}
	return keys
}
