package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/cni/podrecord"
)

// freeUnreadable frees those addresses of a network, whose files do not say who has them, that nobody can have: no
// other record lists them, and each other interface that might be of this network has a record. An ADD at work is no
// exception: its record is there before its addresses are. gone is the attachment that leaves, or nothing but a
// network. The store must be locked.
func (p *Plugin) freeUnreadable(
	host *hostHandle, store *ipam.Store, stateDir string, gone podrecord.Record, addrs []netip.Addr,
) error {
	links, err := retry(host.LinkList) // before the records: an interface comes after its record, and goes before it
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	if _, err := podrecord.Names(stateDir); err != nil {
		return err
	}
	recorded := map[string]bool{gone.HostIfName: true}
	var kept []netip.Addr
	records, _ := podrecord.List(stateDir) // one that can't be read says nothing; an interface says that a pod lives
	for _, rec := range records {
		if rec.HostIfName != gone.HostIfName {
			recorded[rec.HostIfName] = true
			kept = append(kept, rec.Addresses...)
		}
	}
	for _, link := range links {
		attrs := link.Attrs()
		if !podrecord.IsHostIfName(attrs.Name) || recorded[attrs.Name] || ofAnother(gone.Network, attrs.Alias) {
			continue
		}
		if exists, err := host.exists(attrs.Name); exists || err != nil {
			p.remark("interface %s has no record that can be read, and may have one of %v, whose files can't be read: they "+
				"stay in use until it is gone", attrs.Name, addrs)
			return err
		}
	}
	free := slices.DeleteFunc(addrs, func(a netip.Addr) bool { return slices.Contains(kept, a) })
	return store.Free(free...)
}

// ofAnother reports whether an interface's alias says that it is of another network.
func ofAnother(network, alias string) bool {
	return strings.HasPrefix(alias, aliasPrefix) && !strings.HasPrefix(alias, networkAlias(network))
}
