//go:build runtime

package cri_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/cri"
)

// podmanFiles are what an operator writes: containers.conf begins as docs/standalone.md has it. The rest of it, and the
// storage, is for the ground of the test: no systemd, a kernel or container that gives no lower limits back, locks that
// are the host's own, and no overlay on an overlay.
func podmanFiles() map[string]string {
	return map[string]string{
		"/etc/containers/containers.conf": `[network]
network_backend = "cni"
default_network = "warren"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
`,
		"/etc/containers/storage.conf": `[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
`,
	}
}

// A podHost is a host of the guide.
type podHost struct {
	*node
	cgroup string
	v4, v6 netip.Addr // of its container web
}

// TestPodman does on three hosts what docs/standalone.md says: init, join, and pods by Podman.
func TestPodman(t *testing.T) {
	lab.NeedTool(t, "podman", "podman")
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	t.Cleanup(cancel)
	t.Cleanup(func() { nothingLeft(t) })
	c := &cluster{t: t, ctx: ctx, lab: lab.ForTest(t, lab.Options{Prefix: "cri", BinDir: built(t, ".")})}
	images, err := cri.BuildImages(ctx, c.lab.Dir)
	c.ok(err)
	var hosts []*podHost
	for _, name := range []string{"a", "b", "c"} {
		h := c.podHost(name, images)
		hosts = append(hosts, h)
		if len(hosts) == 1 {
			c.ok(h.Init(ctx))
		} else {
			c.ok(h.Join(ctx, hosts[0].Node))
		}
		c.ok(h.Up(ctx))
		c.prepare(h)
	}
	first := hosts[0]

	for _, h := range hosts {
		c.web(h, "run", "-d", "--name", "web", "-p", "30080:8080", "--cgroup-parent", h.cgroup, "warren.test/server:1")
	}
	c.websTalk(hosts)
	seen, err := cri.Get(ctx, c.lab.Outside, netip.AddrPortFrom(first.V4, 30080), "/source")
	if outside := "192.0.2.254:"; err != nil || !strings.HasPrefix(seen, outside) {
		t.Errorf("host port from outside: the pod sees %s, want %s; %v", seen, outside, err)
	}

	// An address that a pod has is no other's, and is free as soon as the pod is stopped.
	twice := []string{"run", "-d", "--name", "twice", "--ip", first.v4.String(), "--cgroup-parent", first.cgroup,
		"warren.test/server:1"}
	if _, err := c.podman(first, twice...); err == nil || !strings.Contains(err.Error(), "is in use by") {
		t.Errorf("the address of a running container for another one: %v", err)
	}
	c.podmanOK(first, "rm", "-f", "twice")
	c.podmanOK(first, "stop", "-t", "0", "web")
	c.listed(first.node, nil)
	c.podmanOK(first, twice...)
	c.podmanOK(first, "rm", "-f", "-t", "0", "twice")
	c.web(first, "start", "web")
	c.web(first, "restart", "-t", "0", "web")
	c.websTalk(hosts)

	// A host starts anew; its containers are started as before.
	c.ok(first.runtime.PowerOff())
	c.ok(errors.Join(first.Kill(), first.Up(ctx)))
	c.boot1(first)
	c.knows(first, hosts[1:]) // what it knew last may be older than the last host, until its etcd answers
	c.web(first, "start", "web")
	c.websTalk(hosts)

	for _, h := range hosts {
		c.podmanOK(h, "rm", "-f", "-t", "0", "web")
		c.listed(h.node, nil)
		for _, file := range c.filesOf(h.node) {
			if strings.HasPrefix(file, filepath.Join(h.StateDir, "cni")) {
				t.Errorf("host %s without pods has the file %s", h.Name, file)
			}
		}
		c.ok(h.runtime.PowerOff())
	}
}

