package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A DirectPeer is a node whose pods may be reached without a tunnel.
type DirectPeer struct {
	Name      string
	PodCIDRs  []netip.Prefix
	NodeAddrs []netip.Addr // its underlay addresses
	OnLink    bool         // only while the kernel needs no gateway to it
}

// A DirectRoute is how a direct peer's pods are reached, or why not without the tunnel.
type DirectRoute struct {
	Peer   string
	Prefix netip.Prefix // one of its pod CIDRs, or one of its own addresses, to which this only matters for pods
	Via    netip.Addr   // next hop: the peer's own address, or that of the router before it
	Device string
	Why    string // why the tunnel is taken instead; "": it is not
}

// A hop is where the kernel sends packets to a peer's underlay address.
type hop struct {
	via    netip.Addr
	dev    int
	device string
	why    string // why nothing is to be sent there without a tunnel; "": it may be
}

// A directPlan is what direct peers need of the kernel.
type directPlan struct {
	answers []DirectRoute
	routes  []route  // with the gateway address as source, where one belongs
	devices []string // that direct peers may send by: what holds the node's addresses, and what routes lead to
}

// planDirect asks the kernel for the way to each direct peer.
func (s Spec) planDirect(h *netlink.Handle, families []family) directPlan {
	var p directPlan
	if len(s.Direct) == 0 {
		return p
	}
	for _, a := range s.NodeAddrs {
		if name, _, err := Underlay(a); err == nil && !slices.Contains(p.devices, name) {
			p.devices = append(p.devices, name)
		}
	}
	links := map[int]netlink.Link{}
	for _, peer := range s.Direct {
		hops := map[netip.Addr]hop{}
		for _, a := range peer.NodeAddrs {
			hops[a] = s.hopTo(h, a, peer.OnLink, links)
		}
		for _, c := range peer.PodCIDRs {
			f := familyOf(c.Addr())
			if !slices.Contains(families, f) {
				continue
			}
			to := hopOf(f, peer.NodeAddrs, hops)
			p.answers = append(p.answers, DirectRoute{Peer: peer.Name, Prefix: c, Via: to.via, Device: to.device, Why: to.why})
			if to.why != "" {
				continue
			}
			inMain := directRoute(unix.RT_TABLE_MAIN, c, to)
			inMain.src = s.gateway(f)
			p.routes = append(p.routes, inMain, directRoute(s.Table, c, to))
		}
		for _, a := range peer.NodeAddrs {
			to := hops[a]
			if to.why != "" {
				continue
			}
			if !slices.Contains(p.devices, to.device) {
				p.devices = append(p.devices, to.device)
			}
			if own := netip.PrefixFrom(a, a.BitLen()); slices.Contains(families, familyOf(a)) {
				p.routes = append(p.routes, directRoute(s.Table, own, to))
				p.answers = append(p.answers, DirectRoute{Peer: peer.Name, Prefix: own, Via: to.via, Device: to.device})
			}
		}
	}
	return p
}

func directRoute(table int, dst netip.Prefix, to hop) route {
	r := route{family: familyOf(dst.Addr()), table: table, dst: dst, metric: metricV4, dev: to.dev, via: to.via}
	if r.family == v6 {
		r.metric = metricV6
	}
	return r
}

// hopOf chooses the hop for pods of a family: the peer's address of that family, or for IPv4 its IPv6 one, which is
// what RTA_VIA is for (Linux 5.2). The other way round the kernel knows no way.
func hopOf(f family, addrs []netip.Addr, hops map[netip.Addr]hop) hop {
	best := hop{why: fmt.Sprintf("it has no address that a route of %s could lead through", f)}
	for _, of := range []family{f, v6} {
		for _, a := range addrs {
			if to := hops[a]; familyOf(a) == of && best.why != "" {
				best = to
			}
		}
		if best.why == "" {
			break
		}
	}
	return best
}

// hopTo finds where the node's own packets to a peer's address leave.
func (s Spec) hopTo(h *netlink.Handle, to netip.Addr, onLink bool, links map[int]netlink.Link) hop {
	options := &netlink.RouteGetOptions{}
	for _, own := range s.NodeAddrs {
		if familyOf(own) == familyOf(to) {
			options.SrcAddr = own.AsSlice() // policy rules may go by it
		}
	}
	if options.SrcAddr == nil {
		return hop{why: fmt.Sprintf("this node has no %s address", familyOf(to))}
	}
	found, err := h.RouteGetWithOptions(to.AsSlice(), options)
	if err != nil || len(found) == 0 || !forwards(found[0].Type) {
		return hop{why: fmt.Sprintf("the kernel has no route to %s (%v)", to, errors.Join(err))}
	}
	r := found[0]
	link := linkOf(h, r.LinkIndex, links)
	if link == nil {
		return hop{why: fmt.Sprintf("interface %d to %s is gone", r.LinkIndex, to)}
	}
	out := hop{via: gatewayOf(&r), dev: r.LinkIndex, device: link.Attrs().Name}
	// Where nobody asks for neighbours by their addresses, the next hop of a route says nothing: the device alone decides.
	if own := out.device == s.Device || out.device == s.TunnelGSO; own || link.Attrs().Flags&net.FlagLoopback != 0 {
		out.why = fmt.Sprintf("the kernel's route to %s leads to %s", to, out.device)
	} else if onLink && out.via.IsValid() {
		out.why = fmt.Sprintf("it is on another subnet, behind %s", out.via)
	} else if onLink && link.Attrs().RawFlags&(unix.IFF_NOARP|unix.IFF_POINTOPOINT) != 0 {
		out.why = fmt.Sprintf("%s is no subnet but leads from point to point", out.device)
	}
	if !out.via.IsValid() {
		out.via = to
	}
	return out
}

