package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/join"
	"github.com/warren-net/warren/internal/apisocket"
)

// An initialize is one call of `warren init`.
type initialize struct {
	hostFlags
	ranges           []string
	prefix4, prefix6 int
	encapsulation    string
	ttl              time.Duration
	uses             int
}

func newInit() *cobra.Command {
	var i initialize
	cmd := &cobra.Command{
		Use: "init", Short: "Make a network, with this host as its first node", Args: cobra.NoArgs,
		Long: "Make a network with this host as its first node and the first member of its etcd, which runs inside of\n" +
			"Warren, and print the command with which other hosts join. With --etcd-endpoints the network is made in an\n" +
			"etcd that runs already. A try that failed can be repeated.",
		Example: "  warren init\n" +
			"  warren init --cluster-cidr 10.244.0.0/16,fd00:10:244::/48",
		RunE: func(cmd *cobra.Command, _ []string) error { return i.run(cmd) },
	}
	i.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&i.network, "network", etcd.DefaultNetwork, "`NAME` of the network")
	f.StringSliceVar(&i.ranges, "cluster-cidr", []string{"10.244.0.0/16"},
		"`RANGE` of pod addresses, which the nodes share; one per family with a comma between")
	f.IntVar(&i.prefix4, "node-prefix-ipv4", etcd.DefaultNodePrefix4,
		"`LENGTH` of the prefix that each node gets of the range")
	f.IntVar(&i.prefix6, "node-prefix-ipv6", etcd.DefaultNodePrefix6,
		"`LENGTH` of the prefix that each node gets of the range")
	f.StringVar(&i.encapsulation, "encapsulation", string(control.WireGuard),
		"`ENCAPSULATION` of the traffic between nodes: wireguard; or, in plaintext: vxlan; direct, without a tunnel; "+
			"auto, without one on the same subnet")
	f.DurationVar(&i.ttl, "token-ttl", join.DefaultTokenLife, "how long the printed command is good for")
	f.IntVar(&i.uses, "token-uses", 1, "how many hosts may join with it")
	_ = cmd.RegisterFlagCompletionFunc("encapsulation",
		cobra.FixedCompletions([]string{"wireguard", "vxlan", "direct", "auto"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (i *initialize) settings() (etcd.Settings, error) {
	s := etcd.Settings{NodePrefix4: i.prefix4, NodePrefix6: i.prefix6,
		Encapsulation: control.Encapsulation(i.encapsulation)}
	for _, text := range i.ranges {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return s, fmt.Errorf("--cluster-cidr %q: write a range as 10.244.0.0/16", text)
		}
		s.Ranges = append(s.Ranges, p)
	}
	if !s.Encapsulation.Known() {
		return s, fmt.Errorf("--encapsulation %q: use wireguard, or one in plaintext: vxlan, direct or auto", i.encapsulation)
	}
	if i.ttl < time.Second || i.ttl > join.MaxTokenLife {
		return s, fmt.Errorf("--token-ttl %s: use a time between 1s and %s; `warren token new` makes other tokens", i.ttl,
			join.MaxTokenLife)
	}
	if i.uses < 1 {
		return s, fmt.Errorf("--token-uses %d: at least one host has to be able to join", i.uses)
	}
	s, err := s.Complete()
	if err != nil {
		return s, err
	}
	for _, text := range i.addresses {
		for _, r := range s.Ranges {
			if a, err := netip.ParseAddr(text); err == nil && r.Contains(a) {
				return s, fmt.Errorf("address %s of this host is inside of the pods' range %s: choose another range with "+
					"--cluster-cidr", text, r)
			}
		}
	}
	return s, nil
}

func (i *initialize) run(cmd *cobra.Command) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := i.complete(); err != nil {
		return err
	}
	s, err := i.settings()
	if err != nil {
		return err
	}
	if err := i.mayWrite(); err != nil {
		return err
	}
	var spec etcd.Spec
	var command string
	if len(i.external.endpoints) > 0 {
		spec = i.externalSpec()
		command, err = i.inExternal(ctx, &spec, s)
	} else {
		command, err = i.embedded(ctx, &spec, s)
	}
	if err != nil {
		return err
	}
	if err := i.writeConfig(&spec, &s); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "warren: network %q is made, this host is node %q at %s; %s is written\n", i.network,
		i.node, i.addresses[0], i.config)
	fmt.Fprintf(cmd.ErrOrStderr(), "warren: on each other host run\n")
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), command); err != nil {
		return err
	}
	stop()
	return i.start(cmd)
}

