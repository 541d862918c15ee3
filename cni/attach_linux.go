package cni

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/hostnet"
	"golang.org/x/sys/unix"
)

// hostMAC is the address of every host interface in routed mode: locally administered, and fixed, because the pods hold
// it in a permanent neighbour entry and udev would give the interface another one.
func hostMAC() net.HardwareAddr { return net.HardwareAddr{0x0e, 0x57, 0, 0, 0, 1} }

// Second bytes of the hardware addresses made here; 0x57 is that of tunnel end points (tunnel/vxlan).
const (
	macPod    = 0x58
	macBridge = 0x59
	macPort   = 0x5a
	macDHCP   = 0x5b
)

// macOf makes a hardware address from an IP address, so that neighbours which knew the last holder of the IP address
// know the next one.
func macOf(kind byte, addr netip.Addr) net.HardwareAddr {
	b := addr.AsSlice()
	if addr.Is6() {
		sum := sha256.Sum256(b)
		b = sum[:4]
	}
	return net.HardwareAddr{0x0e, kind, b[0], b[1], b[2], b[3]}
}

// attachment is an ADD at work.
type attachment struct {
	network
	rec    podrecord.Record
	given  []ipam.Allocation
	routes []types.Route // in the pod, as set

	host    *hostHandle
	pod     *podNetns
	source  SourceCheck
	remark  func(string, ...any)
	podMAC  net.HardwareAddr
	hostMAC net.HardwareAddr
	bridge  *netlink.Bridge // bridge mode

	recorded bool // the record is this ADD's
	linked   bool // the host interface is this ADD's
	refused  bool // the IPAM plugin said itself that it gives no address
}

// attach does the steps in an order that DEL can undo after a kill at any moment: each one is found by what the step
// before it wrote.
func (a *attachment) attach() error {
	if err := a.parseMAC(); err != nil {
		return err
	}
	if a.rec.DHCP() {
		return a.attachForDHCP()
	}
	if err := a.record(); err != nil {
		return err
	}
	if a.Mode == ModeBridge {
		if err := a.ensureBridge(); err != nil {
			return err
		}
		if err := a.uniqueMAC(); err != nil {
			return err
		}
	}
	if err := a.makeVeth(); err != nil {
		return err
	}
	if err := a.setUpPod(); err != nil {
		return fmt.Errorf("setting up %s in the pod: %w", a.rec.IfName, err)
	}
	complete := a.setUpRouted
	if a.Mode == ModeBridge {
		complete = a.setUpPort
	}
	if err := complete(); err != nil {
		return err
	}
	if err := a.awaitCarrier(); err != nil {
		return err
	}
	return a.announce()
}

// record takes the addresses and writes the record, in an order in which all that anybody has is in a record.
func (a *attachment) record() error {
	take := a.fromStore
	if a.IPAM != nil {
		take = a.fromDelegate
	}
	if err := take(); err != nil {
		return err
	}
	return a.fits()
}

// fits refuses a pod that does not go with the daemon as it is now, or with other pods. What the pod has is recorded.
func (a *attachment) fits() error {
	if err := a.stillServed(); err != nil {
		return err
	}
	others, err := podrecord.Unlike(a.StateDir, a.rec)
	if err != nil {
		a.remark("%v; whether %s has neighbours that it would not reach can't be told", err, a.rec.HostIfName)
	}
	if err := unique(a.rec, others); err != nil {
		return err
	}
	return neighbors(a.rec, others)
}

// fromStore takes addresses of Warren's own. The record is written when they are chosen and not yet taken. The
// interface has none before, because it has no record (clear).
func (a *attachment) fromStore() error {
	store, err := addressStore(a.StateDir, a.Name)
	if err != nil {
		return err
	}
	a.given, err = store.Allocate(ipam.Request{
		ContainerID: a.rec.ContainerID, IfName: a.rec.IfName, Sets: a.sets, Wanted: a.Wanted,
		Announce: func(given []ipam.Allocation) error {
			a.complete(given)
			return a.writeRecord(podrecord.Create)
		},
		HoldsNone: true,
	})
	var full *ipam.FullError
	switch {
	case errors.As(err, &full):
		return fail(types.ErrTryAgainLater, "network %q: %w: %s", a.Name, err, a.moreRoom(full))
	case err != nil:
		return stateFailure(a.StateDir, fmt.Errorf("network %q: %w", a.Name, err))
	}
	return nil
}

