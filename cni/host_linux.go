package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/hostnet"
	"golang.org/x/sys/unix"
)

// aliasPrefix begins the alias of the plugin's host interfaces: "warren pod: <network> <pod> <interface>".
const aliasPrefix = "warren pod: "

// hostHandle is a netlink socket on the host's side.
type hostHandle struct{ *netlink.Handle }

func openHost() (*hostHandle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return &hostHandle{h}, nil
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// retry repeats a dump that the kernel says was torn by a change meanwhile.
func retry[T any](dump func() (T, error)) (T, error) {
	var result T
	var err error
	for range 10 {
		if result, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return result, err
}

func (h *hostHandle) exists(name string) (bool, error) {
	_, err := h.LinkByName(name)
	if err == nil || isNotFound(err) {
		return err == nil, nil
	}
	return false, fmt.Errorf("looking for %s: %w", name, err)
}

// removeVeth removes a veth pair by its host end. None there is no error; with it goes all that refers to it. Once the
// pair can neither send nor receive, after runs; the kernel goes on for some 10 ms then, until nothing refers to the
// interfaces any more, and removeVeth returns when it is done. After a failure after does not run.
func (h *hostHandle) removeVeth(name string, after func() error) error {
	link, err := h.LinkByName(name)
	switch {
	case isNotFound(err):
		return after()
	case err != nil:
		return fmt.Errorf("looking for %s: %w", name, err)
	case link.Type() != "veth":
		return fmt.Errorf("host interface %s is a %s, not the veth that Warren makes: remove it by hand", name, link.Type())
	}
	shut := watchLinkEnd(link.Attrs().Index)
	removed := make(chan error, 1)
	go func() { removed <- netlink.LinkDel(link) }() // by a socket of its own: after uses this one meanwhile
	select {
	case <-shut:
		err = after()
		return errors.Join(err, ignoreGone(name, <-removed))
	case err := <-removed: // there may be no events
		if err := ignoreGone(name, err); err != nil {
			return err
		}
		return after()
	}
}

// ignoreGone takes the error of an interface that was gone already: the pod's namespace may end at this moment and take
// the pair along.
func ignoreGone(name string, err error) error {
	if err == nil || isNotFound(err) {
		return nil
	}
	return fmt.Errorf("removing %s: %w", name, err)
}

// watchLinkEnd returns a channel that is closed when the kernel says that an interface is taken out. It says so under
// its lock for all interfaces that go together, after all of them were shut and found by nobody any more. (That of the
// bridge family says that a port left its bridge.)
func watchLinkEnd(index int) <-chan struct{} {
	shut, done, updates := make(chan struct{}), make(chan struct{}), make(chan netlink.LinkUpdate)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return nil
	}
	go func() {
		defer close(done)
		for u := range updates {
			if u.Header.Type == unix.RTM_DELLINK && int(u.Index) == index && u.Family != unix.AF_BRIDGE {
				close(shut)
				return
			}
		}
	}()
	return shut
}

// podRoute is the host's route to a pod.
func podRoute(link netlink.Link, g ipam.Allocation) *netlink.Route {
	return &netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: single(g.Addr), Scope: netlink.SCOPE_LINK, Protocol: hostnet.Protocol,
		Src: g.Gateway.AsSlice(),
	}
}

// routePod sets the host's route to a pod. Without the daemon's device nobody has the gateway address, and the kernel
// refuses it as a source; then the route is set without.
func (h *hostHandle) routePod(link netlink.Link, g ipam.Allocation) error {
	route := podRoute(link, g)
	err := h.RouteAdd(route)
	if errors.Is(err, unix.EINVAL) {
		route.Src = nil
		err = h.RouteAdd(route)
	}
	if errors.Is(err, unix.EEXIST) {
		return h.routeTaken(route, g.Addr)
	}
	if err != nil {
		return fmt.Errorf("route to the pod's address %s: %w", g.Addr, err)
	}
	return nil
}

// routeTaken looks whose the route to a pod's address is that is there already. With whatever source it may be the
// pod's own: the daemon, which puts back pods' routes, was faster.
func (h *hostHandle) routeTaken(route *netlink.Route, addr netip.Addr) error {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	found, err := retry(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, route, netlink.RT_FILTER_DST)
	})
	if err != nil {
		return fmt.Errorf("the host has a route to the pod's address %s already; looking for it: %w", addr, err)
	}
	if slices.ContainsFunc(found, func(r netlink.Route) bool {
		return r.LinkIndex == route.LinkIndex && r.Protocol == route.Protocol
	}) {
		return nil
	}
	for _, r := range found {
		link, err := h.LinkByIndex(r.LinkIndex)
		if err == nil && podrecord.IsHostIfName(link.Attrs().Name) {
			return &hostnet.AddressTakenError{Addr: addr, Interface: link.Attrs().Name, Alias: link.Attrs().Alias}
		}
	}
	return fmt.Errorf("the host has a route to the pod's address %s already: find it with `ip route show %s` and "+
		"remove it", addr, addr)
}
