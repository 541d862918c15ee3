package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setUpPod gives the pod's end its addresses and routes.
func (a *attachment) setUpPod() error {
	link, err := a.preparePod()
	if err != nil {
		return err
	}
	if err := a.addAddresses(link); err != nil {
		return err
	}
	if err := a.pod.LinkSetUp(link); err != nil {
		return err
	}
	if a.Mode == ModeRouted {
		if err := a.reachGateways(link); err != nil {
			return err
		}
	}
	return a.addRoutes(link)
}

// preparePod sets what comes before the pod's end is up.
func (a *attachment) preparePod() (netlink.Link, error) {
	link, err := a.pod.LinkByName(a.rec.IfName)
	if err != nil {
		return nil, err
	}
	if err := a.pod.do(a.podSysctls); err != nil {
		return nil, err
	}
	if a.gsoMaxSize > 0 {
		if err := a.pod.LinkSetGSOMaxSize(link, a.gsoMaxSize); err != nil {
			a.remark("gso_max_size of %s in the pod: %v", a.rec.IfName, err)
		}
	}
	return link, nil
}

func (a *attachment) addAddresses(link netlink.Link) error {
	for _, g := range a.given {
		bits := g.Addr.BitLen()
		if a.Mode == ModeBridge {
			bits = g.Subnet.Bits()
		}
		if err := a.pod.AddrAdd(link, address(g.Addr, bits)); err != nil {
			return fmt.Errorf("address %s: %w", g.Addr, err)
		}
	}
	return nil
}

// podSysctls runs in the pod's namespace.
func (a *attachment) podSysctls() error {
	conf := "ipv6/conf/" + a.rec.IfName
	if a.has(netip.Addr.Is6) {
		if !haveIPv6() {
			return fail(types.ErrInvalidNetworkConfig, "network %q gives IPv6 addresses (%s), but this kernel has no IPv6: "+
				"take "+
				"the IPv6 CIDR out", a.Name, a.describe())
		}
		if err := setSysctl(conf+"/disable_ipv6", "0"); err != nil {
			return err
		}
		// The link-local address is made from a hardware address that is unique here: no need to wait a second for it.
		trySysctl(conf+"/accept_dad", "0")
	}
	trySysctl(conf+"/accept_ra", "0") // the routes are the ones set here; another pod must not offer its own
	if a.Mode == ModeBridge {
		// The kernel announces the addresses when the hardware address is set (announce).
		trySysctl("ipv4/conf/"+a.rec.IfName+"/arp_notify", "1")
		trySysctl(conf+"/ndisc_notify", "1")
	}
	return nil
}

// carrierTimeout is longer than the second for which the kernel may put off looking at carriers
// (net/core/link_watch.c).
const carrierTimeout = 3 * time.Second

// awaitCarrier waits until the pod's end can send. It was up before the host's end was, so the kernel starts its
// queue on a work queue of its own, some time after both are up, and drops without a word what the pod sends before.
// A port of a bridge drops what comes in until the kernel has noticed its carrier. Since Linux 6.8 asking for an
// interface makes the kernel catch up with it, and there is nothing to wait for.
func (a *attachment) awaitCarrier() error {
	if err := a.awaitUp(a.pod.Handle, a.rec.IfName); err != nil || a.Mode == ModeRouted {
		return err
	}
	return a.awaitUp(a.host.Handle, a.rec.HostIfName)
}

func (a *attachment) awaitUp(h *netlink.Handle, name string) error {
	for deadline := time.Now().Add(carrierTimeout); ; time.Sleep(time.Millisecond) {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			a.remark("%s has had no carrier for %v since both ends of the pair %s are up (it is %s): what the pod sends first "+
				"may be lost", name, carrierTimeout, a.rec.HostIfName, link.Attrs().OperState)
			return nil
		}
	}
}

// announce has everybody on the bridge, and behind its uplink, who knew an address under another hardware address
// learn this one. The kernel announces addresses by itself when an interface is set up, which is too early: there is
// no carrier then.
func (a *attachment) announce() error {
	if a.Mode != ModeBridge {
		return nil // the host's entries are set
	}
	link, err := a.pod.LinkByName(a.rec.IfName)
	if err != nil {
		return err
	}
	if err := a.pod.LinkSetHardwareAddr(link, a.podMAC); err != nil { // it has it, but setting it is what counts
		a.remark("announcing the addresses of %s in the pod: %v", a.rec.IfName, err)
	}
	return nil
}

// reachGateways makes the gateways reachable, which in routed mode are in no subnet of the pod's. The permanent entry
// saves the first packet from waiting for an answer.
func (a *attachment) reachGateways(link netlink.Link) error {
	for _, g := range a.given {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: single(g.Gateway), Scope: netlink.SCOPE_LINK}
		if err := a.pod.RouteReplace(route); err != nil { // Replace: two ranges may have one gateway
			return fmt.Errorf("route to the gateway %s: %w", g.Gateway, err)
		}
		if err := a.pod.NeighSet(permanent(link, g.Gateway, a.hostMAC)); err != nil {
			return fmt.Errorf("neighbour entry of the gateway %s: %w", g.Gateway, err)
		}
	}
	return nil
}

// addRoutes sets the routes of the configuration, or a default route per family.
func (a *attachment) addRoutes(link netlink.Link) error {
	a.routes = a.Routes
	if a.routes == nil {
		done := map[bool]bool{}
		for _, g := range a.given {
			if is4 := g.Addr.Is4(); !done[is4] {
				done[is4] = true
				a.routes = append(a.routes, types.Route{Dst: anywhere(is4), GW: g.Gateway.AsSlice()})
			}
		}
	}
	for i := range a.routes {
		if err := a.addRoute(link, &a.routes[i]); err != nil {
			return err
		}
	}
	return nil
}

// addRoute sets a route, and completes it to what the result tells.
func (a *attachment) addRoute(link netlink.Link, r *types.Route) error {
	r.Dst = masked(r.Dst)
	if r.GW == nil && at(r.Scope) < scopeLink {
		r.GW = a.gatewayFor(r.Dst.IP.To4() != nil)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: &r.Dst, Gw: r.GW, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority,
		Table: at(r.Table), Scope: netlink.Scope(at(r.Scope)),
	}
	if a.Mode == ModeRouted && r.GW != nil {
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	err := a.pod.RouteAdd(route)
	switch {
	case errors.Is(err, unix.EEXIST):
		return fail(types.ErrInvalidNetworkConfig, "the pod has a route to %s already, of this or another interface: leave "+
			"it out of the routes of network %q (with \"routes\": [] there is none), or give it another priority or table",
			r.Dst.String(), a.Name)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return fail(types.ErrInvalidNetworkConfig, "the kernel does not take the route to %s (gw %v, mtu %d, advmss %d, "+
			"priority %d, table %d, scope %d): %w: correct it in network %q", r.Dst.String(), r.GW, r.MTU, r.AdvMSS, r.Priority,
			at(r.Table), at(r.Scope), err, a.Name)
	case err != nil:
		return fmt.Errorf("route to %s via %s: %w", r.Dst.String(), r.GW, err)
	}
	return nil
}

func (a *attachment) gatewayFor(is4 bool) net.IP {
	for _, g := range a.given {
		if g.Addr.Is4() == is4 {
			return g.Gateway.AsSlice()
		}
	}
	return nil
}

// address is usable at once: nobody else has it, the address store says so, and duplicate address detection would make
// the pod wait for a second (RFC 4862, section 5.4).
func address(addr netip.Addr, bits int) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}}
	if addr.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func single(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}

func anywhere(is4 bool) net.IPNet {
	if is4 {
		return net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}