// complete puts into the record what follows from the addresses.
func (a *attachment) complete(given []ipam.Allocation) {
	a.rec.Addresses = addrsOf(given)
	if a.podMAC == nil {
		a.podMAC = macOf(macPod, given[0].Addr)
	}
	a.rec.MAC, a.rec.MTU = a.podMAC.String(), a.mtu
	if a.Mode == ModeBridge {
		a.rec.Subnets = subnetsOf(given)
	}
}

func (a *attachment) writeRecord(put func(string, podrecord.Record) error) error {
	switch err := put(a.StateDir, a.rec); {
	case errors.Is(err, fs.ErrExist):
		return fail(CodeAttached, "interface %s of container %s is attached already: delete it first (CNI DEL)", a.rec.IfName,
			a.rec.ContainerID)
	case err != nil:
		return stateFailure(a.StateDir, err)
	}
	a.recorded = true
	return nil
}

// parseMAC reads the hardware address that the runtime wants; it may want none.
func (a *attachment) parseMAC() error {
	if a.MAC == "" {
		return nil
	}
	mac, err := net.ParseMAC(a.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || slices.Equal(mac, make([]byte, 6)) {
		return fail(types.ErrInvalidNetworkConfig, "hardware address %q was asked for: it must be six bytes, not all zero, "+
			"and unicast (the first byte even)", a.MAC)
	}
	a.podMAC = mac
	return nil
}

// uniqueMAC refuses a hardware address that was asked for and that the bridge, a port of it or another pod on it has:
// the bridge would take to one what is for the other. Records are written before this looks at them, so of two
// attachments at once at least one sees the other.
func (a *attachment) uniqueMAC() error {
	if a.MAC == "" {
		return nil
	}
	taken := func(whose string, args ...any) error {
		return fail(types.ErrInvalidNetworkConfig, "hardware address %s was asked for, which %s has: ask for another",
			a.podMAC, fmt.Sprintf(whose, args...))
	}
	links, err := retry(a.host.LinkList)
	if err != nil {
		return fmt.Errorf("listing the ports of %s: %w", a.Bridge, err)
	}
	for _, link := range links {
		switch attrs := link.Attrs(); {
		case !bytes.Equal(attrs.HardwareAddr, a.podMAC):
		case attrs.Index == a.bridge.Index:
			return taken("bridge %s itself", a.Bridge)
		case attrs.MasterIndex == a.bridge.Index:
			return taken("port %s of bridge %s", attrs.Name, a.Bridge)
		}
	}
	others, err := podrecord.List(a.StateDir)
	if err != nil {
		a.remark("%v; whether the pod has hardware address %s too can't be told", err, a.podMAC)
	}
	for _, other := range others {
		if other.HostIfName != a.rec.HostIfName && other.Bridge == a.Bridge && other.MAC == a.podMAC.String() {
			return taken("interface %s of container %s, on the same bridge %s,", other.IfName, other.ContainerID, a.Bridge)
		}
	}
	return nil
}

// nameFree refuses an interface name that the pod has already.
func nameFree(ns *podNetns, ifname string) error {
	_, err := ns.LinkByName(ifname)
	switch {
	case err == nil:
		return fail(CodeInterfaceName, "the pod in %s has an interface %s already: choose another CNI_IFNAME, or delete the "+
			"attachment that made it (CNI DEL)", ns.path, ifname)
	case !isNotFound(err):
		return fmt.Errorf("looking for %s in the pod: %w", ifname, err)
	}
	return nil
}

// makeVeth makes the pair, with the peer in the pod from the first moment: its name is never taken on the host.
func (a *attachment) makeVeth() error {
	a.hostMAC = hostMAC()
	if a.Mode == ModeBridge {
		sum := sha256.Sum256([]byte(a.rec.HostIfName))
		a.hostMAC = net.HardwareAddr{0x0e, macPort, sum[0], sum[1], sum[2], sum[3]}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = a.rec.HostIfName, a.mtu, a.hostMAC
	attrs.GSOMaxSize = uint32(a.gsoMaxSize)
	// One queue each way is what a veth uses. By default it gets one per processor, and then waits for two RCU grace
	// periods to turn the others off.
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	err := a.host.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: a.rec.IfName, PeerHardwareAddr: a.podMAC, PeerTxQLen: -1,
		PeerNamespace: netlink.NsFd(a.pod.file.Fd()),
	})
	if errors.Is(err, unix.EEXIST) {
		if taken := nameFree(a.pod, a.rec.IfName); taken != nil {
			return taken
		}
		return fail(CodeAttached, "host interface %s exists already: delete the attachment first (CNI DEL)", a.rec.HostIfName)
	}
	if err != nil {
		return fmt.Errorf("making the veth pair %s: %w", a.rec.HostIfName, err)
	}
	a.linked = true
	return nil
}

