package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/join"
	"github.com/warren-net/warren/control/remember"
	"github.com/warren-net/warren/internal/atomicfile"
	"github.com/warren-net/warren/node/config"
)

// A leaving is one call of `warren leave`.
type leaving struct {
	config, node string
	force        bool
}

func newLeave() *cobra.Command {
	var l leaving
	cmd := &cobra.Command{
		Use: "leave", Short: "Take this host out of its network, or one that is gone", Args: cobra.NoArgs,
		Long: "Take this host out of its network: its name and pod CIDRs are given back, its daemon is stopped, and\n" +
			"its certificates and its configuration are removed. On a member of the etcd run it while the daemon runs.\n" +
			"With --node a member does it for another host, which is gone; what certificates that has are worth nothing\n" +
			"from then on. With --force that host may be running, as one that fell into wrong hands.",
		Example: "  warren leave\n" +
			"  warren leave --node gamma            # on a member: one that is gone\n" +
			"  warren leave --node gamma --force    # one that is in wrong hands",
		RunE: func(cmd *cobra.Command, _ []string) error { return l.run(cmd) },
	}
	configFlag(cmd, &l.config)
	cmd.Flags().StringVar(&l.node, "node", "", "`NAME` of another host")
	cmd.Flags().BoolVar(&l.force, "force", false,
		"also while pods are attached, where the etcd does not answer or ends with this host, or while the other host runs")
	return cmd
}

func (l *leaving) run(cmd *cobra.Command) error {
	n, err := loadNetwork(l.config)
	if err != nil {
		return l.without(err)
	}
	if l.node != "" && l.node != n.cfg.Node {
		if err := l.other(cmd, n); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: node %q is out of the network\n", l.node)
		return nil
	}
	if err := mayWriteTo(n.cfg.StateDir); err != nil {
		return err
	}
	if pods := attached(n.cfg.StateDir); pods > 0 && !l.force {
		return fmt.Errorf("%s on this host: stop them first, or use --force, which cuts them off", attachedText(pods))
	}
	last := false
	if n.spec.Embedded {
		if last, err = l.asMember(cmd, n); err != nil {
			return err
		}
	}
	// Where the network cannot be told the daemon goes on.
	if !last && !l.force {
		if err := n.answers(cmd); err != nil {
			return l.untold(n, err)
		}
	}
	if err := stopDaemon(cmd.Context(), l.config, n.cfg, cmd.ErrOrStderr()); err != nil {
		return err
	}
	if last {
		fmt.Fprintln(cmd.ErrOrStderr(), "warren: this was the last member of the etcd: the network ends with it")
	} else if err := l.giveBack(cmd, n); err != nil {
		if !l.force {
			return fmt.Errorf("%w; the node's daemon is stopped by now, and does not start with the host: `systemctl enable "+
				"--now warren`, or `warren up`, starts it again", l.untold(n, err))
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: the network was not told: %s\n", oneLine(err))
	}
	if err := takeDown(n.cfg, cmd.ErrOrStderr()); err != nil {
		return err
	}
	if err := errors.Join(join.Forget(n.cfg.StateDir), atomicfile.Remove(filepath.Join(n.cfg.StateDir, remember.File)),
		os.Rename(l.config, leftBy(l.config))); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "warren: node %q is out of the network; its configuration is %s\n", n.cfg.Node,
		leftBy(l.config))
	return nil
}

// untold says what to do where the network cannot be told that this host leaves.
func (l *leaving) untold(n *network, err error) error {
	if n.spec.Own() && errors.Is(err, etcd.ErrDenied) {
		return fmt.Errorf("this host was taken out of the network already, or another one has its name: %w; --force removes "+
			"what is left of it here", err)
	}
	return fmt.Errorf("%w; --force takes this host out of the network all the same, and the network keeps its name until "+
		"its lease ends or `warren leave --node %s` on a member", err, n.cfg.Node)
}

// answers asks the etcd for what a node may know, which needs a majority of its members.
func (n *network) answers(cmd *cobra.Command) error {
	client, err := n.client()
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = client.Settings(cmd.Context())
	return err
}

