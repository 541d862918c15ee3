//go:build runtime

package cri_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	types "github.com/containernetworking/cni/pkg/types/100"

	"github.com/warren-net/warren/internal/lab"
)

// list is the network configuration list of docs/cni.md, for a node of the lab.
func list(n *node, version string) string {
	b, err := json.Marshal(map[string]any{
		"cniVersion": version, "name": "warren",
		"plugins": []map[string]any{{"type": "warren-cni", "runDir": n.RunDir, "stateDir": n.StateDir}},
	})
	if err != nil {
		panic(err) // strings always can be marshalled
	}
	return string(b)
}

// TestCnitool does what cnitool's manual says, with a network namespace in the place of a container.
func TestCnitool(t *testing.T) {
	tool := built(t, "cnitool")
	c := newLab(t, "a")
	n := c.nodes[0]
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		c.t = t
		t.Run(version, func(t *testing.T) {
			c.t = t
			conf := t.TempDir()
			c.ok(os.WriteFile(filepath.Join(conf, "10-warren.conflist"), []byte(list(n, version)), 0o644))
			c.cnitool(n, version, func(args ...string) (string, error) {
				return n.NS.Run(c.ctx, append([]string{"env", "CNI_PATH=" + c.lab.Options.BinDir, "NETCONFPATH=" + conf, tool},
					args...)...)
			})
		})
	}
}

func (c *cluster) cnitool(n *node, version string, tool func(args ...string) (string, error)) {
	c.t.Helper()
	pod, err := c.lab.AddNS("pod-" + strings.ReplaceAll(version, ".", "-"))
	c.ok(err)
	before, bare := c.state(n), c.stateOf(pod)
	files := c.filesOf(n)

	out, err := tool("add", "warren", pod.Path())
	c.ok(err)
	var result types.Result
	c.ok(json.Unmarshal([]byte(out), &result))
	if len(result.IPs) != 2 {
		c.t.Fatalf("`cnitool add` gave %s, want an address of each family", out)
	}
	_, err = tool("check", "warren", pod.Path())
	c.ok(err)
	for _, ip := range result.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			c.t.Fatalf("address %s", ip.Address)
		}
		_, err := n.NS.Run(c.ctx, "ping", "-c1", "-W1", a.Unmap().String())
		c.ok(err)
	}
	if version == "1.1.0" {
		_, err = tool("status", "warren", pod.Path())
		c.ok(err)
	}
	// What check says of a pod that is not as it was has to reach the user.
	_, err = pod.Run(c.ctx, "ip", "-4", "addr", "flush", "dev", "eth0")
	c.ok(err)
	v4 := result.IPs[0].Address.IP.String()
	if out, err := tool("check", "warren", pod.Path()); err == nil || !strings.Contains(err.Error(), v4) {
		c.t.Errorf("`cnitool check` of a pod that has lost %s: %s %v", v4, out, err)
	}
	_, err = tool("del", "warren", pod.Path())
	c.ok(err)
	for what, difference := range map[string][2]lab.KernelState{
		"node": {before, c.state(n)}, "pod": {bare, c.stateOf(pod)},
	} {
		if added, gone := difference[1].Since(difference[0]); len(added)+len(gone) > 0 {
			c.t.Errorf("%s after `cnitool del`: added %q, gone %q", what, added, gone)
		}
	}
	if after := c.filesOf(n); strings.Join(after, "\n") != strings.Join(files, "\n") {
		c.t.Errorf("files after `cnitool del`: %q, before %q", after, files)
	}
	c.ok(c.lab.RemoveNS(pod))
}
