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

// lost says of which peers that are to be direct whatever is between, some pods are not.
func (p directPlan) lost(peers []DirectPeer) []string {
	anyway := map[string]bool{}
	for _, peer := range peers {
		anyway[peer.Name] = !peer.OnLink
	}
	var out []string
	for _, a := range p.answers {
		if anyway[a.Peer] && a.Why != "" {
			out = append(out, fmt.Sprintf("peer %s is to be direct, but its pods in %s are reached through the tunnel: %s", a.Peer,
				a.Prefix, a.Why))
		}
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