// without says more of a configuration that cannot be read.
func (l *leaving) without(err error) error {
	if exists(l.config) {
		return err
	}
	stateDir := config.DefaultStateDir
	left, leftErr := config.Load(leftBy(l.config))
	if leftErr == nil {
		stateDir = left.StateDir
	}
	switch keys := etcd.Dir(stateDir); {
	case exists(keys):
		return fmt.Errorf("%w; in %s is what this host was let into a network with: without its configuration take the host "+
			"out with `warren leave --node NAME` on a member, and remove that directory", err, keys)
	case leftErr == nil:
		return fmt.Errorf("this host is out of its network already: %s is what its configuration was", leftBy(l.config))
	}
	return err
}

// other takes a host out that is gone.
func (l *leaving) other(cmd *cobra.Command, n *network) error {
	defer bounded(cmd, settle)()
	if !n.spec.Own() {
		if l.force {
			return errors.New("the network's etcd is the user's own, which says who may do what: take that host's rights away " +
				"there, then leave --force out")
		}
		client, err := n.client()
		if err != nil {
			return err
		}
		defer client.Close()
		return client.Remove(cmd.Context(), l.node)
	}
	client, err := n.admin(cmd.Context())
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := member.List(cmd.Context(), client)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.Name == l.node {
			return fmt.Errorf("node %q is a member of the etcd: `warren control demote %s` first", l.node, l.node)
		}
	}
	if l.force {
		revoked, err := join.NewTokens(client).RevokeOf(cmd.Context(), l.node)
		if err != nil {
			return err
		}
		if len(revoked) > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "warren: revoked, as node %q came with it: token %s\n", l.node,
				strings.Join(revoked, ", "))
		}
		return join.Expel(cmd.Context(), client, l.node)
	}
	err = join.Evict(cmd.Context(), client, l.node)
	if errors.Is(err, etcd.ErrAlive) {
		return fmt.Errorf("%w; --force takes it out all the same, if it is not to be trusted any more", err)
	}
	return err
}

// asMember sees to the etcd that this host has a part of. The last one's ends the network, and only by force.
func (l *leaving) asMember(cmd *cobra.Command, n *network) (last bool, err error) {
	others, err := n.outOfEtcd(cmd)
	last = errors.Is(err, member.ErrLastMember)
	switch {
	case err == nil:
		n.spec.Endpoints, n.only = others, true // its own is away now
		return false, nil
	case l.force:
		return last, nil
	case errors.Is(err, etcd.ErrUnreachable), errors.Is(err, etcd.ErrNoQuorum):
		return false, fmt.Errorf("this host is a member of the etcd, which has to let it go first, and %w; run this while "+
			"the members' daemons run, this host's as well; or --force, and then `warren control demote %s` on another member",
			err, n.cfg.Node)
	case !last:
		return false, err
	}
	client, clientErr := n.client()
	if clientErr != nil {
		return true, clientErr
	}
	defer client.Close()
	nodes, nodesErr := client.Nodes(cmd.Context())
	if nodesErr != nil {
		return true, nodesErr
	}
	return true, fmt.Errorf("%w; with this host the network ends, which has %s: --force ends it", err,
		count(len(nodes), "node"))
}

// giveBack tells the network. The daemon has stopped; in an etcd of the user's another host may have the name. In
// Warren's own the name is that of whoever has the certificate, also where the record is still that of the one before.
func (l *leaving) giveBack(cmd *cobra.Command, n *network) error {
	client, err := n.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ours := n.spec.Own()
	if !ours {
		if ours, err = client.Ours(cmd.Context()); err != nil {
			return err
		}
	}
	if !ours {
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: node %q of the network is another host, and stays in it\n", n.cfg.Node)
		return nil
	}
	if err := client.Away(cmd.Context()); err != nil {
		return err
	}
	err = client.Remove(cmd.Context(), n.cfg.Node)
	switch {
	case err != nil && !errors.Is(err, etcd.ErrNoNode):
		return err
	case !n.spec.Own():
		return nil
	}
	joins, err := n.joins(cmd)
	if err != nil {
		return err
	}
	return join.Leave(cmd.Context(), n.cfg.StateDir, joins)
}

// attached counts the pods that the CNI plugin has attached to this host.
func attached(stateDir string) int {
	entries, err := os.ReadDir(podrecord.Dir(stateDir))
	if err != nil {
		return 0 // no plugin was here
	}
	pods := 0
	for _, e := range entries {
		if !atomicfile.IsTemp(e.Name()) {
			pods++
		}
	}
	return pods
}

func attachedText(pods int) string {
	if pods == 1 {
		return "1 pod is attached"
	}
	return fmt.Sprintf("%d pods are attached", pods)
}
