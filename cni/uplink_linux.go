package cni

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/netsysctl"
)

// joinUplink makes the uplink a port of the bridge, unless it is one. It is recorded before it is done; an uplink that
// the operator put there is not recorded, and stays.
func (a *attachment) joinUplink(st *bridgeState) error {
	if a.Uplink == "" {
		return nil
	}
	bad := func(format string, args ...any) error {
		return fail(types.ErrInvalidNetworkConfig, "uplink %s: %w", a.Uplink, fmt.Errorf(format, args...))
	}
	if st.Uplink != "" && st.Uplink != a.Uplink {
		return bad("the bridge has uplink %s already, and with two of one network frames would go round for ever: give "+
			"all networks of the bridge the same uplink, or delete its pods first", st.Uplink)
	}
	link, err := a.host.LinkByName(a.Uplink)
	if isNotFound(err) {
		return bad("there is no such interface: name one of `ip link` in field uplink, or leave uplink out")
	}
	if err != nil {
		return fmt.Errorf("looking for uplink %s: %w", a.Uplink, err)
	}
	if link.Attrs().MasterIndex == a.bridge.Index && st.Uplink == "" { // the operator's doing
		if !st.Created {
			a.warnStrict()
		}
		return nil
	}
	if err := a.fitUplink(link); err != nil {
		return bad("%w", err)
	}
	attrs := link.Attrs()
	if st.Uplink == "" {
		st.Uplink, st.UplinkDown = a.Uplink, attrs.Flags&net.FlagUp == 0
		if err := a.writeBridge(*st); err != nil {
			return err
		}
		if st.Created {
			if err := a.host.LinkSetAlias(a.bridge, st.alias()); err != nil {
				return fmt.Errorf("alias of the bridge: %w", err)
			}
		}
	}
	if attrs.MasterIndex != a.bridge.Index {
		if err := a.host.LinkSetMasterByIndex(link, a.bridge.Index); err != nil {
			return bad("making it a port: %w", err)
		}
	}
	if attrs.Flags&net.FlagUp == 0 {
		if err := a.host.LinkSetUp(link); err != nil {
			return bad("setting it up: %w", err)
		}
	}
	if !st.Created {
		a.warnStrict()
	}
	return nil
}

// warnStrict looks at an operator's bridge for what would drop answers of other nodes' pods; on its own bridge the
// plugin sets it. The kernel takes the larger value of all and the interface.
func (a *attachment) warnStrict() {
	value := "0"
	for _, name := range []string{"all", a.Bridge} {
		if v, err := netsysctl.Get("ipv4/conf/" + name + "/rp_filter"); err == nil {
			value = max(value, v)
		}
	}
	if value == "1" {
		a.remark("rp_filter of bridge %s is 1, so this node reaches no pod of another node, as the answers come by the "+
			"uplink: run `sysctl -w net.ipv4.conf.%s.rp_filter=2`", a.Bridge, a.Bridge)
	}
}

// fitUplink refuses an interface that the host, or somebody else, would lose as a port of the bridge.
func (a *attachment) fitUplink(link netlink.Link) error {
	attrs := link.Attrs()
	switch {
	case attrs.Flags&net.FlagLoopback != 0:
		return fmt.Errorf("it is the loopback interface: name one that leads to the other nodes")
	case attrs.Name == a.device || podrecord.IsHostIfName(attrs.Name):
		return fmt.Errorf("it is Warren's own: name one that leads to the other nodes")
	case attrs.EncapType != "ether":
		return fmt.Errorf("it carries no Ethernet (%s), so it can't be a port of a bridge: name another", attrs.EncapType)
	case link.Type() == "bridge":
		return fmt.Errorf("it is a bridge itself: name it in field bridge, and leave uplink out")
	case attrs.MasterIndex != 0 && attrs.MasterIndex != a.bridge.Index:
		return fmt.Errorf("it belongs to %s: run `ip link set %s nomaster`, or name another", a.nameOf(attrs.MasterIndex),
			attrs.Name)
	case attrs.MTU < a.mtu:
		return fmt.Errorf("its MTU is %d, but pods get %d and would lose larger packets: run `ip link set %s mtu %d`, or "+
			"set mtu to %d", attrs.MTU, a.mtu, attrs.Name, a.mtu, attrs.MTU)
	}
	have, err := retry(func() ([]netlink.Addr, error) { return a.host.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing its addresses: %w", err)
	}
	for _, addr := range have {
		if !addr.IP.IsLinkLocalUnicast() {
			return fmt.Errorf("it has the address %s, by which nobody would reach the host any more: name an interface "+
				"without addresses, or make a bridge of your own that has the address and the interface, and name that in "+
				"field bridge", addr.IPNet)
		}
	}
	return nil
}

func (a *attachment) nameOf(index int) string {
	if link, err := a.host.LinkByIndex(index); err == nil {
		return link.Type() + " " + link.Attrs().Name
	}
	return fmt.Sprintf("interface %d", index)
}

// releaseUplink gives back what joinUplink took; somebody else may have taken it since.
func (h *hostHandle) releaseUplink(bridge netlink.Link, st bridgeState) error {
	if st.Uplink == "" {
		return nil
	}
	link, err := h.LinkByName(st.Uplink)
	if isNotFound(err) {
		return nil
	}
	if err == nil && link.Attrs().MasterIndex == bridge.Attrs().Index {
		if st.UplinkDown {
			err = h.LinkSetDown(link)
		}
		if err == nil {
			err = h.LinkSetNoMaster(link) // last: by it a DEL after a kill knows that there is something to give back
		}
	}
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("releasing uplink %s of bridge %s: %w", st.Uplink, bridge.Attrs().Name, err)
	}
	return nil
}

