//go:build cluster

package kube_test

import (
	"errors"
	"fmt"
	"strings"

	"github.com/warren-net/warren/internal/lab/kube"
)

// whoMaySayWhat: the credentials that are found on one node change nothing about another one. The API server is asked,
// and not what we think of it.
func whoMaySayWhat(c *cluster) {
	a, b := c.Nodes[0], c.Nodes[1]
	annotate := func(as kube.Client, n *kube.Node) error {
		_, err := c.KubectlAs(c.ctx, as, "annotate", "--overwrite", "node", n.Name, "warren.network/vxlan-port=4790")
		return err
	}
	refused := func(what string, err error, why string) {
		c.t.Helper()
		if err == nil || !strings.Contains(err.Error(), why) {
			c.t.Errorf("%s: %v, want it refused: %s", what, err, why)
		}
	}
	kubelet, err := c.Kubelet(a)
	c.ok(err)
	refused("a kubelet about another node", annotate(kubelet, b), "only its own Node object")
	refused("a kubelet about its node's pod CIDRs", func() error {
		_, err := c.KubectlAs(c.ctx, kubelet, "patch", "node", a.Name, "--patch", `{"spec": {"podCIDR": "10.244.99.0/24"}}`)
		return err
	}(), "podCIDR")

	// RBAC knows no own node. The policy that comes with Warren does.
	policy, err := c.OwnNodePolicy()
	c.ok(err)
	c.ok(c.Apply(c.ctx, policy))
	daemon, err := c.Daemon(c.ctx, a)
	c.ok(err)
	c.until("the policy is in force", func() error {
		err := annotate(daemon, b)
		if err == nil {
			return fmt.Errorf("the daemon of node %s may say something about node %s", a.Name, b.Name)
		}
		if !strings.Contains(err.Error(), "Warren may change the Node object") {
			return err
		}
		return nil
	})
	c.ok(annotate(daemon, a))
	for _, bad := range []struct {
		why  string
		args []string
	}{
		{"cannot list resource", []string{"get", "secrets", "--all-namespaces"}},
		{"cannot list resource", []string{"get", "pods", "--all-namespaces"}},
		{"cannot delete resource", []string{"delete", "node", b.Name, "--dry-run=server"}},
		{"Warren may change no labels", []string{"label", "node", a.Name, "a=b"}},
	} {
		_, err := c.KubectlAs(c.ctx, daemon, bad.args...)
		refused("Warren's daemon: kubectl "+strings.Join(bad.args, " "), err, bad.why)
	}
	// The daemon goes on under it, and takes back what was said in its name.
	c.until("annotations of node "+a.Name, func() error {
		out, err := c.Kubectl(c.ctx, "get", "node", a.Name, "-o", "jsonpath={.metadata.annotations}")
		if err == nil && (strings.Contains(out, "4790") || !strings.Contains(out, "warren.network/public-key")) {
			err = errors.New(out)
		}
		return err
	})
	c.ok(c.RestartWarren(c.ctx))
	c.allTalk(c.run(workload{name: "trusted", replicas: len(c.Nodes)}))
	c.remove(c.pods("trusted"), "trusted")
}
