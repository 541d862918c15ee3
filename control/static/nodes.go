// Package static is the control plane that is a file: the YAML list of the cluster's nodes, read again when it changes
// or when it is told to.
//
// Spec is the part of Warren's configuration file that describes the cluster (keys `cluster`, `nodes`, `peers`,
// `encapsulation` and `wireguard`), with every check that concerns the cluster alone; node/config embeds it in the
// whole file. Source watches such a file.
package static

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/yamldoc"
)

// A Spec is the cluster as the file spells it.
type Spec struct {
	Cluster       []string              `yaml:"cluster"`
	Nodes         []NodeSpec            `yaml:"nodes"`
	Peers         []PeerSpec            `yaml:"peers"`
	Encapsulation control.Encapsulation `yaml:"encapsulation"`
	WireGuard     WireGuardSpec         `yaml:"wireguard"`
}

// A WireGuardSpec is what holds for all encrypted tunnels that say nothing else.
type WireGuardSpec struct {
	Port             int    `yaml:"port"`
	PresharedKeyFile string `yaml:"presharedKeyFile"`

	PersistentKeepalive int `yaml:"persistentKeepalive"` // seconds
}

// A NodeSpec is one node as the file spells it.
type NodeSpec struct {
	Name      string   `yaml:"name"`
	Addresses []string `yaml:"addresses"`
	PodCIDRs  []string `yaml:"podCIDRs"`
	MAC       string   `yaml:"mac"`
	Port      int      `yaml:"port"`

	PublicKey        string                `yaml:"publicKey"`
	Encapsulation    control.Encapsulation `yaml:"encapsulation"`
	WireGuardPort    int                   `yaml:"wireguardPort"`
	PresharedKeyFile string                `yaml:"presharedKeyFile"`
}

// A Cluster is a checked Spec.
type Cluster struct {
	CIDRs []netip.Prefix // masked; at least one, at most one per family is inside another
	State control.State  // the nodes in the file's order, then the peers in theirs

	PresharedKeyFile string // of nodes and peers that name no other; State has it too
}

// Pod CIDRs hold the network's own address, the gateway and at least one pod.
const minHostBits = 2

// Build checks the spec against itself and returns the cluster; d says where the keys stand. The first thing wrong is
// returned, as a *yamldoc.Error.
func (s *Spec) Build(d *yamldoc.Doc) (*Cluster, error) {
	b := &builder{doc: d, owners: map[string]string{}}
	if err := b.cluster(s.Cluster); err != nil {
		return nil, err
	}
	if len(s.Nodes) == 0 {
		return nil, d.Error(yamldoc.Finding{Key: "nodes", Why: "no node is listed",
			Fix: "list every node of the cluster, this one included, with name, addresses and podCIDRs"})
	}
	if err := b.common(s); err != nil {
		return nil, err
	}
	for i := range s.Nodes {
		if err := b.node(fmt.Sprintf("nodes[%d]", i), &s.Nodes[i]); err != nil {
			return nil, err
		}
	}
	if err := b.addressesOutsidePods(); err != nil {
		return nil, err
	}
	for i := range s.Peers {
		if err := b.peer(fmt.Sprintf("peers[%d]", i), &s.Peers[i]); err != nil {
			return nil, err
		}
	}
	return &b.out, nil
}

// BuildOwn checks the spec of a node whose fellow nodes another control plane knows: the ranges, which may be missing,
// what holds for all tunnels, and the peers that are no nodes. The state has this node, with the addresses given and
// without pod CIDRs, and behind it the peers.
func (s *Spec) BuildOwn(d *yamldoc.Doc, name string, addresses []string) (*Cluster, error) {
	b := &builder{doc: d, owners: map[string]string{}}
	if len(s.Nodes) > 0 {
		return nil, b.wrong("nodes", "", "is what `control: static` reads; with another control plane nodes tell each other",
			"leave it out, or write `control: static`")
	}
	if len(s.Cluster) > 0 {
		if err := b.cluster(s.Cluster); err != nil {
			return nil, err
		}
	}
	if err := b.common(s); err != nil {
		return nil, err
	}
	n := control.Node{Name: name, Encapsulation: s.Encapsulation, PresharedKeyFile: b.out.PresharedKeyFile}
	if err := b.name("node", name, "node"); err != nil {
		return nil, err
	}
	for i, text := range addresses {
		a, err := b.address(fmt.Sprintf("addresses[%d]", i), text, &n)
		if err != nil {
			return nil, err
		}
		n.Addresses = append(n.Addresses, a)
	}
	b.out.State.Nodes = []control.Node{n}
	if err := b.addressesOutsidePods(); err != nil {
		return nil, err
	}
	for i := range s.Peers {
		if err := b.peer(fmt.Sprintf("peers[%d]", i), &s.Peers[i]); err != nil {
			return nil, err
		}
	}
	return &b.out, nil
}

