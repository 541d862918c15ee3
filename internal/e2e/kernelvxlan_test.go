package e2e_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// A vtep is a node without Warren: the kernel's VXLAN device, with what a person would configure by hand, and a pod
// behind it.
type vtep struct {
	c     *cluster
	node  *lab.Node
	pod   *lab.NS
	local netip.Addr // of the tunnel
	mac   net.HardwareAddr
	peers []*lab.Node // that run Warren
}

// The names of its devices.
const (
	vtepDevice = "vx0"
	vtepToPod  = "topod"
	vtepPodDev = "eth0"
)

// vtepNode adds a node to the lab that is to become a vtep. Warren's configuration names it with this one underlay
// address and its own MAC, so the tunnel has to go there.
func (c *cluster) vtepNode(name string, family int) *vtep {
	c.t.Helper()
	n := c.node(name)
	v := &vtep{c: c, node: n, local: n.Address(family), mac: net.HardwareAddr{2, 0, 0, 0, 0x77, byte(n.Index)}}
	return v
}

// edits are what Warren's configuration says of it.
func (v *vtep) edits() []edit {
	return []edit{
		setNode(v.node.Name, "addresses", []string{v.local.String()}),
		setNode(v.node.Name, "mac", v.mac.String()),
	}
}

// addr is an address of its pod CIDR: the gateway is on the VXLAN device, number 2 is the pod.
func (v *vtep) addr(family, number int) netip.Addr {
	a := v.node.PodCIDRs[map[int]int{4: 0, 6: 1}[family]].Addr()
	for range number {
		a = a.Next()
	}
	return a
}

// setUp makes the device, the entries for the peers, and the pod.
func (v *vtep) setUp(podMTU int, peers ...*lab.Node) {
	v.c.t.Helper()
	v.peers = peers
	v.device(true)
	var err error
	v.pod, err = v.c.lab.AddNS(v.node.Name + "-pod")
	v.c.ok(err)
	v.c.do(v.node.NS,
		"sysctl -qw net.ipv4.ip_forward=1",
		"sysctl -qw net.ipv6.conf.all.forwarding=1",
		fmt.Sprintf("ip link add %s mtu %d type veth peer name %s netns %s", vtepToPod, podMTU, vtepPodDev, v.pod.Name),
		"ip link set "+vtepToPod+" up addrgenmode none",
		fmt.Sprintf("ip addr add 169.254.1.1/32 dev %s", vtepToPod),
		fmt.Sprintf("ip addr add fe80::1/64 dev %s nodad", vtepToPod),
	)
	v.c.do(v.pod, fmt.Sprintf("ip link set %s mtu %d up", vtepPodDev, podMTU))
	for _, f := range families() {
		v.c.do(v.node.NS, fmt.Sprintf("ip route add %s dev %s", v.addr(f, 2), vtepToPod))
		via := map[int]string{4: "169.254.1.1", 6: "fe80::1"}[f]
		v.c.do(v.pod, fmt.Sprintf("ip addr add %s dev %s%s", v.addr(f, 2), vtepPodDev, map[int]string{6: " nodad"}[f]),
			fmt.Sprintf("ip route add default via %s dev %s onlink", via, vtepPodDev))
	}
}

// device makes the VXLAN device, anew if it is there, with or without UDP checksums.
func (v *vtep) device(checksums bool) {
	v.c.t.Helper()
	const overheadWithoutIP = 30
	v.c.ok(v.node.NS.Do(func() error {
		if old, err := netlink.LinkByName(vtepDevice); err == nil {
			if err := netlink.LinkDel(old); err != nil {
				return err
			}
		}
		under, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		outer := 20
		if v.local.Is6() {
			outer = 40
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = vtepDevice, v.mac, lab.DefaultMTU-overheadWithoutIP-outer
		return netlink.LinkAdd(&netlink.Vxlan{
			LinkAttrs: attrs, VxlanId: 1, VtepDevIndex: under.Attrs().Index, SrcAddr: v.local.AsSlice(), Port: vxlanPort,
			Learning: false, UDPCSum: checksums, UDP6ZeroCSumTx: !checksums, UDP6ZeroCSumRx: !checksums,
		})
	}))
	v.c.do(v.node.NS, "ip link set "+vtepDevice+" up addrgenmode none")
	for _, f := range families() {
		v.c.do(v.node.NS, fmt.Sprintf("ip addr add %s dev %s%s", v.addr(f, 1), vtepDevice, map[int]string{6: " nodad"}[f]))
	}
	for _, p := range v.peers {
		v.c.ok(v.node.NS.Do(func() error { return v.peer(p) }))
	}
}

// peer sets the entries for a node that runs Warren: where its VTEP is, and that all its pods are behind it.
func (v *vtep) peer(p *lab.Node) error {
	link, err := netlink.LinkByName(vtepDevice)
	if err != nil {
		return err
	}
	mac := vxlan.MAC(p.V4)
	to := p.V4
	if v.local.Is6() {
		to = p.V6
	}
	if err := netlink.NeighAppend(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
		IP: to.AsSlice(), HardwareAddr: mac,
	}); err != nil {
		return fmt.Errorf("FDB entry: %w", err)
	}
	for _, cidr := range p.PodCIDRs {
		gateway := cidr.Addr().Next()
		family := netlink.FAMILY_V4
		if gateway.Is6() {
			family = netlink.FAMILY_V6
		}
		if err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT, IP: gateway.AsSlice(),
			HardwareAddr: mac,
		}); err != nil {
			return fmt.Errorf("neighbour entry: %w", err)
		}
		if err := netlink.RouteAdd(&netlink.Route{
			LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
			Dst: &net.IPNet{IP: cidr.Addr().AsSlice(), Mask: net.CIDRMask(cidr.Bits(), cidr.Addr().BitLen())},
		}); err != nil {
			return fmt.Errorf("route to %s: %w", cidr, err)
		}
	}
	return nil
}

