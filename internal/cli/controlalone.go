package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/member"
)

func newControlAlone() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "alone", Short: "Go on with this member where the others are lost", Args: cobra.NoArgs,
		Long: "Make this host's member the only one of the etcd, with the data that it has: for when most of the members\n" +
			"are lost for good, or when its data is a backup. What the others know beyond it is lost. The daemon has to be\n" +
			"stopped, and no other member may run. Hosts that were members are made so again by `warren control demote`,\n" +
			"which tells their configuration, and then `warren control promote`.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := loadNetwork(path)
			if err != nil {
				return err
			}
			if !n.spec.Embedded {
				return fmt.Errorf("node %q is no member of the etcd", n.cfg.Node)
			}
			spec := n.spec
			o := member.Options{Name: n.cfg.Node, Network: spec.Network, StateDir: n.cfg.StateDir,
				Client: spec.ListenClients, Peer: spec.ListenPeers, Join: spec.ListenJoin}
			if o.Network == "" {
				o.Network = etcd.DefaultNetwork
			}
			if err := member.MakeAlone(cmd.Context(), o); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "warren: node %q is the only member of the etcd: start its daemon; on each "+
				"host that was one run `warren control demote`\n", n.cfg.Node)
			return err
		},
	}
	configFlag(cmd, &path)
	return cmd
}
