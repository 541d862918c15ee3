package cni

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
)

// port looks at the host's end in mode bridge, and at the bridge.
func (c *checkup) port(link netlink.Link) error {
	rec := c.rec
	br, err := c.host.LinkByName(rec.Bridge)
	if isNotFound(err) {
		c.add("bridge %s is gone, so host interface %s is no port of bridge %s: %s", rec.Bridge, rec.HostIfName, rec.Bridge,
			anew)
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at bridge %s: %w", rec.Bridge, err)
	}
	if err := c.bridge(br); err != nil {
		return err
	}
	if link.Attrs().MasterIndex != br.Attrs().Index {
		c.add("host interface %s is no port of bridge %s: `ip link set %s master %s` and `ip link set %s type "+
			"bridge_slave hairpin %s`", rec.HostIfName, rec.Bridge, rec.HostIfName, rec.Bridge, rec.HostIfName,
			onOff(c.conf.Hairpin))
		return nil
	}
	port, err := retry(func() (netlink.Protinfo, error) { return c.host.LinkGetProtinfo(link) })
	if err != nil {
		return fmt.Errorf("looking at port %s of bridge %s: %w", rec.HostIfName, rec.Bridge, err)
	}
	for _, flag := range []struct {
		name       string
		have, want bool
		effect     string
	}{
		{"hairpin", port.Hairpin, c.conf.Hairpin, "whether a pod reaches itself through a service"},
		{"isolated", port.Isolated, false, "isolated ports do not reach each other"},
		{"learning", port.Learning, true, "without it the bridge sends the pod's packets to every port"},
		{"flood", port.Flood, true, "without it the pod gets nothing that the bridge has not learned the way of"},
	} {
		if flag.have != flag.want {
			c.add("%s of port %s of bridge %s is %s, not %s (%s): `ip link set %s type bridge_slave %s %s`", flag.name,
				rec.HostIfName, rec.Bridge, onOff(flag.have), onOff(flag.want), flag.effect, rec.HostIfName, flag.name,
				onOff(flag.want))
		}
	}
	return nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func (c *checkup) bridge(br netlink.Link) error {
	name := c.rec.Bridge
	if br.Attrs().Flags&net.FlagUp == 0 {
		c.add("bridge %s is down: `ip link set %s up`", name, name)
	}
	have, err := retry(func() ([]netlink.Addr, error) { return c.host.AddrList(br, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the addresses of bridge %s: %w", name, err)
	}
	for _, gateway := range c.gateways() {
		if !slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IP.Equal(gateway.AsSlice()) }) {
			c.add("bridge %s lacks the pod's gateway address %s: add another pod to it (CNI ADD), which puts it back", name,
				gateway)
		}
	}
	return nil
}
