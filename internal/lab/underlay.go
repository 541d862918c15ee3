package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the underlay. Node number n (1 to maxNodes) has the n-th address of each subnet.
var (
	underlayV4 = netip.MustParsePrefix("192.0.2.0/24")
	underlayV6 = netip.MustParsePrefix("2001:db8::/64")
	routerV4   = netip.MustParseAddr("192.0.2.254")
	routerV6   = netip.MustParseAddr("2001:db8::fe")
)

const maxNodes = 200

// OutsideV4 and OutsideV6 are the addresses of "the outside world": reached through the nodes' default route, by a
// host that has no route to any pod.
func OutsideV4() netip.Addr { return netip.MustParseAddr("198.51.100.1") }

// OutsideV6 is the IPv6 twin of OutsideV4.
func OutsideV6() netip.Addr { return netip.MustParseAddr("2001:db8:ffff::1") }

// underlayDevice is the name of a node's device on the underlay.
const underlayDevice = "eth0"

const bridgeName = "br0"

// Switch is the namespace of the switch between the nodes: a bridge with a port for each, and one named OutsidePort.
func (l *Lab) Switch() *NS { return l.sw }

// OutsidePort is the name of the switch's port that leads to the outside world.
const OutsidePort = "outside"

// Port is the name of the switch's port that the node is plugged into.
func (n *Node) Port() string { return fmt.Sprintf("port%d", n.Index) }

// firstHost is the last byte of the address of the first host that is no node.
const firstHost = 240

// A Host is a machine on the underlay that is no node: Warren does not run there.
type Host struct {
	NS     *NS
	V4, V6 netip.Addr
}

// AddHost makes a host: a namespace with eth0 on the underlay, IPv4 and IPv6, and default routes to the outside. Its
// index is 0 to 9 and its own.
func (l *Lab) AddHost(name string, index int) (*Host, error) {
	if index < 0 || index > 9 {
		return nil, fmt.Errorf("host %s is number %d: the underlay has addresses for 0 to 9", name, index)
	}
	h := &Host{V4: nth(underlayV4, firstHost+index), V6: nth(underlayV6, firstHost+index)}
	var err error
	if h.NS, err = l.AddNS(name); err != nil {
		return nil, err
	}
	err = l.plug(h.NS, plug{port: fmt.Sprintf("host%d", index), bridge: bridgeName, device: underlayDevice,
		addresses: []netip.Prefix{onSubnet(h.V4), onSubnet(h.V6)}})
	if err == nil {
		err = h.NS.Do(func() error { return addDefaultRoutes(routerV4, routerV6) })
	}
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	return h, nil
}

// makeUnderlay makes the switch (a bridge in a namespace of its own, without addresses) and the outside world.
func (l *Lab) makeUnderlay() error {
	var err error
	if l.sw, err = l.AddNS("switch"); err != nil {
		return err
	}
	if err := l.sw.Do(func() error { return makeBridge(bridgeName) }); err != nil {
		return fmt.Errorf("the lab's switch: %w", err)
	}
	if l.Outside, err = l.AddNS("outside"); err != nil {
		return err
	}
	err = l.plug(l.Outside, plug{port: OutsidePort, bridge: bridgeName, device: underlayDevice,
		addresses: []netip.Prefix{onSubnet(routerV4), onSubnet(routerV6)}})
	if err != nil {
		return err
	}
	return l.Outside.Do(func() error {
		return errors.Join(addAddress("lo", netip.PrefixFrom(OutsideV4(), 32)),
			addAddress("lo", netip.PrefixFrom(OutsideV6(), 128)))
	})
}

// makeBridge runs inside the switch's namespace. The bridge only bridges: no IPv6 of its own, no packet filter, and
// no multicast snooping, which without a querier would eat neighbour discovery.
func makeBridge(name string) error {
	for _, key := range []string{"net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"} {
		if err := writeSysctl(key, "1"); err != nil {
			return err
		}
	}
	for _, key := range []string{"iptables", "ip6tables", "arptables"} {
		// The files are missing where the kernel has no br_netfilter: then there is nothing to switch off.
		err := writeSysctl("net/bridge/bridge-nf-call-"+key, "0")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("making bridge %s: %w", name, err)
	}
	return netlink.LinkSetUp(bridge)
}

