package cli

import (
	"context"
	"encoding/json"
	"io"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/node/api"
)

// A question is one command that asks the running node.
type question[T any] struct {
	use, short, long, example string

	get   func(context.Context, *api.Client) (T, error)
	table func(io.Writer, T) error
	extra func(*cobra.Command) // adds flags; may be nil
}

func (q question[T]) command() *cobra.Command {
	var a ask
	cmd := &cobra.Command{
		Use: q.use, Short: q.short, Long: q.long, Example: q.example, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.client(cmd)
			if err != nil {
				return err
			}
			answer, err := q.get(cmd.Context(), client)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return writeJSON(cmd.OutOrStdout(), answer)
			}
			return q.table(cmd.OutOrStdout(), answer)
		},
	}
	a.flags(cmd)
	if q.extra != nil {
		q.extra(cmd)
	}
	return cmd
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func newStatus() *cobra.Command {
	return question[api.Status]{
		use: "status", short: "Show the running node",
		long: "Show what the running node is and does: its device, tunnel and pod CIDRs, the offloads that are in use or\n" +
			"why they are not, its workers, the last reload, and warnings of what keeps it from working well.",
		example: "  warren status\n" +
			"  warren status -o json | jq .tunnel.handshakes",
		get:   func(ctx context.Context, c *api.Client) (api.Status, error) { return c.Status(ctx) },
		table: statusTable,
	}.command()
}

func newPeers() *cobra.Command {
	return question[[]api.Peer]{
		use: "peers", short: "Show the other nodes and their traffic",
		long: "Show the other nodes, and the peers that are no nodes: where they are, whether traffic with them is\n" +
			"encrypted, packets and bytes each way, and when they were last heard of. A LAST HANDSHAKE of `never`, or of\n" +
			"more than three minutes ago while something is sent, means that the peer does not answer.",
		get:   func(ctx context.Context, c *api.Client) ([]api.Peer, error) { return c.Peers(ctx) },
		table: peersTable,
	}.command()
}

func newPods() *cobra.Command {
	return question[[]api.Pod]{
		use: "pods", short: "Show the pods attached to this node",
		long: "Show the pods attached to this node: name, addresses, interface, since when, and bytes each way, counted\n" +
			"at the host's end, so TX is what the pod sent. Pods whose record cannot be read, or whose interface is gone,\n" +
			"are listed with the problem below the table.",
		get:   func(ctx context.Context, c *api.Client) ([]api.Pod, error) { return c.Pods(ctx) },
		table: podsTable,
	}.command()
}

func newDrops() *cobra.Command {
	var all bool
	return question[[]api.Drop]{
		use: "drops", short: "Show how many packets were dropped, and why",
		long: "Show how many packets the node dropped, by reason, and what each reason means. Reasons that were never\n" +
			"counted are left out without --all.",
		example: "  warren drops\n" +
			"  warren drops --all    # every reason there is, with its meaning",
		get: func(ctx context.Context, c *api.Client) ([]api.Drop, error) {
			drops, err := c.Drops(ctx)
			if err != nil || all {
				return drops, err
			}
			seen := []api.Drop{}
			for _, d := range drops {
				if d.Count > 0 {
					seen = append(seen, d)
				}
			}
			return seen, nil
		},
		table: dropsTable,
		extra: func(cmd *cobra.Command) {
			cmd.Flags().BoolVarP(&all, "all", "a", false, "also the reasons that were never counted")
		},
	}.command()
}