// gatewayOf is a route's next hop; the zero Addr when the destination is on the link.
func gatewayOf(r *netlink.Route) netip.Addr {
	if v, ok := r.Via.(*netlink.Via); ok && v != nil {
		return addrOf(v.Addr)
	}
	return addrOf(r.Gw)
}

// beside leaves those routes out whose place a direct one has.
func beside(direct, others []route) []route {
	taken := make(map[route]bool, len(direct))
	for _, r := range direct {
		taken[r.key()] = true
	}
	return slices.DeleteFunc(others, func(r route) bool { return taken[r.key()] })
}

// withoutSource is for a host whose device, with which the gateway addresses are gone, is missing.
func withoutSource(rs []route) []route {
	out := slices.Clone(rs)
	for i := range out {
		out[i].src = netip.Addr{}
	}
	return out
}

// setUpForwarding has the kernel forward what direct peers send, also by devices for which somebody turned that off.
func (p directPlan) setUpForwarding(families []family, c *Changes) error {
	var errs []error
	for _, d := range p.devices {
		for _, f := range families {
			key := "ipv4/conf/" + d + "/forwarding"
			if f == v6 {
				key = "ipv6/conf/" + d + "/forwarding"
			}
			errs = append(errs, setSysctl(key, "1", c))
		}
	}
	return errors.Join(errs...)
}

// ErrWholeDirect says that a change of direct peers concerns more than their own routes: Apply makes it.
var ErrWholeDirect = errors.New("direct peers change more than their own routes")

// ChangeDirect takes in direct peers that are new or changed, after, in place of what they were, before, which also has
// those that are gone: what Apply does for all of spec.Direct, at the price of those that have changed. It says how
// those of after are reached.
func ChangeDirect(spec Spec, before, after []DirectPeer) (Changes, error) {
	var c Changes
	spec = spec.withDefaults()
	for _, p := range slices.Concat(before, after) {
		if slices.ContainsFunc(p.PodCIDRs, func(x netip.Prefix) bool { return slices.Contains(spec.ClusterCIDRs, x) }) {
			return c, ErrWholeDirect // the route to the device gives way to it, and comes back
		}
	}
	spec.Direct = after
	if err := spec.validate(); err != nil {
		return c, fmt.Errorf("direct peers: %w", err)
	}
	h, err := open()
	if err != nil {
		return c, err
	}
	defer h.Close()
	families := spec.kernelHas()
	plan := spec.planDirect(h, families)
	c.Direct = plan.answers
	fw := newFirewall()
	defer fw.close()
	if err := fw.changeDirect(plan.devices, before, after); err != nil {
		return c, err
	}
	errs := []error{plan.setUpForwarding(families, &c)}
	kept := make(map[route]bool, len(plan.routes))
	for _, r := range plan.routes {
		kept[r.key()] = true
		if err := addOrReplace(h, r); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENETDOWN) {
			errs = append(errs, err)
		}
	}
	for _, r := range spec.keysOf(before) {
		if kept[r.key()] || !slices.Contains(families, r.family) {
			continue
		}
		if err := h.RouteDel(r.anyHop()); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("removing route %s: %w", r, err))
		}
	}
	return c, errors.Join(errs...)
}

// addOrReplace adds a route, or replaces what has its key. To add is tried first, as a replacement has Watch look at
// everything.
func addOrReplace(h *netlink.Handle, r route) error {
	err := h.RouteAdd(r.netlink())
	if errors.Is(err, unix.EEXIST) {
		return replaceRoute(h, r)
	}
	if err != nil {
		return fmt.Errorf("adding route %s: %w", r, err)
	}
	return nil
}

// keysOf are the keys of all routes that there may be to direct peers.
func (s Spec) keysOf(peers []DirectPeer) []route {
	var rs []route
	for _, peer := range peers {
		for _, c := range peer.PodCIDRs {
			rs = append(rs, directRoute(unix.RT_TABLE_MAIN, c, hop{}), directRoute(s.Table, c, hop{}))
		}
		for _, a := range peer.NodeAddrs {
			rs = append(rs, directRoute(s.Table, netip.PrefixFrom(a, a.BitLen()), hop{}))
		}
	}
	return rs
}

// anyHop is a route for the kernel to remove, wherever it leads.
func (r route) anyHop() *netlink.Route {
	return &netlink.Route{
		Family: int(r.family), Table: r.table, Dst: ipNet(r.dst), Priority: r.metric, Protocol: Protocol,
		Type: unix.RTN_UNICAST, Scope: netlink.SCOPE_UNIVERSE,
	}
}