// A plug is where a namespace is joined to the switch.
type plug struct {
	port, bridge string         // in the switch
	device       string         // in the namespace
	addresses    []netip.Prefix // of device
}

// plug joins a namespace to the switch: a veth pair whose one end is in the namespace, the other in a bridge. Both are
// made where they belong, so that the machine's own namespace never sees a device.
func (l *Lab) plug(ns *NS, p plug) error {
	file, err := os.Open(ns.Path())
	if err != nil {
		return fmt.Errorf("namespace %s: %w", ns.Name, err)
	}
	defer file.Close()
	err = l.sw.Do(func() error {
		bridge, err := netlink.LinkByName(p.bridge)
		if err != nil {
			return err
		}
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{
				Name: p.port, MTU: l.Options.MTU, TxQLen: -1, MasterIndex: bridge.Attrs().Index, Flags: net.FlagUp,
			},
			PeerName:      p.device,
			PeerNamespace: netlink.NsFd(file.Fd()),
		}
		return netlink.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("plugging %s into the switch: %w", p.port, err)
	}
	if err := ns.Do(func() error { return setUpPort(p.device, p.addresses) }); err != nil {
		return err
	}
	return l.sw.Do(func() error { return waitForCarrier(p.port) })
}

// workQueueWait is how long the kernel may take for what it does on work queues of its own. These serve the whole
// machine, one after the other with everybody who changes devices: beside other tests that took over 5 s once.
const workQueueWait = 20 * time.Second

// waitForCarrier waits until the kernel has seen that the device, whose peer came up after it, has a carrier. It looks
// once a second when many devices come and go, and a port of the switch loses everything until then.
func waitForCarrier(device string) error {
	for deadline := time.Now().Add(workQueueWait); ; time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has no carrier, though its peer is up: it is %s", device, link.Attrs().OperState)
		}
	}
}

// setUpPort runs inside the namespace that was plugged in.
func setUpPort(device string, addresses []netip.Prefix) error {
	// Nobody else is on this segment; waiting a second for the link-local address would only make tests slower.
	if err := writeSysctl("net/ipv6/conf/"+device+"/accept_dad", "0"); err != nil {
		return err
	}
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		if err := addAddress(device, a); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	return waitForAddresses(link)
}

// waitForAddresses waits until the kernel has done with a device what it does by itself, on a work queue, after the
// device came up: the link-local address, and a local route for each IPv6 address. Who looks at the namespace later
// should see nothing change that nobody changed.
func waitForAddresses(link netlink.Link) error {
	for deadline := time.Now().Add(workQueueWait); ; time.Sleep(time.Millisecond) {
		settled, err := addressesSettled(link)
		// A list that changed while it was read is read again.
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("IPv6 addresses of %s: %w", link.Attrs().Name, err)
		}
		if settled && err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the IPv6 addresses of %s don't become ready: is IPv6 off in this kernel?", link.Attrs().Name)
		}
	}
}

func addressesSettled(link netlink.Link) (bool, error) {
	addresses, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return false, err
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{
		LinkIndex: link.Attrs().Index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL,
	}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil {
		return false, err
	}
	linkLocal := false
	for _, a := range addresses {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			return false, nil
		}
		linkLocal = linkLocal || a.IP.IsLinkLocalUnicast()
	}
	return linkLocal && len(routes) == len(addresses), nil
}

// addAddress gives a device of the calling thread's namespace an address that can be used at once.
func addAddress(device string, p netip.Prefix) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, device, err)
	}
	return nil
}

// addDefaultRoutes runs inside a node's namespace.
func addDefaultRoutes(gateways ...netip.Addr) error {
	link, err := netlink.LinkByName(underlayDevice)
	if err != nil {
		return err
	}
	for _, gateway := range gateways {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if gateway.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(all), Gw: gateway.AsSlice()}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("default route by %s: %w", gateway, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// onSubnet is an underlay address with its subnet's prefix length.
func onSubnet(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(a, underlayV4.Bits())
	}
	return netip.PrefixFrom(a, underlayV6.Bits())
}

// nth is the n-th address of a subnet; n fits a byte.
func nth(p netip.Prefix, n int) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}
