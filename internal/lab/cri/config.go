package cri

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/warren-net/warren/internal/lab"
)

// containerdConfig is the daemon's configuration, version 2 (containerd 1.6 and later). /run is the node's own, so the
// directories in it are the defaults.
//
// restrict_oom_score_adj: without CAP_SYS_RESOURCE, as in many a container, runc could not lower the score. The plugin
// "opt" would make /opt/containerd.
const containerdConfig = `version = 2
root = %q
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]

[grpc]
address = %q

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = %q
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = %q
conf_dir = %q
`

// Conflist is the network configuration list of a node: Warren's plugin and, behind it, those of CNI's own that a
// cluster may use. The fields are added to Warren's entry.
func Conflist(n *lab.Node, fields map[string]any) ([]byte, error) {
	warren := map[string]any{"type": "warren-cni", "runDir": n.RunDir, "stateDir": n.StateDir}
	for k, v := range fields {
		warren[k] = v
	}
	return json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0", // of containerd 1.6
		"name":       "warren",
		"plugins": []map[string]any{
			warren,
			{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
			{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}},
			{"type": "firewall"},
			{"type": "tuning", "sysctl": map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}},
		},
	}, "", "  ")
}

// writeFiles writes what an operator would put on the node: the daemon's configuration, the plugins and their list.
func (r *Runtime) writeFiles(o Options) error {
	for _, dir := range []string{r.confDir(), r.binDir(), r.logDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	plugins, err := os.ReadDir(o.Plugins)
	if err != nil {
		return fmt.Errorf("CNI's own plugins (`make test-runtime` builds them): %w", err)
	}
	for _, p := range plugins {
		if err := os.Symlink(filepath.Join(o.Plugins, p.Name()), filepath.Join(r.binDir(), p.Name())); err != nil {
			return err
		}
	}
	if err := os.Symlink(o.WarrenCNI, filepath.Join(r.binDir(), "warren-cni")); err != nil {
		return err
	}
	list, err := Conflist(r.Node, o.Fields)
	if err != nil {
		return err
	}
	config := fmt.Sprintf(containerdConfig, r.root(), r.socket(), pauseImage, r.binDir(), r.confDir())
	if err := os.WriteFile(r.configFile(), []byte(config), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.confDir(), "10-warren.conflist"), list, 0o644)
}

func (r *Runtime) in(name string) string { return filepath.Join(r.Node.Dir, name) }
func (r *Runtime) root() string          { return r.in("containerd") }
func (r *Runtime) socket() string        { return r.in("c.sock") }
func (r *Runtime) configFile() string    { return r.in("containerd.toml") }
func (r *Runtime) confDir() string       { return r.in("net.d") }
func (r *Runtime) binDir() string        { return r.in("cni") }
func (r *Runtime) logDir() string        { return r.in("logs") }