// offloads switches everything that the kernel's side could leave to a device on or off.
func (v *vtep) offloads(state string) {
	v.c.t.Helper()
	features := []string{"tx", "sg", "tso", "gso", "gro", "tx-udp-segmentation", "tx-gso-list"}
	tunnel := []string{"tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"}
	for device, list := range map[string][]string{
		"eth0": append(tunnel, features...), vtepDevice: features, vtepToPod: append(tunnel, features...),
	} {
		args := []string{"ethtool", "-K", device}
		for _, f := range list {
			args = append(args, f, state)
		}
		v.c.run(v.node.NS, args...)
	}
}

// TestKernelVXLAN has Warren talk with kernel VXLAN devices, in all combinations of outer and inner family, of offloads
// on and off at either end, and of UDP checksums of the kernel's.
func TestKernelVXLAN(t *testing.T) {
	c := newCluster(t, lab.Options{})
	auto, off := c.node("auto"), c.node("off")
	auto.Settings.Offloads, off.Settings.Offloads = allAuto(), allOff()
	vteps := []*vtep{c.vtepNode("k4", 4), c.vtepNode("k6", 6)}
	c.configure(append(vteps[0].edits(), vteps[1].edits()...)...)
	c.up(auto, off)
	pods := []*lab.Pod{c.pod(auto, "p"), c.pod(off, "p")}
	mtu, err := pods[0].MTU()
	c.ok(err)
	for _, v := range vteps {
		v.setUp(mtu, auto, off)
	}
	c.leavesUncut(auto, true)
	for _, v := range vteps {
		for _, p := range pods {
			v.talk(p, mtu)
		}
	}
	for _, checksums := range []string{"on", "off"} {
		for _, state := range []string{"on", "off"} {
			for _, v := range vteps {
				if checksums == "off" && state == "on" {
					v.device(false)
				}
				v.offloads(state)
				for _, p := range pods {
					name := fmt.Sprintf("%s, kernel's offloads %s, checksums %s, Warren's offloads %s", v.node.Name, state,
						checksums, p.Node.Name)
					t.Run(name, func(t *testing.T) {
						on := *v
						sub := *c
						sub.t, on.c = t, &sub
						if checksums == "on" {
							on.transfers(p, transferBytes)
						} else {
							on.transfers(p, transferBytes/4)
						}
					})
				}
			}
		}
	}
	c.sentWhole(auto, true)
	c.sentWhole(off, false)
}

// talk tries small packets, and the largest, between the vtep and a pod of Warren's.
func (v *vtep) talk(p *lab.Pod, mtu int) {
	v.c.t.Helper()
	for _, f := range families() {
		pod, own, far := p.Address(f), v.addr(f, 1), v.addr(f, 2)
		v.c.ping(p.NS, far, lab.Ping{})
		v.c.ping(p.NS, own, lab.Ping{})
		v.c.ping(v.pod, pod, lab.Ping{})
		v.c.ping(v.node.NS, pod, lab.Ping{})
		v.c.fullPing(p.NS, far, mtu)
		v.c.fullPing(v.pod, pod, mtu)
		v.c.sources(lab.Path{From: p.NS, To: v.pod, Addr: far}, pod)
		v.c.sources(lab.Path{From: v.pod, To: p.NS, Addr: pod}, far)
		v.c.sources(lab.Path{From: v.node.NS, To: p.NS, Addr: pod}, own)
	}
}

// transferBytes is enough for many superpackets of full size in flight.
const transferBytes = 64 << 20

// transfers sends in both directions and both families: over TCP, and UDP datagrams that the sender leaves to be cut.
func (v *vtep) transfers(p *lab.Pod, bytes int64) {
	v.c.t.Helper()
	for _, f := range families() {
		for _, path := range []lab.Path{
			{From: p.NS, To: v.pod, Addr: v.addr(f, 2)},
			{From: v.pod, To: p.NS, Addr: p.Address(f)},
		} {
			v.c.transfer(path, bytes)
			v.c.datagrams(path)
		}
	}
}

// allOff is the configuration of a node without any offload.
func allOff() map[string]string { return lab.AllOffloads("off") }

// allAuto is the configuration of a node that has all offloads, whatever the environment says (lab.OffloadsEnv).
func allAuto() map[string]string { return lab.AllOffloads("auto") }
