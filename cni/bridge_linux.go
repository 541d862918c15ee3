package cni

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/hostnet"
)

// ensureBridge makes the bridge what a pod needs. The pod's record exists already and names the bridge, so that no DEL
// of another pod takes it away again.
func (a *attachment) ensureBridge() error {
	l, err := takeLock(a.StateDir, bridgeLockName(a.Bridge))
	if err != nil {
		return err
	}
	defer l.release()
	st, stateErr := readBridge(a.StateDir, a.Bridge)
	link, err := a.host.LinkByName(a.Bridge)
	switch {
	case isNotFound(err):
		st = bridgeState{Created: true, Boot: bootID()}
		if err := a.writeBridge(st); err != nil {
			return err
		}
		if link, err = a.makeBridge(); err == nil {
			st.Index = link.Attrs().Index
		}
	case err == nil && st.match(link.Attrs()), err == nil && unreadable(stateErr):
		if unreadable(stateErr) {
			a.remark("%v; writing it anew: %s", stateErr, st.origin())
		}
		if err := a.writeBridge(st); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", a.Bridge, err)
	}
	br, ok := link.(*netlink.Bridge)
	if !ok {
		return fail(types.ErrInvalidNetworkConfig, "%s is a %s and not a bridge: give another name in field bridge", a.Bridge,
			link.Type())
	}
	a.bridge = br
	if err := a.setUpBridge(st); err != nil {
		return fmt.Errorf("bridge %s: %w", a.Bridge, err)
	}
	return nil
}

func (a *attachment) makeBridge() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = a.Bridge, a.mtu
	// A fixed hardware address: by default a bridge takes that of one of its ports, and changes it when the port leaves.
	attrs.HardwareAddr = macOf(macBridge, a.given[0].Gateway)
	if err := a.host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, err
	}
	return a.host.LinkByName(a.Bridge)
}

func (a *attachment) setUpBridge(st bridgeState) error {
	attrs := a.bridge.Attrs()
	if st.Created {
		if err := a.ownBridge(st.alias(), a.Uplink != "" || st.Uplink != ""); err != nil {
			return err
		}
	} else if attrs.MTU < a.mtu {
		return fail(types.ErrInvalidNetworkConfig, "its MTU is %d, but pods get %d and would lose larger packets: run "+
			"`ip link set "+
			"%s mtu %d`, or set mtu to %d", attrs.MTU, a.mtu, a.Bridge, a.mtu, attrs.MTU)
	} else if len(st.Addresses) == 0 {
		if err := a.pinMAC(); err != nil {
			return err
		}
	}
	for _, g := range a.given {
		if err := a.holdGateway(&st, a.gatewayPrefix(g.Gateway, g.Subnet)); err != nil {
			return err
		}
	}
	if err := a.joinUplink(&st); err != nil {
		return err
	}
	if attrs.Flags&net.FlagUp == 0 {
		return a.host.LinkSetUp(a.bridge)
	}
	return nil
}

// pinMAC lets a bridge that somebody else made keep the hardware address it has. Unless one was set, a bridge takes
// that of a port, and another one when the port leaves, under the pods that know it as their gateway's.
func (a *attachment) pinMAC() error {
	mac := a.bridge.HardwareAddr
	if bytes.Equal(mac, make([]byte, len(mac))) { // its last port has left
		mac = macOf(macBridge, a.given[0].Gateway)
	}
	if err := a.host.LinkSetHardwareAddr(a.bridge, mac); err != nil {
		return fmt.Errorf("setting its hardware address: %w", err)
	}
	a.bridge.HardwareAddr = mac
	return nil
}

// ownBridge sets what belongs to a bridge that the plugin made; it repeats what a killed ADD did not come to.
func (a *attachment) ownBridge(alias string, uplink bool) error {
	attrs := a.bridge.Attrs()
	if attrs.Alias != alias {
		if err := a.host.LinkSetAlias(a.bridge, alias); err != nil {
			return err
		}
	}
	if attrs.MTU < a.mtu {
		if err := a.host.LinkSetMTU(a.bridge, a.mtu); err != nil {
			return err
		}
		attrs.MTU = a.mtu
	}
	if a.has(netip.Addr.Is6) {
		if err := setSysctl("ipv6/conf/"+a.Bridge+"/disable_ipv6", "0"); err != nil {
			return err
		}
		trySysctl("ipv6/conf/"+a.Bridge+"/accept_dad", "0")
	}
	return hostnet.EnsurePodBridge(a.Bridge, uplink)
}

// holdGateway makes sure that the bridge has a gateway address.
func (a *attachment) holdGateway(st *bridgeState, gateway netip.Prefix) error {
	have, err := retry(func() ([]netlink.Addr, error) { return a.host.AddrList(a.bridge, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing its addresses: %w", err)
	}
	want := address(gateway.Addr(), gateway.Bits())
	if slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IPNet.String() == want.IPNet.String() }) {
		return nil
	}
	if !slices.Contains(st.Addresses, gateway) {
		st.Addresses = append(st.Addresses, gateway)
		if err := a.writeBridge(*st); err != nil {
			return err
		}
	}
	if err := a.host.AddrAdd(a.bridge, want); err != nil {
		return fmt.Errorf("address %s: %w", gateway, err)
	}
	return nil
}

// setUpPort makes the host's end a port of the bridge.
func (a *attachment) setUpPort() error {
	link, err := a.host.LinkByName(a.rec.HostIfName)
	if err != nil {
		return fmt.Errorf("host interface %s is gone: %w", a.rec.HostIfName, err)
	}
	trySysctl("ipv6/conf/"+a.rec.HostIfName+"/addr_gen_mode", "1") // a port has no address of its own
	if err := a.checked(); err != nil {
		return err
	}
	if err := a.host.LinkSetMasterByIndex(link, a.bridge.Index); err != nil {
		return fmt.Errorf("making %s a port of %s: %w", a.rec.HostIfName, a.Bridge, err)
	}
	if a.Hairpin {
		// For a pod that reaches itself through a service: its packet leaves by the port it came in by.
		if err := a.host.LinkSetHairpin(link, true); err != nil {
			return fmt.Errorf("hairpin mode of %s: %w", a.rec.HostIfName, err)
		}
	}
	return a.upHost(link)
}

// forget removes the neighbour entries of a pod that was on the bridge, if it was on one: the kernel keeps them until
// it needs the room.
func (h *hostHandle) forget(bridge string, addrs []netip.Addr) error {
	if bridge == "" {
		return nil
	}
	link, err := h.LinkByName(bridge)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridge, err)
	}
	for _, addr := range addrs {
		err := h.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr.AsSlice()})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing the neighbour entry of %s on %s: %w", addr, bridge, err)
		}
	}
	return nil
}
