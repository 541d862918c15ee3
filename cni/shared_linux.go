package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/atomicfile"
	"github.com/warren-net/warren/internal/hostnet"
)

// shared is what the pods of a node have in common, for whoever takes away a pod that may be the last: their bridges,
// and the translation of what they send out of the cluster.
type shared struct {
	*hostHandle
	conf   Config
	remark func(format string, args ...any)
	frozen bool // records of pods that left stay, and no pod can be added: interfaces alone say who is there
}

// shared is for a pod that left; err is what kept its record from being removed.
func (p *Plugin) shared(host *hostHandle, conf Config, err error) shared {
	return shared{host, conf, p.remark, frozen(err)}
}

// releaseBridges undoes what was done to each bridge that no pod is on. It comes after the record of the pod that left:
// of two pods that leave at once, the later one sees no other. A kill in between is made good by the next DEL or GC.
// left is the pod's record; without one, its bridge may be any.
func (s shared) releaseBridges(left podrecord.Record) error {
	entries, err := os.ReadDir(filepath.Dir(bridgePath(s.conf.StateDir, "")))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !s.frozen {
		return fmt.Errorf("listing the bridges: %w", err)
	}
	var names []string
	for _, e := range entries {
		// The temporary file of a killed ADD goes by the same name.
		file := strings.TrimSuffix(strings.TrimPrefix(e.Name(), "."), ".tmp")
		if name, ok := strings.CutSuffix(file, ".json"); ok {
			names = append(names, name)
		}
	}
	if left.Bridge != "" {
		names = append(names, left.Bridge)
	}
	if left.Mode == "" {
		if names, err = s.listedBridges(names); err != nil {
			return err
		}
		links, err := retry(s.LinkList)
		if err != nil {
			return fmt.Errorf("listing interfaces: %w", err)
		}
		for _, link := range links {
			if new(bridgeState).adopt(link.Attrs().Alias) {
				names = append(names, link.Attrs().Name)
			}
		}
	}
	slices.Sort(names)
	var errs []error
	for _, name := range slices.Compact(names) {
		errs = append(errs, s.releaseBridge(name))
	}
	return errors.Join(errs...)
}

// listedBridges adds those that the firewall knows.
func (s shared) listedBridges(names []string) ([]string, error) {
	listed, err := hostnet.Bridges()
	return append(names, listed...), err
}

// releaseBridge undoes what was done to a bridge that no pod is on, and takes it out of those that the firewall knows.
// A pod that is being added at this moment is not left without: its record comes before its turn with the bridge's lock
// (ensureBridge), and that before its source check, which lists the bridge. So either the record is seen here, or the
// bridge is listed after it was taken out. The daemon, which has no lock, looks again after its own changes.
func (s shared) releaseBridge(name string) error {
	l, err := lockToRemove(s.conf.StateDir, bridgeLockName(name), lockWait)
	if err != nil {
		return err
	}
	defer l.release()
	if !s.frozen && podrecord.OnBridge(s.conf.StateDir, name) {
		return nil
	}
	link, err := s.LinkByName(name)
	switch {
	case isNotFound(err):
		err = hostnet.RemoveBridge(name)
	case err != nil:
		err = fmt.Errorf("bridge %s: %w", name, err)
	default:
		var done bool
		if done, err = s.undoBridge(link); !done {
			return err
		}
	}
	if err != nil {
		return err
	}
	return stateFailure(s.conf.StateDir, atomicfile.Remove(bridgePath(s.conf.StateDir, name)))
}

// undoBridge reports false when the bridge has to stay: for a pod whose record is lost, or because somebody put another
// port on it.
func (s shared) undoBridge(link netlink.Link) (bool, error) {
	name := link.Attrs().Name
	st, stateErr := readBridge(s.conf.StateDir, name)
	st.match(link.Attrs())
	if unreadable(stateErr) {
		s.remark("%v; %s", stateErr, st.origin())
	}
	links, err := retry(s.LinkList)
	if err != nil {
		return false, fmt.Errorf("listing the ports of %s: %w", name, err)
	}
	ports := slices.DeleteFunc(links, func(l netlink.Link) bool { return l.Attrs().MasterIndex != link.Attrs().Index })
	if slices.ContainsFunc(ports, func(l netlink.Link) bool { return podrecord.IsHostIfName(l.Attrs().Name) }) {
		return false, nil
	}
	if err := hostnet.RemoveBridge(name); err != nil {
		return false, err
	}
	if err := s.releaseUplink(link, st); err != nil {
		return false, err
	}
	if !st.Created {
		return true, s.removeAddresses(link, st.Addresses)
	}
	if slices.ContainsFunc(ports, func(l netlink.Link) bool { return l.Attrs().Name != st.Uplink }) {
		return false, nil
	}
	if err := s.LinkDel(link); err != nil && !isNotFound(err) {
		return false, fmt.Errorf("removing bridge %s: %w", name, err)
	}
	return true, nil
}

// removeAddresses takes those addresses from a bridge that the plugin gave it.
func (h *hostHandle) removeAddresses(link netlink.Link, given []netip.Prefix) error {
	if len(given) == 0 {
		return nil
	}
	have, err := retry(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, addr := range have {
		if slices.ContainsFunc(given, func(p netip.Prefix) bool { return p.String() == addr.IPNet.String() }) {
			if err := h.AddrDel(link, &addr); err != nil {
				return fmt.Errorf("removing %s from %s: %w", addr.IPNet, link.Attrs().Name, err)
			}
		}
	}
	return nil
}