// A builder collects the checked cluster, and who owns which name, address, MAC and key so far.
type builder struct {
	doc    *yamldoc.Doc
	out    Cluster
	owners map[string]string // "address 192.0.2.1" → "node alpha"
	cidrs  []ownedPrefix

	wanted control.Encapsulation // of nodes whose entry says nothing, see tunnel
}

type ownedPrefix struct {
	prefix netip.Prefix
	node   string
}

func (b *builder) wrong(key, value, why, fix string) error {
	return b.doc.Error(yamldoc.Finding{Key: key, Value: value, Why: why, Fix: fix})
}

func (b *builder) cluster(list []string) error {
	if len(list) == 0 {
		return b.wrong("cluster", "", "the cluster's address ranges are missing",
			"list the ranges that hold all pod CIDRs, for example [10.244.0.0/16]")
	}
	for i, text := range list {
		key := fmt.Sprintf("cluster[%d]", i)
		p, err := b.prefix(key, text)
		if err != nil {
			return err
		}
		for _, other := range b.out.CIDRs {
			if other.Overlaps(p) {
				return b.wrong(key, text, "overlaps "+other.String()+", which is in the list already", "keep the wider one")
			}
		}
		b.out.CIDRs = append(b.out.CIDRs, p)
	}
	return nil
}

func (b *builder) node(key string, s *NodeSpec) error {
	n := control.Node{Name: s.Name, Port: uint16(s.Port)}
	if err := b.name(key+".name", s.Name, "node"); err != nil {
		return err
	}
	if s.Port < 0 || s.Port > 65535 || s.Port == 0 && b.doc.Has(key+".port") {
		return b.wrong(key+".port", fmt.Sprint(s.Port), "is not a UDP port",
			"use 1 to 65535, or leave the key out for the default")
	}
	if len(s.Addresses) == 0 {
		return b.wrong(key+".addresses", "", "node "+s.Name+" has no underlay address",
			"list the address at which the other nodes reach it, one per family")
	}
	for i, text := range s.Addresses {
		a, err := b.address(fmt.Sprintf("%s.addresses[%d]", key, i), text, &n)
		if err != nil {
			return err
		}
		n.Addresses = append(n.Addresses, a)
	}
	for i, text := range s.PodCIDRs {
		p, err := b.podCIDR(fmt.Sprintf("%s.podCIDRs[%d]", key, i), text, &n)
		if err != nil {
			return err
		}
		n.PodCIDRs = append(n.PodCIDRs, p)
	}
	if len(n.PodCIDRs) == 0 {
		return b.wrong(key+".podCIDRs", "", "node "+s.Name+" has no pod CIDR",
			"give it a part of the cluster's ranges that no other node has, for example a /24")
	}
	if s.MAC != "" {
		mac, err := b.mac(key+".mac", s.MAC, s.Name)
		if err != nil {
			return err
		}
		n.MAC = mac
	}
	if err := b.tunnel(key, s, &n); err != nil {
		return err
	}
	b.out.State.Nodes = append(b.out.State.Nodes, n)
	return nil
}

// name checks the name of a node or a peer, which is what kind says.
func (b *builder) name(key, name, kind string) error {
	switch {
	case name == "" && kind == "peer":
		return b.wrong(key, "", "the peer has no name", "name the machine")
	case name == "":
		return b.wrong(key, "", "the node has no name", "name it as its host is named, or as its own `node:` key says")
	case len(name) > 253 || strings.ContainsFunc(name, badNameRune):
		return b.wrong(key, name, "is not a "+kind+" name",
			"use letters, digits, dots, hyphens and underscores, at most 253 of them")
	}
	return b.own(key, name, "name", kind+" "+name)
}

func badNameRune(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_", r)
}

// own notes that the owner, "node alpha" or "peer laptop", has the value, unless another one has it already.
func (b *builder) own(key, value, kind, owner string) error {
	id := kind + " " + value
	other, taken := b.owners[id]
	switch {
	case !taken:
		b.owners[id] = owner
		return nil
	case other == owner:
		what, _, _ := strings.Cut(owner, " ")
		return b.wrong(key, value, "is in the list a second time",
			fmt.Sprintf("each %s stands in the list once, with one entry per %s", what, kind))
	}
	return b.wrong(key, value, fmt.Sprintf("is the %s of %s already", kind, other),
		"two of them cannot share one; correct one of them")
}

// address is an underlay address of a node.
func (b *builder) address(key, text string, n *control.Node) (netip.Addr, error) {
	a, err := b.host(key, text, "is not the address of a host on the underlay",
		"use the address at which the other nodes reach node "+n.Name)
	if err != nil {
		return a, err
	}
	if err := b.own(key, a.String(), "address", "node "+n.Name); err != nil {
		return a, err
	}
	if i := slices.IndexFunc(n.Addresses, func(o netip.Addr) bool { return o.Is4() == a.Is4() }); i >= 0 {
		return a, b.wrong(key, text, fmt.Sprintf("is a second %s address, beside %s", family(a), n.Addresses[i]),
			"keep one address per family: the one the other nodes are to send to")
	}
	return a, nil
}

