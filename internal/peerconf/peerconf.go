// Package peerconf writes the configuration of a machine that joins the pod network without Warren: the text that
// wg-quick(8) and WireGuard's apps read, and the same as a QR code on a terminal.
//
// What it writes has a private key in it. Nothing is kept between calls.
package peerconf

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/node/config"
)

// maxMTU is the machine's MTU at most, in bytes: what WireGuard leaves of the usual 1500 over IPv6. The machine may be
// anywhere, so wider underlays of the cluster tell nothing of its own.
const maxMTU = 1420

// keepalive is how often the machine sends something when it has nothing to say, in seconds, so that the nodes' packets
// find their way back through a translated address: most of those are forgotten after 30 seconds at the earliest.
const keepalive = 25

// A File is a machine's configuration.
type File struct {
	PrivateKey key.Private
	Addresses  []netip.Prefix
	MTU        int // bytes
	Nodes      []Node
}

// A Node is what the machine knows of one node.
type Node struct {
	Name         string
	PublicKey    key.Public
	PresharedKey key.Preshared // zero: none
	AllowedIPs   []netip.Prefix
	Endpoint     netip.AddrPort
}

// A Machine is the one that joins.
type Machine struct {
	Peer         *control.Node // its entry
	PrivateKey   key.Private
	PresharedKey key.Preshared // with all nodes; zero: none
}

// New makes the configuration of a machine for the cluster, and says which nodes it leaves out and why. The error says
// that none is left.
func New(cfg *config.Config, m Machine) (file *File, leftOut []string, err error) {
	file = &File{PrivateKey: m.PrivateKey, Addresses: m.Peer.PodCIDRs, MTU: maxMTU}
	if cfg.MTU > 0 {
		file.MTU = min(file.MTU, cfg.MTU)
	}
	for _, n := range cfg.State.Nodes {
		if n.Roams {
			continue
		}
		allowed := sameFamilies(n.PodCIDRs, m.Peer.PodCIDRs)
		switch {
		case n.Plaintext():
			leftOut = append(leftOut, fmt.Sprintf("node %s is left out, as it is plaintext: %s does not reach its pods before "+
				"it has a publicKey and no `encapsulation: vxlan`", n.Name, m.Peer.Name))
			continue
		case len(allowed) == 0:
			leftOut = append(leftOut, fmt.Sprintf("node %s is left out, as its pods and %s have no address family in common",
				n.Name, m.Peer.Name))
			continue
		}
		file.Nodes = append(file.Nodes, Node{
			Name: n.Name, PublicKey: n.PublicKey, PresharedKey: m.PresharedKey, AllowedIPs: allowed,
			Endpoint: netip.AddrPortFrom(n.Addresses[0], cfg.WireGuardPortOf(&n)),
		})
	}
	if len(file.Nodes) == 0 {
		return nil, leftOut, errors.New("no node is left that " + m.Peer.Name + " could talk with")
	}
	return file, leftOut, nil
}

// sameFamilies are the ranges whose family the machine has an address of: others it could not answer.
func sameFamilies(ranges, own []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range ranges {
		for _, o := range own {
			if o.Addr().Is4() == r.Addr().Is4() {
				out = append(out, r)
				break
			}
		}
	}
	return out
}

// Text is the configuration as wg-quick(8) reads it, with the nodes' names in comments.
func (f *File) Text() string { return f.text(true) }

func (f *File) text(comments bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[Interface]\nPrivateKey = %s\nAddress = %s\nMTU = %d\n", f.PrivateKey.RevealText(),
		joined(f.Addresses), f.MTU)
	for _, n := range f.Nodes {
		b.WriteString("\n")
		if comments {
			fmt.Fprintf(&b, "# %s\n", n.Name)
		}
		fmt.Fprintf(&b, "[Peer]\nPublicKey = %s\n", n.PublicKey)
		if !n.PresharedKey.IsZero() {
			fmt.Fprintf(&b, "PresharedKey = %s\n", n.PresharedKey.RevealText())
		}
		fmt.Fprintf(&b, "AllowedIPs = %s\nEndpoint = %s\nPersistentKeepalive = %d\n", joined(n.AllowedIPs), n.Endpoint,
			keepalive)
	}
	return b.String()
}

func joined(list []netip.Prefix) string {
	out := make([]string, 0, len(list))
	for _, p := range list {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}
