package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Metrics of Warren's routes. The worst is the largest that an int holds on every architecture: nothing that a host has
// of its own comes after it (IPv4 has 0 for connected routes, IPv6 256, routing daemons stay in the thousands).
const (
	metricWorst = 1<<31 - 1
	metricV4    = 0    // as `ip route add` gives
	metricV6    = 1024 // as the kernel gives when none is asked for; it can't be 0
)

// A route is one of Warren's routes, comparable. What it has not is as the kernel sets it.
type route struct {
	family      family
	table       int
	dst         netip.Prefix
	metric      int
	dev         int        // interface index; 0: unreachable
	via         netip.Addr // next hop, on the device's link; only direct routes have one
	src         netip.Addr
	unreachable bool
}

func (r route) String() string {
	kind, via := "", fmt.Sprintf(" dev #%d", r.dev)
	if r.unreachable {
		kind, via = "unreachable ", ""
	}
	if r.via.IsValid() {
		via = " via " + r.via.String() + via
	}
	if r.src.IsValid() {
		via += " src " + r.src.String()
	}
	return fmt.Sprintf("%s%s%s table %d metric %d", kind, r.dst, via, r.table, r.metric)
}

// guards are the routes that refuse what would otherwise loop or leave in the clear.
func (s Spec) guards(families []family) []route {
	var rs []route
	guard := func(table int, dst netip.Prefix) {
		f := familyOf(dst.Addr())
		r := route{family: f, table: table, dst: dst, metric: metricWorst, unreachable: true}
		if slices.Contains(families, f) && !slices.Contains(rs, r) {
			rs = append(rs, r)
		}
	}
	for _, p := range slices.Concat(s.PodCIDRs, s.ClusterCIDRs) {
		guard(unix.RT_TABLE_MAIN, p)
	}
	for _, f := range families {
		// The default covers the cluster's CIDRs: a guard for them would be the longer prefix and hide the default route
		// to the device. It also keeps pods' packets for the nodes of peers from falling through to the main table.
		guard(s.Table, defaultRoute(f))
	}
	return rs
}

// deviceRoutes are the routes to the TUN device of the given index.
func (s Spec) deviceRoutes(families []family, dev int) []route {
	var rs []route
	for _, f := range families {
		metric := metricV4
		if f == v6 {
			metric = metricV6
		}
		for _, c := range s.ClusterCIDRs {
			// A cluster CIDR inside an own pod CIDR must not compete with its guard: it would lead absent pods to the TUN.
			inOwn := slices.ContainsFunc(s.PodCIDRs, func(p netip.Prefix) bool {
				return p.Bits() <= c.Bits() && p.Contains(c.Addr())
			})
			if familyOf(c.Addr()) == f && !inOwn {
				rs = append(rs, route{family: f, table: unix.RT_TABLE_MAIN, dst: c, metric: metric, dev: dev, src: s.gateway(f)})
			}
		}
		rs = append(rs, route{family: f, table: s.Table, dst: defaultRoute(f), metric: metric, dev: dev})
	}
	return rs
}

// podRoutes are the host routes to the pods of routed mode whose interface is up. The CNI plugin sets them; the kernel
// drops the IPv4 ones with the gateway address that they name as source, so whenever the device goes away.
func (s Spec) podRoutes(h *netlink.Handle, families []family, withSource bool) []route {
	var rs []route
	for _, p := range s.Pods {
		if p.Bridge != "" {
			continue
		}
		link, err := h.LinkByName(p.Interface)
		if err != nil || link.Attrs().Flags&net.FlagUp == 0 {
			continue // the pod is going, or not yet there
		}
		for _, a := range p.Addrs {
			f := familyOf(a)
			if !slices.Contains(families, f) {
				continue
			}
			r := route{family: f, table: unix.RT_TABLE_MAIN, dst: netip.PrefixFrom(a, a.BitLen()), dev: link.Attrs().Index}
			if f == v6 {
				r.metric = metricV6
			}
			if withSource {
				r.src = s.gateway(f)
			}
			rs = append(rs, r)
		}
	}
	return rs
}

