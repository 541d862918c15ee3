//go:build runtime

package cri_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/cri"
)

// testTime bounds a test.
const testTime = 6 * time.Minute

// A cluster is a lab whose nodes have a runtime.
type cluster struct {
	t     *testing.T
	ctx   context.Context
	lab   *lab.Lab
	nodes []*node
}

type node struct {
	*lab.Node
	runtime *cri.Runtime

	bare  lab.KernelState // before anything of Warren's or the runtime's was there
	empty lab.KernelState // with both running, after a first pod has come and gone
	files []string        // in the state directory then
}

// built is the path of what `make test-runtime` puts into bin.
func built(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../../bin", name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v: `make test-runtime` builds what this test needs and runs it", err)
	}
	return path
}

// newLab makes a lab with nodes on which Warren runs.
func newLab(t *testing.T, names ...string) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	t.Cleanup(cancel)
	t.Cleanup(func() { nothingLeft(t) })
	c := &cluster{t: t, ctx: ctx, lab: lab.ForTest(t, lab.Options{Prefix: "cri", BinDir: built(t, ".")})}
	for _, name := range names {
		n, err := c.lab.AddNode(name)
		c.ok(err)
		n.Settings.Workers = 2
		c.nodes = append(c.nodes, &node{Node: n})
	}
	c.ok(c.lab.WriteConfigs())
	for _, n := range c.nodes {
		n.bare = c.state(n)
		c.ok(n.Up(ctx))
	}
	return c
}

// newCluster also runs containerd on the nodes, which attaches pods in a mode.
func newCluster(t *testing.T, mode string, names ...string) *cluster {
	t.Helper()
	plugins := built(t, "cni")
	c := newLab(t, names...)
	images, err := cri.BuildImages(c.ctx, c.lab.Dir)
	c.ok(err)
	for _, n := range c.nodes {
		n.runtime, err = cri.Install(c.ctx, c.lab, n.Node, cri.Options{Plugins: plugins, Mode: mode, Images: images})
		c.ok(err)
		t.Cleanup(func() { // before the lab's own, so that containerd's end is waited for
			if err := n.runtime.PowerOff(); err != nil {
				t.Error(err)
			}
		})
	}
	c.boot()
	return c
}

// boot starts the runtimes of all nodes and remembers what they look like without pods. CNI's own plugins make their
// tables with the first pod and keep them.
func (c *cluster) boot() {
	c.t.Helper()
	c.each(func(n *node) error {
		if err := n.runtime.Boot(c.ctx); err != nil {
			return err
		}
		return n.runtime.Start(c.ctx)
	})
	for _, n := range c.nodes {
		c.ok(c.run(n, "first", cri.PodOptions{HostPort: 30000}).Delete(c.ctx))
		n.empty, n.files = c.state(n), c.filesOf(n)
	}
}

func (c *cluster) ok(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// each does something on all nodes at once.
func (c *cluster) each(do func(n *node) error) {
	c.t.Helper()
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() { errs[i] = do(n) })
	}
	wg.Wait()
	c.ok(errors.Join(errs...))
}

func (c *cluster) run(n *node, name string, o cri.PodOptions) *cri.Pod {
	c.t.Helper()
	p, err := n.runtime.RunPod(c.ctx, name, o)
	c.ok(err)
	if !n.PodCIDRs[0].Contains(p.V4) || !n.PodCIDRs[1].Contains(p.V6) {
		c.t.Fatalf("pod %s of node %s has %s and %s, want one of each of %v", name, n.Name, p.V4, p.V6, n.PodCIDRs)
	}
	return p
}

// volatile matches what a restart of Warren's daemon or of the node changes: numbers and Ethernet addresses of devices
// that are made anew, with the link-local addresses that follow from them, and what is known of the carrier of a device
// that the daemon comes back to.
var volatile = regexp.MustCompile(`^\d+: |@if\d+| link-netnsid \d+| state \w+|link/ether \S+|fe80:\S+`)

func (c *cluster) state(n *node) lab.KernelState { return c.stateOf(n.NS) }

func (c *cluster) stateOf(ns *lab.NS) lab.KernelState {
	c.t.Helper()
	s, err := ns.State(c.ctx)
	c.ok(err)
	for _, lines := range s {
		for i := range lines {
			lines[i] = volatile.ReplaceAllString(lines[i], "")
		}
	}
	return s
}

// filesOf lists the files of Warren's state directory but for locks and those that remember the last address given out.
func (c *cluster) filesOf(n *node) []string {
	c.t.Helper()
	var files []string
	c.ok(filepath.WalkDir(n.StateDir, func(path string, d fs.DirEntry, err error) error {
		lasting := strings.HasSuffix(d.Name(), "lock") || strings.HasPrefix(d.Name(), "last.")
		if err == nil && !d.IsDir() && !lasting {
			files = append(files, path)
		}
		return err
	}))
	return files
}

