package cni

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
)

// inPod looks at the pod's end.
func (c *checkup) inPod() error {
	rec := c.rec
	link, err := c.ns.LinkByName(rec.IfName)
	if isNotFound(err) {
		c.add("the pod has no interface %s: %s", rec.IfName, anew)
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at %s in the pod: %w", rec.IfName, err)
	}
	attrs := link.Attrs()
	if link.Type() != "veth" {
		c.add("%s in the pod is a %s, not a veth: %s", rec.IfName, link.Type(), anew)
	}
	if attrs.Flags&net.FlagUp == 0 {
		c.add("%s in the pod is down: `%sip link set %s up`", rec.IfName, c.enter(), rec.IfName)
	}
	// Also when a plugin behind this one set it: the node's neighbour entries and source check have the record's.
	if attrs.HardwareAddr.String() != rec.MAC {
		c.add("%s in the pod has hardware address %s, not %s: `%sip link set %s address %s`", rec.IfName, attrs.HardwareAddr,
			rec.MAC, c.enter(), rec.IfName, rec.MAC)
	}
	c.mtu(rec.IfName+" in the pod", c.enter(), attrs)
	return errors.Join(c.addresses(link), c.podRoutes(link), c.gatewayEntries(link))
}

// enter begins a command that is to run in the pod's namespace.
func (c *checkup) enter() string { return "nsenter --net=" + c.ns.path + " " }

func (c *checkup) addresses(link netlink.Link) error {
	have, err := retry(func() ([]netlink.Addr, error) { return c.ns.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the pod's addresses: %w", err)
	}
	for i, addr := range c.rec.Addresses {
		bits := addr.BitLen()
		if c.rec.Mode == ModeBridge && len(c.rec.Subnets) == len(c.rec.Addresses) {
			bits = c.rec.Subnets[i].Bits()
		}
		want := address(addr, bits).IPNet
		held := slices.DeleteFunc(slices.Clone(have), func(h netlink.Addr) bool { return !h.IP.Equal(want.IP) })
		// In this order where one is wrong: with an interface's last address of IPv4 go its routes.
		mend := fmt.Sprintf("%sip address add %s dev %s", c.enter(), want, c.rec.IfName)
		switch {
		case len(held) == 0:
			c.add("%s in the pod lacks address %s: `%s`", c.rec.IfName, want, mend)
		case c.rec.Mode == ModeBridge && len(c.rec.Subnets) == 0: // the record does not say which prefix length
		case !slices.ContainsFunc(held, func(h netlink.Addr) bool { return h.IPNet.String() == want.String() }):
			c.add("%s in the pod has address %s, not %s: `%s` and `%sip address del %s dev %s`", c.rec.IfName, held[0].IPNet,
				want, mend, c.enter(), held[0].IPNet, c.rec.IfName)
		}
	}
	return nil
}

// gatewayEntries looks for a permanent neighbour entry of a gateway that has another hardware address than the host's
// end. None at all is no difference: it goes when a plugin behind this one (tuning) sets the interface down and up,
// and only saves a question.
func (c *checkup) gatewayEntries(link netlink.Link) error {
	if c.rec.Mode == ModeBridge {
		return nil // the pod asks for it
	}
	have, err := retry(func() ([]netlink.Neigh, error) {
		return c.ns.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	})
	if err != nil {
		return fmt.Errorf("listing the pod's neighbours: %w", err)
	}
	mac := hostMAC().String()
	for _, gateway := range c.gateways() {
		for _, n := range have {
			if n.IP.Equal(gateway.AsSlice()) && n.State&netlink.NUD_PERMANENT != 0 && n.HardwareAddr.String() != mac {
				c.add("the pod's neighbour entry of its gateway %s has hardware address %s, not %s: `%sip neigh replace %s "+
					"lladdr %s dev %s nud permanent`", gateway, n.HardwareAddr, mac, c.enter(), gateway, mac, c.rec.IfName)
			}
		}
	}
	return nil
}
