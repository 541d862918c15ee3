package cni

import (
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/cni/podrecord"
)

// subnetsOf are the subnets that a pod on a bridge takes to be on its link.
func subnetsOf(given []ipam.Allocation) []netip.Prefix {
	subnets := make([]netip.Prefix, len(given))
	for i, g := range given {
		subnets[i] = g.Subnet.Masked()
	}
	return subnets
}

// neighbors refuses a pod that a pod on a bridge would look for on its link, where it is not: one of mode routed, or on
// another bridge, with an address of the same subnet. Each would reach the other's node and not the other. Records are
// written before this looks at them, so of two attachments at once at least one sees the other.
func neighbors(own podrecord.Record, all []podrecord.Record) error {
	for _, other := range all {
		if other.HostIfName == own.HostIfName || other.Mode == own.Mode && other.Bridge == own.Bridge {
			continue
		}
		addr, subnet, ok := within(own.Addresses, other.Subnets)
		if !ok {
			addr, subnet, ok = within(other.Addresses, own.Subnets)
		}
		if ok {
			return fail(types.ErrInvalidNetworkConfig, "%s of this node is the subnet of a bridge, and %s is not on it: a pod "+
				"of network %q (%s) and one of network %q (%s) would not reach each other; give all pods of the node the same "+
				"mode and bridge, or each mode ranges with a subnet of its own", subnet, addr, own.Network, place(own),
				other.Network, place(other))
		}
	}
	return nil
}

func place(r podrecord.Record) string {
	if r.Bridge != "" {
		return "mode " + r.Mode + ", " + r.Bridge
	}
	return "mode " + r.Mode
}

// within finds an address that is in one of the subnets.
func within(addrs []netip.Addr, subnets []netip.Prefix) (netip.Addr, netip.Prefix, bool) {
	for _, s := range subnets {
		for _, a := range addrs {
			if s.Contains(a) {
				return a, s, true
			}
		}
	}
	return netip.Addr{}, netip.Prefix{}, false
}
