package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/warren-net/warren/cni/ipam"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/nodefile"
)

// network is what ADD needs to know: the configuration completed by what the daemon says about the node.
type network struct {
	Config
	sets       []allocator.RangeSet // a pod gets an address of each
	mtu        int
	gsoMaxSize int
	device     string // the TUN's name; empty when the daemon has never run
	node       *nodefile.File
}

// resolve completes the configuration with the node file of the daemon.
func (c Config) resolve() (network, error) {
	n := network{Config: c, mtu: c.MTU}
	node, err := nodefile.Read(c.RunDir)
	known := err == nil
	// By DHCP a pod asks over the bridge, for which the node's gateway has to be known.
	standalone := len(c.PodCIDRs) > 0 || len(c.Ranges) > 0 || c.IPAM != nil && !podrecord.UsesDHCP(c.IPAM)
	switch {
	case known:
		n.node, n.device, n.gsoMaxSize = &node, node.Device, node.GSOMaxSize
		if n.mtu == 0 {
			n.mtu = node.MTU
		}
		if node.StateDir != "" && node.StateDir != c.StateDir {
			return n, fail(types.ErrInvalidNetworkConfig, "stateDir is %s, but the daemon keeps its state in %s and would not "+
				"see this pod: set stateDir of network %q to the daemon's", c.StateDir, node.StateDir, c.Name)
		}
	case errors.Is(err, fs.ErrPermission):
		return n, fail(types.ErrIOFailure, "%w: %s", err, runAsRoot())
	case !errors.Is(err, nodefile.ErrMissing):
		return n, fail(types.ErrDecodingFailure, "%w", err)
	case !standalone:
		return n, err
	}
	if n.mtu == 0 {
		n.mtu = DefaultMTU
	}
	if c.IPAM != nil {
		_, err := findDelegate(c.IPAM, "ADD")
		return n, err // the plugin's result says the rest
	}
	ranges := c.Ranges
	if len(ranges) == 0 {
		cidrs := c.PodCIDRs
		if len(cidrs) == 0 {
			cidrs = node.PodCIDRs
		}
		ranges = rangesOf(cidrs)
	}
	for _, set := range ranges {
		s, err := n.rangeSet(set, node, known)
		if err != nil {
			return n, err
		}
		n.sets = append(n.sets, s)
	}
	return n, n.validate()
}

// stillServed makes sure that the daemon's file is as it was read. A daemon that stops in order takes it away when no
// pod has a record, together with what keeps pods from sending in the clear; so this comes after the record.
func (n *network) stillServed() error {
	if n.node == nil {
		return nil
	}
	now, err := nodefile.Read(n.RunDir)
	if err != nil {
		return err
	}
	if !slices.Equal(now.PodCIDRs, n.node.PodCIDRs) || now.StateDir != n.node.StateDir {
		return fail(types.ErrTryAgainLater, "the node daemon has just been restarted with another configuration: try again")
	}
	return nil
}

// rangesOf makes one range set per family: a pod gets one address of each family, from whichever CIDR has one.
func rangesOf(cidrs []netip.Prefix) [][]Range {
	var v4, v6 []Range
	for _, cidr := range cidrs {
		if cidr.Addr().Is4() {
			v4 = append(v4, Range{Subnet: cidr})
		} else {
			v6 = append(v6, Range{Subnet: cidr})
		}
	}
	return slices.DeleteFunc([][]Range{v4, v6}, func(set []Range) bool { return len(set) == 0 })
}

