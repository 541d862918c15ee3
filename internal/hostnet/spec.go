package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// How Warren's kernel objects are recognised, and the defaults of Spec.
const (
	Protocol            = 87                   // of routes and rules (RTA_PROTOCOL, FRA_PROTOCOL)
	DeviceAlias         = "warren pod network" // ifalias of the TUN device
	PodPrefix           = "wrn"                // host interfaces of pods: wrn + 11 hexadecimal digits
	DefaultTable        = 8787
	DefaultRulePriority = 5200
	DefaultMark         = 0x1000 // one bit that kube-proxy, Calico, Cilium, Tailscale and portmap leave alone
)

// Slots of Warren's rules, counted from Spec.RulePriority.
const (
	slotMain    = 0 // iif device, and the mark: lookup main
	slotNoRoute = 1 // iif device: unreachable
	slotGateway = 1 // from gateway: lookup main
	slotToPods  = 2 // kept free for `to <own pod CIDR>`
	slotPods    = 3 // from own pod CIDR: Warren's table
)

// Sentinels of the errors that callers decide on.
var (
	// ErrNoDevice says that the TUN device does not exist. Everything that does not need it was set up all the same.
	ErrNoDevice = errors.New("the TUN device does not exist")
	// ErrDeviceTaken says that a device of that name exists and is not Warren's.
	ErrDeviceTaken = errors.New("the device name is taken")
	// ErrNoNftables says that the kernel has no nftables, or not the parts that the call needs.
	ErrNoNftables = errors.New("the kernel has no nftables")
)

// A Spec is all that Warren wants of the kernel. Addresses are unmapped, prefixes masked.
type Spec struct {
	Device     string
	MTU        int // bytes, of the device; 0: leave as it is
	GSOMaxSize int // bytes, of the device's superpackets; 0: leave as it is
	TxQueueLen int // packets; 0: leave as it is

	Gateways      []netip.Addr   // one per own pod CIDR; the device owns them
	PodCIDRs      []netip.Prefix // the node's own
	ClusterCIDRs  []netip.Prefix // the whole cluster's
	NodeAddrs     []netip.Addr   // the node's own underlay addresses
	PeerNodeAddrs []netip.Addr   // the peers' underlay addresses: pods reach them through the tunnel
	Direct        []DirectPeer   // peers that may be reached without the tunnel
	Guarded       bool           // nobody else's pods' packets arrive without one: the check stands without Direct too

	Table        int    // routing table of pod traffic; 0: DefaultTable
	RulePriority int    // of the first rule; four are used; 0: DefaultRulePriority
	Mark         uint32 // packet mark bits of translated answers; 0: DefaultMark
	TunnelGSO    string // TAP device of tunnel/tapgso: its packets are not tracked, its probes are counted; "": none
	CookiePort   uint16 // UDP port of the node's WireGuard: cookies that leave it are not tracked; 0: there is none
	Masquerade   bool   // translate what pods send out of the cluster to the node's address, while there are pods

	// Pods are the pods known to the daemon. Apply puts back what the source check's sets lost of them (somebody ran
	// `nft flush ruleset`), and their host routes (those go with the device). It removes no pod: one that the CNI plugin
	// adds at this moment is not yet known here. Pods in routed mode are also found by their host routes.
	Pods []Pod

	// Attached reports whether any pod is attached now, which Pods, read earlier, may be wrong about. nil: not known.
	Attached func() bool
	// Bridged reports the same of one bridge. nil: not known.
	Bridged func(bridge string) bool
}

// A Pod is what the source check knows of a pod.
type Pod struct {
	Interface string           // host side of the veth; begins with PodPrefix
	Addrs     []netip.Addr     // the pod's addresses; packets from others are dropped
	Bridge    string           // bridge mode: the bridge that Interface is a port of; else ""
	MAC       net.HardwareAddr // bridge mode: the pod's MAC address
	DHCP      bool             // bridge mode: it may ask for an address by DHCP, before it has one and to keep it

	Masquerade *Masquerade // what EnsurePod makes when it is missing; nil: nothing
}

// Changes says what a call changed and what it could not have.
type Changes struct {
	Made []string // one line per change, for the log; empty when everything was as it should be
	Lost []string // what the kernel lacks and what does not work for it; nothing to retry

	Direct []DirectRoute // of Spec.Direct, pod CIDR by pod CIDR

	tidied int // of Made: what only went, as the pods that had it did
}

func (c *Changes) add(format string, args ...any) {
	c.Made = append(c.Made, fmt.Sprintf(format, args...))
}

