package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SetUpTunnelGSO makes the kernel forward what the TAP device of tunnel/tapgso hands in from own, one of the node's
// own addresses, gives it back its hardware address (frames to another one go nowhere) and brings it up. It changes
// nothing beyond this device: forwarding is turned on for it alone. It is to be called again now and then, as others
// change such settings; where nothing has to be done it makes no event, so that whoever calls it upon events comes to
// rest.
func SetUpTunnelGSO(device string, mac net.HardwareAddr, own netip.Addr) error {
	if err := forwardFrom(device, familyOf(own)); err != nil {
		return err
	}
	h, err := open()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(device)
	if err != nil {
		return fmt.Errorf("looking for %s: %w", device, err)
	}
	if own.Is4() {
		if err := dummyAddress(h, link); err != nil {
			return err
		}
	}
	if !slices.Equal(link.Attrs().HardwareAddr, mac) {
		if err := h.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("giving %s the hardware address %s: %w", device, mac, err)
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("setting %s up: %w", device, err)
		}
	}
	return nil
}

// forwardFrom sets the TAP's sysctls of a family.
func forwardFrom(device string, f family) error {
	var c Changes
	if f == v4 {
		conf := filepath.Join("ipv4/conf", device) + "/"
		for _, kv := range [][2]string{{"rp_filter", "0"}, {"accept_local", "1"}, {"forwarding", "1"}} {
			if err := setSysctl(conf+kv[0], kv[1], &c); err != nil {
				return err
			}
		}
		return nil
	}
	conf := filepath.Join("ipv6/conf", device) + "/"
	// force_forwarding came with Linux 6.17. Without it IPv6 is forwarded when all interfaces do.
	for _, kv := range [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"force_forwarding", "1"}} {
		if err := setSysctl(conf+kv[0], kv[1], &c); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// dummyAddress gives the TAP an address while all interfaces filter loosely (rp_filter 2): that refuses what comes in
// by an interface that has no address at all (__fib_validate_source), whatever the route back. Nobody else has RFC
// 7600's dummy address. The kernel tells everybody of an address also when the same one is set again.
func dummyAddress(h *netlink.Handle, tap netlink.Link) error {
	all, _ := sysctl("ipv4/conf/all/rp_filter")
	dummy := &netlink.Addr{
		IPNet: &net.IPNet{IP: net.IPv4(192, 0, 0, 8), Mask: net.CIDRMask(32, 32)}, Scope: int(netlink.SCOPE_HOST),
	}
	name := tap.Attrs().Name
	have, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(tap, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("listing the addresses of %s: %w", name, err)
	}
	there := slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IP.Equal(dummy.IP) })
	switch wanted := all == "2"; {
	case wanted && !there:
		if err := h.AddrAdd(tap, dummy); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("giving %s the address %s, which rp_filter 2 asks for: %w", name, dummy.IPNet, err)
		}
	case !wanted && there:
		if err := h.AddrDel(tap, dummy); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("taking the address %s from %s: %w", dummy.IPNet, name, err)
		}
	}
	return nil
}

// An Egress is where packets to a peer leave.
type Egress struct {
	Device string // "": unknown
	Driver string // of the device
	Why    string // why a superpacket is better not handed to it uncut; "": it cuts
}

// A Flow is from a node's own address to a peer's.
type Flow struct{ From, To netip.Addr }

// Egresses finds where the kernel would forward packets that come in by the TAP device, flow by flow, and whether the
// device there cuts tunnelled superpackets.
func Egresses(tap string, flows []Flow) ([]Egress, error) {
	h, err := open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	in, err := h.LinkByName(tap)
	if err != nil {
		return nil, fmt.Errorf("looking for %s: %w", tap, err)
	}
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("opening a socket for ethtool: %w", err)
	}
	defer tool.Close()
	known := map[int]Egress{}
	out := make([]Egress, len(flows))
	for k, f := range flows {
		r, why := forwardRoute(h, in, f)
		if why != "" {
			out[k] = Egress{Why: why}
			continue
		}
		if _, ok := known[r.LinkIndex]; !ok {
			known[r.LinkIndex] = egress(h, tool, r.LinkIndex)
		}
		out[k] = known[r.LinkIndex]
	}
	return out, nil
}

