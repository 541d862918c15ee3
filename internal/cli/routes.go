package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/internal/routexport"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
)

func newRoutes() *cobra.Command {
	cmd := question[[]api.Route]{
		use: "routes", short: "Show the forwarder's table",
		long: "Show the forwarder's table: which prefix of the pod network goes to which peer, what is local, and what\n" +
			"is refused because no node has it. The longest prefix that matches counts. The kernel's routes are not in\n" +
			"it: those are in `ip route show table all`; what they take past the forwarder has its next hop in DIRECT.",
		get:   func(ctx context.Context, c *api.Client) ([]api.Route, error) { return c.Routes(ctx) },
		table: routesTable,
	}.command()
	cmd.AddCommand(newRoutesExport())
	return cmd
}

// A routesExport is one call of `warren routes export`.
type routesExport struct {
	ask    ask
	format string
	nodes  []string
	file   bool
}

func newRoutesExport() *cobra.Command {
	e := routesExport{ask: ask{output: "table"}}
	cmd := &cobra.Command{
		Use: "export", Short: "Print the routes that a router needs to reach the pods", Args: cobra.NoArgs,
		Long: "Print, for a router between nodes with `encapsulation: direct`, or before them, the routes to all nodes'\n" +
			"pods by the nodes' underlay addresses. The running node is asked, unless --from-file is given.",
		RunE: func(cmd *cobra.Command, _ []string) error { return e.run(cmd) },
	}
	configFlag(cmd, &e.ask.config)
	f := cmd.Flags()
	f.StringVar(&e.ask.socket, "socket", "", "API socket `PATH` of the node daemon (default: the configuration's)")
	f.StringVar(&e.format, "format", string(routexport.IP),
		"`LANGUAGE` of the router: ip (a shell script), bird (BIRD 2 and 3) or frr")
	f.StringSliceVar(&e.nodes, "node", nil, "`NAME` of a node, instead of all; may be given several times")
	f.BoolVar(&e.file, "from-file", false, "read the nodes from the configuration file")
	// The flag exists, so this cannot fail.
	_ = cmd.RegisterFlagCompletionFunc("format",
		cobra.FixedCompletions(routexport.Formats(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (e *routesExport) run(cmd *cobra.Command) error {
	format := routexport.Format(e.format)
	if _, _, err := routexport.Write(format, nil); err != nil { // before anybody is asked
		return err
	}
	nodes, err := e.all(cmd)
	if err != nil {
		return err
	}
	if nodes, err = e.chosen(nodes); err != nil {
		return err
	}
	text, leftOut, err := routexport.Write(format, nodes)
	if err != nil {
		return err
	}
	for _, why := range leftOut {
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: %s\n", why)
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), text)
	return err
}

// all are the nodes of the cluster, this one first.
func (e *routesExport) all(cmd *cobra.Command) ([]routexport.Node, error) {
	var nodes []routexport.Node
	if e.file {
		cfg, err := config.Load(e.ask.config)
		if err != nil {
			return nil, err
		}
		if cfg.Control != config.Static {
			return nil, fmt.Errorf("--from-file: %s has no nodes in it, as its `control` is %s: ask the running node, without "+
				"--from-file", e.ask.config, cfg.Control)
		}
		for _, n := range cfg.State.Nodes {
			if !n.Roams {
				nodes = append(nodes, routexport.Node{Name: n.Name, Addresses: n.Addresses, PodCIDRs: n.PodCIDRs})
			}
		}
		return nodes, nil
	}
	client, err := e.ask.client(cmd)
	if err != nil {
		return nil, err
	}
	status, err := client.Status(cmd.Context())
	if err != nil {
		return nil, err
	}
	peers, err := client.Peers(cmd.Context())
	if err != nil {
		return nil, err
	}
	own := routexport.Node{Name: status.Node, PodCIDRs: status.PodCIDRs}
	for _, u := range status.Tunnel.Underlay {
		own.Addresses = append(own.Addresses, u.Address)
	}
	nodes = append(nodes, own)
	for _, p := range peers {
		if len(p.Addresses) > 0 { // others are machines that no router knows the place of
			nodes = append(nodes, routexport.Node{Name: p.Name, Addresses: p.Addresses, PodCIDRs: p.PodCIDRs})
		}
	}
	return nodes, nil
}

// chosen are those of the nodes that were named; all, if none was.
func (e *routesExport) chosen(nodes []routexport.Node) ([]routexport.Node, error) {
	if len(e.nodes) == 0 {
		return nodes, nil
	}
	var out []routexport.Node
	for _, name := range e.nodes {
		i := slices.IndexFunc(nodes, func(n routexport.Node) bool { return n.Name == name })
		if i < 0 {
			names := make([]string, 0, len(nodes))
			for _, n := range nodes {
				names = append(names, n.Name)
			}
			return nil, fmt.Errorf("--node %s: there is no such node; there are %s", name, strings.Join(names, ", "))
		}
		out = append(out, nodes[i])
	}
	return out, nil
}
