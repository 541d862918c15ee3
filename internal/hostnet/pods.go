package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// podAttempts is how often EnsurePod and RemovePod start over when somebody else changed the sets between their look
// and their transaction.
const podAttempts = 10

// setChunk is how many elements go into one netlink message, whose attributes hold 64 KiB.
const setChunk = 500

// EnsurePod makes the source check accept exactly p.Addrs from p.Interface, which exists already. It makes the tables
// when they are missing, so that it works while the daemon is down, and may run at the same time as any other call, in
// any process. Calling it again changes nothing. ErrNoNftables: the kernel can't check sources so, see EnsurePodLink.
// *AddressTakenError: another pod has one of the addresses.
func EnsurePod(p Pod) error {
	if err := p.validate(); err != nil {
		return fmt.Errorf("source check: %w", err)
	}
	fw := newFirewall()
	defer fw.close()
	return fw.ensurePod(p)
}

// AddressTakenError says that a pod has an address that another one was to get.
type AddressTakenError struct {
	Addr      netip.Addr
	Interface string // of the pod that has it
	Alias     string // of that interface
}

func (e *AddressTakenError) Error() string {
	return fmt.Sprintf("address %s belongs to the pod behind interface %s (%s)", e.Addr, e.Interface, e.Alias)
}

// RemovePod takes the interface out of the source check. It is no error when it is not there, or when the kernel has no
// nftables.
func RemovePod(ifname string) error {
	fw := newFirewall()
	defer fw.close()
	inet, bridge, err := fw.tables()
	if errors.Is(err, ErrNoNftables) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("source check: listing nftables tables: %w", err)
	}
	var errs []error
	for _, t := range existing(inet, bridge) {
		errs = append(errs, fw.syncElements(t, Pod{Interface: ifname}, nil, nil))
	}
	return errors.Join(errs...)
}

// Spoofed is the number of packets that the source checks dropped since their tables were made. ErrNoNftables when
// there is no check.
func Spoofed() (uint64, error) {
	fw := newFirewall()
	defer fw.close()
	inet, bridge, err := fw.tables()
	if err != nil {
		return 0, err
	}
	if !inet && !bridge {
		return 0, fmt.Errorf("%w: no table %s", ErrNoNftables, tableName)
	}
	var sum uint64
	for _, t := range existing(inet, bridge) {
		obj, err := ask(fw, func(c *nftables.Conn) (nftables.Obj, error) {
			return c.GetObject(&nftables.CounterObj{Table: t, Name: counterSpoofed})
		})
		if err != nil {
			return 0, fmt.Errorf("reading the nftables counter %s: %w", counterSpoofed, err)
		}
		if c, ok := obj.(*nftables.CounterObj); ok {
			sum += c.Packets
		}
	}
	return sum, nil
}

// CheckPod names what the source check lacks of a pod; nothing where the kernel has no nftables.
func CheckPod(p Pod) ([]string, error) {
	fw := newFirewall()
	defer fw.close()
	inet, bridge, err := fw.tables()
	if errors.Is(err, ErrNoNftables) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("source check: listing nftables tables: %w", err)
	}
	var lost []string
	check := func(t *nftables.Table, there bool, c chain, wanted map[string][][]byte) error {
		state, err := fw.read(t, there)
		if err != nil {
			return err
		}
		if !state.has(c) {
			lost = append(lost, fmt.Sprintf("chain %s of the nftables table %s %s is not as Warren makes it", c.name,
				familyName(t), tableName))
		}
		for _, s := range podSets(t) {
			have, err := fw.elements(s)
			if err != nil {
				return err
			}
			if n := len(difference(wanted[s.Name], have)); n > 0 {
				lost = append(lost, fmt.Sprintf("the nftables set %s of table %s %s lacks %d of its elements", s.Name,
					familyName(t), tableName, n))
			}
		}
		return nil
	}
	wantInet, wantBridge := p.keys()
	err = check(inetTable(), inet, sourceChain(), wantInet)
	if p.Bridge != "" {
		err = errors.Join(err, check(bridgeTable(), bridge, bridgeChain(), wantBridge))
	}
	return lost, err
}

func familyName(t *nftables.Table) string {
	if t.Family == nftables.TableFamilyBridge {
		return "bridge"
	}
	return "inet"
}

