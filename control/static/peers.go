package static

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/yamldoc"
)

// A PeerSpec is a machine with addresses in the pod network that is no node, as the file spells it.
type PeerSpec struct {
	Name             string   `yaml:"name"`
	PublicKey        string   `yaml:"publicKey"`
	Addresses        []string `yaml:"addresses"`
	PresharedKeyFile string   `yaml:"presharedKeyFile"`
}

// Admit checks an entry that is to be added to the file's peers, and returns the peer. The error is a *yamldoc.Error
// that names no file.
func (c *Cluster) Admit(s PeerSpec) (*control.Node, error) {
	b := &builder{doc: &yamldoc.Doc{}, owners: map[string]string{},
		out: Cluster{CIDRs: c.CIDRs, PresharedKeyFile: c.PresharedKeyFile}}
	for _, n := range c.State.Nodes {
		owner := "node " + n.Name
		if n.Roams {
			owner = "peer " + n.Name
		}
		b.owners["name "+n.Name], b.owners["publicKey "+n.PublicKey.String()] = owner, owner
		for _, p := range n.PodCIDRs {
			if n.Roams {
				b.owners["address "+p.Addr().String()] = owner
			} else {
				b.cidrs = append(b.cidrs, ownedPrefix{p, n.Name})
			}
		}
	}
	if err := b.peer("peers[]", &s); err != nil {
		return nil, err
	}
	return &b.out.State.Nodes[0], nil
}

func (b *builder) peer(key string, s *PeerSpec) error {
	p := control.Node{Name: s.Name, Roams: true}
	if err := b.name(key+".name", s.Name, "peer"); err != nil {
		return err
	}
	if s.PublicKey == "" {
		return b.wrong(key+".publicKey", "", "peer "+s.Name+" has no publicKey, which is what it is known by",
			"add the one that its WireGuard shows; `warren peer config "+s.Name+
				" --address ADDRESS` makes a key pair and prints the entry")
	}
	var err error
	if p.PublicKey, err = b.publicKey(key+".publicKey", s.PublicKey, "peer "+s.Name); err != nil {
		return err
	}
	if p.PresharedKeyFile, err = b.keyFile(key+".presharedKeyFile", s.PresharedKeyFile); err != nil {
		return err
	}
	if len(s.Addresses) == 0 {
		return b.wrong(key+".addresses", "", "peer "+s.Name+" has no address in the pod network",
			"give it one inside the cluster's ranges and outside every node's pod CIDR")
	}
	for i, text := range s.Addresses {
		a, err := b.podAddress(fmt.Sprintf("%s.addresses[%d]", key, i), text, s.Name)
		if err != nil {
			return err
		}
		p.PodCIDRs = append(p.PodCIDRs, netip.PrefixFrom(a, a.BitLen()))
	}
	b.out.State.Nodes = append(b.out.State.Nodes, p)
	return nil
}

// podAddress is a peer's address: inside the cluster, so that everybody routes it into the tunnel, and nobody else's.
func (b *builder) podAddress(key, text, peer string) (netip.Addr, error) {
	const fix = "use one inside the cluster's ranges and outside every node's pod CIDR"
	a, err := b.host(key, text, "is not an address that a machine can have", fix)
	if err != nil {
		return a, err
	}
	if len(b.out.CIDRs) > 0 && !slices.ContainsFunc(b.out.CIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) {
		return a, b.wrong(key, text, fmt.Sprintf("of peer %s is outside the cluster's ranges %v", peer, b.out.CIDRs), fix)
	}
	for _, c := range b.cidrs {
		if c.prefix.Contains(a) {
			return a, b.wrong(key, text, fmt.Sprintf("of peer %s is inside %s of node %s, which gives it to its pods", peer,
				c.prefix, c.node), fix)
		}
	}
	return a, b.own(key, a.String(), "address", "peer "+peer)
}
