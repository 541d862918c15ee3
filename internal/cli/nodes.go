package cli

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/internal/apisocket"
	"github.com/warren-net/warren/internal/printable"
	"github.com/warren-net/warren/internal/roundtrip"
	"github.com/warren-net/warren/node/api"
)

// A nodeJSON is a node as it is listed. What a daemon would know is left out where none runs here.
type nodeJSON struct {
	Name          string         `json:"name"`
	State         string         `json:"state"` // "alive", "away" or "broken"
	Problem       string         `json:"problem,omitempty"`
	Self          bool           `json:"self"`
	Since         *time.Time     `json:"since,omitempty"`            // when it was registered first
	LeaseSeconds  int64          `json:"leaseSecondsLeft,omitempty"` // of one that is away: until its CIDRs go back
	Addresses     []netip.Addr   `json:"addresses"`                  //
	PodCIDRs      []netip.Prefix `json:"podCIDRs"`                   //
	Encapsulation string         `json:"encapsulation"`              // that it asks for, or that is used with it
	LastHandshake *time.Time     `json:"lastHandshake,omitempty"`    // of this host with it
	RoundTrip     float64        `json:"roundTripSeconds,omitempty"` // of this host with it
}

func newNodes() *cobra.Command {
	var path, output string
	cmd := &cobra.Command{
		Use: "nodes", Short: "Show all nodes of the network", Args: cobra.NoArgs,
		Long: "Show all nodes of the network, as the etcd knows them. The last handshake and the round trip are those\n" +
			"between this host and the node: the first where a daemon runs here, the second measured by echoes to the\n" +
			"node's gateway address, the way that pods' packets take.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			return withClient(path, func(n *network, client *etcd.Client) error { return n.show(cmd, client, output) })
		},
	}
	configFlag(cmd, &path)
	outputFlag(cmd, &output)
	return cmd
}

// show lists the nodes.
func (n *network) show(cmd *cobra.Command, client *etcd.Client, output string) error {
	list, err := client.Nodes(cmd.Context())
	if err != nil {
		return err
	}
	s, err := client.Settings(cmd.Context())
	if err != nil {
		return err
	}
	nodes := n.listed(cmd.Context(), list, s.Encapsulation)
	if err := measure(cmd.Context(), nodes); err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: %s\n", oneLine(err))
	}
	if output == "json" {
		return writeJSON(cmd.OutOrStdout(), nodes)
	}
	return table(cmd.OutOrStdout(), nodeRows(nodes)...)
}

// measured bounds how long each of the echoes is waited for, and mostMeasured how many nodes are asked.
const (
	measured     = 500 * time.Millisecond
	mostMeasured = 1000
)

// measure fills in the round trips.
func measure(ctx context.Context, nodes []nodeJSON) error {
	gateways := make([]netip.Addr, len(nodes))
	var ask []netip.Addr
	for i, n := range nodes {
		if n.Self || n.State != "alive" || len(n.PodCIDRs) == 0 || len(ask) == mostMeasured {
			continue
		}
		gateways[i] = n.PodCIDRs[0].Addr().Next()
		ask = append(ask, gateways[i])
	}
	times, err := roundtrip.Measure(ctx, ask, measured)
	for i, a := range gateways {
		nodes[i].RoundTrip = times[a].Seconds()
	}
	return err
}

// listed puts together what the etcd and this host's daemon know.
func (n *network) listed(ctx context.Context, list []etcd.Listed, usual control.Encapsulation) []nodeJSON {
	peers := map[string]api.Peer{}
	// Without a daemon the rest is as good.
	if known, err := api.NewClient(n.cfg.RunDir + "/" + apisocket.Name).Peers(ctx); err == nil {
		for _, p := range known {
			peers[p.Name] = p
		}
	}
	if usual == "" {
		usual = control.WireGuard
	}
	out := []nodeJSON{}
	for _, l := range list {
		j := nodeJSON{Name: l.Name, State: "alive", Problem: l.Broken, Self: l.Name == n.cfg.Node,
			Addresses: l.Addresses, PodCIDRs: l.PodCIDRs, Encapsulation: string(l.Encapsulation)}
		if j.Encapsulation == "" {
			j.Encapsulation = string(usual)
		}
		switch {
		case l.Broken != "":
			j.State, j.Encapsulation = "broken", ""
		case !l.Alive:
			j.State, j.LeaseSeconds = "away", int64(l.Left/time.Second)
		}
		if !l.Since.IsZero() {
			j.Since = &l.Since
		}
		if p, ok := peers[l.Name]; ok {
			j.Encapsulation, j.LastHandshake = p.Encapsulation, p.LastHandshake
		}
		out = append(out, j)
	}
	return out
}

func nodeRows(nodes []nodeJSON) [][]string {
	rows := [][]string{{"NAME", "STATE", "AGE", "ADDRESSES", "POD CIDRS", "ENCAPSULATION", "LAST HANDSHAKE", "ROUND TRIP"}}
	for _, n := range nodes {
		state, age, handshake, rtt := n.State, "-", "-", "-"
		switch {
		case n.Problem != "":
			state = "broken: " + n.Problem
		case n.LeaseSeconds > 0:
			state = fmt.Sprintf("away, keeps its CIDRs for %s", time.Duration(n.LeaseSeconds)*time.Second)
		}
		if n.Since != nil {
			age = max(0, time.Since(*n.Since)).Round(time.Second).String() // clocks differ
		}
		if n.LastHandshake != nil {
			handshake = ago(n.LastHandshake)
		}
		if n.RoundTrip > 0 {
			rtt = time.Duration(n.RoundTrip * float64(time.Second)).Round(time.Microsecond).String()
		}
		name := n.Name
		if n.Self {
			name += " (this host)"
		}
		rows = append(rows, []string{printable.Text(name), printable.Text(state), age, joined(n.Addresses),
			joined(n.PodCIDRs), dash(printable.Text(n.Encapsulation)), handshake, rtt})
	}
	return rows
}
