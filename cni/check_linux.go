package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/hostnet"
)

// check compares an attachment with its record and with the result of ADD, and names every difference.
func (p *Plugin) check(args *skel.CmdArgs) error {
	conf, err := ParseConfig(args.StdinData)
	if err != nil {
		return err
	}
	prev, err := conf.prevResult()
	if err != nil {
		return err
	}
	if prev == nil {
		return fail(types.ErrInvalidNetworkConfig, "CHECK needs the result of ADD in field prevResult: the runtime must "+
			"pass it")
	}
	host, err := openHost()
	if err != nil {
		return err
	}
	defer host.Close()
	rec, err := podrecord.Read(conf.StateDir, podrecord.HostIfName(args.ContainerID, args.IfName))
	if errors.Is(err, fs.ErrNotExist) {
		return unrecorded(host, conf, args)
	}
	if err != nil {
		return fail(CodeChanged, "%w: delete the interface (CNI DEL) and start the pod anew", err)
	}
	if section := delegateOf(rec.IPAM); section != nil {
		rec.Netns = args.Netns
		if _, err := conf.delegate(delegation{"CHECK", section, rec}); err != nil {
			return err
		}
	}
	ns, err := openNetns(args.Netns)
	if err != nil {
		return err
	}
	defer ns.close()

	c := checkup{rec: rec, ns: ns, host: host, conf: conf, prev: prev}
	c.result()
	if err := errors.Join(c.inPod(), c.onHost(), c.uplink(conf.Uplink)); err != nil {
		return err
	}
	if len(c.found) > 0 {
		return fail(CodeChanged, "interface %s of container %s is not as it was attached: %s", rec.IfName, rec.ContainerID,
			strings.Join(c.found, "; "))
	}
	return nil
}

// unrecorded says what is left of an attachment that has no record. Code 3 lets the runtime do without a DEL, so that
// is for one of which nothing is left.
func unrecorded(host *hostHandle, conf Config, args *skel.CmdArgs) error {
	name := podrecord.HostIfName(args.ContainerID, args.IfName)
	exists, err := host.exists(name)
	if err != nil {
		return err
	}
	held, err := heldBy(conf, args)
	if err != nil {
		return err
	}
	var left string
	switch {
	case exists:
		left = "host interface " + name + " is there"
	case len(held) > 0:
		left = fmt.Sprintf("%v is still taken for it", held)
	case conf.IPAM != nil:
		left = fmt.Sprintf("what IPAM plugin %q holds for it is not known here", delegateType(conf.IPAM))
	default:
		return fail(types.ErrUnknownContainer, "interface %s of container %s is not attached: add it first (CNI ADD)",
			args.IfName, args.ContainerID)
	}
	return fail(CodeChanged, "interface %s of container %s has no record, without which it can't be checked, but %s: "+
		"delete it (CNI DEL) and start the pod anew", args.IfName, args.ContainerID, left)
}

// heldBy are the addresses of Warren's own that an interface of a container has.
func heldBy(conf Config, args *skel.CmdArgs) ([]netip.Addr, error) {
	store, err := addressStore(conf.StateDir, conf.Name)
	if err != nil {
		return nil, err
	}
	if used, err := store.Used(); !used || err != nil {
		return nil, err
	}
	entries, err := store.Entries()
	var held []netip.Addr
	for _, e := range entries {
		if e.Err == nil && e.ContainerID == args.ContainerID && e.IfName == args.IfName {
			held = append(held, e.Addr)
		}
	}
	return held, err
}

// checkup is a CHECK at work.
type checkup struct {
	rec   podrecord.Record
	ns    *podNetns
	host  *hostHandle
	conf  Config
	prev  *current.Result
	found []string // each says what is different from what ADD left, what it should be, and what to do
}

// anew is what to do about a difference that no command mends.
const anew = "start the pod anew"