// checked lets the pod send from its addresses, and from no others.
func (a *attachment) checked() error {
	err := a.source.Ensure(hostnet.Pod{
		Interface: a.rec.HostIfName, Addrs: a.rec.Addresses, Bridge: a.rec.Bridge, MAC: a.podMAC,
		DHCP: a.rec.DHCP(), Masquerade: masqueradeOf(a.node),
	})
	if errors.Is(err, hostnet.ErrNoNftables) {
		a.remark("%v: sources of %s are checked by rp_filter alone, which knows IPv4 and mode routed only (`warren check`)",
			err, a.rec.HostIfName)
		return nil
	}
	if err != nil {
		return a.taken(fmt.Errorf("source check of %s: %w", a.rec.HostIfName, err))
	}
	return nil
}

// taken says what to do about an address that a living pod has: the state directory should have known. The next ADD
// gets another one, if it asks for none.
func (a *attachment) taken(err error) error {
	var other *hostnet.AddressTakenError
	if !errors.As(err, &other) {
		return err
	}
	lost := ""
	if _, err := podrecord.Read(a.StateDir, other.Interface); errors.Is(err, fs.ErrNotExist) {
		lost = ", whose record is lost"
	}
	return fail(types.ErrTryAgainLater, "%w%s: delete that pod first", other, lost)
}

// setUpRouted completes the host's side in routed mode: a route and a permanent neighbour entry per address. The
// gateway address is not on the veth; the daemon's device owns it, and the host answers for it on every interface.
func (a *attachment) setUpRouted() error {
	link, err := a.host.LinkByName(a.rec.HostIfName)
	if err != nil {
		return fmt.Errorf("host interface %s is gone: %w", a.rec.HostIfName, err)
	}
	// Settings come before the interface is up: IPv6 acts on some at that moment.
	if a.has(netip.Addr.Is6) {
		if err := setSysctl("ipv6/conf/"+a.rec.HostIfName+"/disable_ipv6", "0"); err != nil {
			return err
		}
	}
	// No link-local address: all neighbours are permanent, and nobody is to be found by advertisements here.
	trySysctl("ipv6/conf/"+a.rec.HostIfName+"/addr_gen_mode", "1")
	if err := hostnet.EnsurePodLink(a.rec.HostIfName); err != nil {
		return fmt.Errorf("source check of %s: %w", a.rec.HostIfName, err)
	}
	if err := a.checked(); err != nil {
		return err
	}
	if err := a.upHost(link); err != nil {
		return err
	}
	for _, g := range a.given {
		if err := a.host.NeighSet(permanent(link, g.Addr, a.podMAC)); err != nil {
			return fmt.Errorf("neighbour entry of %s: %w", g.Addr, err)
		}
		if err := a.host.routePod(link, g); err != nil {
			return a.taken(err)
		}
	}
	return nil
}

// upHost names the interface for whoever reads `ip link`, and sets it up.
func (a *attachment) upHost(link netlink.Link) error {
	if err := a.host.LinkSetAlias(link, alias(a.rec)); err != nil {
		a.remark("alias of %s: %v", a.rec.HostIfName, err)
	}
	if err := a.host.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up: %w", a.rec.HostIfName, err)
	}
	return nil
}

func permanent(link netlink.Link, addr netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	n := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: addr.AsSlice(), HardwareAddr: mac,
	}
	if addr.Is6() {
		n.Family = unix.AF_INET6
	}
	return n
}
