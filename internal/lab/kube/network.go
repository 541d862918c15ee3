package kube

import (
	"context"
	"fmt"
	"net/netip"
)

// installNetwork makes Warren the pod network of some nodes.
func (c *Cluster) installNetwork(ctx context.Context, nodes []*Node) error {
	err := each(nodes, func(n *Node) error {
		return eventually(ctx, startWait, "pod CIDRs of node "+n.Name, func() error {
			var object struct {
				Spec struct{ PodCIDRs []netip.Prefix }
			}
			if err := c.Get(ctx, &object, "node", n.Name); err != nil {
				return err
			}
			if len(object.Spec.PodCIDRs) != 2 {
				return fmt.Errorf("it has %v, and should have one of each family", object.Spec.PodCIDRs)
			}
			n.PodCIDRs = object.Spec.PodCIDRs
			return nil
		})
	})
	if err != nil {
		return err
	}
	if err := c.Lab.WriteConfigs(); err != nil {
		return err
	}
	return each(nodes, func(n *Node) error {
		if err := n.Up(ctx); err != nil {
			return err
		}
		warren, err := c.Lab.Binary("warren")
		if err != nil {
			return err
		}
		_, err = n.Runtime.Run(ctx, warren, "cni", "install", "--config", n.ConfigFile, "--mode", c.Options.Mode,
			"--chain", "portmap")
		return err
	})
}

// PodCIDRs are those that the cluster has given to a node, IPv4 and IPv6.
func (c *Cluster) PodCIDRs(ctx context.Context, n *Node) ([]netip.Prefix, error) {
	if n.podCIDRs != nil {
		return n.podCIDRs, nil // for good
	}
	err := eventually(ctx, startWait, "pod CIDRs of node "+n.Name, func() error {
		var object struct {
			Spec struct{ PodCIDRs []netip.Prefix }
		}
		if err := c.Get(ctx, &object, "node", n.Name); err != nil {
			return err
		}
		cidrs := object.Spec.PodCIDRs
		if len(cidrs) != 2 || !cidrs[0].Addr().Is4() || !cidrs[1].Addr().Is6() {
			return fmt.Errorf("it has %v, and should have one of each family", cidrs)
		}
		n.podCIDRs = cidrs
		return nil
	})
	return n.podCIDRs, err
}

// Warren runs a command of Warren's on a node.
func (c *Cluster) Warren(ctx context.Context, n *Node, args ...string) (string, error) {
	return n.Warren(ctx, args...)
}

// RestartWarren restarts Warren on one node after the other.
func (c *Cluster) RestartWarren(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.Down(ctx); err != nil {
			return err
		}
		if err := n.Up(ctx); err != nil {
			return err
		}
	}
	return nil
}

// UpgradeWarren does the same with another version.
func (c *Cluster) UpgradeWarren(ctx context.Context) error { return c.RestartWarren(ctx) }
