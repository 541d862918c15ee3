package cni

import (
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/internal/nodefile"
)

// masqueradeOf is the translation of what a node's pods send out of the cluster; nil when it has none.
func masqueradeOf(node *nodefile.File) *hostnet.Masquerade {
	if node == nil || !node.Masquerade {
		return nil
	}
	return &hostnet.Masquerade{Device: node.Device, ClusterCIDRs: node.ClusterCIDRs, PodCIDRs: node.PodCIDRs}
}

// releaseMasquerade removes the translation when no pod is left. It comes after the record of the pod that left, and a
// pod's ADD makes the translation after its record. So a pod that is not seen at first makes it anew, or is seen at the
// second look, when it may have relied on what was removed meanwhile.
func (s shared) releaseMasquerade() error {
	if used, err := s.hasPods(); used || err != nil {
		return err
	}
	if err := hostnet.RemoveMasquerade(); err != nil {
		return err
	}
	if used, err := s.hasPods(); !used || err != nil {
		return err
	}
	node, err := nodefile.Read(s.conf.RunDir)
	if err != nil {
		return err
	}
	if m := masqueradeOf(&node); m != nil {
		return hostnet.EnsureMasquerade(*m)
	}
	return nil
}

// hasPods looks for records, and, as those may be lost, for interfaces.
func (s shared) hasPods() (bool, error) {
	if !s.frozen {
		names, err := podrecord.Names(s.conf.StateDir)
		if len(names) > 0 || err != nil {
			return true, err
		}
	}
	links, err := retry(s.LinkList)
	if err != nil {
		return true, fmt.Errorf("listing interfaces: %w", err)
	}
	return slices.ContainsFunc(links, func(l netlink.Link) bool { return podrecord.IsHostIfName(l.Attrs().Name) }), nil
}
