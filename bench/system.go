package bench

import (
	"context"
	"net/netip"

	"github.com/warren-net/warren/internal/lab"
)

// A System makes a pod on each node of a bed and lets the two reach each other. What it starts and makes ends with the
// bed; what it leaves outside of the bed's namespaces it removes through Bed.OnClose.
type System interface {
	// Name is the system's name in the report.
	Name() string
	// Subjects are what the system has a part in.
	Subjects() []Subject
	// Prepare builds or finds what the system executes; it is called once, before anything is measured.
	Prepare(ctx context.Context) error
	// Up brings the system up on a bed of its own.
	Up(ctx context.Context, b *Bed) (*Path, error)
}

// A Needer is a System that executes a program which is not built for it.
type Needer interface {
	// Needs lists the programs, each with its Debian package: "program:package".
	Needs() []string
}

// A Subject is what a scenario is about.
type Subject int

// Subjects.
const (
	AboutNodes      Subject = iota // pods of two nodes: Path.Ends
	AboutNode                      // pods of one node: Path.Neighbour
	AboutPlugin                    // how pods are attached: Path.Plugin
	AboutHandshakes                // WireGuard's, and what strangers can do by them: Path.Victim
)

// An End is a pod.
type End struct {
	NS   *lab.NS
	Addr netip.Addr // IPv4
}

// A Hop is a device of a node and the direction in which packets cross it, as the node sees it.
type Hop struct {
	Device string
	Sent   bool // else received
}

// A Path is a system that is up: two pods and what is between them, as far as the system's subjects go.
type Path struct {
	Ends [2]End // on Bed.Nodes of the same index

	// Plugin attaches further pods to the first node.
	Plugin *Plugin

	// Victim is the second node, for others on the underlay.
	Victim *Victim

	// Neighbour is a second pod on the first node.
	Neighbour *End
	// Near are the crossings of the first node's devices between Ends[0] and Neighbour.
	Near []Hop

	// Devices are the nodes' devices that all pod traffic between them has to cross; empty when there are none, and the
	// pods' packets cross the wire as they are.
	Devices [2]string
	// Encrypts says that nothing of the pods' may be readable on the wire.
	Encrypts bool
	// Procs are the processes that carry the traffic, for the account of CPU time and memory; none for the kernel.
	Procs []*lab.Proc
}

// tunnels says whether the pods' packets are to cross the wire inside of others only.
func (p *Path) tunnels() bool { return p.Devices != [2]string{} }

// sameDevice is for a system whose device has one name on both nodes.
func sameDevice(name string) [2]string { return [2]string{name, name} }

// Options choose and configure the systems.
type Options struct {
	BinDir      string // holds warren and warren-cni
	Before      string // holds those of another commit, measured as warren-before, warren-wireguard-before; may be empty
	PeerDir     string // where other programs are built
	Nebula      string // a nebula binary with nebula-cert beside it instead of the built one; may be empty
	WireguardGo string // a wireguard-go binary instead of the built one; may be empty
	Tincd       string // a tincd binary instead of the installed one; may be empty
}

// Systems lists all systems in the order of a round.
func Systems(o Options) []System {
	systems := []System{vethSystem{}, kernelVXLAN{}, &warrenSystem{encapsulation: "vxlan", binDir: o.BinDir}}
	if o.Before != "" {
		systems = append(systems, &warrenSystem{encapsulation: "vxlan", binDir: o.Before, name: warrenBefore},
			&warrenSystem{encapsulation: encrypted, binDir: o.Before, name: wireguardBefore})
	}
	return append(systems,
		&warrenSystem{encapsulation: encrypted, binDir: o.BinDir},
		&wireguardGo{binary: o.WireguardGo, dir: o.PeerDir},
		&nebula{binary: o.Nebula, dir: o.PeerDir},
		&tinc{binary: o.Tincd},
		&ptp{dir: o.PeerDir},
	)
}
