// Package control says where routes and peers come from. A Source is a stream of complete node states; the rest of
// Warren never knows which source it is. A control plane that is down never stops traffic: it sends nothing, and the
// last state stays in force.
//
// control/static is the source that reads them from a YAML file.
package control

import (
	"context"
	"net"
	"net/netip"

	"github.com/warren-net/warren/internal/key"
)

// A Node is what the cluster knows of one node.
type Node struct {
	Name      string
	Addresses []netip.Addr     // underlay addresses, at most one per family; the node's own, unmapped
	PodCIDRs  []netip.Prefix   // masked; the node's pods live there
	MAC       net.HardwareAddr // VXLAN VTEP address; nil: derived from the first underlay address (vxlan.MAC)
	Port      uint16           // UDP port of the node's VXLAN tunnel; 0: the cluster's default

	PublicKey     key.Public // of the encrypted tunnel; zero: the node has none
	WireGuardPort uint16     // UDP port of the encrypted tunnel; 0: the cluster's default
	Plaintext     bool       // traffic with the node is to be VXLAN, although it has a key or because it has none

	PresharedKeyFile string // absolute path; of a key that both sides mix in beside their key pairs; empty: there is none

	// Roams says that the node is no Warren node but a machine with addresses in the pod network, PodCIDRs, that may be
	// anywhere: any WireGuard implementation. It has no Addresses, and is reached once it has called.
	Roams bool
}

// A State is the whole cluster as a source sees it, the own node included.
type State struct {
	Nodes []Node
}

// A Source delivers states.
type Source interface {
	// Run sends every new State to updates until ctx ends. A state that is bad is not sent: it is reported through
	// problem, with a message that names what is wrong and what to do, and the last good one stays in force.
	// Run returns only when ctx ends or when the source can never deliver anything again.
	Run(ctx context.Context, updates chan<- State, problem func(error)) error
}
