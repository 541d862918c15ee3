package cli

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/join"
)

func newControl() *cobra.Command {
	cmd := &cobra.Command{
		Use: "control", Short: "Look at the etcd's members, add and remove them", Args: cobra.NoArgs,
		Long: "Look at the members of the etcd that runs inside of Warren, add and remove them. Traffic goes on whatever\n" +
			"becomes of them: they are needed for hosts that join or leave.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newControlMembers(), newPromote(), newDemote(), newControlAlone())
	return cmd
}

// A memberJSON is a member as it is listed.
type memberJSON struct {
	Name    string `json:"name"`
	State   string `json:"state"` // "leader", "voting", "learner", or what is wrong with it
	Clients string `json:"clients"`
	Peers   string `json:"peers"`
}

func newControlMembers() *cobra.Command {
	var path, output string
	cmd := &cobra.Command{
		Use: "members", Short: "Show the members of the etcd", Args: cobra.NoArgs,
		Long: "Show the members of the etcd: their names, which one leads, and what is wrong with those that do not answer.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			// Every node may ask for it.
			return withClient(path, func(_ *network, client *etcd.Client) error { return showMembers(cmd, client, output) })
		},
	}
	configFlag(cmd, &path)
	outputFlag(cmd, &output)
	return cmd
}

// showMembers lists the members of the etcd.
func showMembers(cmd *cobra.Command, client *etcd.Client, output string) error {
	list, err := member.List(cmd.Context(), client)
	if err != nil {
		return err
	}
	out := []memberJSON{}
	rows := [][]string{{"NAME", "STATE", "CLIENTS", "PEERS"}}
	for _, l := range list {
		m := memberJSON{Name: l.Name, State: "voting", Clients: l.Client, Peers: l.Peer}
		switch {
		case l.Problem != "":
			m.State = l.Problem
		case l.Learner:
			m.State = "learner"
		case l.Leader:
			m.State = "leader"
		}
		out = append(out, m)
		rows = append(rows, []string{dash(m.Name), m.State, dash(m.Clients), m.Peers})
	}
	if output == "json" {
		return writeJSON(cmd.OutOrStdout(), out)
	}
	return table(cmd.OutOrStdout(), rows...)
}

func newPromote() *cobra.Command {
	var h hostFlags
	var token string
	cmd := &cobra.Command{
		Use: "promote --token TOKEN [ADDRESS]", Short: "Make this node a member of the etcd as well",
		Args: cobra.MaximumNArgs(1),
		Long: "Make this node a member of the etcd as well, with a token from `warren token new --member`. Three members\n" +
			"go on when one is lost, five when two are. The node's daemon is started again where it runs under systemd.",
		Example: "  warren token new --member               # on a member\n" +
			"  warren control promote --token TOKEN    # here",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := loadNetwork(h.config)
			if err != nil {
				return err
			}
			if err := mayWriteTo(n.cfg.StateDir); err != nil {
				return err
			}
			switch {
			case !n.spec.Own():
				return errors.New("the network's etcd is the user's own: add members as its manual says")
			case n.spec.Embedded:
				return fmt.Errorf("node %q is a member already: `warren control members` lists them", n.cfg.Node)
			case token == "":
				return errors.New("--token is missing: `warren token new --member` on a member prints it")
			}
			tok, err := readToken(token, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if err := member.CheckSpace(n.cfg.StateDir); err != nil {
				return err
			}
			if len(args) == 0 {
				if args, err = n.joins(cmd); err != nil {
					return err
				}
			}
			h.addresses = nil
			for _, a := range n.cfg.Self.Addresses {
				h.addresses = append(h.addresses, a.String())
			}
			if len(h.addresses) == 0 {
				return fmt.Errorf("%s: `addresses` is missing: write the address at which others reach this host", h.config)
			}
			spec := n.spec
			h.listens(&spec)
			got, err := join.Join(cmd.Context(), join.Host{Address: args[0], Token: tok, Node: n.cfg.Node,
				StateDir: n.cfg.StateDir,
				Member:   &join.MemberAddresses{Client: spec.ListenClients, Peer: spec.ListenPeers, Join: spec.ListenJoin}})
			if err != nil {
				return err
			}
			if err := member.WritePeers(n.cfg.StateDir, got.Peers); err != nil {
				return err
			}
			spec.Endpoints = got.Endpoints
			if err := rewriteEtcd(h.config, &spec); err != nil {
				return err
			}
			return restartService(cmd, "it becomes a member when it does, and a voting one when it has all data")
		},
	}
	configFlag(cmd, &h.config)
	cmd.Flags().StringVar(&token, "token", "", "`TOKEN` that permits it, or - to read it from standard input")
	return cmd
}

