package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (c *checker) device() {
	const what = "device name"
	name := c.Spec.Device
	own, err := ownDevices(c.h)
	other := func(d *netlink.Tuntap) bool { return d.Name != name && served(d) }
	if i := slices.IndexFunc(own, other); err == nil && i >= 0 {
		c.error(what, fmt.Sprintf("another Warren serves %s here, and a network namespace holds one node", own[i].Name),
			fmt.Sprintf("stop it, or set `device: %s` if it is the one that is meant", own[i].Name))
		return
	}
	link, err := c.h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		c.ok(what, "%s is free", name)
	case err != nil:
		c.warn(what, err.Error(), "look at `ip link show "+name+"`")
	case link.Attrs().Alias == DeviceAlias:
		c.ok(what, "%s is Warren's", name)
	default:
		c.error(what, fmt.Sprintf("%s exists and is not Warren's (%s, alias %q)", name, link.Type(), link.Attrs().Alias),
			fmt.Sprintf("`ip link del %s` if nobody needs it, or set another name: `device: warren1`", name))
	}
}

func (c *checker) underlay() {
	const what = "underlay"
	if len(c.Spec.NodeAddrs) == 0 {
		c.error(what, "the node has no address", "give it `addresses:` in `nodes:`")
	}
	for _, a := range c.Spec.NodeAddrs {
		name, mtu, err := Underlay(a)
		if err != nil {
			c.error(what, err.Error(), fmt.Sprintf("`ip addr add %s/… dev …`, or correct the node's `addresses:`", a))
			continue
		}
		c.mtu(a, name, mtu)
	}
}

// mtu compares the underlay's MTU with what pods are promised.
func (c *checker) mtu(a netip.Addr, name string, mtu int) {
	const what = "MTU"
	overhead := map[bool]int{true: overheadV4, false: overheadV6}[a.Is4()]
	if c.WireGuardPort != 0 {
		overhead += encryption
	}
	least := 576
	if c.Spec.wants(v6) {
		least = 1280
	}
	pods := c.Spec.MTU
	if pods == 0 {
		pods = mtu - podMTULess
	}
	switch {
	case c.Spec.MTU != 0 && c.Spec.MTU+overhead > mtu:
		c.error(what, fmt.Sprintf(
			"%s (%s) carries %d bytes, and pods' %d with %d of the tunnel need %d: large packets are lost",
			name, a, mtu, c.Spec.MTU, overhead, c.Spec.MTU+overhead),
			fmt.Sprintf("`mtu: %d` in the configuration of all nodes, or `ip link set %s mtu %d`",
				mtu-podMTULess, name, c.Spec.MTU+overhead))
	case pods < least:
		c.error(what, fmt.Sprintf("%s (%s) carries %d bytes, which leaves pods %d; they need %d", name, a, mtu, pods, least),
			fmt.Sprintf("`ip link set %s mtu %d`", name, least+podMTULess))
	default:
		c.ok(what, "%s (%s) carries %d bytes, pods get %d", name, a, mtu, pods)
	}
}

func (c *checker) routes() {
	const what = "routes"
	before := len(c.found)
	links := map[int]netlink.Link{}
	for _, f := range c.Spec.kernelHas() {
		rs, err := dump(func() ([]netlink.Route, error) { return c.h.RouteList(nil, int(f)) })
		if err != nil {
			c.warn(what, fmt.Sprintf("%s routes can't be listed: %v", f, err), "run the check again")
			continue
		}
		for _, r := range rs {
			c.route(what, prefixOf(r.Dst, f), r, linkOf(c.h, r.LinkIndex, links))
		}
	}
	if len(c.found) == before {
		c.ok(what, "no other route overlaps with the cluster's CIDRs")
	}
}

