package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RemoveBridge takes a bridge that no pod is on out of those whose packets are looked at as those of pods. It is no
// error when it is not there, or when the kernel has no nftables.
func RemoveBridge(name string) error {
	return withInetTable("bridge "+name, func(fw *firewall) error { return fw.listBridge(name, false) })
}

// Bridges lists the bridges whose packets are looked at as those of pods.
func Bridges() (names []string, err error) {
	err = withInetTable("bridges of pods", func(fw *firewall) error {
		keys, err := fw.elements(bridgeSet())
		for _, k := range keys {
			names = append(names, nameIn(k))
		}
		return err
	})
	return names, err
}

func bridgeSet() *nftables.Set {
	sets := podSets(inetTable())
	return sets[slices.IndexFunc(sets, func(s *nftables.Set) bool { return s.Name == setBridges })]
}

// nameIn is the interface that a key begins with.
func nameIn(key []byte) string { return string(bytes.TrimRight(key[:ifnameBytes], "\x00")) }

// listBridge puts a bridge into the set, or takes it out.
func (fw *firewall) listBridge(name string, in bool) error {
	tx, call := fw.change(inetTable()), (*nftables.Conn).SetDeleteElements
	if in {
		call = (*nftables.Conn).SetAddElements
	}
	tx.change(bridgeSet(), [][]byte{ifname(name)}, call)
	if err := tx.commit(); err != nil && !errors.Is(err, unix.ENOENT) { // it is not in, or the table is gone
		return fmt.Errorf("nftables set %s: bridge %s: %w", setBridges, name, err)
	}
	return nil
}

// bridged is whether there may be pods on a bridge, which exists then: by their records, or, as those may be lost, by
// its ports.
func (s Spec) bridged(name string) (bool, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return false, fmt.Errorf("listing interfaces: %w", err)
	}
	at := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == name })
	if at < 0 || s.Bridged == nil || s.Bridged(name) {
		return at >= 0, nil
	}
	return slices.ContainsFunc(links, func(l netlink.Link) bool {
		return l.Attrs().MasterIndex == links[at].Attrs().Index && strings.HasPrefix(l.Attrs().Name, PodPrefix)
	}), nil
}

// diffBridges finds what the set lacks of wanted, and what it has for nobody. Pods may have come and left since wanted
// was read, so where it differs each is looked at now.
func (s Spec) diffBridges(wanted, have [][]byte, gone func([]byte) bool) (add, del [][]byte, err error) {
	look := func(keys [][]byte, used bool) (as [][]byte, err error) {
		for _, k := range keys {
			is, err := s.bridged(nameIn(k))
			if err != nil {
				return nil, err
			}
			if is == used {
				as = append(as, k)
			}
		}
		return as, nil
	}
	there := slices.DeleteFunc(slices.Clone(wanted), gone)
	if add, err = look(difference(there, have), true); err != nil {
		return nil, nil, err
	}
	del, err = look(difference(have, there), false)
	return add, del, err
}

// followBridges looks again, after bridges were put into the set (true) or taken out, whether pods are on them. The
// last pod may have left meanwhile, and its DEL was too early to take out what was put in after; its record is gone by
// then. Or an ADD found the bridge in the set, which was about to be taken out; its record was there before, and so was
// the bridge. What comes after this look sees the set as it is now.
func (fw *firewall) followBridges(spec Spec, changed map[string]bool, c *Changes) error {
	for _, name := range slices.Sorted(maps.Keys(changed)) {
		for in := changed[name]; ; {
			used, err := spec.bridged(name)
			if err != nil {
				return err
			}
			if used == in {
				break
			}
			in = used
			if err := fw.listBridge(name, in); err != nil {
				return err
			}
			if in {
				c.add("nftables: bridge %s is in use again", name)
			} else {
				c.tidy("nftables: bridge %s is not in use any more", name)
			}
		}
	}
	return nil
}
