//go:build runtime

package cri_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	types "github.com/containernetworking/cni/pkg/types/100"

	"github.com/warren-net/warren/internal/lab"
)

// TestCnitool does what cnitool's manual says, with a network namespace in the place of a container.
func TestCnitool(t *testing.T) {
	program := built(t, "cnitool")
	c := newLab(t, "a")
	n := c.nodes[0]
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		c.t = t
		t.Run(version, func(t *testing.T) {
			c.t = t
			bin, conf := t.TempDir(), t.TempDir()
			_, err := n.Warren(c.ctx, "cni", "install", "--bin-dir", bin, "--conf-dir", conf, "--cni-version", version)
			c.ok(err)
			c.cnitool(n, version, func(memory string, args ...string) (string, error) {
				// What it remembers it keeps in /var/lib/cni, which it takes from no flag. It sees another /var/lib.
				return n.NS.Run(c.ctx, append([]string{"unshare", "--mount", "--propagation", "private",
					"env", "CNI_PATH=" + bin, "NETCONFPATH=" + conf,
					"sh", "-c", `mount --bind "$0" /var/lib && exec "$@"`, memory, program}, args...)...)
			})
		})
	}
}

func (c *cluster) cnitool(n *node, version string, run func(memory string, args ...string) (string, error)) {
	c.t.Helper()
	memory, another := c.t.TempDir(), c.t.TempDir()
	tool := func(args ...string) (string, error) { return run(memory, args...) }
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
	c.reaches(n, result)
	_, err = tool("status", "warren", pod.Path())
	c.ok(err)
	// cnitool tells the plugin of no pod: what other runtimes have added has to stay.
	_, err = run(another, "gc", "warren", pod.Path())
	c.ok(err)
	c.reaches(n, result)
	// What check says of a pod that is not as it was has to reach the user.
	_, err = pod.Run(c.ctx, "ip", "-4", "addr", "flush", "dev", "eth0")
	c.ok(err)
	v4 := result.IPs[0].Address.IP.String()
	if out, err := tool("check", "warren", pod.Path()); err == nil || !strings.Contains(err.Error(), v4) {
		c.t.Errorf("`cnitool check` of a pod that has lost %s: %s %v", v4, out, err)
	}
	for _, command := range []string{"del", "gc"} { // gc deletes what cnitool remembers
		_, err = tool(command, "warren", pod.Path())
		c.ok(err)
		c.asBefore(command, n, map[string][2]lab.KernelState{"node": {before, c.state(n)}, "pod": {bare, c.stateOf(pod)}})
		if after := c.filesOf(n); strings.Join(after, "\n") != strings.Join(files, "\n") {
			c.t.Errorf("files after `cnitool %s`: %q, before %q", command, after, files)
		}
		if command == "del" {
			_, err = tool("add", "warren", pod.Path())
			c.ok(err)
		}
	}
	c.ok(c.lab.RemoveNS(pod))
}

// reaches checks that the node reaches a pod.
func (c *cluster) reaches(n *node, pod types.Result) {
	c.t.Helper()
	for _, ip := range pod.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			c.t.Fatalf("address %s", ip.Address)
		}
		_, err := n.NS.Run(c.ctx, "ping", "-c1", "-W1", a.Unmap().String())
		c.ok(err)
	}
}

func (c *cluster) asBefore(command string, n *node, states map[string][2]lab.KernelState) {
	c.t.Helper()
	for what, states := range states {
		if added, gone := states[1].Since(states[0]); len(added)+len(gone) > 0 {
			c.t.Errorf("%s of node %s after `cnitool %s`: added %q, gone %q", what, n.Name, command, added, gone)
		}
	}
}
