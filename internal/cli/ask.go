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
	use, short string
	get        func(context.Context, *api.Client) (T, error)
	table      func(io.Writer, T) error
	extra      func(*cobra.Command) // adds flags; may be nil
}

func (q question[T]) command() *cobra.Command {
	var a ask
	cmd := &cobra.Command{
		Use: q.use, Short: q.short, Args: cobra.NoArgs,
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
		get:   func(ctx context.Context, c *api.Client) (api.Status, error) { return c.Status(ctx) },
		table: statusTable,
	}.command()
}

func newPeers() *cobra.Command {
	return question[[]api.Peer]{
		use: "peers", short: "Show the other nodes and their traffic",
		get:   func(ctx context.Context, c *api.Client) ([]api.Peer, error) { return c.Peers(ctx) },
		table: peersTable,
	}.command()
}

func newRoutes() *cobra.Command {
	return question[[]api.Route]{
		use: "routes", short: "Show the forwarder's table",
		get:   func(ctx context.Context, c *api.Client) ([]api.Route, error) { return c.Routes(ctx) },
		table: routesTable,
	}.command()
}

func newPods() *cobra.Command {
	return question[[]api.Pod]{
		use: "pods", short: "Show the pods attached to this node",
		get:   func(ctx context.Context, c *api.Client) ([]api.Pod, error) { return c.Pods(ctx) },
		table: podsTable,
	}.command()
}

func newDrops() *cobra.Command {
	var all bool
	return question[[]api.Drop]{
		use: "drops", short: "Show how many packets were dropped, and why",
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
