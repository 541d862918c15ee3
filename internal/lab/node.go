package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/warren-net/warren/internal/key"
)

// A Node is a host on the underlay. Settings, PublicKey and Encapsulation may be changed by its owner before
// WriteConfigs, V4 and V6 before Reboot; the rest is fixed.
type Node struct {
	Name     string
	Index    int // 1 for the first node
	NS       *NS
	V4, V6   netip.Addr     // on the underlay
	PodCIDRs []netip.Prefix // IPv4, IPv6
	Settings Settings       // what WriteConfigs writes into this node's own file

	PublicKey     key.Public // in the node's entry in all files; zero: it has none; see MakeKey
	Encapsulation string     // the same

	Dir        string // holds everything below
	ConfigFile string
	RunDir     string
	StateDir   string

	lab     *Lab
	far     bool // behind the router, see AddRouter
	daemon  *Proc
	entered []byte // the configuration that Init or Join wrote; nil: its nodes are listed
}

// AddNode makes a node: a namespace with eth0 on the underlay, IPv4 and IPv6, and default routes to the outside. The
// name is 1 to 8 letters or digits.
func (l *Lab) AddNode(name string) (*Node, error) { return l.addNode(name, false) }

func (l *Lab) addNode(name string, far bool) (*Node, error) {
	l.mu.Lock()
	l.lastIndex++
	n := &Node{Name: name, Index: l.lastIndex, lab: l, far: far}
	l.mu.Unlock()
	if n.Index > maxNodes {
		return nil, fmt.Errorf("node %s is number %d: the underlay has addresses for %d", name, n.Index, maxNodes)
	}
	n.V4, n.V6 = nth(underlayV4, n.Index), nth(underlayV6, n.Index)
	if far {
		n.V4, n.V6 = nth(farV4, n.Index), nth(farV6, n.Index)
	}
	n.PodCIDRs = []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n.Index)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", n.Index)),
	}
	n.Dir = filepath.Join(l.Dir, name)
	n.ConfigFile = filepath.Join(n.Dir, "warren.yaml")
	n.RunDir = filepath.Join(n.Dir, "run")
	n.StateDir = filepath.Join(n.Dir, "lib")
	// sun_path holds 108 bytes with the final NUL (unix(7)).
	if socket := filepath.Join(n.RunDir, "warren.sock"); len(socket) > 107 {
		return nil, fmt.Errorf("socket path %s has %d bytes, more than the 107 that a Unix socket takes: set TMPDIR to a "+
			"shorter directory", socket, len(socket))
	}
	for _, dir := range []string{n.RunDir, n.StateDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("directory of node %s: %w", name, err)
		}
	}
	var err error
	if n.NS, err = l.AddNS(name); err != nil {
		return nil, err
	}
	if err := n.connect(); err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	l.mu.Lock()
	l.nodes = append(l.nodes, n)
	l.mu.Unlock()
	return n, nil
}

// Nodes are the lab's nodes in the order in which they were added.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Node(nil), l.nodes...)
}

// SetUnderlayMTU changes the MTU in bytes of the node's device on the underlay and of its port on the switch.
func (n *Node) SetUnderlayMTU(mtu int) error {
	set := func(device string) func() error {
		return func() error {
			link, err := netlink.LinkByName(device)
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(link, mtu)
		}
	}
	err := errors.Join(n.NS.Do(set(underlayDevice)), n.lab.sw.Do(set(n.Port())))
	if err != nil {
		return fmt.Errorf("underlay MTU %d of node %s: %w", mtu, n.Name, err)
	}
	return nil
}

// Up starts `warren up` in the node's namespace and waits until it answers `warren status`. The configuration file has
// to be there: see WriteConfigs.
func (n *Node) Up(ctx context.Context) error {
	warren, err := n.lab.Binary("warren")
	if err != nil {
		return err
	}
	p, err := n.lab.Start(n.NS, "warren-"+n.Name, warren, "up", "--config", n.ConfigFile)
	if err != nil {
		return err
	}
	n.daemon = p
	return n.waitReady(ctx)
}

// readyWait bounds the start of a daemon.
const readyWait = 15 * time.Second

func (n *Node) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	for {
		_, err := n.Warren(ctx, "status")
		if err == nil && n.entered != nil {
			return n.learn(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-n.daemon.Done():
			return fmt.Errorf("warren on node %s ended at once (%w); its log:\n%s", n.Name, n.daemon.err,
				n.daemon.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("warren on node %s does not answer after %v: %w; its log:\n%s", n.Name, readyWait, err,
				n.daemon.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Daemon is the node's current or last `warren up`; nil before the first.
func (n *Node) Daemon() *Proc { return n.daemon }

// Kill ends the daemon as a crash would: SIGKILL.
func (n *Node) Kill() error { return n.daemon.Kill() }

// Down ends the daemon in order: SIGTERM, and waits for exit status 0.
func (n *Node) Down(ctx context.Context) error {
	if err := n.daemon.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	if err := n.daemon.Wait(ctx); err != nil {
		return fmt.Errorf("warren on node %s after SIGTERM: %w; its log:\n%s", n.Name, err, n.daemon.LogTail())
	}
	return nil
}

// Warren runs one of the commands that ask the running daemon, e.g. Warren(ctx, "pods", "-o", "json").
func (n *Node) Warren(ctx context.Context, args ...string) (string, error) {
	warren, err := n.lab.Binary("warren")
	if err != nil {
		return "", err
	}
	return n.NS.Run(ctx, append(append([]string{warren}, args...), "--config", n.ConfigFile)...)
}