// vacant checks that a node without pods is as it was before the first one: not a device, address, rule, route, file,
// mount, sandbox, neither in the daemon's list.
func (c *cluster) vacant(n *node) {
	c.t.Helper()
	added, gone := c.state(n).Since(n.empty)
	// A device that is gone may still be on its way out of the kernel's lists.
	for deadline := time.Now().Add(5 * time.Second); len(added)+len(gone) > 0 && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
		added, gone = c.state(n).Since(n.empty)
	}
	if len(added)+len(gone) > 0 {
		c.t.Errorf("node %s without pods has changed:\nadded\n\t%s\ngone\n\t%s", n.Name,
			strings.Join(added, "\n\t"), strings.Join(gone, "\n\t"))
	}
	if files := c.filesOf(n); strings.Join(files, "\n") != strings.Join(n.files, "\n") {
		c.t.Errorf("node %s without pods has files %q, had %q", n.Name, files, n.files)
	}
	mounts, err := n.runtime.Mounts()
	c.ok(err)
	if len(mounts) > 0 {
		c.t.Errorf("node %s without pods has mounts %q", n.Name, mounts)
	}
	sandboxes, err := n.runtime.Sandboxes(c.ctx)
	c.ok(err)
	if len(sandboxes) > 0 {
		c.t.Errorf("node %s without pods has sandboxes %v", n.Name, sandboxes)
	}
	c.listed(n, nil)
}

// listed checks that `warren pods` lists these pods and no other.
func (c *cluster) listed(n *node, pods []*cri.Pod) {
	c.t.Helper()
	out, err := n.Warren(c.ctx, "pods")
	c.ok(err)
	for _, p := range pods {
		for _, want := range []string{p.Name, p.V4.String(), p.V6.String()} {
			if !strings.Contains(out, want) {
				c.t.Errorf("`warren pods` on node %s does not mention %s of pod %s:\n%s", n.Name, want, p.Name, out)
			}
		}
	}
	if lines := strings.Count(out, n.PodCIDRs[0].Addr().String()[:len("10.244.1.")]); lines != len(pods) {
		c.t.Errorf("`warren pods` on node %s mentions %d addresses of %d pods:\n%s", n.Name, lines, len(pods), out)
	}
}

// shutDown ends the runtimes and Warren on nodes without pods, and checks that neither left anything of Warren's.
func (c *cluster) shutDown() {
	c.t.Helper()
	for _, n := range c.nodes {
		c.ok(n.runtime.PowerOff())
		left, err := n.runtime.Uninstall(c.ctx)
		c.ok(err)
		if len(left) > 0 {
			c.t.Errorf("node %s after `warren cni remove`: %q", n.Name, left)
		}
		c.ok(n.Down(c.ctx))
		added, gone := c.state(n).Since(n.bare)
		for _, line := range append(added, gone...) {
			// What is left of CNI's own plugins are tables without a rule about a pod.
			if kind, rest, _ := strings.Cut(line, ": "); kind != "nftables" || ofPods(rest) {
				c.t.Errorf("node %s has changed for good: %s", n.Name, line)
			}
		}
	}
}

func ofPods(line string) bool {
	for _, mark := range []string{"warren", "wrn", "10.244.", "fd00:10:244:"} {
		if strings.Contains(line, mark) {
			return true
		}
	}
	return false
}

// nothingLeft checks the machine after the lab: no namespace, directory, mount, control group or process.
func nothingLeft(t *testing.T) {
	left, err := lab.Remains("cri")
	if err != nil {
		t.Error(err)
	}
	mine := fmt.Sprintf("-%d", os.Getpid())
	for _, name := range left {
		if strings.Contains(name, mine) {
			t.Errorf("left behind: %s", name)
		}
	}
	dir := filepath.Join(os.TempDir(), "wrn-cri"+mine)
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("mounts below %s are left: %v", dir, err)
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/wrn-cri" + mine + "*")
	if err != nil || len(groups) > 0 {
		t.Errorf("control groups left: %q, %v", groups, err)
	}
	if out, err := exec.Command("pgrep", "-af", dir).CombinedOutput(); err == nil {
		t.Errorf("processes left:\n%s", out)
	}
	// A plugin's command line does not name its file, which is gone by now.
	programs, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Error(err)
	}
	for _, exe := range programs {
		if program, err := os.Readlink(exe); err == nil && strings.HasPrefix(program, dir) {
			t.Errorf("%s is left: %s", exe, program)
		}
	}
}
