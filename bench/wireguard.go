package bench

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// wireguardGo is wireguard-go, configured over its own socket (https://www.wireguard.com/xplatform/), so that the
// program wg is not needed.
type wireguardGo struct {
	dir     string // where it is built
	binary  string
	program string
}

// wireguardSockets is where wireguard-go makes its sockets, which can't be set.
const wireguardSockets = "/var/run/wireguard"

const wireguardPort = 51820

// Name is the system's name in the report.
func (*wireguardGo) Name() string { return "wireguard-go" }

// Subjects is what it has a part in.
func (*wireguardGo) Subjects() []Subject { return []Subject{AboutNodes} }

// Program says what is measured.
func (w *wireguardGo) Program() string { return w.program }

// Prepare builds it.
func (w *wireguardGo) Prepare(ctx context.Context) error {
	if w.binary != "" {
		w.program = "given, " + sayVersion(ctx, w.binary, "--version")
		return nil
	}
	version, bin, err := goProgram{
		module: "golang.zx2c4.com/wireguard", versions: []string{"v0.0.0-20260522210424-ecfc5a8d5446"},
	}.install(ctx, w.dir)
	w.program, w.binary = version, filepath.Join(bin, "wireguard")
	return err
}

// Up starts a process per node and makes them peers.
func (w *wireguardGo) Up(ctx context.Context, b *Bed) (*Path, error) {
	p, err := b.pods(ctx, b.PodMTU())
	if err != nil {
		return nil, err
	}
	p.Device = "wg0"
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, fmt.Errorf("key for wireguard-go: %w", err)
		}
	}
	for i, n := range b.Nodes {
		peer := b.Nodes[1-i]
		// The sockets of all namespaces lie in one directory: the device gets its name once its socket has been used.
		device := fmt.Sprintf("wb%d%s", os.Getpid(), n.Name)
		socket := filepath.Join(wireguardSockets, device+".sock")
		b.OnClose(func() error { return removeSocket(socket) })
		proc, err := b.Lab.Start(n.NS, "wireguard-go-"+n.Name, w.binary, "-f", device)
		if err != nil {
			return nil, err
		}
		p.Procs = append(p.Procs, proc)
		err = configureWireguard(ctx, socket, fmt.Sprintf("set=1\nprivate_key=%x\nlisten_port=%d\npublic_key=%x\n"+
			"endpoint=%s:%d\nallowed_ip=%s\n\n", keys[i].Bytes(), wireguardPort, keys[1-i].PublicKey().Bytes(),
			peer.V4, wireguardPort, peer.PodCIDRs[0]))
		if err == nil {
			err = commands(ctx, n.NS,
				fmt.Sprintf("ip link set %s name %s mtu %d up", device, p.Device, b.PodMTU()),
				fmt.Sprintf("ip route add %s dev %s", peer.PodCIDRs[0], p.Device))
		}
		if err != nil {
			return nil, fmt.Errorf("%w; the log of wireguard-go:\n%s", err, proc.LogTail())
		}
	}
	return p, nil
}

func removeSocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(wireguardSockets) // unless somebody else's are in it
	return nil
}

// configureWireguard waits for the socket and sends one request.
func configureWireguard(ctx context.Context, socket, request string) error {
	const wait = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var conn net.Conn
	for {
		var err error
		if conn, err = new(net.Dialer).DialContext(ctx, "unix", socket); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wireguard-go does not listen on %s: %w", socket, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return fmt.Errorf("configuring wireguard-go: %w", err)
	}
	answer := make([]byte, 256)
	n, err := conn.Read(answer)
	if err == nil && strings.TrimSpace(string(answer[:n])) != "errno=0" {
		err = fmt.Errorf("it answers %q", answer[:n])
	}
	if err != nil {
		return fmt.Errorf("configuring wireguard-go: %w", err)
	}
	return nil
}