// KeepPodRoutes takes the gateway address, as their source, out of the routes to spec.Pods: who removes the device,
// with which that address goes, calls it before, so that the node reaches its pods meanwhile. The next Apply puts it
// back.
func KeepPodRoutes(spec Spec) error {
	spec = spec.withDefaults()
	h, err := open()
	if err != nil {
		return err
	}
	defer h.Close()
	return keepPodRoutes(h, spec)
}

func keepPodRoutes(h *netlink.Handle, spec Spec) error {
	var c Changes
	families := kernelFamilies()
	return syncRoutes(h, families, spec.podRoutes(h, families, false), keepOthers, &c)
}

func defaultRoute(f family) netip.Prefix {
	if f == v4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// staleRoute decides whether a route with Warren's protocol that nobody wants is removed; link is the name and alias of
// its device.
type staleRoute func(r route, link netlink.Link) bool

// keepOthers removes nothing.
func keepOthers(route, netlink.Link) bool { return false }

// dropStale removes guards, direct routes, and routes through the device, or through one of Warren's devices under an
// older name. Other routes through other devices lead to pods and are the CNI plugin's.
func dropStale(device string) staleRoute {
	return func(r route, link netlink.Link) bool {
		if r.unreachable || r.via.IsValid() {
			return true
		}
		return link != nil && (link.Attrs().Name == device || link.Attrs().Alias == DeviceAlias)
	}
}

// syncRoutes adds the routes that are missing, replaces those that differ in what is not their key, and then removes
// those of Warren's that stale names.
func syncRoutes(h *netlink.Handle, families []family, want []route, stale staleRoute, c *Changes) error {
	var errs []error
	var have []route
	for _, f := range kernelFamilies() {
		rs, err := listRoutes(h, f)
		if err != nil {
			return err
		}
		have = append(have, rs...)
	}
	there, keys := make(map[route]bool, len(have)), make(map[route]bool, len(have))
	for _, r := range have {
		there[r], keys[r.key()] = true, true
	}
	wanted := make(map[route]bool, len(want))
	for _, w := range want {
		wanted[w.key()] = true
		if !slices.Contains(families, w.family) || there[w] {
			continue
		}
		err := putRoute(h, w, keys)
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENETDOWN) {
			continue // the interface went away or down since: a link event tells, and the next Apply sees it
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.add("route %s added", w)
	}
	links := map[int]netlink.Link{}
	for _, r := range have {
		if wanted[r.key()] || !stale(r, linkOf(h, r.dev, links)) {
			continue
		}
		// The device may have taken the route along in the meantime.
		if err := h.RouteDel(r.netlink()); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("removing route %s: %w", r, err))
			continue
		}
		c.add("route %s removed", r)
	}
	return errors.Join(errs...)
}

// key is what the kernel tells routes apart by: two routes with one key can't both be added.
func (r route) key() route {
	return route{family: r.family, table: r.table, dst: r.dst, metric: r.metric}
}

// putRoute adds a route, or replaces the one whose key it has: never is there a moment with neither.
func putRoute(h *netlink.Handle, w route, keys map[route]bool) error {
	if keys[w.key()] {
		return replaceRoute(h, w)
	}
	err := h.RouteAdd(w.netlink())
	if errors.Is(err, unix.EEXIST) {
		// The CNI plugin may have set the route to its pod since have was listed.
		if now, listErr := listRoutes(h, w.family); listErr == nil &&
			slices.ContainsFunc(now, func(r route) bool { return r.key() == w.key() }) {
			return replaceRoute(h, w)
		}
		return fmt.Errorf("adding route %s: %w: somebody else's route to %s has the same metric; "+
			"find it with `ip route show %s` and remove it, or choose other CIDRs", w, err, w.dst, w.dst)
	}
	if err != nil {
		return fmt.Errorf("adding route %s: %w", w, err)
	}
	return nil
}

func replaceRoute(h *netlink.Handle, w route) error {
	if err := h.RouteReplace(w.netlink()); err != nil {
		return fmt.Errorf("replacing route %s: %w", w, err)
	}
	return nil
}

