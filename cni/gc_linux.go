package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/cni/podrecord"
)

// gc removes what this network has beyond the attachments that the runtime says are valid: interfaces, source check
// elements, addresses, records, bridges. The specification lets nothing else run at the same time.
func (p *Plugin) gc(args *skel.CmdArgs) error {
	conf, _, err := parseCommon(args.StdinData)
	if err != nil {
		return err
	}
	if !conf.HasAttachments { // `cnitool gc` sends none, and it has to succeed
		p.remark("GC came without cni.dev/valid-attachments, which tells what may be removed: nothing was removed")
		return nil
	}
	c := collection{plugin: p, conf: conf, valid: map[string]bool{}}
	for i, a := range conf.ValidAttachments {
		if a.ContainerID == "" || a.IfName == "" {
			return fail(types.ErrInvalidNetworkConfig, "attachment %d in cni.dev/valid-attachments has container id %q and "+
				"interface %q: both are needed; nothing was removed", i+1, a.ContainerID, a.IfName)
		}
		c.valid[podrecord.HostIfName(a.ContainerID, a.IfName)] = true
	}
	if c.host, err = openHost(); err != nil {
		return err
	}
	defer c.host.Close()
	err = errors.Join(c.records(), c.interfaces(), c.addresses(), c.delegated())
	shared := p.shared(c.host, conf, err)
	return errors.Join(err, shared.releaseBridges(podrecord.Record{}), shared.releaseMasquerade())
}

// collection is a GC at work.
type collection struct {
	plugin *Plugin
	conf   Config
	valid  map[string]bool // by host interface name
	host   *hostHandle
	kept   []podrecord.Record // of the valid attachments
}

func (c *collection) records() error {
	names, err := podrecord.Names(c.conf.StateDir)
	if err != nil {
		return stateFailure(c.conf.StateDir, err)
	}
	var errs []error
	for _, name := range names {
		rec, err := podrecord.Read(c.conf.StateDir, name)
		switch {
		case c.valid[name]:
			if err == nil {
				c.kept = append(c.kept, rec)
			} else {
				c.plugin.remark("%v; its pod is valid, so it stays", err)
			}
		case err == nil && rec.Network != c.conf.Name: // another network's, which has a GC of its own
		case err == nil:
			errs = append(errs, c.plugin.remove(c.conf, rec))
		default:
			errs = append(errs, c.nameless(name))
		}
	}
	return errors.Join(errs...)
}

// nameless removes the file of a killed ADD that is not a record yet, or one that says nothing. Whose network's it is
// can't be told, and beside this GC other networks' ADD may be at work: those hold the attachment's lock, and what they
// have not written yet is theirs to complete.
func (c *collection) nameless(name string) error {
	l, err := lockToRemove(c.conf.StateDir, name, 0)
	if errors.Is(err, errBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.release()
	switch _, err := podrecord.Read(c.conf.StateDir, name); {
	case err == nil: // complete by now
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return stateFailure(c.conf.StateDir, podrecord.Remove(c.conf.StateDir, name))
	default:
		return c.unreadable(name, err)
	}
}

// unreadable removes a record that says nothing, unless its interface still exists: whose it is says the alias.
func (c *collection) unreadable(name string, reason error) error {
	link, err := c.host.LinkByName(name)
	if err != nil && !isNotFound(err) {
		return err
	}
	if err == nil && !c.owns(link) {
		c.plugin.remark("%v; interface %s is not of network %q, so it stays", reason, name, c.conf.Name)
		return nil
	}
	c.plugin.remark("%v; removing it", reason)
	return c.drop(name)
}

// delegated passes GC on to the IPAM plugin, as the specification wants it. Those that know no GC, like host-local, had
// a DEL for each record that was removed.
func (c *collection) delegated() error {
	if c.conf.IPAM == nil {
		return nil
	}
	_, err := c.conf.delegate(delegation{command: "GC", section: c.conf.IPAM})
	return err
}

func (c *collection) drop(name string) error {
	if err := c.host.removeVeth(name, func() error { return c.plugin.unlist(name) }); err != nil {
		return err
	}
	return stateFailure(c.conf.StateDir, podrecord.Remove(c.conf.StateDir, name))
}

func (c *collection) owns(link netlink.Link) bool {
	return strings.HasPrefix(link.Attrs().Alias, networkAlias(c.conf.Name))
}

// interfaces removes those of this network that have no record: the state directory was lost, or can't be read.
func (c *collection) interfaces() error {
	links, err := retry(c.host.LinkList)
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	var errs []error
	for _, link := range links {
		name := link.Attrs().Name
		if !podrecord.IsHostIfName(name) || c.valid[name] || !c.owns(link) {
			continue
		}
		_, err := podrecord.Read(c.conf.StateDir, name)
		if errors.Is(err, fs.ErrNotExist) || frozen(stateFailure(c.conf.StateDir, err)) {
			errs = append(errs, c.drop(name))
		}
	}
	return errors.Join(errs...)
}

// addresses frees those that no valid attachment has. One whose file can't be read is written anew when a valid pod's
// record has it, and freed when nobody can have it.
func (c *collection) addresses() error {
	return stateFailure(c.conf.StateDir, withAddresses(c.conf.StateDir, c.conf.Name, c.freeIn))
}

func (c *collection) freeIn(store *ipam.Store) error {
	entries, err := store.Entries()
	if err != nil {
		return err
	}
	var free, unreadable []netip.Addr
	var repair []ipam.Entry
	for _, e := range entries {
		at := slices.IndexFunc(c.kept, func(r podrecord.Record) bool { return slices.Contains(r.Addresses, e.Addr) })
		switch {
		case e.Err == nil && c.valid[podrecord.HostIfName(e.ContainerID, e.IfName)]:
		case at < 0 && e.Err != nil:
			unreadable = append(unreadable, e.Addr)
		case at < 0:
			free = append(free, e.Addr)
		case e.Err != nil:
			repair = append(repair, ipam.Entry{Addr: e.Addr, ContainerID: c.kept[at].ContainerID, IfName: c.kept[at].IfName})
		}
	}
	errs := []error{store.Free(free...)}
	for _, e := range repair {
		c.plugin.remark("the file of address %s could not be read; writing it anew for %s of %s", e.Addr, e.IfName,
			e.ContainerID)
		errs = append(errs, store.Rewrite(e))
	}
	if len(unreadable) > 0 {
		none := podrecord.Record{Network: c.conf.Name}
		errs = append(errs, c.plugin.freeUnreadable(c.host, store, c.conf.StateDir, none, unreadable))
	}
	return errors.Join(errs...)
}
