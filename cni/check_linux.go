package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/hostnet"
	"golang.org/x/sys/unix"
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
	rec, err := podrecord.Read(conf.StateDir, podrecord.HostIfName(args.ContainerID, args.IfName))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(types.ErrUnknownContainer, "interface %s of container %s is not attached: add it first (CNI ADD)",
			args.IfName, args.ContainerID)
	}
	if err != nil {
		return err
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
	host, err := openHost()
	if err != nil {
		return err
	}
	defer host.Close()

	c := checkup{rec: rec, ns: ns, host: host, routes: conf.Routes}
	c.result(prev)
	if err := errors.Join(c.inPod(), c.onHost(), c.uplink(conf.Uplink)); err != nil {
		return err
	}
	if len(c.found) > 0 {
		return fail(CodeChanged, "interface %s of container %s is not as it was attached: %s; start the pod anew", rec.IfName,
			rec.ContainerID, strings.Join(c.found, "; "))
	}
	return nil
}

// checkup is a CHECK at work.
type checkup struct {
	rec    podrecord.Record
	ns     *podNetns
	host   *hostHandle
	routes []types.Route // of the configuration
	found  []string      // what is different from what ADD left
}

func (c *checkup) add(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// result compares with what the runtime remembers of ADD.
func (c *checkup) result(prev *current.Result) {
	rec := c.rec
	for _, addr := range rec.Addresses {
		if !slices.ContainsFunc(prev.IPs, func(p *current.IPConfig) bool { return p.Address.IP.Equal(addr.AsSlice()) }) {
			c.add("prevResult lacks address %s", addr)
		}
	}
	if !slices.ContainsFunc(prev.Interfaces, func(i *current.Interface) bool { return i.Name == rec.HostIfName }) {
		c.add("prevResult lacks host interface %s", rec.HostIfName)
	}
}

func (c *checkup) inPod() error {
	rec := c.rec
	link, err := c.ns.LinkByName(rec.IfName)
	if isNotFound(err) {
		c.add("the pod has no interface %s", rec.IfName)
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at %s in the pod: %w", rec.IfName, err)
	}
	attrs := link.Attrs()
	if link.Type() != "veth" {
		c.add("%s in the pod is a %s, not a veth", rec.IfName, link.Type())
	}
	if attrs.Flags&net.FlagUp == 0 {
		c.add("%s in the pod is down", rec.IfName)
	}
	// Also when a plugin behind this one set it: the node's neighbour entries and source check have the record's.
	if attrs.HardwareAddr.String() != rec.MAC {
		c.add("%s in the pod has hardware address %s, not %s", rec.IfName, attrs.HardwareAddr, rec.MAC)
	}
	c.mtu(rec.IfName+" in the pod", attrs.MTU)
	have, err := retry(func() ([]netlink.Addr, error) { return c.ns.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the pod's addresses: %w", err)
	}
	for _, addr := range rec.Addresses {
		if !slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IP.Equal(addr.AsSlice()) }) {
			c.add("%s in the pod lacks address %s", rec.IfName, addr)
		}
	}
	routes, err := retry(func() ([]netlink.Route, error) { return c.ns.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the pod's routes: %w", err)
	}
	for _, addr := range rec.Addresses {
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return r.Gw != nil && (r.Gw.To4() != nil) == addr.Is4()
		}) {
			c.add("%s in the pod has no route via its gateway for %s", rec.IfName, addr)
		}
	}
	for _, want := range c.routes {
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return r.Dst != nil && r.Dst.String() == want.Dst.String() || want.Table != nil // the list is of the main table
		}) {
			c.add("%s in the pod has no route to %s", rec.IfName, want.Dst.String())
		}
	}
	// The gateway's permanent neighbour entry is not looked for: it goes when a plugin behind this one (tuning) sets the
	// interface down and up, and only saves a question.
	return nil
}

func (c *checkup) mtu(what string, mtu int) {
	if c.rec.MTU != 0 && mtu != c.rec.MTU {
		c.add("%s has MTU %d, not %d", what, mtu, c.rec.MTU)
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
		if !slices.ContainsFunc(have, func(n netlink.Neigh) bool {
			return n.State&netlink.NUD_PERMANENT != 0 && n.IP.Equal(addr.AsSlice())
		}) {
			c.add("host interface %s has no permanent neighbour entry of %s", link.Attrs().Name, addr)
		}
	}
	return nil
}

func (c *checkup) onHost() error {
	h, rec := c.host, c.rec
	link, err := h.LinkByName(rec.HostIfName)
	if isNotFound(err) {
		c.add("host interface %s is gone", rec.HostIfName)
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at %s: %w", rec.HostIfName, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		c.add("host interface %s is down", rec.HostIfName)
	}
	c.mtu("host interface "+rec.HostIfName, link.Attrs().MTU)
	if err := c.sourceCheck(); err != nil {
		return err
	}
	if rec.Mode == ModeBridge {
		br, err := h.LinkByName(rec.Bridge)
		if err != nil && !isNotFound(err) {
			return fmt.Errorf("looking at bridge %s: %w", rec.Bridge, err)
		}
		if err != nil || link.Attrs().MasterIndex != br.Attrs().Index {
			c.add("host interface %s is no port of bridge %s", rec.HostIfName, rec.Bridge)
		}
		return nil
	}
	for _, addr := range rec.Addresses {
		family := unix.AF_INET
		if addr.Is6() {
			family = unix.AF_INET6
		}
		routes, err := retry(func() ([]netlink.Route, error) { return h.RouteList(link, family) })
		if err != nil {
			return fmt.Errorf("listing routes: %w", err)
		}
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return r.Dst != nil && r.Dst.String() == single(addr).String()
		}) {
			c.add("the host has no route to %s through %s", addr, rec.HostIfName)
		}
	}
	return c.neighbors(link)
}

// sourceCheck looks for what keeps the pod from sending with addresses of others.
func (c *checkup) sourceCheck() error {
	rec := c.rec
	mac, _ := net.ParseMAC(rec.MAC)
	lost, err := hostnet.CheckPod(hostnet.Pod{
		Interface: rec.HostIfName, Addrs: rec.Addresses, Bridge: rec.Bridge, MAC: mac,
	})
	if err != nil {
		return err
	}
	c.found = append(c.found, lost...)
	if rec.Mode == ModeBridge {
		return nil
	}
	filter := "/proc/sys/net/ipv4/conf/" + rec.HostIfName + "/rp_filter"
	if value, err := os.ReadFile(filter); err == nil && strings.TrimSpace(string(value)) != "1" {
		c.add("rp_filter of host interface %s is %s, not 1", rec.HostIfName, strings.TrimSpace(string(value)))
	}
	return nil
}
