package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setUpDevice sets the TUN device up. The returned link is nil when the device can't be used.
func setUpDevice(h *netlink.Handle, spec Spec, families []family, c *Changes) (netlink.Link, error) {
	link, err := ownDevice(h, spec.Device)
	if err != nil {
		return nil, err
	}
	attrs := link.Attrs()
	var errs []error
	set := func(what string, from, to int, apply func(netlink.Link, int) error) {
		if to == 0 || from == to {
			return
		}
		if err := apply(link, to); err != nil {
			errs = append(errs, fmt.Errorf("setting %s to %d: %w", what, to, err))
			return
		}
		c.add("device %s: %s set from %d to %d", attrs.Name, what, from, to)
	}
	if attrs.Alias == "" {
		if err := h.LinkSetAlias(link, DeviceAlias); err != nil {
			errs = append(errs, fmt.Errorf("setting the alias: %w", err))
		} else {
			c.add("device %s: alias set", attrs.Name)
		}
	}
	// The MTU comes before the IPv6 sysctls: an interface with less than 1280 bytes has none of them.
	set("MTU", attrs.MTU, spec.MTU, h.LinkSetMTU)
	set("transmit queue length", attrs.TxQLen, spec.TxQueueLen, h.LinkSetTxQLen)
	errs = append(errs, setGSO(h, link, spec.GSOMaxSize, c))
	errs = append(errs, deviceSysctls(attrs.Name, families, c))
	errs = append(errs, silence(h, link, c))
	errs = append(errs, syncAddrs(h, link, families, spec.Gateways, c))
	if attrs.Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(link); err != nil {
			return nil, errors.Join(append(errs, fmt.Errorf("setting it up: %w", err))...)
		}
		c.add("device %s: set up", attrs.Name)
		// A device that was down may have dropped IPv6 addresses on its way.
		errs = append(errs, syncAddrs(h, link, families, spec.Gateways, c))
	}
	return link, errors.Join(errs...)
}

// ownDevice finds the TUN device and makes sure that it is Warren's. One without an alias is taken for it: the caller
// has just opened it, and opening a device that is not free fails.
func ownDevice(h *netlink.Handle, name string) (netlink.Link, error) {
	link, err := h.LinkByName(name)
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil, fmt.Errorf("%w: %s", ErrNoDevice, name)
		}
		return nil, fmt.Errorf("looking for it: %w", err)
	}
	tun, ok := link.(*netlink.Tuntap)
	if !ok || tun.Mode != netlink.TUNTAP_MODE_TUN {
		return nil, fmt.Errorf("%w: %s is a %s device and not a TUN; rename or remove it, or set another name as `device:`",
			ErrDeviceTaken, name, link.Type())
	}
	if alias := link.Attrs().Alias; alias != "" && alias != DeviceAlias {
		return nil, fmt.Errorf("%w: the alias of %s is %q and not %q; rename or remove it, or set another name as `device:`",
			ErrDeviceTaken, name, alias, DeviceAlias)
	}
	return link, nil
}

// silence takes the device's multicast flag away. A router joins the groups of all routers on every device that has it
// (RFC 4291, section 2.8), and reports that into the TUN. A device that was made when forwarding was on has joined
// already; turning its own forwarding off and on leaves the groups, and without the flag they are not joined again. Of
// that the kernel tells the TUN once.
func silence(h *netlink.Handle, link netlink.Link, c *Changes) error {
	name := link.Attrs().Name
	if link.Attrs().Flags&net.FlagMulticast == 0 {
		return nil
	}
	key := filepath.Join("ipv6/conf", name, "forwarding")
	rejoin := false
	if v, err := sysctl(key); err == nil && v == "1" {
		rejoin = true
		if err := setSysctl(key, "0", &Changes{}); err != nil {
			return err
		}
	}
	if err := h.LinkSetMulticastOff(link); err != nil {
		return fmt.Errorf("turning multicast off: %w", err)
	}
	c.add("device %s: multicast turned off", name)
	if rejoin {
		return setSysctl(key, "1", &Changes{})
	}
	return nil
}

// setGSO limits the size of superpackets. For sizes up to 64 KiB the kernel sets the IPv4 limit along with the other
// one; both are set, as 6.3 brought a limit of its own for IPv4. Older kernels than 4.15 can't set it.
func setGSO(h *netlink.Handle, link netlink.Link, size int, c *Changes) error {
	attrs := link.Attrs()
	want := uint32(size)
	if size == 0 || attrs.GSOMaxSize == want && (attrs.GSOIPv4MaxSize == 0 || attrs.GSOIPv4MaxSize == want) {
		return nil
	}
	err := h.LinkSetGSOMaxSize(link, size)
	if err == nil && attrs.GSOIPv4MaxSize != 0 {
		err = h.LinkSetGSOIPv4MaxSize(link, size)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		c.Lost = append(c.Lost, "gso_max_size can't be set here: superpackets may need a second send")
		return nil
	}
	if err != nil {
		return fmt.Errorf("setting gso_max_size to %d: %w", size, err)
	}
	c.add("device %s: gso_max_size set from %d to %d", attrs.Name, attrs.GSOMaxSize, size)
	return nil
}

// syncAddrs gives the device exactly the gateway addresses: an address of an older configuration, or a link-local one
// from before addr_gen_mode was set, would be used as a source.
func syncAddrs(h *netlink.Handle, link netlink.Link, families []family, gateways []netip.Addr, c *Changes) error {
	var errs []error
	name := link.Attrs().Name
	for _, f := range kernelFamilies() {
		have, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(link, int(f)) })
		if err != nil {
			errs = append(errs, fmt.Errorf("listing %s addresses: %w", f, err))
			continue
		}
		var there []netip.Prefix
		for _, a := range have {
			p := prefixOf(a.IPNet, f)
			there = append(there, p)
			if p.IsSingleIP() && slices.Contains(gateways, p.Addr()) {
				continue
			}
			if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				errs = append(errs, fmt.Errorf("removing address %s: %w", p, err))
				continue
			}
			c.add("device %s: address %s removed", name, p)
		}
		for _, g := range gateways {
			p := netip.PrefixFrom(g, g.BitLen())
			if familyOf(g) != f || !slices.Contains(families, f) || slices.Contains(there, p) {
				continue
			}
			// Duplicate address detection would send into the TUN, and keep the address from being used meanwhile.
			addr := &netlink.Addr{IPNet: ipNet(p)}
			if f == v6 {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := h.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
				errs = append(errs, fmt.Errorf("adding address %s: %w", p, err))
				continue
			}
			c.add("device %s: address %s added", name, p)
		}
	}
	return errors.Join(errs...)
}

// removeDevice deletes the TUN device if it is Warren's. A persistent device would otherwise outlive the daemon.
func removeDevice(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil
		}
		return fmt.Errorf("looking for it: %w", err)
	}
	if link.Attrs().Alias != DeviceAlias || link.Type() != "tuntap" && link.Type() != "tun" {
		return nil
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}
