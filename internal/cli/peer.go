package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/static"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/peerconf"
	"github.com/warren-net/warren/internal/yamldoc"
	"github.com/warren-net/warren/node/config"
)

func newPeer() *cobra.Command {
	cmd := &cobra.Command{
		Use: "peer", Short: "Configure machines that join without Warren", Args: cobra.NoArgs,
		Long: "Configure machines that join the pod network by any WireGuard program: laptops, phones. They are listed\n" +
			"in `peers` of the configuration, each with addresses of its own.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPeerConfig())
	return cmd
}

// A peerConfig is one call of `warren peer config`.
type peerConfig struct {
	config, name, key string
	addresses         []string
	qr                bool
}

func newPeerConfig() *cobra.Command {
	var p peerConfig
	cmd := &cobra.Command{
		Use: "config NAME", Short: "Print a WireGuard configuration for one of the peers",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("name one machine, not %d: %s NAME", len(args), cmd.CommandPath())
			}
			return nil
		},
		Long: "Print the configuration with which a machine in `peers`, or one that is to be added, joins the pod\n" +
			"network: for wg-quick(8), WireGuard's apps, and as a QR code for their cameras. A private key is in it.\n" +
			"Without --key a new one is made, which nothing else keeps, and the public half is said on standard error.",
		Example: "  # One that is not in the list yet:\n" +
			"  umask 077\n" +
			"  warren peer config laptop --address 10.244.255.7 > warren.conf\n" +
			"  # One that is, for the camera of its app:\n" +
			"  warren peer config phone --key phone.key --qr",
		RunE: func(cmd *cobra.Command, args []string) error {
			p.name = args[0]
			return p.run(cmd)
		},
	}
	configFlag(cmd, &p.config)
	f := cmd.Flags()
	f.StringVar(&p.key, "key", "", "`FILE` with the machine's private key, or - for standard input (default: make one)")
	f.StringArrayVar(&p.addresses, "address", nil,
		"pod network `ADDRESS` of a machine that is not in the list yet; may be given several times")
	f.BoolVar(&p.qr, "qr", false, "draw a QR code instead of the text")
	_ = cmd.MarkFlagFilename("key") // the flag exists, so this cannot fail
	return cmd
}

func (p *peerConfig) run(cmd *cobra.Command) error {
	cfg, err := loadKnown(p.config)
	if err != nil {
		return err
	}
	// The list first: a name that is not in it is a likelier mistake than a bad key.
	entry, err := p.listed(cfg)
	if err != nil {
		return err
	}
	m := peerconf.Machine{Peer: entry}
	if m.PrivateKey, err = p.privateKey(cmd.InOrStdin()); err != nil {
		return err
	}
	public, todo := m.PrivateKey.Public(), ""
	switch {
	case entry == nil:
		if m.Peer, todo, err = p.admit(cfg, public); err != nil {
			return err
		}
	case p.key == "":
		todo = fmt.Sprintf("set `publicKey: %q` in the entry of %s, in the file of every node", public, p.name)
	case public != entry.PublicKey:
		return fmt.Errorf("--key %s: the public half is %s, but `publicKey` of %s in %s is %s: give the key that belongs to "+
			"it, or change the list", p.key, public, p.name, cfg.File, entry.PublicKey)
	}
	if file := m.Peer.PresharedKeyFile; file != "" {
		if m.PresharedKey, err = key.LoadPreshared(file); err != nil {
			return err
		}
	}
	conf, leftOut, err := peerconf.New(cfg, m)
	for _, why := range leftOut {
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: %s\n", why)
	}
	if err != nil {
		return err
	}
	if err := p.print(cmd, conf); err != nil {
		return err
	}
	if mode := modeOf(cmd.OutOrStdout()); mode&0o077 != 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: what was written has a private key in it, and its file has mode %#o: chmod "+
			"600 it, and begin with `umask 077` the next time\n", mode)
	}
	if todo != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "warren: %s\n", todo)
	}
	return nil
}

