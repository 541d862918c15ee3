package cni

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/cni/podrecord"
)

// take makes what an IPAM plugin gave the network's: as if it had one range for each address, with that address only.
// What holds for ranges holds for them.
func (n *network) take(result *current.Result) ([]ipam.Allocation, error) {
	bad := func(format string, args ...any) error {
		return fail(types.ErrInvalidNetworkConfig, "IPAM plugin %q of network %q: %w", delegateType(n.IPAM), n.Name,
			fmt.Errorf(format, args...))
	}
	var given []ipam.Allocation
	for _, c := range result.IPs {
		g, err := n.allocation(c)
		if err != nil {
			return nil, bad("%w", err)
		}
		given = append(given, g)
		subnet := g.Subnet.Masked()
		n.sets = append(n.sets, allocator.RangeSet{{
			Subnet:  types.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), subnet.Addr().BitLen())},
			Gateway: g.Gateway.AsSlice(), RangeStart: g.Addr.AsSlice(), RangeEnd: g.Addr.AsSlice(),
		}})
	}
	if len(given) == 0 {
		return nil, bad("it gave no address: see what its section ipam has to say, for `static` addresses")
	}
	for _, w := range n.Wanted {
		if !slices.ContainsFunc(given, func(g ipam.Allocation) bool { return g.Addr == w }) {
			return nil, bad("%s was asked for, but it gave %v", w, addrsOf(given))
		}
	}
	if n.Routes == nil && len(result.Routes) > 0 {
		for _, r := range result.Routes {
			n.Routes = append(n.Routes, *r.Copy())
		}
	}
	if n.DNS.IsEmpty() {
		n.DNS = result.DNS
	}
	return given, n.validate()
}

// allocation checks one address of an IPAM plugin, and completes it with its gateway.
func (n *network) allocation(c *current.IPConfig) (ipam.Allocation, error) {
	addr, ok := netip.AddrFromSlice(c.Address.IP)
	ones, bits := c.Address.Mask.Size()
	addr = addr.Unmap()
	if !ok || bits != addr.BitLen() {
		return ipam.Allocation{}, fmt.Errorf("it gave %s, which is no address with a prefix length", c.Address.String())
	}
	g := ipam.Allocation{Addr: addr, Subnet: netip.PrefixFrom(addr, ones)}
	if !addr.IsGlobalUnicast() {
		return g, fmt.Errorf("it gave %s, which is no address for a pod: it must be a unicast address that is not "+
			"link-local", addr)
	}
	gateway, hasGateway := netip.AddrFromSlice(c.Gateway)
	g.Gateway = gateway.Unmap()
	if n.node != nil {
		own, ok := n.node.Gateway(netip.PrefixFrom(addr, addr.BitLen()))
		if !ok {
			return g, fmt.Errorf("it gave %s, which is outside the node's pod CIDRs %v, so no other node would find the pod: "+
				"let it give addresses of these", addr, n.node.PodCIDRs)
		}
		if hasGateway && g.Gateway != own {
			return g, fmt.Errorf("it gave %s with gateway %s, which is not the node's, %s: leave gateway out, or set it to that",
				addr, g.Gateway, own)
		}
		g.Gateway = own
	} else if !hasGateway {
		g.Gateway = g.Subnet.Masked().Addr().Next()
	}
	switch {
	case g.Gateway == addr:
		return g, fmt.Errorf("it gave %s, which is the gateway's: let it give another", addr)
	case g.Gateway.Is4() != addr.Is4():
		return g, fmt.Errorf("it gave %s with gateway %s, which is of the other family", addr, g.Gateway)
	case n.Mode == ModeBridge:
		return g, n.onLink(g)
	}
	return g, nil
}

// onLink checks what a pod on a bridge would take to be on its link. In mode routed nothing is, and the prefix length
// means nothing.
func (n *network) onLink(g ipam.Allocation) error {
	if !g.Subnet.Contains(g.Gateway) {
		return fmt.Errorf("it gave %s, a subnet without its gateway %s, which the pod would not reach: give a shorter "+
			"prefix length", g.Subnet, g.Gateway)
	}
	if first, last := g.Subnet.Masked().Addr(), lastOf(g.Subnet); g.Addr == first || g.Addr == last && last.Is4() {
		return fmt.Errorf("it gave %s, which is the subnet's own or broadcast address: let it give another", g.Subnet)
	}
	if n.node == nil || n.Uplink != "" {
		return nil
	}
	if _, ok := n.node.Gateway(g.Subnet.Masked()); !ok {
		return fmt.Errorf("it gave %s, a subnet larger than the node's pod CIDRs %v: the pod would look for pods of other "+
			"nodes on its bridge; give a longer prefix length", g.Subnet, n.node.PodCIDRs)
	}
	return nil
}

// fromDelegate lets the IPAM plugin give the addresses. The record is written before, without them: it names the
// plugin, so whatever happens from here on, DEL finds it.
func (a *attachment) fromDelegate() error {
	if err := a.writeRecord(podrecord.Create); err != nil {
		return err
	}
	return a.ask()
}

// ask asks the IPAM plugin that the record names, and records what it gives.
func (a *attachment) ask() error {
	result, err := a.delegate(delegation{"ADD", a.IPAM, a.rec})
	if err != nil {
		a.refused = refusal(err) != nil
		return err
	}
	if a.given, err = a.take(result); err != nil {
		return err
	}
	own, err := retry(func() ([]netlink.Addr, error) { return a.host.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the node's addresses: %w", err)
	}
	for _, g := range a.given {
		if slices.ContainsFunc(own, func(o netlink.Addr) bool { return o.IP.Equal(g.Addr.AsSlice()) }) {
			return fail(types.ErrInvalidNetworkConfig, "IPAM plugin %q of network %q gave %s, which the node itself has: let "+
				"it give another", delegateType(a.IPAM), a.Name, g.Addr)
		}
	}
	a.complete(a.given)
	return a.writeRecord(podrecord.Replace)
}

// unique refuses an address that another pod of the node has. Warren's own allocator gives none twice, but it knows
// nothing of what IPAM plugins give, and they know nothing of each other. Records are written before this looks at
// them, so of two attachments at once at least one sees the other.
func unique(own podrecord.Record, all []podrecord.Record) error {
	for _, other := range all {
		if other.HostIfName == own.HostIfName || own.IPAM == nil && other.IPAM == nil {
			continue
		}
		for _, addr := range own.Addresses {
			if slices.Contains(other.Addresses, addr) {
				return fail(types.ErrInvalidNetworkConfig, "network %q gave %s, which interface %s of container %s has (network "+
					"%q): let each network, and each IPAM plugin, give addresses of its own", own.Network, addr, other.IfName,
					other.ContainerID, other.Network)
			}
		}
	}
	return nil
}

func addrsOf(given []ipam.Allocation) []netip.Addr {
	addrs := make([]netip.Addr, len(given))
	for i, g := range given {
		addrs[i] = g.Addr
	}
	return addrs
}
