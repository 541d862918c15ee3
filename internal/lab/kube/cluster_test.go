//go:build cluster

package kube_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/kube"
)

// testTime bounds a cluster's life.
const testTime = 15 * time.Minute

type cluster struct {
	*kube.Cluster
	t   *testing.T
	ctx context.Context
}

// newCluster brings a cluster up, with two nodes.
func newCluster(t *testing.T, mode string) *cluster {
	t.Helper()
	bin, err := filepath.Abs("../../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "kube")); err != nil {
		t.Fatalf("%v: `make test-cluster` builds what this test needs and runs it", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	t.Cleanup(cancel)
	before := sysctls(t)
	t.Cleanup(func() { nothingLeft(t, before) })
	l := lab.ForTest(t, lab.Options{Prefix: "kube", BinDir: bin})
	began := time.Now()
	c := &cluster{t: t, ctx: ctx}
	c.Cluster, err = kube.New(ctx, l, kube.Options{
		BinDir: bin, Manifest: "../../../deploy/kubernetes/warren.yaml", Mode: mode, Proxy: "nftables",
	})
	c.ok(err)
	t.Logf("control plane after %v", time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() {
		if err := c.PowerOff(); err != nil {
			t.Error(err)
		}
	})
	_, err = c.AddNodes(ctx, "n1", "n2")
	c.ok(err)
	t.Logf("nodes after %v", time.Since(began).Round(time.Millisecond))
	return c
}

func (c *cluster) ok(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// TestCluster is the life of a cluster, whose pods see no difference between the ways in which Warren attaches them.
func TestCluster(t *testing.T) {
	for _, mode := range []string{"routed", "bridge"} {
		t.Run(mode, func(t *testing.T) { life(newCluster(t, mode)) })
	}
}

// life is all that a cluster goes through. Each part leaves it as it found it.
func life(c *cluster) {
	const once = "routed" // where the way to attach pods makes no difference
	t := c.t
	for _, part := range []struct {
		name string
		mode string // empty: both
		test func(*cluster)
	}{
		{"pods talk", "", podsTalk},
		{"probes", once, probes},
		{"exec and logs", once, execAndLogs},
		{"scale", "", scale},
		{"kube-proxy nftables", "", beside("nftables")},
		{"DNS beside nftables", once, resolve},
		{"kube-proxy iptables", "", beside("iptables")},
		{"DNS beside iptables", "", resolve},
		{"node comes and goes", once, nodeComesAndGoes},
		{"rolling restart", "", rollingRestart},
		{"another address", once, anotherAddress},
		{"who may say what", once, whoMaySayWhat},
		{"API server down", once, apiServerDown},
	} {
		if part.mode != "" && part.mode != c.Options.Mode {
			continue
		}
		ok := t.Run(part.name, func(t *testing.T) {
			c.t = t
			part.test(c)
		})
		c.t = t
		if !ok {
			t.Log(c.Logs())
			t.Fatalf("%s failed, and the cluster is in whatever state it left", part.name)
		}
	}
}

// nothingLeft checks the machine after the lab: no namespace, directory, mount, control group or process, and the
// settings of before.
func nothingLeft(t *testing.T, before map[string]string) {
	t.Helper()
	left, err := lab.Remains("kube")
	if err != nil {
		t.Error(err)
	}
	mine := fmt.Sprintf("-%d", os.Getpid())
	for _, name := range left {
		if strings.Contains(name, mine) {
			t.Errorf("left behind: %s", name)
		}
	}
	dir := filepath.Join(os.TempDir(), "wrn-kube"+mine)
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
	for name, value := range sysctls(t) {
		if before[name] != value {
			t.Errorf("sysctl %s of the machine is %s, was %s", name, value, before[name])
		}
	}
}

// sysctls are the settings of the whole machine that a kubelet and kube-proxy change.
func sysctls(t *testing.T) map[string]string {
	t.Helper()
	values := make(map[string]string)
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/netfilter/nf_conntrack_max"} {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		values[name] = strings.TrimSpace(string(value))
	}
	return values
}
