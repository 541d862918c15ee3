package cni

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// podRoutes looks for the routes that ADD set through the pod's interface; the pod may have others.
func (c *checkup) podRoutes(link netlink.Link) error {
	have, err := retry(func() ([]netlink.Route, error) {
		every := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		return c.ns.RouteListFiltered(netlink.FAMILY_ALL, every, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("listing the pod's routes: %w", err)
	}
	through := slices.DeleteFunc(slices.Clone(have), func(r netlink.Route) bool {
		return r.LinkIndex != link.Attrs().Index
	})
	wanted := c.wantedRoutes()
	for _, want := range wanted {
		c.route(through, want)
	}
	if c.rec.Mode == ModeRouted {
		c.gatewayRoutes(have, wanted)
	}
	return nil
}

// gatewayRoutes looks for the routes to the gateways themselves. They matter where no other route leads there, and may
// go through any interface of the pod's: all lead to the host, and an interface that comes later takes them over.
func (c *checkup) gatewayRoutes(have []netlink.Route, wanted []types.Route) {
	for _, gateway := range c.gateways() {
		to := single(gateway)
		if !slices.ContainsFunc(wanted, func(r types.Route) bool { return r.GW.Equal(to.IP) }) &&
			!slices.ContainsFunc(have, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.String() == to.String() }) {
			c.route(nil, types.Route{Dst: *to})
		}
	}
}

// wantedRoutes are the routes of prevResult that are this plugin's. Plugins before this one may have set routes too,
// through interfaces of their own; prevResult does not say whose one is.
func (c *checkup) wantedRoutes() []types.Route {
	var want []types.Route
	for _, r := range c.prev.Routes {
		r = r.Copy()
		r.Dst = masked(r.Dst)
		i := slices.IndexFunc(c.conf.Routes, func(own types.Route) bool { return c.made(*r, own) })
		if i >= 0 {
			// A runtime that knows no CNI 1.1.0 may have dropped these from prevResult.
			own := c.conf.Routes[i]
			r.MTU, r.AdvMSS = cmp.Or(r.MTU, own.MTU), cmp.Or(r.AdvMSS, own.AdvMSS)
			r.Priority = cmp.Or(r.Priority, own.Priority)
			r.Table, r.Scope = cmp.Or(r.Table, own.Table), cmp.Or(r.Scope, own.Scope)
		}
		if i >= 0 || c.reaches(r.GW) {
			want = append(want, *r)
		}
	}
	return want
}

// made reports whether ADD may have made route r of a route of the configuration.
func (c *checkup) made(r, own types.Route) bool {
	dst := masked(own.Dst)
	if dst.String() != r.Dst.String() || r.Table != nil && at(r.Table) != at(own.Table) {
		return false
	}
	if own.GW == nil && at(own.Scope) < scopeLink {
		return c.reaches(r.GW)
	}
	return own.GW.Equal(r.GW)
}

// reaches reports whether a gateway is the pod's, or on its link.
func (c *checkup) reaches(gw net.IP) bool {
	addr, ok := netip.AddrFromSlice(gw)
	addr = addr.Unmap()
	return ok && (slices.Contains(c.gateways(), addr) ||
		slices.ContainsFunc(c.rec.Subnets, func(s netip.Prefix) bool { return s.Contains(addr) }))
}

// route looks for a route, and says how the one that is nearest to it differs.
func (c *checkup) route(have []netlink.Route, want types.Route) {
	var nearest []string
	for _, h := range have {
		if h.Dst == nil || h.Dst.String() != want.Dst.String() || h.Table != cmp.Or(at(want.Table), unix.RT_TABLE_MAIN) {
			continue
		}
		differs := differences(h, want)
		if len(differs) == 0 {
			return
		}
		if nearest == nil || len(differs) < len(nearest) {
			nearest = differs
		}
	}
	mend := fmt.Sprintf("`%sip route replace %s`", c.enter(), c.spelled(want))
	if nearest == nil {
		c.add("the pod has no route to %s%s through %s: %s", want.Dst.String(), via(want.GW), c.rec.IfName, mend)
		return
	}
	c.add("the pod's route to %s through %s %s: %s", want.Dst.String(), c.rec.IfName, strings.Join(nearest, ", "), mend)
}

func via(gw net.IP) string {
	if gw == nil {
		return ""
	}
	return " via " + gw.String()
}

// differences say what of a route is not as it was asked for; what was not asked for may be anything.
func differences(have netlink.Route, want types.Route) []string {
	var found []string
	if !have.Gw.Equal(want.GW) {
		found = append(found, fmt.Sprintf("goes via %v, not %v", have.Gw, want.GW))
	}
	number := func(field string, have, want int) {
		if want != 0 && have != want {
			found = append(found, fmt.Sprintf("has %s %d, not %d", field, have, want))
		}
	}
	number("mtu", have.MTU, want.MTU)
	number("advmss", have.AdvMSS, want.AdvMSS)
	number("priority", have.Priority, want.Priority)
	if have.Family == unix.AF_INET { // routes of IPv6 have no scope
		number("scope", int(have.Scope), at(want.Scope))
	}
	return found
}

// spelled is a route as ip-route(8) takes it.
func (c *checkup) spelled(r types.Route) string {
	words := []string{r.Dst.String() + via(r.GW), "dev", c.rec.IfName}
	if r.GW != nil && c.rec.Mode == ModeRouted {
		words = append(words, "onlink")
	}
	number := func(word string, value int) {
		if value != 0 {
			words = append(words, word, fmt.Sprint(value))
		}
	}
	number("mtu", r.MTU)
	number("advmss", r.AdvMSS)
	number("metric", r.Priority)
	number("table", at(r.Table))
	number("scope", at(r.Scope))
	return strings.Join(words, " ")
}
