package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/join"
)

// A joining is one call of `warren join`.
type joining struct {
	hostFlags
	address, token string
	member         bool
}

func newJoin() *cobra.Command {
	var j joining
	cmd := &cobra.Command{
		Use: "join ADDRESS --token TOKEN", Short: "Take this host into a network",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errors.New("say one ADDRESS, and the token with its flag: warren join ADDRESS --token TOKEN")
			}
			return nil
		},
		Long: "Take this host into the network whose member is at ADDRESS, with a token that `warren init` or\n" +
			"`warren token new` printed there. The token also proves to this host that it talks to the right network.\n" +
			"With --etcd-endpoints there is no token: the etcd's own certificates decide. A try that failed can be\n" +
			"repeated with the same token.",
		Example: "  warren join 192.0.2.10 --token TOKEN    # as init printed it\n" +
			"  warren join 192.0.2.10 --token - <token.txt",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				j.address = args[0]
			}
			return j.run(cmd)
		},
	}
	j.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&j.token, "token", "", "`TOKEN` that lets this host in, or - to read it from standard input")
	f.StringVar(&j.network, "network", "", "`NAME` of the network, with --etcd-endpoints")
	f.BoolVar(&j.member, "member", false, "run a member of the etcd here as well; the token has to permit it")
	return cmd
}

func (j *joining) run(cmd *cobra.Command) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := j.complete(); err != nil {
		return err
	}
	if err := j.mayWrite(); err != nil {
		return err
	}
	var spec etcd.Spec
	var err error
	if len(j.external.endpoints) > 0 {
		err = j.inExternal(&spec)
	} else {
		err = j.byToken(ctx, cmd.InOrStdin(), &spec)
	}
	if err != nil {
		return err
	}
	s, err := j.settings(ctx, &spec)
	if err != nil {
		return err
	}
	if err := j.writeConfig(&spec, &s); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "warren: this host is node %q of network %q, at %s; %s is written\n", j.node,
		spec.Network, j.addresses[0], j.config)
	stop()
	return j.start(cmd)
}

func (j *joining) inExternal(spec *etcd.Spec) error {
	if j.address != "" || j.token != "" || j.member {
		return errors.New("with --etcd-endpoints there is no member to ask: leave ADDRESS, --token and --member out")
	}
	if j.network == "" {
		j.network = etcd.DefaultNetwork
	}
	*spec = j.externalSpec()
	if spec.Own() {
		return errNoFiles
	}
	return nil
}

func (j *joining) byToken(ctx context.Context, stdin io.Reader, spec *etcd.Spec) error {
	if j.address == "" || j.token == "" {
		return errors.New("say where to join and with what: warren join ADDRESS --token TOKEN, as `warren token new` " +
			"prints it on a member")
	}
	if j.network != "" {
		return errors.New("the token says which network: leave --network out")
	}
	tok, err := readToken(j.token, stdin)
	if err != nil {
		return err
	}
	if j.member {
		if err := member.CheckSpace(j.stateDir); err != nil {
			return err
		}
	}
	defer withoutTrace(j.stateDir)()
	host := join.Host{Address: j.address, Token: tok, Node: j.node, StateDir: j.stateDir}
	if j.member {
		j.listens(spec)
		host.Member = &join.MemberAddresses{Client: spec.ListenClients, Peer: spec.ListenPeers, Join: spec.ListenJoin}
	}
	got, err := join.Join(ctx, host)
	if err != nil {
		err = j.hint(err)
		return err
	}
	if j.member {
		if err := member.WritePeers(j.stateDir, got.Peers); err != nil {
			return err
		}
	}
	spec.Endpoints, spec.Network = got.Endpoints, got.Network
	return nil
}

// hint adds to the error of a join what this host knows better than the member.
func (j *joining) hint(err error) error {
	_, port, _ := net.SplitHostPort(j.address)
	switch {
	case port == member.DefaultClientPort || port == member.DefaultPeerPort:
		return fmt.Errorf("%w; port %s is the etcd's, hosts are let in at %s: leave the port out", err, port,
			join.DefaultPort)
	case errors.Is(err, join.ErrNameTaken) && exists(join.Files(j.stateDir).Cert):
		return fmt.Errorf("%w; or, if that was this host itself, it is in the network: `warren up` runs it", err)
	}
	return err
}

// withoutTrace returns what removes the directories that are made from now on and have nothing in them.
func withoutTrace(stateDir string) func() {
	fresh := !exists(stateDir)
	return func() {
		_ = os.Remove(etcd.Dir(stateDir)) // fails where something is in it
		if fresh {
			_ = os.Remove(stateDir)
		}
	}
}

func readToken(text string, stdin io.Reader) (*join.Token, error) {
	if text == "-" {
		const longest = 4096 // bytes
		data, err := io.ReadAll(io.LimitReader(stdin, longest))
		if err != nil {
			return nil, fmt.Errorf("read the token from standard input: %w", err)
		}
		text = strings.TrimSpace(string(data))
	}
	return join.ParseToken(text)
}

// settings asks the etcd what holds for the network, which also proves that this host may.
func (j *joining) settings(ctx context.Context, spec *etcd.Spec) (etcd.Settings, error) {
	cfg, err := spec.Config(join.Files(j.stateDir))
	if err != nil {
		return etcd.Settings{}, err
	}
	cfg.Node, cfg.StateDir = j.node, j.stateDir
	client, err := etcd.NewClient(cfg)
	if err != nil {
		return etcd.Settings{}, err
	}
	defer client.Close()
	return client.Settings(ctx)
}