func (c *checker) route(what string, dst netip.Prefix, r netlink.Route, link netlink.Link) {
	dev, bridge := "", false
	if link != nil {
		dev, bridge = " dev "+link.Attrs().Name, link.Type() == "bridge"
	}
	name := strings.TrimPrefix(dev, " dev ")
	if r.Protocol == Protocol || dst.Bits() == 0 || name == c.Spec.Device || strings.HasPrefix(name, PodPrefix) {
		return
	}
	own := func(p netip.Prefix) bool { return p.Overlaps(dst) && p.Bits() <= dst.Bits() }
	if bridge && slices.ContainsFunc(c.Spec.PodCIDRs, own) {
		return // the bridge of bridge mode holds the gateway address
	}
	for _, cluster := range c.Spec.ClusterCIDRs {
		if !cluster.Overlaps(dst) {
			continue
		}
		why, level := "is inside the cluster's %s and takes its packets", c.error
		if dst.Bits() < cluster.Bits() {
			why, level = "contains the cluster's %s: whoever has those addresses there is not reached any more", c.warn
		}
		flag := ""
		if dst.Addr().Is6() {
			flag = "-6 "
		}
		level(what, fmt.Sprintf("%s%s, which is not Warren's, ", dst, dev)+fmt.Sprintf(why, cluster),
			fmt.Sprintf("`ip %sroute del %s%s`, or choose another `cluster:` CIDR", flag, dst, dev))
	}
}

// A ruleOwner is who is known to use a range of rule priorities.
type ruleOwner struct {
	from, to int
	name     string
}

// ruleOwners lists those whose rules a host with Warren may have.
func ruleOwners() []ruleOwner {
	return []ruleOwner{
		{9, 11, "Cilium"}, {20, 20, "Cilium"}, {99, 99, "Calico"}, {110, 111, "Cilium"}, {220, 220, "strongSwan"},
		{512, 512, "the AWS VPC CNI"}, {1024, 1024, "the AWS VPC CNI"}, {1535, 1536, "the AWS VPC CNI"},
		{5210, 5270, "Tailscale"}, {32764, 32765, "wg-quick"},
	}
}

func (c *checker) rules() {
	const what = "policy rules"
	before := len(c.found)
	first, last := c.Spec.RulePriority, c.Spec.RulePriority+slotPods
	elsewhere := "set another `routing: {rulePriority: …}`"
	for _, o := range ruleOwners() {
		if first <= o.to && last >= o.from {
			c.warn(what, fmt.Sprintf("Warren's priorities %d to %d are among those of %s (%d to %d)",
				first, last, o.name, o.from, o.to), elsewhere)
		}
	}
	for _, f := range c.Spec.kernelHas() {
		rs, err := listRules(c.h, f)
		if err != nil {
			c.error(what, err.Error(), "use a kernel with CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES")
			continue
		}
		for _, r := range rs {
			c.rule(what, f, r, elsewhere)
		}
	}
	if len(c.found) == before {
		c.ok(what, "no other rule is in the way of priorities %d to %d", first, last)
	}
}

func (c *checker) rule(what string, f family, r netlink.Rule, elsewhere string) {
	first, last := c.Spec.RulePriority, c.Spec.RulePriority+slotPods
	if r.Protocol == Protocol || r.Priority > last || r.Table == unix.RT_TABLE_LOCAL {
		return
	}
	owner := "somebody"
	for _, o := range ruleOwners() {
		if r.Priority >= o.from && r.Priority <= o.to {
			owner = o.name
		}
	}
	show := fmt.Sprintf("%s rule %d to table %d, by the looks of it of %s,", f, r.Priority, r.Table, owner)
	switch {
	case r.Priority >= first:
		c.warn(what, show+" has one of Warren's priorities", elsewhere)
	case c.takesPods(f, r):
		c.warn(what, show+" comes before Warren's and takes packets of pods",
			fmt.Sprintf("`ip rule show priority %d`; set `routing: {rulePriority: N}` with N below it", r.Priority))
	}
}

// takesPods reports whether a rule may match what pods send, whatever its destination.
func (c *checker) takesPods(f family, r netlink.Rule) bool {
	limited := r.Mark != 0 || r.Mask != nil || r.OifName != "" || r.IPProto != 0 || r.Sport != nil || r.Dport != nil ||
		r.UIDRange != nil || r.Dst != nil || r.SuppressPrefixlen >= 0 || r.Invert || r.Goto >= 0
	if limited || r.IifName != "" && !strings.HasPrefix(r.IifName, PodPrefix) {
		return false
	}
	if r.Src == nil {
		return true
	}
	src := prefixOf(r.Src, f)
	return slices.ContainsFunc(c.Spec.PodCIDRs, src.Overlaps)
}