// knows waits until a host's daemon has the others as peers.
func (c *cluster) knows(h *podHost, others []*podHost) {
	c.t.Helper()
	for {
		out, err := h.Warren(c.ctx, "peers")
		c.ok(err)
		missing := slices.ContainsFunc(others, func(o *podHost) bool { return !strings.Contains(out, o.V4.String()) })
		if !missing {
			return
		}
		select {
		case <-c.ctx.Done():
			c.t.Fatalf("host %s does not hear of all others:\n%s", h.Name, out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// podHost makes a host that is a machine of its own, with Podman as installed.
func (c *cluster) podHost(name string, images *cri.Images) *podHost {
	c.t.Helper()
	n, err := c.lab.AddNode(name)
	c.ok(err)
	n.Settings.Workers = 2
	h := &podHost{node: &node{Node: n}}
	h.runtime, err = cri.Install(c.ctx, c.lab, n, cri.Options{Plugins: built(c.t, "cni"), Images: images, Machine: true})
	c.ok(err)
	c.t.Cleanup(func() {
		if err := h.runtime.PowerOff(); err != nil {
			c.t.Error(err)
		}
	})
	c.boot1(h)
	return h
}

func (c *cluster) boot1(h *podHost) {
	c.t.Helper()
	c.ok(h.runtime.Boot(c.ctx))
	var err error
	h.cgroup, err = h.runtime.MakeCgroup()
	c.ok(err)
}

// prepare installs the plugin on a host whose daemon runs, and what the containers run.
func (c *cluster) prepare(h *podHost) {
	c.t.Helper()
	warren, err := c.lab.Binary("warren")
	c.ok(err)
	_, err = h.runtime.Run(c.ctx, warren, "cni", "install", "--chain", "portmap", "--config", h.ConfigFile)
	c.ok(err)
	for name, text := range podmanFiles() {
		c.ok(os.WriteFile(h.runtime.Path(name), []byte(text), 0o644))
	}
	if backend := c.podmanOK(h, "info", "-f", "{{.Host.NetworkBackend}}"); backend != "cni" {
		c.t.Fatalf("Podman's network backend is %q, want cni", backend)
	}
	c.podmanOK(h, "load", "-q", "-i", filepath.Join(c.lab.Dir, "server.tar"))
}

func (c *cluster) podman(h *podHost, args ...string) (string, error) {
	out, err := h.runtime.Run(c.ctx, append([]string{"podman"}, args...)...)
	return strings.TrimSpace(out), err
}

func (c *cluster) podmanOK(h *podHost, args ...string) string {
	c.t.Helper()
	out, err := c.podman(h, args...)
	c.ok(err)
	return out
}

// web starts the host's container web in some way, and learns its addresses.
func (c *cluster) web(h *podHost, args ...string) {
	c.t.Helper()
	c.podmanOK(h, args...)
	out := c.podmanOK(h, "inspect", "-f",
		`{{with index .NetworkSettings.Networks "warren"}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}`, "web")
	var err error
	texts := strings.Fields(out + " - -")
	if h.v4, err = netip.ParseAddr(texts[0]); err == nil {
		h.v6, err = netip.ParseAddr(texts[1])
	}
	if err != nil || !h.PodCIDRs[0].Contains(h.v4) || !h.PodCIDRs[1].Contains(h.v6) {
		c.t.Fatalf("container web of host %s has %q, want one of each of %v: %v", h.Name, out, h.PodCIDRs, err)
	}
}

// websTalk checks each pair of the hosts' containers, both protocols and families: the source is kept.
func (c *cluster) websTalk(hosts []*podHost) {
	c.t.Helper()
	for _, from := range hosts {
		for _, to := range hosts {
			for _, pair := range [][2]netip.Addr{{from.v4, to.v4}, {from.v6, to.v6}} {
				for _, by := range []string{"tcp", "udp"} {
					ask := fmt.Sprintf("/ask?by=%s&to=%s", by, netip.AddrPortFrom(pair[1], cri.Port))
					seen, err := cri.Get(c.ctx, from.NS, netip.AddrPortFrom(from.v4, cri.Port), ask)
					source, _ := netip.ParseAddrPort(seen)
					if err != nil || source.Addr().Unmap() != pair[0] {
						c.t.Errorf("%s from host %s's container to %s's comes from %s, want %s; %v", by, from.Name, to.Name,
							seen, pair[0], err)
					}
				}
			}
		}
	}
}
