package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/warren-net/warren/internal/lab"
)

// Wires between the two nodes.
const (
	// WireOffload is a veth pair as the kernel makes it: superpackets cross it whole.
	WireOffload = "offload"
	// WireSegmented cuts everything to the MTU in software before it crosses, and merges it again on arrival.
	WireSegmented = "segmented"
)

// Wires lists the wires in the order in which they are measured.
func Wires() []string { return []string{WireOffload, WireSegmented} }

// wireDevice is the name of each node's end of the wire.
const wireDevice = "eth0"

// BedOptions say what a bed is like.
type BedOptions struct {
	Prefix string // of the lab; a process has one bed per prefix at a time
	Wire   string // WireOffload or WireSegmented
	MTU    int    // bytes, of the wire; 0: 1500
}

// A Bed is two nodes joined by a wire.
type Bed struct {
	Lab   *lab.Lab
	Nodes [2]*lab.Node
	MTU   int // bytes, of the wire

	attack  *attacker // nil: nobody was attacked yet
	cleanup []func() error
}

// NewBed makes the nodes and the wire. The caller calls Close.
func NewBed(ctx context.Context, o BedOptions) (*Bed, error) {
	if o.MTU == 0 {
		o.MTU = lab.DefaultMTU
	}
	l, err := lab.New(lab.Options{Prefix: o.Prefix, MTU: o.MTU})
	if err != nil {
		return nil, err
	}
	b := &Bed{Lab: l, MTU: o.MTU}
	for i, name := range []string{"a", "b"} {
		if err == nil {
			b.Nodes[i], err = l.AddNode(name)
		}
	}
	if err == nil {
		err = b.join(ctx, o.Wire)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the %s wire: %w", o.Wire, err), b.Close())
	}
	return b, nil
}

// join replaces the lab's switch by one veth pair: a bridge between the nodes would merge and cut packets of its own.
func (b *Bed) join(ctx context.Context, wire string) error {
	for _, n := range b.Nodes {
		if err := commands(ctx, n.NS, "ip link del "+wireDevice); err != nil {
			return err
		}
	}
	err := commands(ctx, b.Nodes[0].NS, fmt.Sprintf("ip link add %s mtu %d type veth peer name %s mtu %d netns %s",
		wireDevice, b.MTU, wireDevice, b.MTU, b.Nodes[1].NS.Name))
	if err != nil {
		return err
	}
	for i, n := range b.Nodes {
		err := commands(ctx, n.NS,
			fmt.Sprintf("ip addr add %s/24 dev %s", n.V4, wireDevice),
			fmt.Sprintf("ip addr add %s/64 dev %s nodad", n.V6, wireDevice),
			fmt.Sprintf("ip link set %s up", wireDevice),
			// What a system fails to tunnel leaves by this route, and the self-check sees it.
			fmt.Sprintf("ip route add default via %s", b.Nodes[1-i].V4),
		)
		if err != nil {
			return err
		}
		if wire == WireSegmented {
			err = commands(ctx, n.NS, "ethtool -K "+wireDevice+" tso off gso off tx-udp-segmentation off gro on")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// OnClose has f called by Close, after the processes of the bed are gone.
func (b *Bed) OnClose(f func() error) { b.cleanup = append(b.cleanup, f) }

// Close ends the processes and removes the namespaces. A second call does nothing.
func (b *Bed) Close() error {
	errs := []error{b.Lab.Close()}
	for _, f := range b.cleanup {
		errs = append(errs, f())
	}
	b.cleanup = nil
	return errors.Join(errs...)
}

// podRoom is by how many bytes the pods' MTU is below the wire's: what the headers of each system here need over IPv4
// (tinc's, the largest, take 60 with their padding), and not more than leaves room for 1,400 bytes of UDP, which need
// 1,428, on a wire of 1,500.
const podRoom = 72

// MTUs that a wire can have: the pods' is 1,280 at least, which IPv6 needs, and a jumbo frame is the largest.
const (
	MinMTU = 1280 + podRoom
	MaxMTU = 9216
)

// PodMTU is the MTU in bytes of every pod, whatever the system: so all of them carry segments of one size.
func (b *Bed) PodMTU() int { return b.MTU - podRoom }

// podDevice is the node's end of a pod's veth pair, by the pod's number.
func podDevice(pod int) string { return fmt.Sprintf("pod%d", pod) }

// addPod makes a node's pod of this number without a plugin: a point-to-point veth, a host route, the node's gateway
// address.
func (b *Bed) addPod(ctx context.Context, n *lab.Node, number, mtu int) (End, error) {
	device := podDevice(number)
	pod, err := b.Lab.AddNS(n.Name + "-" + device)
	if err != nil {
		return End{}, err
	}
	gateway := n.PodCIDRs[0].Addr().Next()
	addr := gateway.Next()
	for range number {
		addr = addr.Next()
	}
	err = commands(ctx, n.NS,
		fmt.Sprintf("ip link add %s mtu %d type veth peer name eth0 mtu %d netns %s", device, mtu, mtu, pod.Name),
		fmt.Sprintf("ip addr add %s/32 dev %s", gateway, device),
		fmt.Sprintf("ip link set %s up", device),
		fmt.Sprintf("ip route add %s/32 dev %s", addr, device),
	)
	if err == nil {
		err = n.NS.SetSysctl("net/ipv4/ip_forward", "1")
	}
	if err == nil {
		err = commands(ctx, pod,
			fmt.Sprintf("ip addr add %s/32 dev eth0", addr),
			"ip link set eth0 up",
			fmt.Sprintf("ip route add %s/32 dev eth0", gateway),
			fmt.Sprintf("ip route add default via %s", gateway),
		)
	}
	return End{NS: pod, Addr: addr}, err
}

// pods makes a pod on each node and returns the way from the first to the second.
func (b *Bed) pods(ctx context.Context, mtu int) (p *Path, err error) {
	p = &Path{}
	for i, n := range b.Nodes {
		if p.Ends[i], err = b.addPod(ctx, n, 0, mtu); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// podsAndNeighbour adds a second pod on the first node, which the kernel forwards to.
func (b *Bed) podsAndNeighbour(ctx context.Context, mtu int) (*Path, error) {
	p, err := b.pods(ctx, mtu)
	if err != nil {
		return nil, err
	}
	near, err := b.addPod(ctx, b.Nodes[0], 1, mtu)
	p.Neighbour, p.Near = &near, []Hop{{Device: podDevice(0)}, {Device: podDevice(1), Sent: true}}
	return p, err
}

// commands runs command lines without quoting in a namespace, one after the other, up to the first that fails.
func commands(ctx context.Context, ns *lab.NS, lines ...string) error {
	for _, line := range lines {
		if _, err := ns.Run(ctx, strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}