// host is the address of one host; why and fix say what is wrong with one that no host has.
func (b *builder) host(key, text, why, fix string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		fix := "write it as 192.0.2.1 or 2001:db8::1"
		if p, prefixErr := netip.ParsePrefix(text); prefixErr == nil {
			fix = "leave the prefix length out: " + p.Addr().String()
		}
		return a, b.wrong(key, text, "is not an IP address", fix)
	}
	switch {
	case a.Is4In6():
		return a, b.wrong(key, text, "is an IPv4-mapped IPv6 address", "write it as "+a.Unmap().String())
	case a.Zone() != "" || a.IsLinkLocalUnicast():
		return a, b.wrong(key, text, "is a link-local address", "use an address that all nodes can route to")
	case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, b.wrong(key, text, why, fix)
	}
	return a, nil
}

func (b *builder) prefix(key, text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		fix := "write it as 10.244.1.0/24 or fd00:10:244:1::/64"
		if a, addrErr := netip.ParseAddr(text); addrErr == nil {
			fix = "add the prefix length, for example " + a.String() + "/24"
			if a.Is6() {
				fix = "add the prefix length, for example " + a.String() + "/64"
			}
		}
		return p, b.wrong(key, text, "is not an address range (CIDR)", fix)
	}
	switch {
	case p.Addr().Is4In6():
		return p, b.wrong(key, text, "is an IPv4-mapped IPv6 range", "write it in IPv4 form")
	case p != p.Masked():
		return p, b.wrong(key, text, "has host bits set after the prefix length", "write "+p.Masked().String())
	case p.Bits() == 0 || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast():
		return p, b.wrong(key, text, "is not a range that pods can have", "use a private range such as 10.244.0.0/16")
	}
	return p, nil
}

func (b *builder) podCIDR(key, text string, n *control.Node) (netip.Prefix, error) {
	p, err := b.prefix(key, text)
	if err != nil {
		return p, err
	}
	if p.Addr().BitLen()-p.Bits() < minHostBits {
		return p, b.wrong(key, text, "is too small: it holds no pod beside the gateway",
			fmt.Sprintf("use /%d or wider", p.Addr().BitLen()-minHostBits))
	}
	inside := func(c netip.Prefix) bool { return c.Bits() <= p.Bits() && c.Contains(p.Addr()) }
	if !slices.ContainsFunc(b.out.CIDRs, inside) {
		return p, b.wrong(key, text, fmt.Sprintf("of node %s is outside the cluster's ranges %v", n.Name, b.out.CIDRs),
			"widen `cluster` or choose a pod CIDR inside it")
	}
	for _, other := range b.cidrs {
		if other.prefix.Overlaps(p) {
			return p, b.wrong(key, text, fmt.Sprintf("of node %s overlaps %s of node %s", n.Name, other.prefix, other.node),
				"every pod CIDR belongs to one node only")
		}
	}
	if i := slices.IndexFunc(n.PodCIDRs, func(o netip.Prefix) bool { return o.Addr().Is4() == p.Addr().Is4() }); i >= 0 {
		return p, b.wrong(key, text, fmt.Sprintf("is a second %s pod CIDR, beside %s", family(p.Addr()), n.PodCIDRs[i]),
			"keep one pod CIDR per family; use a wider one for more pods")
	}
	b.cidrs = append(b.cidrs, ownedPrefix{p, n.Name})
	return p, nil
}

func (b *builder) mac(key, text, node string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return nil, b.wrong(key, text, "is not an Ethernet address", "write it as 0e:57:c0:00:02:01")
	}
	if mac[0]&1 != 0 || slices.Max(mac) == 0 {
		return nil, b.wrong(key, text, "is not the address of one station",
			"use a unicast address (the first byte even), such as the one of the kernel's VXLAN device")
	}
	return mac, b.own(key, mac.String(), "mac", "node "+node)
}

// addressesOutsidePods refuses underlay addresses in the cluster's ranges: the tunnel's own packets would be routed
// into the tunnel.
func (b *builder) addressesOutsidePods() error {
	for i, n := range b.out.State.Nodes {
		for j, a := range n.Addresses {
			for _, c := range b.out.CIDRs {
				if !c.Contains(a) {
					continue
				}
				return b.wrong(fmt.Sprintf("nodes[%d].addresses[%d]", i, j), a.String(),
					fmt.Sprintf("of node %s lies inside the cluster's range %s, so the tunnel would carry its own packets", n.Name,
						c),
					"the ranges of pods and of the underlay must not overlap")
			}
		}
	}
	return nil
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
