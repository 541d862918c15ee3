package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// chain are the plugins of CNI's own that the list names behind Warren's.
const chain = "portmap,bandwidth,firewall,tuning"

// writeFiles puts on the node what an operator would: the daemon's configuration, CNI's own plugins, and by `warren cni
// install`, as docs/cni.md has it, Warren's and the network configuration list.
func (r *Runtime) writeFiles(ctx context.Context, o Options) error {
	bin := r.binDir()
	if r.machine {
		if err := r.makeMachine(); err != nil {
			return err
		}
		bin = r.own(bin) // until the node boots
	} else if err := errors.Join(os.MkdirAll(r.confDir(), 0o755), os.MkdirAll(bin, 0o755)); err != nil {
		return err
	}
	if err := os.MkdirAll(r.logDir(), 0o755); err != nil {
		return err
	}
	plugins, err := os.ReadDir(o.Plugins)
	if err != nil {
		return fmt.Errorf("CNI's own plugins (`make test-runtime` builds them): %w", err)
	}
	put := os.Symlink
	if r.machine {
		put = copyProgram // where a pod that has the directory mounted finds it, too
	}
	for _, p := range plugins {
		if err := put(filepath.Join(o.Plugins, p.Name()), filepath.Join(bin, p.Name())); err != nil {
			return err
		}
	}
	config := fmt.Sprintf(containerdConfig, r.root(), r.socket(), pauseImage, r.binDir(), r.confDir())
	if err := os.WriteFile(r.configFile(), []byte(config), 0o644); err != nil {
		return err
	}
	if r.machine {
		return nil
	}
	_, err = r.warrenCNI(ctx, "install", "--mode", o.Mode, "--chain", chain)
	return err
}

func copyProgram(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// Uninstall is `warren cni remove`. What is left in the two directories by then it returns: CNI's own plugins only.
func (r *Runtime) Uninstall(ctx context.Context) ([]string, error) {
	if _, err := r.warrenCNI(ctx, "remove"); err != nil {
		return nil, err
	}
	var left []string
	for _, dir := range []string{r.binDir(), r.confDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Type() != os.ModeSymlink { // what writeFiles made
				left = append(left, filepath.Join(dir, e.Name()))
			}
		}
	}
	return left, nil
}

func (r *Runtime) warrenCNI(ctx context.Context, command string, flags ...string) (string, error) {
	args := []string{"cni", command, "--bin-dir", r.binDir(), "--conf-dir", r.confDir()}
	return r.Node.Warren(ctx, append(args, flags...)...)
}

func (r *Runtime) in(name string) string { return filepath.Join(r.Node.Dir, name) }
func (r *Runtime) root() string          { return r.in("containerd") }
func (r *Runtime) socket() string        { return r.in("c.sock") }
func (r *Runtime) configFile() string    { return r.in("containerd.toml") }
func (r *Runtime) logDir() string        { return r.in("logs") }

func (r *Runtime) confDir() string {
	if r.machine {
		return "/etc/cni/net.d"
	}
	return r.in("net.d")
}

func (r *Runtime) binDir() string {
	if r.machine {
		return "/opt/cni/bin"
	}
	return r.in("cni")
}

// Socket is where CRI is spoken.
func (r *Runtime) Socket() string { return r.socket() }