func existing(inet, bridge bool) []*nftables.Table {
	var ts []*nftables.Table
	if inet {
		ts = append(ts, inetTable())
	}
	if bridge {
		ts = append(ts, bridgeTable())
	}
	return ts
}

// keys are the pod's elements in the sets of table inet, and of table bridge.
func (p Pod) keys() (inet, bridge map[string][][]byte) {
	elems := map[string][][]byte{}
	for _, a := range p.Addrs {
		set := podSet(familyOf(a))
		elems[set] = append(elems[set], slices.Concat(ifname(p.Interface), a.AsSlice()))
	}
	if p.Bridge == "" {
		return elems, nil
	}
	elems[setMACs] = [][]byte{macKey(p.Interface, p.MAC)}
	if p.DHCP {
		elems[setMACs] = append(elems[setMACs], macKey(p.Interface, broadcastMAC()))
	}
	return map[string][][]byte{setBridges: {ifname(p.Bridge)}}, elems
}

func macKey(interfaceName string, mac net.HardwareAddr) []byte {
	return slices.Concat(ifname(interfaceName), mac, []byte{0, 0}) // padded to four bytes
}

// ensurePod makes the sets hold exactly the pod's elements.
func (fw *firewall) ensurePod(p Pod) error {
	inet, bridge := p.keys()
	if p.Bridge != "" {
		if err := fw.syncElements(bridgeTable(), p, bridge, []chain{bridgeChain()}); err != nil {
			return err
		}
	}
	if p.Masquerade != nil {
		err := fw.syncElements(inetTable(), p, inet, []chain{sourceChain(), p.Masquerade.chain()})
		if !errors.Is(err, ErrNoNftables) {
			return err
		}
		// A kernel that can't translate may be able to check; what is lost says Apply.
	}
	return fw.syncElements(inetTable(), p, inet, []chain{sourceChain()})
}

// A linkNames lists the names of the interfaces that exist.
type linkNames func() (map[string]bool, error)

// repairSets puts back what the sets of table t lost of wanted (keys by set), and drops the elements of interfaces that
// are gone, and of bridges that no pod is on: the plugin may have been killed, or the pod's namespace deleted before
// the plugin could say so.
//
// EnsurePod is called when the interface exists, and elements are read before interfaces are: so an element without
// interface is one whose interface is gone, and not one that is to come. A bridge may come anew: see followBridges.
func (fw *firewall) repairSets(t *nftables.Table, spec Spec, wanted map[string][][]byte, links linkNames,
	c *Changes,
) error {
	sets := podSets(t)
	have := make([][][]byte, len(sets))
	var err error
	for i, s := range sets {
		if have[i], err = fw.elements(s); err != nil {
			return err
		}
	}
	names, err := links()
	if err != nil {
		return err
	}
	gone := func(key []byte) bool { return !names[nameIn(key)] }
	tx, added, dropped, bridges := fw.begin(t), 0, 0, map[string]bool{}
	for i, s := range sets {
		var add, del [][]byte
		if s.Name == setBridges {
			if add, del, err = spec.diffBridges(wanted[s.Name], have[i], gone); err != nil {
				return err
			}
			for _, k := range del {
				bridges[nameIn(k)] = false
			}
			for _, k := range add {
				bridges[nameIn(k)] = true
			}
		} else {
			add = slices.DeleteFunc(difference(wanted[s.Name], have[i]), gone)
			del = slices.DeleteFunc(have[i], func(k []byte) bool { return !gone(k) })
		}
		added, dropped = added+len(add), dropped+len(del)
		tx.change(s, add, (*nftables.Conn).SetAddElements)
		tx.change(s, del, (*nftables.Conn).SetDeleteElements)
	}
	if added+dropped == 0 {
		return nil
	}
	switch err := tx.commit(); {
	case errors.Is(err, unix.ENOENT): // the plugin was faster; the next Apply sees
		bridges = nil
	case err != nil:
		return fmt.Errorf("repairing the sets of the source check: %w", err)
	}
	say := c.add
	if added == 0 {
		say = c.tidy
	}
	say("nftables: source check of pods: %d elements put back, %d of pods that are gone removed", added, dropped)
	return fw.followBridges(spec, bridges, c)
}