// joins is where hosts are let in, as the etcd knows it.
func (n *network) joins(cmd *cobra.Command) ([]string, error) {
	client, err := n.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	members, err := client.Members(cmd.Context())
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range members {
		if m.Join != "" && m.Name != n.cfg.Node {
			out = append(out, m.Join)
		}
	}
	for _, m := range members { // the own one last: it may be on its way out
		if m.Join != "" && m.Name == n.cfg.Node {
			out = append(out, m.Join)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the etcd names no member that lets hosts in: name one by its ADDRESS")
	}
	return out, nil
}

func newDemote() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "demote [NAME]", Short: "Take a member out of the etcd; its node stays", Args: cobra.MaximumNArgs(1),
		Long: "Take a member out of the etcd: this host's, or that of another one by its name, which may be gone. The\n" +
			"node and its pods stay.",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := loadNetwork(path)
			if err != nil {
				return err
			}
			if len(args) > 0 && args[0] != n.cfg.Node {
				defer bounded(cmd, settle)()
				client, err := n.admin(cmd.Context())
				if err != nil {
					return err
				}
				defer client.Close()
				if err := member.Demote(cmd.Context(), client, args[0]); err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "warren: node %q is no member of the etcd any more\n", args[0])
				return nil
			}
			return n.demoteSelf(cmd, path)
		},
	}
	configFlag(cmd, &path)
	return cmd
}

// demoteSelf takes this host's member out, and writes that down.
func (n *network) demoteSelf(cmd *cobra.Command, path string) error {
	if !n.spec.Embedded {
		return fmt.Errorf("node %q is no member of the etcd: `warren control members` lists them", n.cfg.Node)
	}
	if err := mayWriteTo(n.cfg.StateDir); err != nil {
		return err
	}
	others, err := n.outOfEtcd(cmd)
	if err != nil {
		return err
	}
	spec := n.spec
	spec.Embedded, spec.ListenClients, spec.ListenPeers, spec.ListenJoin = false, "", "", ""
	spec.Endpoints = others
	if err := rewriteEtcd(path, &spec); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "warren: node %q is no member of the etcd any more\n", n.cfg.Node)
	if err := restartService(cmd, "until then it warns that it is none"); err != nil {
		return err
	}
	files := join.MemberFiles(n.cfg.StateDir)
	err = errors.Join(member.RemoveData(n.cfg.StateDir), join.ForgetMember(n.cfg.StateDir))
	if err != nil {
		return fmt.Errorf("what is left of the member (%s): %w", files.Key, err)
	}
	return nil
}

// outOfEtcd takes this host's member out through the others, and returns where their etcd is reached. One that they
// took out before is no error.
func (n *network) outOfEtcd(cmd *cobra.Command) ([]string, error) {
	if _, err := os.Stat(join.MemberFiles(n.cfg.StateDir).Key); err != nil {
		return nil, fmt.Errorf("this host's certificate as a member: %w: run `warren control demote %s` on another member",
			err, n.cfg.Node)
	}
	asNode, err := n.client()
	if err != nil {
		return nil, err
	}
	members, err := asNode.Members(cmd.Context())
	_ = asNode.Close() // nothing was written
	if err != nil {
		return nil, err
	}
	var others []string
	for _, m := range members {
		if m.Name != n.cfg.Node {
			others = append(others, m.Client)
		}
	}
	if len(others) == 0 {
		return nil, fmt.Errorf("node %q: %w: promote another host first", n.cfg.Node, member.ErrLastMember)
	}
	through := *n
	through.spec.Endpoints, through.only = others, true
	client, err := through.clientWith(join.MemberFiles(n.cfg.StateDir))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	err = member.Demote(cmd.Context(), client, n.cfg.Node)
	if err != nil && !errors.Is(err, member.ErrNoMember) && !errors.Is(err, etcd.ErrDenied) {
		return nil, err
	}
	return others, nil
}

// settle is how long a service may take to start again.
const settle = 90 * time.Second
