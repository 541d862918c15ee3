package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/podrecord"
	"golang.org/x/sys/unix"
)

// findings collects what CHECK finds different from what ADD left.
type findings []string

func (f *findings) add(format string, args ...any) { *f = append(*f, fmt.Sprintf(format, args...)) }

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

	var found findings
	found.result(prev, rec)
	if err := errors.Join(found.inPod(ns, rec), found.onHost(host, rec)); err != nil {
		return err
	}
	if len(found) > 0 {
		return fail(CodeChanged, "interface %s of container %s is not as it was attached: %s; start the pod anew", rec.IfName,
			rec.ContainerID, strings.Join(found, "; "))
	}
	return nil
}

// result compares with what the runtime remembers of ADD.
func (f *findings) result(prev *current.Result, rec podrecord.Record) {
	for _, addr := range rec.Addresses {
		if !slices.ContainsFunc(prev.IPs, func(c *current.IPConfig) bool { return c.Address.IP.Equal(addr.AsSlice()) }) {
			f.add("prevResult lacks address %s", addr)
		}
	}
	if !slices.ContainsFunc(prev.Interfaces, func(i *current.Interface) bool { return i.Name == rec.HostIfName }) {
		f.add("prevResult lacks host interface %s", rec.HostIfName)
	}
}

func (f *findings) inPod(ns *podNetns, rec podrecord.Record) error {
	link, err := ns.LinkByName(rec.IfName)
	if isNotFound(err) {
		f.add("the pod has no interface %s", rec.IfName)
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at %s in the pod: %w", rec.IfName, err)
	}
	attrs := link.Attrs()
	if link.Type() != "veth" {
		f.add("%s in the pod is a %s, not a veth", rec.IfName, link.Type())
	}
	if attrs.Flags&net.FlagUp == 0 {
		f.add("%s in the pod is down", rec.IfName)
	}
	if attrs.HardwareAddr.String() != rec.MAC {
		f.add("%s in the pod has hardware address %s, not %s", rec.IfName, attrs.HardwareAddr, rec.MAC)
	}
	have, err := retry(func() ([]netlink.Addr, error) { return ns.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the pod's addresses: %w", err)
	}
	for _, addr := range rec.Addresses {
		if !slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IP.Equal(addr.AsSlice()) }) {
			f.add("%s in the pod lacks address %s", rec.IfName, addr)
		}
	}
	routes, err := retry(func() ([]netlink.Route, error) { return ns.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing the pod's routes: %w", err)
	}
	for _, addr := range rec.Addresses {
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return r.Gw != nil && (r.Gw.To4() != nil) == addr.Is4()
		}) {
			f.add("%s in the pod has no route via its gateway for %s", rec.IfName, addr)
		}
	}
	return nil
}

func (f *findings) onHost(h *hostHandle, rec podrecord.Record) error {
	link, err := h.LinkByName(rec.HostIfName)
	if isNotFound(err) {
		f.add("host interface %s is gone", rec.HostIfName)
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at %s: %w", rec.HostIfName, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		f.add("host interface %s is down", rec.HostIfName)
	}
	if rec.Mode == ModeBridge {
		br, err := h.LinkByName(rec.Bridge)
		if err != nil && !isNotFound(err) {
			return fmt.Errorf("looking at bridge %s: %w", rec.Bridge, err)
		}
		if err != nil || link.Attrs().MasterIndex != br.Attrs().Index {
			f.add("host interface %s is no port of bridge %s", rec.HostIfName, rec.Bridge)
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
			f.add("the host has no route to %s through %s", addr, rec.HostIfName)
		}
	}
	return nil
}
