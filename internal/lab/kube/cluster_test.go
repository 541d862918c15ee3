//go:build cluster

package kube_test

import (
	"context"
	"os"
	"path/filepath"
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

func life(c *cluster) {
	t := c.t
	for _, part := range []struct {
		name string
		test func(*cluster)
	}{
		{"pods talk", podsTalk},
		{"probes", probes},
		{"exec and logs", execAndLogs},
		{"scale", scale},
		{"kube-proxy nftables", beside("nftables")},
		{"DNS beside nftables", resolve},
		{"kube-proxy iptables", beside("iptables")},
		{"DNS beside iptables", resolve},
		{"API server down", apiServerDown},
		{"node comes and goes", nodeComesAndGoes},
		{"rolling restart", rollingRestart},
		{"another address", anotherAddress},
	} {
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
	if d, err := time.ParseDuration(os.Getenv("HOLD")); err == nil {
		time.Sleep(d)
	}
}
