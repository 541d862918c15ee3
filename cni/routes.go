package cni

import (
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
)

// What the kernel makes of a larger value (net/ipv4/metrics.c, ip_metrics_convert, for both families). CHECK would find
// that, and not what was asked for.
const (
	maxRouteMTU    = 65535 - 15
	maxRouteAdvMSS = 65535 - 40
)

// scopeLink is the first scope in which a route has no gateway: what it leads to is on the link. scopeHost is the last
// one; the kernel has no route of scope 255, nowhere.
const (
	scopeLink = 253
	scopeHost = 254
)

// checkRoutes refuses routes that the kernel would refuse with no more than "invalid argument", or that lead nowhere.
func (n *network) checkRoutes() error {
	for _, r := range n.Routes {
		if err := n.checkRoute(r); err != nil {
			return fail(types.ErrInvalidNetworkConfig, "route to %s of network %q: %w", destination(r), n.Name, err)
		}
	}
	return nil
}

func (n *network) checkRoute(r types.Route) error {
	is4 := r.Dst.IP.To4() != nil
	for _, n := range []struct {
		name       string
		value, max int64
	}{
		{"mtu", int64(r.MTU), maxRouteMTU}, {"advmss", int64(r.AdvMSS), maxRouteAdvMSS},
		{"priority", int64(r.Priority), math.MaxUint32}, {"table", int64(at(r.Table)), math.MaxUint32},
	} {
		if n.value < 0 || n.value > n.max {
			return fmt.Errorf("%s is %d: it must be from 0 to %d, the most that the kernel takes for a route", n.name, n.value,
				n.max)
		}
	}
	switch {
	case r.Dst.IP == nil:
		return fmt.Errorf("it has no dst: write 0.0.0.0/0 or ::/0 for a default route")
	case is4 && !n.has(netip.Addr.Is4) || !is4 && !n.has(netip.Addr.Is6):
		return fmt.Errorf("network %q gives no address of that family: leave the route out, or give the pods one", n.Name)
	case at(r.Scope) < 0 || at(r.Scope) > scopeHost:
		return fmt.Errorf("scope is %d: it must be 0 (global), 253 (link) or 254 (host)", *r.Scope)
	case r.GW == nil:
		return nil
	case at(r.Scope) >= scopeLink:
		return fmt.Errorf("scope is %d, in which a route has no gateway: leave gw %s or scope out", *r.Scope, r.GW)
	case (r.GW.To4() != nil) != is4:
		return fmt.Errorf("gateway %s is of the other family: leave gw out for the pod's own gateway", r.GW)
	case n.Mode == ModeRouted && !n.isGateway(r.GW):
		return fmt.Errorf("in mode routed a pod reaches nothing but its gateway directly, and %s is not that: leave gw out",
			r.GW)
	}
	return nil
}

// at is the value of a field that may be absent.
func at(field *int) int {
	if field == nil {
		return 0
	}
	return *field
}

// destination names where a route leads; a field that is absent gives an empty one.
func destination(r types.Route) string {
	if r.Dst.IP == nil {
		return "nowhere"
	}
	return r.Dst.String()
}

// masked is a route's destination without bits after its prefix, which IPv4 refuses and IPv6 drops.
func masked(dst net.IPNet) net.IPNet { return net.IPNet{IP: dst.IP.Mask(dst.Mask), Mask: dst.Mask} }
