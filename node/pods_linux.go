package node

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/node/api"
)

// Pods implements api.Source. A record that cannot be read is listed with its problem and hides no other.
func (a answers) Pods() ([]api.Pod, error) {
	stateDir := a.n.cfg.StateDir
	names, err := podrecord.Names(stateDir)
	if err != nil {
		return nil, err
	}
	out := make([]api.Pod, 0, len(names))
	if len(names) == 0 {
		return out, nil
	}
	counters, countErr := linkCounters()
	for _, name := range names {
		r, err := podrecord.Read(stateDir, name)
		if errors.Is(err, fs.ErrNotExist) { // removed since the directory was read, or not complete yet
			continue
		}
		p := api.Pod{HostInterface: name}
		if err != nil {
			p.Problem = fmt.Sprintf("%v; delete the pod (CNI DEL or GC), which removes the record too", err)
		} else {
			p = api.Pod{
				Namespace: r.PodNamespace, Name: r.PodName, ContainerID: r.ContainerID, Interface: r.IfName,
				HostInterface: r.HostIfName, Mode: r.Mode, Addresses: r.Addresses, Since: r.Since,
			}
		}
		switch c, ok := counters[name]; {
		case ok:
			// What the host's end received is what the pod sent.
			p.TxPackets, p.TxBytes, p.RxPackets, p.RxBytes = c.RxPackets, c.RxBytes, c.TxPackets, c.TxBytes
		case p.Problem != "":
		case countErr != nil:
			p.Problem = countErr.Error()
		default:
			p.Problem = "its host interface is not there: the pod is just being added or deleted, or somebody removed the " +
				"interface or the pod's network namespace; then delete the pod (CNI DEL or GC)"
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b api.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// dumpAttempts bounds how often a dump is repeated that a change tore.
const dumpAttempts = 10

// linkCounters are the counters of all interfaces, by name: one dump, however many pods there are.
func linkCounters() (map[string]*netlink.LinkStatistics, error) {
	for i := 1; ; i++ {
		links, err := netlink.LinkList()
		if errors.Is(err, netlink.ErrDumpInterrupted) && i < dumpAttempts {
			continue
		}
		// Of a torn dump an interface or two may be missing, which is better than nothing.
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("the kernel's counters cannot be read: %w", err)
		}
		counters := make(map[string]*netlink.LinkStatistics, len(links))
		for _, l := range links {
			if s := l.Attrs().Statistics; s != nil {
				counters[l.Attrs().Name] = s
			}
		}
		return counters, nil
	}
}
