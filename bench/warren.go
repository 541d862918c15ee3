package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/warren-net/warren/internal/lab"
)

// warrenSystem is Warren itself: the daemon on each node, pods attached by the plugin, everything at its default but
// the encapsulation, the keys for it, and the pods' MTU.
type warrenSystem struct {
	encapsulation string // encrypted, or vxlan
	binDir        string // holds warren and warren-cni
	name          string // in the report; empty: after the encapsulation
	version       string
}

// encrypted is the encapsulation that needs keys.
const encrypted = "wireguard"

// warrenDevice is the daemon's device.
const warrenDevice = "warren0"

// warrenBefore and wireguardBefore are the names of another commit's Warren, measured beside this tree's.
const (
	warrenBefore    = "warren-before"
	wireguardBefore = "warren-wireguard-before"
)

// Name is the system's name in the report.
func (w *warrenSystem) Name() string {
	if w.name != "" {
		return w.name
	}
	return "warren-" + w.encapsulation
}

// Subjects are all there are; the plugin is the same whatever joins the nodes, and measured once.
func (w *warrenSystem) Subjects() []Subject {
	if w.encapsulation == encrypted {
		return []Subject{AboutNodes, AboutNode, AboutHandshakes}
	}
	return []Subject{AboutNodes, AboutNode, AboutPlugin}
}

// Program says what is measured.
func (w *warrenSystem) Program() string { return w.version }

// Prepare finds the program that `make bench`, or `make build` in another tree, has built.
func (w *warrenSystem) Prepare(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, filepath.Join(w.binDir, "warren"), "version").Output()
	if err != nil {
		return fmt.Errorf("%s in %s: %w: `make build` in its tree makes it", w.Name(), w.binDir, err)
	}
	w.version = strings.TrimSpace(string(out))
	return nil
}

// Up starts the daemons and adds the pods.
func (w *warrenSystem) Up(ctx context.Context, b *Bed) (*Path, error) {
	b.Lab.Options.BinDir = w.binDir
	for _, n := range b.Nodes {
		n.Settings.Encapsulation, n.Settings.MTU = w.encapsulation, b.PodMTU()
		// The daemon's own, whatever lab.OffloadsEnv says.
		n.Settings.Offloads, n.Settings.Express, n.Settings.Moderation = map[string]string{}, "auto", "auto"
		if w.encapsulation != encrypted {
			continue
		}
		if err := n.MakeKey(); err != nil {
			return nil, err
		}
	}
	if err := b.Lab.WriteConfigs(); err != nil {
		return nil, err
	}
	p := &Path{Devices: sameDevice(warrenDevice), Encrypts: w.encapsulation == encrypted}
	for i, n := range b.Nodes {
		if err := n.Up(ctx); err != nil {
			return nil, err
		}
		p.Procs = append(p.Procs, n.Daemon())
		pod, err := n.AddPod(ctx, "pod", lab.PodOptions{})
		if err != nil {
			return nil, err
		}
		p.Ends[i] = End{NS: pod.NS, Addr: pod.V4}
	}
	if p.Encrypts {
		p.Victim = &Victim{Key: b.Nodes[1].PublicKey, Port: wireguardPort}
	}
	near, err := b.Nodes[0].AddPod(ctx, "near", lab.PodOptions{})
	if err != nil {
		return nil, err
	}
	p.Neighbour = &End{NS: near.NS, Addr: near.V4}
	p.Near = []Hop{{Device: warrenDevice, Sent: true}, {Device: warrenDevice}}
	p.Plugin, err = w.plugin(b.Nodes[0])
	return p, err
}

// plugin is Warren's, beside the running daemon, in its default form but for IPv6: it masquerades and checks sources.
func (w *warrenSystem) plugin(n *lab.Node) (*Plugin, error) {
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "warren", "type": "warren-cni", "runDir": n.RunDir, "stateDir": n.StateDir,
		"podCIDRs": n.PodCIDRs[:1],
	})
	if err != nil {
		return nil, fmt.Errorf("configuration of warren-cni: %w", err)
	}
	// Relative names end where the process has another working directory.
	binary, err := filepath.Abs(filepath.Join(w.binDir, "warren-cni"))
	return &Plugin{Binary: binary, Conf: string(conf), State: n.StateDir}, err
}