// listRoutes lists the routes with Warren's protocol in all tables.
func listRoutes(h *netlink.Handle, f family) ([]route, error) {
	filter := &netlink.Route{Protocol: Protocol, Table: unix.RT_TABLE_UNSPEC}
	found, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(int(f), filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing %s routes: %w", f, err)
	}
	rs := make([]route, 0, len(found))
	for _, n := range found {
		r := route{
			family: f, table: n.Table, dst: prefixOf(n.Dst, f), metric: n.Priority, dev: n.LinkIndex,
			via: gatewayOf(&n), src: addrOf(n.Src), unreachable: n.Type == unix.RTN_UNREACHABLE,
		}
		if r.unreachable {
			r.dev = 0 // IPv6 names the loopback device
		}
		rs = append(rs, r)
	}
	return rs, nil
}

// ownGuards lists Warren's unreachable routes as they are.
func ownGuards(h *netlink.Handle, families []family) ([]route, error) {
	var rs []route
	for _, f := range families {
		have, err := listRoutes(h, f)
		if err != nil {
			return nil, err
		}
		for _, r := range have {
			if r.unreachable {
				rs = append(rs, r)
			}
		}
	}
	return rs, nil
}

func (r route) netlink() *netlink.Route {
	n := &netlink.Route{
		Family: int(r.family), Table: r.table, Dst: ipNet(r.dst), Priority: r.metric, Protocol: Protocol,
		LinkIndex: r.dev, Type: unix.RTN_UNICAST,
	}
	if r.src.IsValid() {
		n.Src = r.src.AsSlice()
	}
	switch {
	case r.unreachable:
		n.Type = unix.RTN_UNREACHABLE
	case r.via.IsValid():
		// The kernel has just used this hop for packets of the node's own; it need not look for a route to it again, which
		// it would do in the table of the new route first.
		n.Flags = int(netlink.FLAG_ONLINK)
		if f := familyOf(r.via); f == r.family {
			n.Gw = r.via.AsSlice()
		} else {
			n.Via = &netlink.Via{AddrFamily: int(f), Addr: r.via.AsSlice()}
		}
	case r.family == v4:
		n.Scope = netlink.SCOPE_LINK
	}
	return n
}

// podsOfRoutes finds the pods of routed mode by their host routes, which the CNI plugin sets. It is a help for sets
// that somebody flushed, not the only source, so a list that can't be had is not an error.
func podsOfRoutes(h *netlink.Handle, families []family) []Pod {
	links := map[int]netlink.Link{}
	byName := map[string]*Pod{}
	var names []string
	for _, f := range families {
		rs, err := dump(func() ([]netlink.Route, error) { return h.RouteList(nil, int(f)) })
		if err != nil {
			continue
		}
		for _, r := range rs {
			dst := prefixOf(r.Dst, f)
			if !dst.IsSingleIP() || r.Type != unix.RTN_UNICAST || len(r.Gw) != 0 || r.Protocol == unix.RTPROT_KERNEL {
				continue
			}
			link := linkOf(h, r.LinkIndex, links)
			if link == nil || !strings.HasPrefix(link.Attrs().Name, PodPrefix) || link.Type() != "veth" {
				continue
			}
			name := link.Attrs().Name
			if byName[name] == nil {
				byName[name] = &Pod{Interface: name}
				names = append(names, name)
			}
			byName[name].Addrs = append(byName[name].Addrs, dst.Addr())
		}
	}
	pods := make([]Pod, 0, len(names))
	for _, name := range names {
		pods = append(pods, *byName[name])
	}
	return pods
}

// linkOf looks a device up once; nil when it is gone.
func linkOf(h *netlink.Handle, index int, seen map[int]netlink.Link) netlink.Link {
	if index == 0 {
		return nil
	}
	link, ok := seen[index]
	if !ok {
		if l, err := h.LinkByIndex(index); err == nil {
			link = l
		}
		seen[index] = link
	}
	return link
}

// prefixOf turns a destination into a prefix; nil is the default route.
func prefixOf(n *net.IPNet, f family) netip.Prefix {
	if n == nil {
		return defaultRoute(f)
	}
	bits, _ := n.Mask.Size()
	addr := addrOf(n.IP)
	if !addr.IsValid() {
		return defaultRoute(f)
	}
	return netip.PrefixFrom(addr, bits)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