// forwardRoute finds the way that a flow takes from the TAP, or says why it takes none, or another one than the node's
// own packets. Firewalls may send either another way by marks (hook output, type route): nothing tells of that.
func forwardRoute(h *netlink.Handle, in netlink.Link, f Flow) (r netlink.Route, why string) {
	tap := in.Attrs().Name
	routes, err := h.RouteGetWithOptions(f.To.AsSlice(), &netlink.RouteGetOptions{
		IifIndex: in.Attrs().Index, SrcAddr: f.From.AsSlice(),
	})
	if err != nil {
		if all, _ := sysctl("ipv4/conf/all/rp_filter"); f.To.Is4() && all == "1" {
			return r, fmt.Sprintf("net.ipv4.conf.all.rp_filter is 1, so the kernel refuses packets from this node's own "+
				"address on %s: `sysctl -w net.ipv4.conf.all.rp_filter=0` (interfaces keep their own value)", tap)
		}
		return r, fmt.Sprintf("the kernel does not forward from %s to %s: %v", tap, f.To, err)
	}
	if len(routes) == 0 || routes[0].LinkIndex == 0 || !forwards(routes[0].Type) {
		return r, fmt.Sprintf("the kernel has no route from %s to %s", tap, f.To)
	}
	own, err := h.RouteGetWithOptions(f.To.AsSlice(), &netlink.RouteGetOptions{SrcAddr: f.From.AsSlice()})
	if err != nil {
		return r, fmt.Sprintf("the node itself has no route to %s: %v", f.To, err)
	}
	if len(own) == 0 || !sameHop(&routes[0], &own[0]) {
		return r, fmt.Sprintf("traffic takes another way from %s than the node's own packets: a policy rule tells them "+
			"apart (`ip rule`)", tap)
	}
	return routes[0], ""
}

// sameHop reports whether two routes lead to the same next hop.
func sameHop(a, b *netlink.Route) bool {
	return a.LinkIndex == b.LinkIndex && a.Gw.Equal(b.Gw) && fmt.Sprint(a.Via) == fmt.Sprint(b.Via)
}

// forwards reports whether a route leads to another host.
func forwards(kind int) bool { return kind == unix.RTN_UNICAST || kind == unix.RTN_UNSPEC }

// needed are the features of a device that cuts what tunnel/tapgso sends, by their names in ethtool.
func needed() []string {
	return []string{
		"tx-generic-segmentation", "tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp_tnl-segmentation",
		"tx-udp_tnl-csum-segmentation",
	}
}

// leastGSOSize is the least gso_max_size in bytes of a device that is said to cut. The superpackets of pods have 60,732
// bytes with an underlay MTU of 1,500 and 62,008 with 9,000, and some 84 of headers. What reaches the size, the kernel
// cuts.
const leastGSOSize = 61 << 10

// egress asks a device whether it cuts.
func egress(h *netlink.Handle, tool *ethtool.Ethtool, index int) Egress {
	link, err := h.LinkByIndex(index)
	if err != nil {
		return Egress{Why: fmt.Sprintf("interface %d is gone: %v", index, err)}
	}
	e := Egress{Device: link.Attrs().Name}
	if e.Driver, err = tool.DriverName(e.Device); err != nil {
		e.Driver = "unknown"
	}
	features, err := tool.Features(e.Device)
	if err != nil {
		e.Why = fmt.Sprintf("%s does not tell its features: %v", e.Device, err)
		return e
	}
	var off []string
	for _, f := range needed() {
		if !features[f] {
			off = append(off, f)
		}
	}
	// IPv4 has a limit of its own from Linux 6.3 on. An underlay of IPv6 alone would not mind it, but who sets one?
	for name, size := range map[string]uint32{
		"gso_max_size": link.Attrs().GSOMaxSize, "gso_ipv4_max_size": link.Attrs().GSOIPv4MaxSize,
	} {
		if size > 0 && size < leastGSOSize {
			e.Why = fmt.Sprintf("%s cuts superpackets of less than %d bytes only (its %s)", e.Device, size, name)
		}
	}
	if len(off) > 0 {
		e.Why = fmt.Sprintf("%s does not cut tunnelled superpackets (%s off)", e.Device, strings.Join(off, ", "))
	}
	return e
}
