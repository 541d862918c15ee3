package cni

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/ipam"
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

// removeVeth removes a veth pair by its host end. None there is no error; with it goes all that refers to it.
func (h *hostHandle) removeVeth(name string) error {
	link, err := h.LinkByName(name)
	switch {
	case isNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("looking for %s: %w", name, err)
	case link.Type() != "veth":
		return fmt.Errorf("host interface %s is a %s, not the veth that Warren makes: remove it by hand", name, link.Type())
	}
	// The pod's namespace may end at this moment and take the pair along.
	if err := h.LinkDel(link); err != nil && !isNotFound(err) {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return nil
}

// removeChecked removes a veth pair and its place in the source check, both at once: for each the kernel waits until no
// processor refers to it any more (an RCU grace period, some 10 ms), and it can wait for both together. Whichever is
// gone first, the pod sends nothing unchecked: the check lets nothing through but what it lists.
func (h *hostHandle) removeChecked(name string, source SourceCheck) error {
	unlisted := make(chan error, 1)
	go func() { unlisted <- source.Remove(name) }()
	err := h.removeVeth(name)
	if checkErr := <-unlisted; checkErr != nil {
		err = errors.Join(err, fmt.Errorf("removing %s from the source check: %w", name, checkErr))
	}
	return err
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
		if h.isRouted(route) { // the daemon, which puts back pods' routes, was faster
			return nil
		}
		return fmt.Errorf("the host has a route to the pod's address %s already: find it with `ip route show %s` and "+
			"remove it", g.Addr, g.Addr)
	}
	if err != nil {
		return fmt.Errorf("route to the pod's address %s: %w", g.Addr, err)
	}
	return nil
}

// isRouted reports whether Warren's route to a pod is there, with whatever source.
func (h *hostHandle) isRouted(route *netlink.Route) bool {
	family := unix.AF_INET
	if route.Dst.IP.To4() == nil {
		family = unix.AF_INET6
	}
	found, err := retry(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, route, netlink.RT_FILTER_DST|netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	})
	return err == nil && len(found) > 0
}
