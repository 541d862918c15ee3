package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoUnderlay says that no interface holds the node's address.
var ErrNoUnderlay = errors.New("no interface has the node's address")

// Underlay finds the interface that holds addr, the node's own address, and its MTU in bytes. The path to a peer may
// take less: that is found out by the tunnel.
func Underlay(addr netip.Addr) (ifname string, mtu int, err error) {
	h, err := open()
	if err != nil {
		return "", 0, err
	}
	defer h.Close()
	f := familyOf(addr.Unmap())
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, int(f)) })
	if err != nil {
		return "", 0, fmt.Errorf("listing %s addresses: %w", f, err)
	}
	i := slices.IndexFunc(addrs, func(a netlink.Addr) bool { return addrOf(a.IP) == addr.Unmap() })
	if i < 0 {
		return "", 0, fmt.Errorf("%w: %s", ErrNoUnderlay, addr)
	}
	link, err := h.LinkByIndex(addrs[i].LinkIndex)
	if err != nil {
		return "", 0, fmt.Errorf("looking for the interface of %s: %w", addr, err)
	}
	return link.Attrs().Name, link.Attrs().MTU, nil
}

// WatchMTU calls changed with what Underlay says about addr: at once, and whenever it says something else. It runs in
// the calling goroutine until ctx ends; the error says why events can't be had.
func WatchMTU(ctx context.Context, addr netip.Addr, changed func(ifname string, mtu int, err error)) error {
	const debounce = 50 * time.Millisecond
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	wake := make(chan struct{}, 1)
	every := func(syscall.NetlinkMessage) bool { return true }
	err := listen(ctx, unix.NETLINK_ROUTE, wake, every,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return err
	}
	type state struct {
		ifname string
		mtu    int
		failed bool
	}
	for last, first := (state{}), true; ; first = false {
		ifname, mtu, err := Underlay(addr)
		if now := (state{ifname, mtu, err != nil}); first || now != last {
			last = now
			changed(ifname, mtu, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
		if !sleep(ctx, debounce) {
			return nil
		}
	}
}