// uplink looks whether the bridge of a pod still leads to the other nodes.
func (c *checkup) uplink(name string) error {
	if name == "" {
		return nil
	}
	link, err := c.host.LinkByName(name)
	if isNotFound(err) {
		c.add("uplink %s is gone: bring it back, and add a pod (CNI ADD), which makes it a port of bridge %s", name,
			c.rec.Bridge)
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at uplink %s: %w", name, err)
	}
	br, err := c.host.LinkByName(c.rec.Bridge)
	if err == nil && link.Attrs().MasterIndex != br.Attrs().Index {
		c.add("uplink %s is no port of bridge %s: `ip link set %s master %s`", name, c.rec.Bridge, name, c.rec.Bridge)
	}
	return nil
}

// acrossNodes completes a range whose subnet is larger than the node's pod CIDR, so that pods look for those of other
// nodes on their link. The node still gives addresses of its own pod CIDR only: what else it gave, another node would
// give as well.
func (n *network) acrossNodes(r Range) (Range, netip.Prefix, error) {
	i := slices.IndexFunc(n.node.PodCIDRs, func(cidr netip.Prefix) bool {
		return r.Subnet.Bits() < cidr.Bits() && r.Subnet.Contains(cidr.Addr()) &&
			(!r.RangeStart.IsValid() || cidr.Contains(r.RangeStart))
	})
	inCluster := slices.ContainsFunc(n.node.ClusterCIDRs, func(c netip.Prefix) bool {
		return c.Bits() <= r.Subnet.Bits() && c.Contains(r.Subnet.Addr())
	})
	if i < 0 || !inCluster {
		return r, netip.Prefix{}, fmt.Errorf("with an uplink its subnet may be larger than the node's pod CIDRs %v, but "+
			"must hold one of them, with rangeStart in it, and be within the cluster's %v", n.node.PodCIDRs, n.node.ClusterCIDRs)
	}
	cidr := n.node.PodCIDRs[i]
	if !r.RangeStart.IsValid() {
		r.RangeStart = cidr.Addr().Next()
	}
	if !r.RangeEnd.IsValid() {
		if r.RangeEnd = lastOf(cidr); r.RangeEnd.Is4() {
			r.RangeEnd = r.RangeEnd.Prev()
		}
	}
	if !cidr.Contains(r.RangeEnd) {
		return r, cidr, fmt.Errorf("rangeEnd %s is outside the node's pod CIDR %s: other nodes give those addresses",
			r.RangeEnd, cidr)
	}
	return r, cidr, nil
}

// gatewayPrefix is the gateway's address as the bridge has it: with the node's part of the subnet, as the host itself
// reaches the pods of other nodes through Warren, uplink or not.
func (n *network) gatewayPrefix(gateway netip.Addr, subnet netip.Prefix) netip.Prefix {
	bits := subnet.Bits()
	if n.node != nil {
		for _, cidr := range n.node.PodCIDRs {
			if cidr.Contains(gateway) {
				bits = max(bits, cidr.Bits())
			}
		}
	}
	return netip.PrefixFrom(gateway, bits)
}
