package cni

import (
	"errors"
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
	return makeAgain(s.conf.RunDir, hostnet.EnsureMasquerade)
}

// makeAgain makes the translation for the pod that was seen at the second look. What its ADD did without, because the
// kernel has no nftables or no daemon says what to translate, is no failure of the DEL that met it.
func makeAgain(runDir string, ensure func(hostnet.Masquerade) error) error {
	node, err := nodefile.Read(runDir)
	if errors.Is(err, nodefile.ErrMissing) {
		return nil
	}
	if err != nil {
		return err
	}
	m := masqueradeOf(&node)
	if m == nil {
		return nil
	}
	if err := ensure(*m); err != nil && !errors.Is(err, hostnet.ErrNoNftables) {
		return err
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