// embedded makes the network in an etcd of its own.
func (i *initialize) embedded(ctx context.Context, spec *etcd.Spec, s etcd.Settings) (command string, err error) {
	// The etcd runs here for a moment, also with --no-start.
	if err := hostHas(netip.MustParseAddr(i.addresses[0])); err != nil {
		return "", err
	}
	if pid, err := listener(filepath.Join(i.runDir, apisocket.Name)); err != nil || pid > 0 {
		return "", fmt.Errorf("the daemon of a node runs on this host already, as %s: `warren token new` prints the "+
			"command for other hosts, and `warren leave` takes this one out of its network", processText(pid))
	}
	fresh := !exists(etcd.Dir(i.stateDir))
	defer withoutTrace(i.stateDir)()
	if _, err := os.Stat(join.Files(i.stateDir).CA); err == nil {
		if _, err := join.LoadCA(i.stateDir); err != nil {
			return "", fmt.Errorf("this host is in a network already, which another one made: `warren leave` takes it out: %w",
				err)
		}
	}
	spec.Network = i.network
	i.listens(spec)
	spec.Endpoints = []string{spec.ListenClients}
	o := member.Options{Name: i.node, Network: i.network, StateDir: i.stateDir, Client: spec.ListenClients,
		Peer: spec.ListenPeers, Join: spec.ListenJoin, Log: slog.New(slog.DiscardHandler)}
	err = member.Bootstrap(ctx, o, s, func(ctx context.Context, client *etcd.Client) error {
		ca, err := join.LoadCA(i.stateDir)
		if err != nil {
			return err
		}
		tok, err := join.NewTokens(client).New(ctx, ca, join.TokenOptions{Life: i.ttl, Uses: i.uses})
		if err != nil {
			return err
		}
		command = joinCommand(i.addresses[0], tok)
		return nil
	})
	if err != nil && fresh {
		err = errors.Join(err, join.Forget(i.stateDir))
	}
	if errors.Is(err, etcd.ErrOtherSettings) {
		err = fmt.Errorf("%w; it was made on this host, and is in %s: to begin anew, without it and its hosts, "+
			"stop Warren and move that directory away", err, etcd.Dir(i.stateDir))
	}
	return command, err
}

// inExternal makes the network in an etcd that the user runs.
func (i *initialize) inExternal(ctx context.Context, spec *etcd.Spec, s etcd.Settings) (string, error) {
	if spec.Own() {
		return "", errNoFiles
	}
	cfg, err := spec.Config(etcd.Files{})
	if err != nil {
		return "", err
	}
	cfg.Node, cfg.StateDir = i.node, i.stateDir
	client, err := etcd.NewClient(cfg)
	if err != nil {
		return "", err
	}
	defer client.Close()
	if err := client.WriteSettings(ctx, s); err != nil {
		return "", err
	}
	command := externalJoinCommand(spec)
	return command, i.strangers(ctx, client, command)
}

// strangers refuses a network of the same name that has nodes: whoever wants a network of their own, beside others in
// one etcd, would be in somebody else's. One without nodes is what an earlier try has made.
func (i *initialize) strangers(ctx context.Context, client *etcd.Client, command string) error {
	nodes, err := client.Nodes(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, n := range nodes {
		if n.Name != i.node {
			names = append(names, n.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	const most = 3
	if more := len(names) - most; more > 0 {
		names = append(names[:most], fmt.Sprintf("%d more", more))
	}
	return fmt.Errorf("network %q is in that etcd already, with nodes (%s): `%s` takes this host into it; for another "+
		"one give it a name of its own with --network", i.network, strings.Join(names, ", "), command)
}

func joinCommand(address string, tok *join.Token) string {
	return fmt.Sprintf("warren join %s --token %s", address, tok.Reveal())
}

func externalJoinCommand(s *etcd.Spec) string {
	out := "warren join"
	for _, e := range s.Endpoints {
		out += " --etcd-endpoints " + e
	}
	if s.CA != "" {
		out += " --etcd-ca FILE"
	}
	if s.Certificate != "" {
		out += " --etcd-cert FILE --etcd-key FILE"
	}
	if s.Network != etcd.DefaultNetwork {
		out += " --network " + s.Network
	}
	return out
}
