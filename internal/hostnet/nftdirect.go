package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of the chain that checks what comes without a tunnel, and its sets.
const (
	chainUnderlay = "underlay"
	setUnderlays  = "underlays" // interfaces that direct peers send by
	setDirect4    = "direct4"   // their pods
	setDirect6    = "direct6"
)

func directSet(f family) string {
	if f == v4 {
		return setDirect4
	}
	return setDirect6
}

// directSets are there with the chain.
func directSets() []*nftables.Set {
	t := inetTable()
	return []*nftables.Set{
		{Table: t, Name: setUnderlays, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		{Table: t, Name: setDirect4, KeyType: nftables.TypeIPAddr, Interval: true},
		{Table: t, Name: setDirect6, KeyType: nftables.TypeIP6Addr, Interval: true},
	}
}

// checksUnderlay reports whether the chain is to be there.
func (s Spec) checksUnderlay() bool { return s.Guarded || len(s.Direct) > 0 }

// underlayChain is the source check of what arrives without a tunnel, which the forwarder never sees: from addresses of
// the cluster only what direct peers have, and only by the interfaces towards them. Peers count as direct by what they
// ask for, not by the way that this node has to them now: one may see the other on its subnet and not the other way
// round, and while they change from one encapsulation to another their ways differ for a while.
func (s Spec) underlayChain(families []family) chain {
	var rules []chainRule
	add := func(why string, ms ...match) { rules = append(rules, chainRule{why, join(ms...)}) }
	// What comes in tunnels, by far the most of what comes from the underlay, is done with this.
	for _, f := range families {
		outside := isFamily(f)
		for _, c := range cidrsOf(f, s.ClusterCIDRs) {
			outside = append(outside, inPrefix(expr.CmpOpNeq, sourceOffset(f), c)...)
		}
		add("from outside of the cluster's pods", outside, accept())
	}
	add("from a pod, checked there", fromPods(), accept())
	add("from this node", iifIs("lo"), accept())
	add("from the TUN", iifIs(s.Device), accept())
	if s.TunnelGSO != "" {
		add("uncut superpackets to peers", iifIs(s.TunnelGSO), accept())
	}
	add("from a bridge, checked there", fromBridges(), accept())
	for _, f := range families {
		add("from pods of direct peers", match{
			meta(expr.MetaKeyIIFNAME), &expr.Lookup{SourceRegister: 1, SetName: setUnderlays},
		}, isFamily(f), match{
			payload(expr.PayloadBaseNetworkHeader, sourceOffset(f), addrBytes(f), 1),
			&expr.Lookup{SourceRegister: 1, SetName: directSet(f)},
		}, accept())
		for _, c := range cidrsOf(f, s.ClusterCIDRs) {
			add("from other addresses of the cluster", isFamily(f), sourceIn(c), countedDrop())
		}
	}
	return chain{
		name: chainUnderlay, kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookPrerouting, priority: -310,
		rules: rules, sets: directSets(),
		lost: "whoever is on the underlay can send to this node's pods as any other pod",
	}
}

// interval is a prefix as two keys of a set: its first address, and the one behind its last.
func interval(p netip.Prefix) (first, end []byte) {
	first = p.Masked().Addr().AsSlice()
	end = slices.Clone(first)
	carry := true
	for i := p.Bits() - 1; i >= 0 && carry; i-- {
		end[i/8] ^= 0x80 >> (i % 8)
		carry = end[i/8]&(0x80>>(i%8)) == 0
	}
	if carry {
		return first, nil // nothing is behind it
	}
	return first, end
}

// intervals are the keys of a set of pods' addresses.
func intervals(peers []DirectPeer, set string) [][]byte {
	var keys [][]byte
	for _, peer := range peers {
		for _, p := range peer.PodCIDRs {
			if directSet(familyOf(p.Addr())) != set {
				continue
			}
			first, end := interval(p)
			if keys = append(keys, first); end != nil {
				keys = append(keys, append(end, intervalEnd))
			}
		}
	}
	return keys
}

// changeDirect adds or removes keys as elements lists them.
func (tx *txn) changeDirect(s *nftables.Set, keys [][]byte,
	call func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error,
) {
	for part := range slices.Chunk(keys, setChunk) {
		elems := make([]nftables.SetElement, len(part))
		for i, key := range part {
			elems[i].Key = key
			if s.Interval && len(key)%2 == 1 { // with intervalEnd
				elems[i].Key, elems[i].IntervalEnd = key[:len(key)-1], true
			}
		}
		tx.steps = append(tx.steps, func(c *nftables.Conn) error { return call(c, s, elems) })
	}
}

// syncDirect makes the sets hold the direct peers' pods and interfaces. A set that differs is filled anew, in the same
// transaction, as an interval has two elements.
func (fw *firewall) syncDirect(spec Spec, devices []string, c *Changes) error {
	if !spec.checksUnderlay() {
		return nil
	}
	want := map[string][][]byte{}
	for _, d := range devices {
		want[setUnderlays] = append(want[setUnderlays], ifname(d))
	}
	for _, set := range []string{setDirect4, setDirect6} {
		want[set] = intervals(spec.Direct, set)
	}
	tx, changed := fw.begin(inetTable()), 0
	for _, s := range directSets() {
		have, err := fw.elements(s)
		if err != nil {
			return err
		}
		if len(difference(want[s.Name], have))+len(difference(have, want[s.Name])) == 0 {
			continue
		}
		changed++
		tx.addSet(s, nil)
		tx.add(func(conn *nftables.Conn) { conn.FlushSet(s) })
		tx.changeDirect(s, difference(want[s.Name], nil), (*nftables.Conn).SetAddElements)
	}
	if changed == 0 {
		return nil
	}
	if err := tx.commit(); err != nil {
		return fmt.Errorf("nftables sets of direct peers: %w", err)
	}
	c.add("nftables: pods and interfaces of direct peers: %d sets changed", changed)
	return nil
}

// changeDirect is syncDirect for those that have changed. ErrWholeDirect when there is no chain to look into the sets.
func (fw *firewall) changeDirect(devices []string, before, after []DirectPeer) error {
	inet, _, err := fw.tables()
	if errors.Is(err, ErrNoNftables) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("direct peers: listing nftables tables: %w", err)
	}
	if !inet {
		return ErrWholeDirect
	}
	tx := fw.change(inetTable())
	for _, s := range directSets() {
		var had, have [][]byte
		if s.Name == setUnderlays {
			for _, d := range devices {
				have = append(have, ifname(d))
			}
		} else {
			had, have = intervals(before, s.Name), intervals(after, s.Name)
		}
		tx.changeDirect(s, difference(had, have), (*nftables.Conn).SetDeleteElements)
		tx.changeDirect(s, difference(have, had), (*nftables.Conn).SetAddElements)
	}
	if err := tx.commit(); errors.Is(err, unix.ENOENT) {
		return ErrWholeDirect
	} else if err != nil {
		return fmt.Errorf("nftables sets of direct peers: %w", err)
	}
	return nil
}
