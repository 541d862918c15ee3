package e2e_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/warren-net/warren/internal/lab"
)

// TestInstallBeforeUp is what an init container does on a new node: plugin and list come before the node has ever run.
// A runtime that starts a pod then is told to try again, and succeeds when the node runs; the installation done again,
// as by the next version's init container, finds everything as it should be.
func TestInstallBeforeUp(t *testing.T) {
	h := newHost(t)
	a := h.node
	o := h.done(h.cni("install", "--before-up"))
	for _, want := range []string{"warren-cni: installed", "conflist: installed", "the node has not run yet"} {
		if !strings.Contains(o.stdout, want) || o.stderr != "" {
			t.Errorf("no %q in:\n%s%s", want, o.stdout, o.stderr)
		}
	}
	list, err := libcni.ConfListFromFile(filepath.Join(h.conf, "10-warren.conflist"))
	h.ok(err)
	config := libcni.NewCNIConfigWithCacheDir([]string{h.bin}, filepath.Join(a.Dir, "cache"), nil)
	pod, err := h.lab.AddNS("a-early")
	h.ok(err)
	rt := &libcni.RuntimeConf{ContainerID: "early", NetNS: pod.Path(), IfName: "eth0"}
	add := func() error {
		return a.NS.Do(func() error { _, err := config.AddNetworkList(h.ctx, list, rt); return err })
	}
	var refusal *types.Error
	if err := add(); !errors.As(err, &refusal) || refusal.Code != types.ErrTryAgainLater {
		t.Errorf("before the node runs: %v, want code %d", err, types.ErrTryAgainLater)
	}
	h.up(a)
	h.ok(add())
	h.ping(pod, outside(4), lab.Ping{})
	o = h.done(h.cni("install", "--before-up"))
	for _, want := range []string{"warren-cni: unchanged", "conflist: unchanged", "node a: pods get addresses of"} {
		if !strings.Contains(o.stdout, want) || o.stderr != "" {
			t.Errorf("again, no %q in:\n%s%s", want, o.stdout, o.stderr)
		}
	}
	h.ok(a.NS.Do(func() error { return config.DelNetworkList(h.ctx, list, rt) }))
	h.ok(h.lab.RemoveNS(pod))
	h.done(h.cni("remove"))
}
