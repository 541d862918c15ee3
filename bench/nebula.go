package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/warren-net/warren/internal/lab"
)

// nebula is Nebula with two routines and its default cipher; the pods' networks are routed through it as unsafe routes.
type nebula struct {
	dir     string // where it is built
	binary  string
	program string
}

// nebulaAddr is a node's address inside Nebula's network.
func nebulaAddr(node int) string { return fmt.Sprintf("10.244.255.%d", node+1) }

// Name is the system's name in the report.
func (*nebula) Name() string { return "nebula" }

// Subjects is what it has a part in.
func (*nebula) Subjects() []Subject { return []Subject{AboutNodes} }

// Program says what is measured.
func (s *nebula) Program() string { return s.program }

// Prepare builds nebula and nebula-cert, or finds nebula-cert beside the given binary.
func (s *nebula) Prepare(ctx context.Context) error {
	if s.binary != "" {
		s.program = "given, " + sayVersion(ctx, s.binary, "-version")
		if _, err := os.Stat(s.cert()); err != nil {
			return fmt.Errorf("nebula-cert has to be beside %s: %w", s.binary, err)
		}
		return nil
	}
	version, bin, err := goProgram{
		module: "github.com/slackhq/nebula", packages: []string{"cmd/nebula", "cmd/nebula-cert"},
		fallback: []string{"v1.11.1", "v1.11.0", "v1.10.3"},
	}.install(ctx, s.dir)
	s.program, s.binary = version, filepath.Join(bin, "nebula")
	return err
}

func (s *nebula) cert() string { return filepath.Join(filepath.Dir(s.binary), "nebula-cert") }

// Up makes certificates, starts a process per node and waits for their devices.
func (s *nebula) Up(ctx context.Context, b *Bed) (*Path, error) {
	p, err := b.pods(ctx, b.PodMTU())
	if err != nil {
		return nil, err
	}
	p.Devices, p.Encrypts = sameDevice("nebula1"), true
	ca := filepath.Join(b.Lab.Dir, "nebula-ca")
	_, err = b.Nodes[0].NS.Run(ctx, s.cert(), "ca", "-name", "bench", "-out-crt", ca+".crt", "-out-key", ca+".key")
	if err != nil {
		return nil, err
	}
	for i, n := range b.Nodes {
		own := filepath.Join(n.Dir, "nebula")
		err := commands(ctx, n.NS, fmt.Sprintf("%s sign -ca-crt %s.crt -ca-key %s.key -name %s -networks %s/24 "+
			"-unsafe-networks %s -out-crt %s.crt -out-key %s.key", s.cert(), ca, ca, n.Name, nebulaAddr(i),
			n.PodCIDRs[0], own, own))
		if err != nil {
			return nil, err
		}
		config, err := yaml.Marshal(nebulaConfig(b, i, p.Devices[i]))
		if err != nil {
			return nil, fmt.Errorf("configuration of nebula: %w", err)
		}
		if err := os.WriteFile(own+".yaml", config, 0o600); err != nil {
			return nil, err
		}
		proc, err := b.Lab.Start(n.NS, "nebula-"+n.Name, s.binary, "-config", own+".yaml")
		if err != nil {
			return nil, err
		}
		p.Procs = append(p.Procs, proc)
	}
	for i, n := range b.Nodes {
		if err := waitRoute(ctx, b, n, p.Devices[i]); err != nil {
			return nil, fmt.Errorf("%w; the log of nebula:\n%s", err, p.Procs[i].LogTail())
		}
	}
	return p, nil
}

func nebulaConfig(b *Bed, node int, device string) map[string]any {
	own, peer := b.Nodes[node], b.Nodes[1-node]
	files := filepath.Join(own.Dir, "nebula")
	anything := []map[string]any{{"port": "any", "proto": "any", "host": "any", "local_cidr": "0.0.0.0/0"}}
	return map[string]any{
		"pki": map[string]any{
			"ca": filepath.Join(b.Lab.Dir, "nebula-ca.crt"), "cert": files + ".crt", "key": files + ".key",
		},
		"static_host_map": map[string]any{nebulaAddr(1 - node): []string{peer.V4.String() + ":4242"}},
		"lighthouse":      map[string]any{"am_lighthouse": false, "hosts": []string{}},
		"listen":          map[string]any{"host": own.V4.String(), "port": 4242},
		"routines":        2,
		"tun": map[string]any{
			"dev": device, "mtu": b.PodMTU(),
			"unsafe_routes": []map[string]any{{
				"route": peer.PodCIDRs[0].String(), "via": nebulaAddr(1 - node), "mtu": b.PodMTU(),
			}},
		},
		"firewall": map[string]any{"inbound": anything, "outbound": anything},
		"logging":  map[string]any{"level": "info"},
	}
}

// waitRoute waits until the node sends what is for the other's pods into the device.
func waitRoute(ctx context.Context, b *Bed, n *lab.Node, device string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	peer := b.Nodes[0]
	if n == peer {
		peer = b.Nodes[1]
	}
	for {
		out, err := n.NS.Run(ctx, "ip", "route", "show", peer.PodCIDRs[0].String(), "dev", device)
		if err == nil && out != "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no route to %s by %s on node %s", peer.PodCIDRs[0], device, n.Name)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