// syncElements makes the sets of t, which exists, hold exactly elems for the pod's interface. With chains it also makes
// the table and these chains where they are missing, and the source check where it is not as it should be.
func (fw *firewall) syncElements(t *nftables.Table, p Pod, elems map[string][][]byte, chains []chain) error {
	var err error
	for range podAttempts {
		err = fw.trySyncElements(t, p, elems, chains)
		// ENOENT: an element or the whole table went away meanwhile; EEXIST, EBUSY: the table is being made or deleted.
		if err == nil || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY) {
			return wrapSource(p.Interface, err)
		}
	}
	return wrapSource(p.Interface, missing(err))
}

func wrapSource(ifname string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("source check of %s: %w", ifname, err)
}

func (fw *firewall) trySyncElements(t *nftables.Table, p Pod, elems map[string][][]byte, chains []chain) error {
	tx, there, err := fw.mend(t, chains)
	if err != nil {
		return err
	}
	for _, s := range podSets(t) {
		want := elems[s.Name]
		if s.Name == setBridges && len(want) == 0 {
			continue // other ports of a bridge may need its element
		}
		var have [][]byte
		if there {
			if have, err = fw.elements(s); err != nil {
				return err
			}
			if err := p.alone(s, have); err != nil {
				return err
			}
		}
		add := slices.DeleteFunc(slices.Clone(want), func(k []byte) bool { return containsKey(have, k) })
		// Other pods' elements are theirs.
		del := slices.DeleteFunc(have, func(k []byte) bool {
			return s.Name == setBridges || !bytes.HasPrefix(k, ifname(p.Interface)) || containsKey(want, k)
		})
		tx.change(s, add, (*nftables.Conn).SetAddElements)
		tx.change(s, del, (*nftables.Conn).SetDeleteElements)
	}
	if len(tx.steps) == 0 {
		return nil
	}
	return tx.commit()
}

// alone refuses addresses that another pod's interface has in a set. The plugin gives no address twice while it knows
// who has it; the sets know it also when the plugin's files are lost. A pod that leaves is taken out before its address
// is free, and where that was not said, its interface is gone.
func (p Pod) alone(s *nftables.Set, have [][]byte) error {
	if s.Name != setPods4 && s.Name != setPods6 {
		return nil
	}
	for _, k := range have {
		other := nameIn(k)
		at := slices.IndexFunc(p.Addrs, func(a netip.Addr) bool { return bytes.Equal(k[ifnameBytes:], a.AsSlice()) })
		if at < 0 || other == p.Interface {
			continue
		}
		link, err := netlink.LinkByName(other)
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking for %s, which has address %s: %w", other, p.Addrs[at], err)
		}
		return &AddressTakenError{Addr: p.Addrs[at], Interface: other, Alias: link.Attrs().Alias}
	}
	return nil
}

// mend starts a transaction with what has to be done to chains, and to the table that they are in, and reports whether
// the table is there. Without chains it has to be. A chain that is as it should be has its table and its sets.
func (fw *firewall) mend(t *nftables.Table, chains []chain) (tx *txn, there bool, err error) {
	if len(chains) == 0 {
		return fw.change(t), true, nil
	}
	state := tableState{table: t, rules: map[string][]string{}}
	if state.chains, err = fw.chains(t); err != nil {
		return nil, false, err
	}
	var wrong []chain
	for _, c := range chains {
		exists := state.chain(c.name) != nil
		if exists && c.name == chainOutgoing {
			continue // what is translated the daemon knows best
		}
		if exists {
			if state.rules[c.name], err = fw.fingerprints(t, c.name); err != nil {
				return nil, false, err
			}
		}
		if !state.has(c) {
			wrong = append(wrong, c)
		}
	}
	if len(wrong) == 0 {
		return fw.change(t), true, nil
	}
	tx = fw.begin(t)
	for _, c := range wrong {
		tx.putChain(c, state)
	}
	inet, bridge, err := fw.tables()
	return tx, inet && t.Family == nftables.TableFamilyINet || bridge && t.Family == nftables.TableFamilyBridge, err
}

func containsKey(keys [][]byte, key []byte) bool {
	return slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) })
}

func (tx *txn) change(s *nftables.Set, keys [][]byte,
	call func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error,
) {
	for part := range slices.Chunk(keys, setChunk) {
		elems := make([]nftables.SetElement, len(part))
		for i, k := range part {
			elems[i].Key = k
		}
		tx.steps = append(tx.steps, func(c *nftables.Conn) error { return call(c, s, elems) })
	}
}