// rangeSet checks a set and completes its gateways. known: the daemon told about the node.
func (n *network) rangeSet(ranges []Range, node nodefile.File, known bool) (allocator.RangeSet, error) {
	bad := func(r Range, format string, args ...any) error {
		return fail(types.ErrInvalidNetworkConfig, "range in %s of network %q: %w", r.Subnet, n.Name,
			fmt.Errorf(format, args...))
	}
	var set allocator.RangeSet
	for _, r := range ranges {
		if !r.Subnet.IsValid() {
			return nil, fail(types.ErrInvalidNetworkConfig, "a range of network %q has no subnet", n.Name)
		}
		part := r.Subnet // that the node gives addresses of
		if known {
			gateway, ok := node.Gateway(r.Subnet)
			if !ok && n.Uplink != "" {
				var err error
				if r, part, err = n.acrossNodes(r); err != nil {
					return nil, bad(r, "%w", err)
				}
				gateway, ok = node.Gateway(part)
			}
			if !ok {
				return nil, bad(r, "it is outside the node's pod CIDRs %v, so no other node would find the pods", node.PodCIDRs)
			}
			if r.Gateway.IsValid() && r.Gateway != gateway {
				return nil, bad(r, "gateway %s is not the node's, which is %s: leave gateway out", r.Gateway, gateway)
			}
			r.Gateway = gateway
		}
		if !r.Gateway.IsValid() {
			r.Gateway = r.Subnet.Masked().Addr().Next()
		}
		if n.Mode == ModeBridge && !r.Subnet.Contains(r.Gateway) {
			return nil, bad(r, "it does not hold the gateway %s, which a pod on a bridge looks for on its link: take the whole "+
				"pod CIDR as subnet, and rangeStart and rangeEnd for the part", r.Gateway)
		}
		if r.RangeStart.IsValid() && r.RangeEnd.IsValid() && r.RangeEnd.Less(r.RangeStart) ||
			r.RangeStart == r.Gateway && r.RangeEnd == r.Gateway {
			return nil, bad(r, "%s-%s holds no address for a pod", r.RangeStart, r.RangeEnd)
		}
		a := allocator.Range{
			Subnet:  types.IPNet{IP: r.Subnet.Addr().AsSlice(), Mask: net.CIDRMask(r.Subnet.Bits(), r.Subnet.Addr().BitLen())},
			Gateway: r.Gateway.AsSlice(), RangeStart: r.RangeStart.AsSlice(), RangeEnd: r.RangeEnd.AsSlice(),
		}
		if err := a.Canonicalize(); err != nil {
			return nil, bad(r, "%w", err)
		}
		first, last := part.Masked().Addr(), lastOf(part)
		if r.RangeStart == first {
			return nil, bad(r, "rangeStart %s is the network's own address: begin at %s", first, first.Next())
		}
		if r.RangeEnd == last && last.Is4() {
			return nil, bad(r, "rangeEnd %s is the broadcast address: end at %s", last, last.Prev())
		}
		set = append(set, a)
	}
	if err := set.Canonicalize(); err != nil {
		return nil, fail(types.ErrInvalidNetworkConfig, "ranges of network %q: %w", n.Name, err)
	}
	return set, nil
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// validate checks the completed network.
func (n *network) validate() error {
	bad := func(format string, args ...any) error { return fail(types.ErrInvalidNetworkConfig, format, args...) }
	for i := range n.sets {
		for j := range i {
			if n.sets[i].Overlaps(&n.sets[j]) {
				return bad("ranges of network %q: %s and %s overlap", n.Name, n.sets[j].String(), n.sets[i].String())
			}
		}
	}
	if n.mtu < 1280 && n.has(netip.Addr.Is6) {
		return bad("mtu is %d, but network %q gives IPv6 addresses, for which it must be at least 1280 (RFC 8200, section 5)",
			n.mtu, n.Name)
	}
	return n.checkRoutes()
}

// has reports whether a pod gets an address of the family.
func (n *network) has(family func(netip.Addr) bool) bool {
	return slices.ContainsFunc(n.sets, func(s allocator.RangeSet) bool {
		addr, _ := netip.AddrFromSlice(s[0].RangeStart)
		return family(addr.Unmap())
	})
}

func (n *network) isGateway(ip net.IP) bool {
	return slices.ContainsFunc(n.sets, func(s allocator.RangeSet) bool {
		return slices.ContainsFunc(s, func(r allocator.Range) bool { return r.Gateway.Equal(ip) })
	})
}

// describe names the network's ranges, for messages.
func (n *network) describe() string {
	var names []string
	for i := range n.sets {
		names = append(names, n.sets[i].String())
	}
	return strings.Join(names, " and ")
}

// moreRoom says how a network whose addresses are all in use gets others.
func (n *network) moreRoom(full *ipam.FullError) string {
	field := "ranges"
	if len(n.Ranges) == 0 {
		field = "podCIDRs"
	}
	if len(n.PodCIDRs)+len(n.Ranges) > 0 && n.narrower(full) {
		return fmt.Sprintf("delete pods that are not needed, or widen %s of network %q", field, n.Name)
	}
	return "delete pods that are not needed, or give the node a larger pod CIDR"
}

// narrower reports whether a set of the network's has fewer addresses than the node has of its family.
func (n *network) narrower(full *ipam.FullError) bool {
	if n.node == nil {
		return true // nobody says what the node has
	}
	of := func(family bool) (*big.Int, bool) {
		for _, ranges := range rangesOf(n.node.PodCIDRs) {
			if ranges[0].Subnet.Addr().Is6() != family {
				continue
			}
			set, err := n.rangeSet(ranges, *n.node, true)
			return ipam.Capacity(set), err == nil
		}
		return nil, false
	}
	all, known := of(strings.Contains(full.Set, ":"))
	total, ok := new(big.Int).SetString(full.Total, 10)
	return ok && known && total.Cmp(all) < 0
}