func (c *checkup) add(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// result compares with what the runtime remembers of ADD.
func (c *checkup) result() {
	rec := c.rec
	for _, addr := range rec.Addresses {
		if !slices.ContainsFunc(c.prev.IPs, func(p *current.IPConfig) bool { return p.Address.IP.Equal(addr.AsSlice()) }) {
			c.add("prevResult lacks address %s, which the interface was given, so it is not the result of its ADD: %s", addr,
				anew)
		}
	}
	if !slices.ContainsFunc(c.prev.Interfaces, func(i *current.Interface) bool { return i.Name == rec.HostIfName }) {
		c.add("prevResult lacks host interface %s, so it is not the result of this interface's ADD: %s", rec.HostIfName,
			anew)
	}
}

// gateways are those of the pod's addresses, as ADD said.
func (c *checkup) gateways() []netip.Addr {
	var gateways []netip.Addr
	for _, p := range c.prev.IPs {
		addr, _ := netip.AddrFromSlice(p.Address.IP)
		gateway, ok := netip.AddrFromSlice(p.Gateway)
		gateway = gateway.Unmap()
		if ok && slices.Contains(c.rec.Addresses, addr.Unmap()) && !slices.Contains(gateways, gateway) {
			gateways = append(gateways, gateway)
		}
	}
	return gateways
}

// mtu looks at one end's. run is what comes before a command that is to run where the interface is.
func (c *checkup) mtu(what, run string, attrs *netlink.LinkAttrs) {
	if want := c.rec.MTU; want != 0 && attrs.MTU != want {
		c.add("%s has MTU %d, not %d: `%sip link set %s mtu %d`", what, attrs.MTU, want, run, attrs.Name, want)
	}
}

// neighbors looks for the host's permanent entry of each address.
func (c *checkup) neighbors(link netlink.Link) error {
	have, err := retry(func() ([]netlink.Neigh, error) {
		return c.host.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	})
	if err != nil {
		return fmt.Errorf("listing the neighbours on %s: %w", link.Attrs().Name, err)
	}
	for _, addr := range c.rec.Addresses {
		i := slices.IndexFunc(have, func(n netlink.Neigh) bool {
			return n.State&netlink.NUD_PERMANENT != 0 && n.IP.Equal(addr.AsSlice())
		})
		mend := fmt.Sprintf("`ip neigh replace %s lladdr %s dev %s nud permanent`", addr, c.rec.MAC, link.Attrs().Name)
		switch {
		case i < 0:
			c.add("host interface %s has no permanent neighbour entry of %s: %s", link.Attrs().Name, addr, mend)
		case have[i].HardwareAddr.String() != c.rec.MAC:
			c.add("the neighbour entry of %s on host interface %s has hardware address %s, not the pod's, %s: %s", addr,
				link.Attrs().Name, have[i].HardwareAddr, c.rec.MAC, mend)
		}
	}
	return nil
}

func (c *checkup) onHost() error {
	h, rec := c.host, c.rec
	link, err := h.LinkByName(rec.HostIfName)
	if isNotFound(err) {
		c.add("host interface %s is gone: %s", rec.HostIfName, anew)
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at %s: %w", rec.HostIfName, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		c.add("host interface %s is down: `ip link set %s up`", rec.HostIfName, rec.HostIfName)
	}
	c.mtu("host interface "+rec.HostIfName, "", link.Attrs())
	if err := c.sourceCheck(); err != nil {
		return err
	}
	if rec.Mode == ModeBridge {
		return c.port(link)
	}
	return errors.Join(c.routed(link), c.neighbors(link))
}

// routed looks at the host's end in mode routed.
func (c *checkup) routed(link netlink.Link) error {
	rec := c.rec
	if mac := hostMAC(); link.Attrs().HardwareAddr.String() != mac.String() {
		c.add("host interface %s has hardware address %s, not the one that the pod sends to, %s: `ip link set %s address "+
			"%s`", rec.HostIfName, link.Attrs().HardwareAddr, mac, rec.HostIfName, mac)
	}
	routes, err := retry(func() ([]netlink.Route, error) { return c.host.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, addr := range rec.Addresses {
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return r.Dst != nil && r.Dst.String() == single(addr).String()
		}) {
			c.add("the host has no route to %s through %s: `ip route replace %s dev %s scope link proto %d`", addr,
				rec.HostIfName, single(addr), rec.HostIfName, hostnet.Protocol)
		}
	}
	return nil
}

// sourceCheck looks for what keeps the pod from sending with addresses of others.
func (c *checkup) sourceCheck() error {
	rec := c.rec
	mac, _ := net.ParseMAC(rec.MAC)
	lost, err := hostnet.CheckPod(hostnet.Pod{
		Interface: rec.HostIfName, Addrs: rec.Addresses, Bridge: rec.Bridge, MAC: mac, DHCP: rec.DHCP(),
	})
	if err != nil {
		return err
	}
	for _, l := range lost {
		c.add("%s: restart `warren up`, which puts it back", l)
	}
	if rec.Mode == ModeBridge {
		return nil
	}
	key := "net/ipv4/conf/" + rec.HostIfName + "/rp_filter"
	if value, err := os.ReadFile("/proc/sys/" + key); err == nil && strings.TrimSpace(string(value)) != "1" {
		c.add("rp_filter of host interface %s is %s, not 1: `sysctl -w %s=1`", rec.HostIfName,
			strings.TrimSpace(string(value)), key)
	}
	return nil
}
