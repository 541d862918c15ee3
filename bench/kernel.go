package bench

import (
	"context"
	"fmt"
)

// inKernel is a system that executes nothing of its own.
type inKernel struct{}

// Prepare has nothing to do.
func (inKernel) Prepare(context.Context) error { return nil }

// Subjects: the kernel forwards between the pods of a node as well.
func (inKernel) Subjects() []Subject { return []Subject{AboutNodes, AboutNode} }

// vethSystem routes between the pods without any tunnel: what the machine can do at best.
type vethSystem struct{ inKernel }

// Name is the system's name in the report.
func (vethSystem) Name() string { return "veth" }

// Up adds the routes.
func (vethSystem) Up(ctx context.Context, b *Bed) (*Path, error) {
	p, err := b.podsAndNeighbour(ctx, b.PodMTU())
	if err != nil {
		return nil, err
	}
	for i, n := range b.Nodes {
		peer := b.Nodes[1-i]
		if err := commands(ctx, n.NS, fmt.Sprintf("ip route add %s via %s", peer.PodCIDRs[0], peer.V4)); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// kernelVXLAN is the kernel's own VXLAN device, configured as pod networks do it: permanent neighbours and forwarding
// entries, no learning, the outer UDP checksum as the kernel has it by default.
type kernelVXLAN struct{ inKernel }

const vxlanDevice = "vxlan1"

// Name is the system's name in the report.
func (kernelVXLAN) Name() string { return "kernel-vxlan" }

// Up makes the devices and their entries.
func (kernelVXLAN) Up(ctx context.Context, b *Bed) (*Path, error) {
	p, err := b.podsAndNeighbour(ctx, b.PodMTU())
	if err != nil {
		return nil, err
	}
	mac := func(i int) string { return fmt.Sprintf("0a:00:00:00:00:%02x", i+1) }
	for i, n := range b.Nodes {
		peer := b.Nodes[1-i]
		own, far := n.PodCIDRs[0].Addr(), peer.PodCIDRs[0].Addr()
		err := commands(ctx, n.NS,
			fmt.Sprintf("ip link add %s mtu %d address %s type vxlan id 1 dstport 4789 local %s dev %s nolearning",
				vxlanDevice, b.PodMTU(), mac(i), n.V4, wireDevice),
			fmt.Sprintf("ip addr add %s/32 dev %s", own, vxlanDevice),
			fmt.Sprintf("ip link set %s up", vxlanDevice),
			fmt.Sprintf("ip neigh add %s lladdr %s dev %s nud permanent", far, mac(1-i), vxlanDevice),
			fmt.Sprintf("bridge fdb add %s dev %s dst %s", mac(1-i), vxlanDevice, peer.V4),
			fmt.Sprintf("ip route add %s via %s dev %s onlink", peer.PodCIDRs[0], far, vxlanDevice),
		)
		if err != nil {
			return nil, err
		}
	}
	p.Devices = sameDevice(vxlanDevice)
	return p, nil
}
