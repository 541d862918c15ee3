package cli

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/join"
	"github.com/warren-net/warren/internal/printable"
)

func newToken() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Make, list and revoke what hosts join with", Args: cobra.NoArgs,
		Long: "Make, list and revoke the tokens with which hosts join. These commands are for members of the etcd.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTokenNew(), newTokenList(), newTokenRevoke())
	return cmd
}

func newTokenNew() *cobra.Command {
	var path string
	var o join.TokenOptions
	cmd := &cobra.Command{
		Use: "new", Short: "Make a token, and print the command to join with it", Args: cobra.NoArgs,
		Long: "Make a token and print the command with which another host joins. Whoever has the token can join until it\n" +
			"is used up, revoked, or has ended: hand it over by a way that nobody else reads.",
		Example: "  warren token new\n" +
			"  warren token new --uses 20 --ttl 1h\n" +
			"  warren token new --member    # for another member of the etcd",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAdmin(cmd, path, func(n *network, client *etcd.Client) error {
				ca, err := join.LoadCA(n.cfg.StateDir)
				if err != nil {
					return err
				}
				if o.Uses < 1 {
					return fmt.Errorf("--uses %d: at least one host has to be able to join", o.Uses)
				}
				tok, err := join.NewTokens(client).New(cmd.Context(), ca, o)
				if err != nil {
					return err
				}
				address := n.spec.ListenJoin
				if host, port, err := net.SplitHostPort(address); err == nil && port == join.DefaultPort {
					address = host
				}
				command := joinCommand(address, tok)
				if o.Member {
					command += " --member"
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), command)
				return err
			})
		},
	}
	configFlag(cmd, &path)
	f := cmd.Flags()
	f.DurationVar(&o.Life, "ttl", join.DefaultTokenLife, "good for this `DURATION`, at most 24h")
	f.IntVar(&o.Uses, "uses", 1, "this `NUMBER` of hosts may join with it")
	f.BoolVar(&o.Replace, "replace", false, "a host may take the place of one that has its name")
	f.BoolVar(&o.Member, "member", false, "a host may become a member of the etcd as well")
	return cmd
}

func newTokenList() *cobra.Command {
	var path, output string
	cmd := &cobra.Command{
		Use: "list", Short: "Show the tokens and what became of them", Args: cobra.NoArgs,
		Long: "Show the tokens and what became of them. Nobody can join with what this shows.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			return withAdmin(cmd, path, func(_ *network, client *etcd.Client) error {
				list, err := join.NewTokens(client).List(cmd.Context())
				if err != nil {
					return err
				}
				now := time.Now()
				if output == "json" {
					return writeJSON(cmd.OutOrStdout(), tokensJSON(list, now))
				}
				rows := [][]string{{"ID", "STATE", "EXPIRES", "USES", "USED BY", "PERMITS"}}
				for _, t := range tokensJSON(list, now) {
					rows = append(rows, []string{t.ID, t.State, t.Expires.Format(time.RFC3339), fmt.Sprint(t.Uses),
						printable.Text(dash(strings.Join(t.UsedBy, ","))), dash(strings.Join(t.Permits, ","))})
				}
				return table(cmd.OutOrStdout(), rows...)
			})
		},
	}
	configFlag(cmd, &path)
	outputFlag(cmd, &output)
	return cmd
}

// A tokenJSON is a token as it is listed.
type tokenJSON struct {
	ID      string    `json:"id"`
	State   string    `json:"state"` // "good", "used", "expired" or "revoked"
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"`
	UsedBy  []string  `json:"usedBy"`
	Permits []string  `json:"permits"` // beside joining: "replace", "member"
}

func tokensJSON(list []join.TokenInfo, now time.Time) []tokenJSON {
	out := []tokenJSON{}
	for _, i := range list {
		t := tokenJSON{ID: i.ID, State: i.State(now), Expires: i.Expires, Uses: i.Uses, UsedBy: []string{},
			Permits: []string{}}
		for _, u := range i.Used {
			t.UsedBy = append(t.UsedBy, u.Node)
		}
		if i.Replace {
			t.Permits = append(t.Permits, "replace")
		}
		if i.Member {
			t.Permits = append(t.Permits, "member")
		}
		out = append(out, t)
	}
	return out
}

func newTokenRevoke() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "End a token; hosts that joined with it stay",
		Long: "End a token at once, by the ID that `warren token list` shows. Hosts that joined with it stay: `warren\n" +
			"leave --node NAME` takes one out.",
		Example: "  warren token list && warren token revoke ID",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name one token by its ID, `warren token list` shows them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, path, func(_ *network, client *etcd.Client) error {
				return join.NewTokens(client).Revoke(cmd.Context(), args[0])
			})
		},
	}
	configFlag(cmd, &path)
	return cmd
}