// tidy adds what was taken away after pods that left: nobody had undone anything.
func (c *Changes) tidy(format string, args ...any) {
	c.add(format, args...)
	c.tidied++
}

// mended is whether something was put back or made, or somebody else's removed.
func (c *Changes) mended() bool { return len(c.Made) > c.tidied }

// withDefaults fills in what zero values stand for, and copies the slices it sorts.
func (s Spec) withDefaults() Spec {
	if s.Table == 0 {
		s.Table = DefaultTable
	}
	if s.RulePriority == 0 {
		s.RulePriority = DefaultRulePriority
	}
	if s.Mark == 0 {
		s.Mark = DefaultMark
	}
	return s
}

// validate refuses what would do harm in the kernel; the configuration is checked in more detail where it is read.
func (s Spec) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	odd := strings.ContainsAny(s.Device, "/ \t\n") || s.Device == "." || s.Device == ".."
	if s.Device == "" || len(s.Device) > 15 || odd {
		bad("device name %q: it has 1 to 15 bytes, without slash and space", s.Device)
	}
	if strings.HasPrefix(s.Device, PodPrefix) {
		bad("device name %q: names that begin with %q are those of pods; take another one", s.Device, PodPrefix)
	}
	if s.Table < 1 || s.Table >= 253 && s.Table <= 255 || int64(s.Table) > 1<<31-1 {
		bad("routing table %d: it must be from 1 to 2147483647 and none of 253, 254, 255 (default, main, local)", s.Table)
	}
	if s.RulePriority < 1 || s.RulePriority+slotPods >= 32766 {
		bad("rule priority %d: it must be from 1 to %d, before the main table's 32766", s.RulePriority, 32765-slotPods)
	}
	if s.MTU != 0 && (s.MTU < 576 || s.MTU > 65535) || s.MTU != 0 && s.MTU < 1280 && s.wants(v6) {
		bad("MTU %d: it must be from 576 (IPv6: 1280, RFC 8200 section 5) to 65535", s.MTU)
	}
	for _, p := range slices.Concat(s.PodCIDRs, s.ClusterCIDRs) {
		if !p.IsValid() || p != p.Masked() || p.Bits() == 0 {
			bad("CIDR %s: it must be a masked prefix longer than /0", p)
		}
	}
	for _, g := range s.Gateways {
		if !slices.ContainsFunc(s.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(g) }) {
			bad("gateway %s is in none of the pod CIDRs %v", g, s.PodCIDRs)
		}
	}
	for _, d := range s.Direct {
		for _, p := range d.PodCIDRs {
			if !p.IsValid() || p != p.Masked() || p.Bits() == 0 || slices.ContainsFunc(s.PodCIDRs, p.Overlaps) {
				bad("pod CIDR %s of peer %s: it must be a masked prefix longer than /0, outside of this node's own", p, d.Name)
			}
		}
	}
	for _, p := range s.Pods {
		if err := p.validate(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// validate refuses what the source check could not tell apart.
func (p Pod) validate() error {
	if !strings.HasPrefix(p.Interface, PodPrefix) || len(p.Interface) > 15 {
		return fmt.Errorf("interface %q of a pod: its name begins with %q and has at most 15 bytes", p.Interface, PodPrefix)
	}
	if len(p.Bridge) > 15 {
		return fmt.Errorf("bridge %q of %s: an interface name has at most 15 bytes", p.Bridge, p.Interface)
	}
	if p.Bridge != "" && len(p.MAC) != 6 {
		return fmt.Errorf("MAC address %q of %s: bridge mode needs the pod's Ethernet address", p.MAC, p.Interface)
	}
	for _, a := range p.Addrs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("address %q of %s: a plain IPv4 or IPv6 address is needed", a, p.Interface)
		}
	}
	return nil
}

// A family is an address family in the terms of netlink.
type family int

const (
	v4 family = 2  // AF_INET
	v6 family = 10 // AF_INET6
)

func (f family) String() string {
	if f == v4 {
		return "IPv4"
	}
	return "IPv6"
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return v4
	}
	return v6
}

// wants reports whether the node or the cluster has pods of the family.
func (s Spec) wants(f family) bool {
	return slices.ContainsFunc(slices.Concat(s.PodCIDRs, s.ClusterCIDRs),
		func(p netip.Prefix) bool { return familyOf(p.Addr()) == f })
}

// gateway is the gateway address of the family; the zero Addr when there is none.
func (s Spec) gateway(f family) netip.Addr {
	for _, g := range s.Gateways {
		if familyOf(g) == f {
			return g
		}
	}
	return netip.Addr{}
}