// listed is the peer's entry; nil when there is none and --address says that there is to be one.
func (p *peerConfig) listed(cfg *config.Config) (*control.Node, error) {
	nodes := cfg.State.Nodes
	i := slices.IndexFunc(nodes, func(n control.Node) bool { return n.Name == p.name })
	switch {
	case i >= 0 && !nodes[i].Roams:
		return nil, fmt.Errorf("%s is a node, which runs Warren with %s: name one of `peers`, or a new one", p.name, cfg.File)
	case i >= 0 && len(p.addresses) > 0:
		return nil, fmt.Errorf("%s is in `peers` of %s already, with its addresses: leave --address out", p.name, cfg.File)
	case i >= 0:
		return &nodes[i], nil
	case len(p.addresses) > 0:
		return nil, nil
	}
	var names []string
	for _, n := range nodes {
		if n.Roams {
			names = append(names, n.Name)
		}
	}
	lists := "which lists none"
	if len(names) > 0 {
		lists = "which lists " + strings.Join(names, ", ")
	}
	return nil, fmt.Errorf("%s is not in `peers` of %s, %s: with --address ADDRESS the entry for it is printed as well",
		p.name, cfg.File, lists)
}

func (p *peerConfig) privateKey(stdin io.Reader) (key.Private, error) {
	switch p.key {
	case "":
		return key.NewPrivate(), nil
	case "-":
		const longest = 4096 // bytes; a key has 45 with its line feed
		data, err := io.ReadAll(io.LimitReader(stdin, longest))
		if err != nil {
			return key.Private{}, fmt.Errorf("read the private key from standard input: %w", err)
		}
		k, err := key.ParsePrivate(strings.TrimSuffix(string(data), "\n"))
		if err != nil {
			return key.Private{}, fmt.Errorf("standard input holds no private key: %w", err)
		}
		return k, nil
	}
	k, err := key.LoadPrivate(p.key)
	if err != nil {
		return key.Private{}, fmt.Errorf("--key: %w", err)
	}
	return k, nil
}

// admit makes the entry of a peer that is not in the list yet, and says what to add to it.
func (p *peerConfig) admit(cfg *config.Config, public key.Public) (*control.Node, string, error) {
	cluster := static.Cluster{CIDRs: cfg.Cluster, State: cfg.State, PresharedKeyFile: cfg.PresharedKeyFile}
	entry, err := cluster.Admit(static.PeerSpec{Name: p.name, PublicKey: public.String(), Addresses: p.addresses})
	var wrong *yamldoc.Error
	if errors.As(err, &wrong) {
		return nil, "", fmt.Errorf("%q %s; %s", wrong.Value, wrong.Why, wrong.Fix)
	}
	if err != nil {
		return nil, "", err
	}
	quoted := make([]string, 0, len(entry.PodCIDRs))
	for _, a := range entry.PodCIDRs {
		quoted = append(quoted, fmt.Sprintf("%q", a.Addr()))
	}
	return entry, fmt.Sprintf("add this to `peers` in the file of every node:\n  - {name: %q, publicKey: %q, "+
		"addresses: [%s]}", p.name, public, strings.Join(quoted, ", ")), nil
}

func (p *peerConfig) print(cmd *cobra.Command, conf *peerconf.File) error {
	out := cmd.OutOrStdout()
	if !p.qr {
		_, err := io.WriteString(out, conf.Text())
		return err
	}
	code, err := conf.QR()
	if err != nil {
		return err
	}
	if columns := columnsOf(out); columns > 0 && columns < code.Columns() {
		return fmt.Errorf("the QR code is %d characters wide, and this terminal %d: widen it, or choose a smaller font",
			code.Columns(), columns)
	}
	return code.Write(out)
}

// modeOf is the mode of a regular file; 0 for what is none.
func modeOf(w io.Writer) os.FileMode {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return 0
	}
	return st.Mode().Perm()
}

// columnsOf is the width of a terminal in characters; 0 for what is none.
func columnsOf(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}
