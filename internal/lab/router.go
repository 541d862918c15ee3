package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Addresses of the subnet behind the router, and the router's own on both. Node number n has the n-th address there.
var (
	farV4       = netip.MustParsePrefix("203.0.113.0/24")
	farV6       = netip.MustParsePrefix("2001:db8:f::/64")
	farRouterV4 = netip.MustParseAddr("203.0.113.254")
	farRouterV6 = netip.MustParseAddr("2001:db8:f::fe")
	nearV4      = netip.MustParseAddr("192.0.2.253")
	nearV6      = netip.MustParseAddr("2001:db8::fd")
)

const farBridgeName = "br1"

// AddRouter makes a router with a second subnet behind it, for nodes that AddNodeBehind adds: eth0 is on the underlay,
// eth1 on the other. It knows the two subnets and the outside, and no pods; hosts on the underlay, those of before, get
// a route to the other subnet through it.
func (l *Lab) AddRouter() (*NS, error) {
	router, err := l.AddNS("router")
	if err != nil {
		return nil, err
	}
	if err := l.sw.Do(func() error { return makeBridge(farBridgeName) }); err != nil {
		return nil, fmt.Errorf("the lab's second switch: %w", err)
	}
	for _, p := range []plug{
		{"near", bridgeName, underlayDevice, []netip.Prefix{onSubnet(nearV4), onSubnet(nearV6)}},
		{"far", farBridgeName, "eth1", []netip.Prefix{
			netip.PrefixFrom(farRouterV4, farV4.Bits()), netip.PrefixFrom(farRouterV6, farV6.Bits()),
		}},
	} {
		if err := l.plug(router, p); err != nil {
			return nil, err
		}
	}
	for key, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
		// Hosts would be told of ways that bypass the router, which tests look at.
		"net/ipv4/conf/all/send_redirects": "0", "net/ipv4/conf/eth0/send_redirects": "0",
	} {
		if err := router.SetSysctl(key, value); err != nil {
			return nil, err
		}
	}
	if err := router.Do(func() error { return addDefaultRoutes(routerV4, routerV6) }); err != nil {
		return nil, err
	}
	hosts := []*NS{l.Outside}
	for _, n := range l.Nodes() {
		hosts = append(hosts, n.NS)
	}
	for _, ns := range hosts {
		if err := ns.Do(addFarRoutes); err != nil {
			return nil, err
		}
	}
	return router, nil
}

// AddNodeBehind makes a node on the subnet behind the router, which has to be there; its default route leads there.
func (l *Lab) AddNodeBehind(name string) (*Node, error) { return l.addNode(name, true) }

// addFarRoutes runs inside a namespace on the underlay.
func addFarRoutes() error {
	link, err := netlink.LinkByName(underlayDevice)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range []struct {
		to  netip.Prefix
		via netip.Addr
	}{{farV4, nearV4}, {farV6, nearV6}} {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.to), Gw: r.via.AsSlice()}
		if err := netlink.RouteAdd(route); err != nil {
			errs = append(errs, fmt.Errorf("route to %s by %s: %w", r.to, r.via, err))
		}
	}
	return errors.Join(errs...)
}
