package bench

import (
	"context"
	"net/netip"
	"path/filepath"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab/wgpeer"
)

// wireguardGo is wireguard-go.
type wireguardGo struct {
	dir     string // where it is built
	binary  string
	program string
}

const wireguardPort = 51820

// Name is the system's name in the report.
func (*wireguardGo) Name() string { return "wireguard-go" }

// Needs is the program that configures it.
func (*wireguardGo) Needs() []string { return []string{"wg:wireguard-tools"} }

// Subjects is what it has a part in.
func (*wireguardGo) Subjects() []Subject { return []Subject{AboutNodes, AboutHandshakes} }

// Program says what is measured.
func (w *wireguardGo) Program() string { return w.program }

// Prepare builds it.
func (w *wireguardGo) Prepare(ctx context.Context) (err error) {
	if w.binary != "" {
		w.program = "given, " + sayVersion(ctx, w.binary, "--version")
		return nil
	}
	w.binary, w.program, err = wgpeer.Build(ctx, w.dir)
	return err
}

// Up starts a process per node and makes them peers.
func (w *wireguardGo) Up(ctx context.Context, b *Bed) (*Path, error) {
	p, err := b.pods(ctx, b.PodMTU())
	if err != nil {
		return nil, err
	}
	program, err := filepath.Abs(w.binary)
	if err != nil {
		return nil, err
	}
	p.Encrypts = true
	keys := [2]key.Private{key.NewPrivate(), key.NewPrivate()}
	p.Victim = &Victim{Key: keys[1].Public(), Port: wireguardPort}
	for i, n := range b.Nodes {
		far := b.Nodes[1-i]
		peer := wgpeer.New(b.Lab, n.NS, wgpeer.Config{
			Name: "wireguard-go-" + n.Name, Program: program, MTU: b.PodMTU(), PrivateKey: keys[i], Port: wireguardPort,
			Remotes: []wgpeer.Remote{{
				PublicKey: keys[1-i].Public(), Endpoint: netip.AddrPortFrom(far.V4, wireguardPort),
				AllowedIPs: far.PodCIDRs[:1],
			}},
		})
		if err := peer.Up(ctx); err != nil {
			return nil, err
		}
		p.Devices[i] = peer.Device()
		p.Procs = append(p.Procs, peer.Proc())
	}
	return p, nil
}
