package bench

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// tinc is tinc 1.0 as Debian has it: data over UDP, mode router, its default cipher and digest.
type tinc struct {
	binary  string
	program string
}

const (
	tincDevice = "tinc0"
	// tincMTU is the largest MTU of the pods' that tinc can carry: its frames end at 1,518 bytes, whatever the wire,
	// unless it has been compiled for jumbo frames, which Debian's is not. They are the pods' on a wire of 1,500.
	tincMTU = lab.DefaultMTU - podRoom
)

// Name is the system's name in the report.
func (*tinc) Name() string { return "tinc" }

// Needs is Debian's package, unless a binary was given.
func (s *tinc) Needs() []string {
	if s.binary != "" {
		return nil
	}
	return []string{"tincd:tinc"}
}

// Subjects is what it has a part in.
func (*tinc) Subjects() []Subject { return []Subject{AboutNodes} }

// Program says what is measured.
func (s *tinc) Program() string { return s.program }

// Prepare finds tincd.
func (s *tinc) Prepare(ctx context.Context) error {
	if s.binary == "" {
		path, err := exec.LookPath("tincd")
		if err != nil {
			return fmt.Errorf("%w: install the package tinc, or leave the system out", err)
		}
		s.binary = path
	}
	out, err := exec.CommandContext(ctx, s.binary, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", s.binary, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	s.program = strings.TrimPrefix(first, "tinc version ") +
		fmt.Sprintf(" (UDP, mode router, aes-256-cbc with sha256, its defaults; pods' MTU at most %d)", tincMTU)
	return nil
}

// Up starts a process per node and makes them peers.
func (s *tinc) Up(ctx context.Context, b *Bed) (*Path, error) {
	mtu := min(b.PodMTU(), tincMTU)
	p, err := b.pods(ctx, mtu)
	if err != nil {
		return nil, err
	}
	p.Devices, p.Encrypts = sameDevice(tincDevice), true
	var keys [2]*rsa.PrivateKey
	for i := range keys {
		const bits = 2048 // tincd's own default
		if keys[i], err = rsa.GenerateKey(rand.Reader, bits); err != nil {
			return nil, fmt.Errorf("key for tinc: %w", err)
		}
	}
	for i, n := range b.Nodes {
		dir := filepath.Join(n.Dir, "tinc")
		if err := writeTinc(b, dir, i, keys); err != nil {
			return nil, fmt.Errorf("configuration of tinc: %w", err)
		}
		proc, err := b.Lab.Start(n.NS, "tinc-"+n.Name, s.binary, "--config="+dir, "--no-detach", "--debug=2",
			"--pidfile="+filepath.Join(dir, "pid"))
		if err != nil {
			return nil, err
		}
		p.Procs = append(p.Procs, proc)
		if err := waitDevice(ctx, n, proc, p.Devices[i]); err != nil {
			return nil, err
		}
		peer := b.Nodes[1-i]
		err = commands(ctx, n.NS, fmt.Sprintf("ip link set %s mtu %d up", p.Devices[i], mtu),
			fmt.Sprintf("ip route add %s dev %s", peer.PodCIDRs[0], p.Devices[i]))
		if err != nil {
			return nil, err
		}
	}
	return p, waitEcho(ctx, p)
}

// writeTinc writes a node's configuration.
func writeTinc(b *Bed, dir string, node int, keys [2]*rsa.PrivateKey) error {
	hosts := filepath.Join(dir, "hosts")
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		return err
	}
	own, peer := b.Nodes[node], b.Nodes[1-node]
	private := pem.EncodeToMemory(&pem.Block{
		Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(keys[node]),
	})
	errs := []error{
		os.WriteFile(filepath.Join(dir, "rsa_key.priv"), private, 0o600),
		os.WriteFile(filepath.Join(dir, "tinc.conf"), fmt.Appendf(nil,
			"Name = %s\nConnectTo = %s\nInterface = %s\nMode = router\n", own.Name, peer.Name, tincDevice), 0o600),
	}
	for i, n := range b.Nodes {
		public := pem.EncodeToMemory(&pem.Block{
			Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&keys[i].PublicKey),
		})
		// Until tinc has discovered the path MTU, which takes it seconds and starts again at will, it sends what it
		// believes too large through its TCP connection. The MTU is known here, so that all data goes over UDP.
		text := fmt.Appendf(nil, "Address = %s\nSubnet = %s\nPMTUDiscovery = no\n\n%s", n.V4, n.PodCIDRs[0], public)
		errs = append(errs, os.WriteFile(filepath.Join(hosts, n.Name), text, 0o600))
	}
	return errors.Join(errs...)
}

// waitDevice waits until a process has made its device.
func waitDevice(ctx context.Context, n *lab.Node, proc *lab.Proc, device string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		stats, err := readDevices(n.NS)
		if _, ok := stats[device]; err != nil || ok {
			return err
		}
		select {
		case <-proc.Done():
			return fmt.Errorf("%s ended without a device %s; its log:\n%s", proc.Name, device, proc.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("%s makes no device %s; its log:\n%s", proc.Name, device, proc.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// waitEcho waits until the pods answer each other: a system may need a while for its handshake.
func waitEcho(ctx context.Context, p *Path) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		_, err := p.Ends[0].NS.Run(ctx, "ping", "-n", "-c", "1", "-W", "1", p.Ends[1].Addr.String())
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the pods don't reach each other: %w; the log of %s:\n%s", err, p.Procs[0].Name,
				p.Procs[0].LogTail())
		}
	}
}
