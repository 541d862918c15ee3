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
