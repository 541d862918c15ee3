package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/join"
	"github.com/warren-net/warren/node/config"
)

// A network is a host's configuration, of one that is in a network with the control plane etcd.
type network struct {
	cfg  *config.Config
	spec etcd.Spec

	// only has nobody be asked but the endpoints of spec: of the members that are known one is about to stop.
	only bool
}

// loadNetwork reads the configuration, and refuses that of another control plane.
func loadNetwork(path string) (*network, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	if cfg.Control != config.Etcd {
		return nil, fmt.Errorf("%s: `control` is %s: this command is for hosts that `warren init` or `warren join` has "+
			"set up", path, cfg.Control)
	}
	return &network{cfg: cfg, spec: cfg.Etcd}, nil
}

// client asks the etcd with what a node may.
func (n *network) client() (*etcd.Client, error) {
	return n.clientWith(join.Files(n.cfg.StateDir))
}

func (n *network) clientWith(own etcd.Files) (*etcd.Client, error) {
	c, err := n.spec.Config(own)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w: run this as root", err)
	}
	if err != nil {
		return nil, err
	}
	c.Node, c.StateDir = n.cfg.Node, n.cfg.StateDir
	c.FollowMembers = c.FollowMembers && !n.only
	return etcd.NewClient(c)
}

// admin asks the etcd with what a member may, and refuses where this host is none.
func (n *network) admin(ctx context.Context) (*etcd.Client, error) {
	if !n.spec.Own() {
		return nil, errors.New("the network's etcd is the user's own: Warren lets no hosts in and manages no members " +
			"there; `warren join --etcd-endpoints` takes hosts in")
	}
	files := join.MemberFiles(n.cfg.StateDir)
	if _, err := os.Stat(files.Key); n.spec.Embedded && err == nil {
		return n.clientWith(files)
	}
	where := ""
	if c, err := n.client(); err == nil {
		members, err := c.Members(ctx)
		if err == nil {
			for _, m := range members {
				where += " " + m.Name
			}
		}
		_ = c.Close() // nothing was written
	}
	return nil, fmt.Errorf("this host is no member of the etcd: run this on one of them:%s", where)
}

// withClient runs do with a client of a node.
func withClient(path string, do func(*network, *etcd.Client) error) error {
	n, err := loadNetwork(path)
	if err != nil {
		return err
	}
	client, err := n.client()
	if err != nil {
		return err
	}
	defer client.Close()
	return do(n, client)
}

// answerWait bounds how long a command waits for the etcd, which without a majority answers nothing.
const answerWait = 10 * time.Second

// bounded has a command end within the time; the function that it returns is called when that is so.
func bounded(cmd *cobra.Command, limit time.Duration) context.CancelFunc {
	ctx, cancel := context.WithTimeout(cmd.Context(), limit)
	cmd.SetContext(ctx)
	return cancel
}

// withAdmin runs do with a client of a member.
func withAdmin(cmd *cobra.Command, path string, do func(*network, *etcd.Client) error) error {
	defer bounded(cmd, answerWait)()
	n, err := loadNetwork(path)
	if err != nil {
		return err
	}
	client, err := n.admin(cmd.Context())
	if err != nil {
		return err
	}
	defer client.Close()
	return do(n, client)
}

// A hostFlags is what `warren init` and `warren join` ask of a host.
type hostFlags struct {
	config, stateDir, runDir, node, network string
	addresses                               []string
	noStart                                 bool
	external                                externalFlags
}

// errNoFiles says that an etcd of the user's was named as Warren's own would be.
var errNoFiles = errors.New("--etcd-endpoints needs --etcd-ca, and --etcd-cert and --etcd-key where the etcd asks " +
	"for them; for an etcd without TLS write the endpoints as http://HOST:PORT")

// An externalFlags names an etcd that the user runs.
type externalFlags struct {
	endpoints     []string
	ca, cert, key string
}

func (h *hostFlags) flags(cmd *cobra.Command) {
	configFlag(cmd, &h.config)
	f := cmd.Flags()
	f.StringVar(&h.stateDir, "state-dir", config.DefaultStateDir, "state `DIR` of this host")
	f.StringVar(&h.runDir, "run-dir", defaultRunDir, "run `DIR` of this host, where the daemon's socket is")
	f.StringVar(&h.node, "node", "", "`NAME` of this host in the network (default: the host's name)")
	f.StringArrayVar(&h.addresses, "address", nil, "`ADDRESS` at which the other nodes reach this one, one per family "+
		"(default: the one towards the default route)")
	f.BoolVar(&h.noStart, "no-start", false, "only prepare this host: warren up runs the node")
	f.StringSliceVar(&h.external.endpoints, "etcd-endpoints", nil,
		"`HOST:PORT` of an etcd that runs already, instead of Warren's own; several with commas")
	f.StringVar(&h.external.ca, "etcd-ca", "", "`FILE` with the authority of that etcd")
	f.StringVar(&h.external.cert, "etcd-cert", "", "`FILE` with this host's certificate for it")
	f.StringVar(&h.external.key, "etcd-key", "", "`FILE` with the certificate's key")
	for _, name := range []string{"etcd-ca", "etcd-cert", "etcd-key"} {
		_ = cmd.MarkFlagFilename(name) // the flags exist, so these cannot fail
	}
	_ = cmd.MarkFlagDirname("state-dir")
	_ = cmd.MarkFlagDirname("run-dir")
}

