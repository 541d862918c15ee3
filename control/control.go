// Package control says where routes and peers come from. A Source is a stream of node states: first all of them, then
// what changes. The rest of Warren never knows which source it is. A control plane that is down never stops traffic: it
// sends nothing, and what it said last stays in force.
//
//	control/static      a YAML file
//	control/etcd        an etcd, its own or one that runs already; nodes lease their pod CIDRs
//	control/kubernetes  the API server's Node objects
//
// What a source says of a node is a claim. Several nodes may claim one pod CIDR, address or key, by mistake or because
// one of them was taken over, and a Ledger decides whose claim is in force.
package control

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"

	"github.com/warren-net/warren/internal/key"
)

// An Encapsulation is how a node wants traffic with it to cross the underlay.
type Encapsulation string

// The encapsulations, as users spell them. None: WireGuard.
const (
	WireGuard Encapsulation = "wireguard" // the encrypted tunnel
	VXLAN     Encapsulation = "vxlan"     // the plaintext tunnel
	Direct    Encapsulation = "direct"    // no tunnel: routes through the other node, or through the router before it
	Auto      Encapsulation = "auto"      // the same with nodes on the same subnet, a tunnel with others
)

// Known reports whether this version of Warren has the encapsulation.
func (e Encapsulation) Known() bool {
	switch e {
	case WireGuard, VXLAN, Direct, Auto:
		return true
	}
	return false
}

// A Node is what the cluster knows of one node. It is not changed once it was handed on.
type Node struct {
	Name      string
	Addresses []netip.Addr     // underlay addresses, at most one per family; the node's own, unmapped
	PodCIDRs  []netip.Prefix   // masked, at most one per family; the node's pods live there
	MAC       net.HardwareAddr // VXLAN VTEP address; nil: derived from the first underlay address (vxlan.MAC)
	Port      uint16           // UDP port of the node's VXLAN tunnel; 0: the cluster's default

	PublicKey     key.Public    // of the encrypted tunnel; zero: the node has none
	WireGuardPort uint16        // UDP port of the encrypted tunnel; 0: the cluster's default
	Encapsulation Encapsulation // of traffic with it; empty: WireGuard

	PresharedKeyFile string // absolute path; of a key that both sides mix in beside their key pairs; empty: there is none

	// Roams says that the node is no Warren node but a machine with addresses in the pod network, PodCIDRs, that may be
	// anywhere: any WireGuard implementation. It has no Addresses, and is reached once it has called.
	Roams bool

	// Order says who came first: of two new claims to one thing the lower one holds. It is about the claim and no part
	// of it: what is claimed is the same when it changes. A source may leave it 0; then the names decide, so that all
	// nodes decide alike.
	Order int64

	// Broken is why the rest of this claim could not be read, in words for people: what is wrong with which value, and
	// what to do. Only the name is known then, and what the node claimed before stays in force.
	Broken string
}

// Plaintext reports whether the node's tunnel is a plaintext one. One that permits plaintext by asking for direct or
// auto still has an encrypted tunnel if it has a key.
func (n *Node) Plaintext() bool {
	return n.Encapsulation == VXLAN || n.Untunnelled() && n.PublicKey.IsZero()
}

// Untunnelled reports whether the node asks to be reached without a tunnel, by some or by all.
func (n *Node) Untunnelled() bool { return n.Encapsulation == Direct || n.Encapsulation == Auto }

// Equal reports whether two claims say the same, whichever came first.
func (n *Node) Equal(o *Node) bool {
	return n.Name == o.Name && slices.Equal(n.Addresses, o.Addresses) && slices.Equal(n.PodCIDRs, o.PodCIDRs) &&
		bytes.Equal(n.MAC, o.MAC) && n.Port == o.Port && n.PublicKey == o.PublicKey &&
		n.WireGuardPort == o.WireGuardPort && n.Encapsulation == o.Encapsulation &&
		n.PresharedKeyFile == o.PresharedKeyFile && n.Roams == o.Roams && n.Broken == o.Broken
}

// A State is the whole cluster, the own node included.
type State struct {
	Nodes []Node
}

// An Update is what has changed since the update before it. Applied in order, updates never lead through a state that
// the source did not see.
type Update struct {
	Whole bool     // Nodes is all there is: whoever is not in it is gone
	Nodes []Node   // new ones and changed ones, each with all that is known of it
	Gone  []string // names; of nodes that were there

	Cluster []netip.Prefix // the cluster's ranges, masked, where the source keeps them; empty: as they were
}

// A Source delivers updates, the own node included once the cluster knows of it.
type Source interface {
	// Run sends updates until ctx ends; the first one is Whole, and so is one after which earlier ones no longer count.
	// What keeps the source as a whole from delivering is reported through problem, once for each cause, with a message
	// that names what is wrong and what to do; nil says that it delivers again. Run returns only when ctx ends or when
	// the source can never deliver anything again.
	Run(ctx context.Context, updates chan<- Update, problem func(error)) error
}

// A Publisher is a Source that also tells the others of this node.
type Publisher interface {
	Source

	// Publish sets what is to be told: Addresses, MAC, ports, PublicKey and Encapsulation. The name is the source's, and
	// PodCIDRs are the cluster's to give. It does not wait; the latest call counts. Safe for concurrent use.
	Publish(self Node)
}