// complete fills in what the flags leave open, and checks them.
func (h *hostFlags) complete() error {
	if h.node == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("host name: %w; name this host with --node", err)
		}
		h.node = name
	}
	if err := join.CheckName(h.node); err != nil {
		return err
	}
	if len(h.addresses) == 0 {
		h.addresses = ownAddresses()
	}
	if len(h.addresses) == 0 {
		return errors.New("this host has no default route, so it is not clear at which address the other nodes reach it: " +
			"name it with --address")
	}
	families := map[bool]string{}
	for i, text := range h.addresses {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			return fmt.Errorf("--address %q: write the address at which the other nodes reach this one, as 192.0.2.1", text)
		}
		if first := families[a.Is4()]; first != "" {
			return fmt.Errorf("--address %s and %s are of one family: one is enough", first, text)
		}
		families[a.Is4()], h.addresses[i] = text, a.String()
		if err := h.has(a); err != nil {
			return err
		}
	}
	if err := h.mayUse(h.stateDir); err != nil {
		return err
	}
	if (h.external.cert == "") != (h.external.key == "") {
		return errors.New("--etcd-cert and --etcd-key belong together: name both files, or none")
	}
	if len(h.external.endpoints) == 0 && (h.external.ca != "" || h.external.cert != "") {
		return errors.New("--etcd-ca, --etcd-cert and --etcd-key are for an etcd that runs already: name it with " +
			"--etcd-endpoints")
	}
	return nil
}

// has checks that the host has the address, before a token is used up for a node that could not start. A host that is
// only prepared may get it later.
func (h *hostFlags) has(a netip.Addr) error {
	if a.IsLoopback() {
		return fmt.Errorf("--address %s: that is each host's own: write the address at which the other nodes reach this one",
			a)
	}
	if h.noStart {
		return nil
	}
	return hostHas(a)
}

// hostHas checks that the host has the address.
func hostHas(a netip.Addr) error {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("this host's addresses: %w", err)
	}
	var have []string
	for _, i := range all {
		p, err := netip.ParsePrefix(i.String())
		switch {
		case err != nil:
		case p.Addr().Unmap() == a:
			return nil
		case p.Addr().IsGlobalUnicast():
			have = append(have, p.Addr().String())
		}
	}
	return fmt.Errorf("--address %s: this host does not have it: use one of its own, which are %s", a,
		strings.Join(have, ", "))
}

// mayUse refuses a state directory that others can write to, as keys are in it, and says who may write to it.
func (h *hostFlags) mayUse(dir string) error {
	if err := mayWriteTo(dir); err != nil {
		return err
	}
	if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("state directory %s has mode %04o, so others could put a key of theirs there: `chmod go-w %s`", dir,
			info.Mode().Perm(), dir)
	}
	return nil
}

// mayWriteTo says who may write to a state directory, before anything is asked or told for somebody who may not.
func mayWriteTo(dir string) error {
	err := unix.Access(dir, unix.W_OK)
	if errors.Is(err, unix.ENOENT) {
		err = unix.Access(filepath.Dir(dir), unix.W_OK)
	}
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("user %d may not write to the state directory %s: run this as root", os.Geteuid(), dir)
	}
	return nil
}

// ownAddresses are those that packets towards the default routes have. Nothing is sent.
func ownAddresses() []string {
	var out []string
	for _, to := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // documentation addresses, which nobody has
		conn, err := net.Dial("udp", to)
		if err != nil {
			continue
		}
		if a, ok := conn.LocalAddr().(*net.UDPAddr); ok && a.IP.IsGlobalUnicast() {
			out = append(out, a.AddrPort().Addr().Unmap().WithZone("").String())
		}
		_ = conn.Close() // nothing was sent
	}
	return out
}

// spec is the key `etcd` of a host with the user's own etcd.
func (h *hostFlags) externalSpec() etcd.Spec {
	return etcd.Spec{Endpoints: h.external.endpoints, Network: h.network, CA: h.external.ca,
		Certificate: h.external.cert, Key: h.external.key}
}

// listens fills in where a member on this host is reached.
func (h *hostFlags) listens(s *etcd.Spec) {
	at := func(port string) string { return net.JoinHostPort(h.addresses[0], port) }
	s.Embedded = true
	s.ListenClients, s.ListenPeers, s.ListenJoin = at(member.DefaultClientPort), at(member.DefaultPeerPort),
		at(join.DefaultPort)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
