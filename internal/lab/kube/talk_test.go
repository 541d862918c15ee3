//go:build cluster

package kube_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/warren-net/warren/internal/lab/kube"
)

// podsTalk: every pod with every pod, and every node with every pod; who is asked sees who asks.
func podsTalk(c *cluster) {
	pods := c.run(workload{name: "talk", replicas: 2 * len(c.Nodes)})
	for _, n := range c.Nodes {
		if mine := on(n, pods); len(mine) != 2 {
			c.t.Fatalf("node %s has %d pods, want 2", n.Name, len(mine))
		}
	}
	c.allTalk(pods)
	c.remove(pods, "talk")
}

func on(n *kube.Node, pods []*pod) []*pod {
	var mine []*pod
	for _, p := range pods {
		if p.node == n {
			mine = append(mine, p)
		}
	}
	return mine
}

func (c *cluster) allTalk(pods []*pod) {
	c.t.Helper()
	for _, to := range pods {
		for _, from := range pods {
			c.talk(from, to)
		}
		for _, n := range c.Nodes {
			c.nodeTalks(n, to)
		}
	}
}

func (c *cluster) talk(from, to *pod) {
	c.t.Helper()
	for _, family := range []int{4, 6} {
		for _, by := range []string{"tcp", "udp"} {
			seen, err := c.ask(from, by, to.address(family).String(), port)
			if err != nil {
				c.t.Error(err)
			} else if seen != from.address(family) {
				c.t.Errorf("%s from pod %s to pod %s comes from %s, want %s", by, from.name, to.name, seen,
					from.address(family))
			}
		}
	}
}

// nodeTalks: a node's own programs reach pods on their own, as the node's address or its gateway's.
func (c *cluster) nodeTalks(n *kube.Node, to *pod) {
	c.t.Helper()
	cidrs, err := c.PodCIDRs(c.ctx, n)
	c.ok(err)
	for i, family := range []int{4, 6} {
		for _, by := range []string{"tcp", "udp"} {
			seen, err := c.askFrom(n.NS, by, netip.AddrPortFrom(to.address(family), port))
			if err != nil {
				c.t.Error(err)
			} else if seen != n.Address(family) && seen != cidrs[i].Addr().Next() {
				c.t.Errorf("%s from node %s to pod %s comes from %s", by, n.Name, to.name, seen)
			}
		}
	}
}

// probes: the kubelet of each node reaches its pods. Those of this server fail when it is ten seconds old.
func probes(c *cluster) {
	const manifest = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mortal-%[1]s"}, "spec": {
		"nodeName": "%[1]s", "terminationGracePeriodSeconds": 1,
		"containers": [{"name": "server", "image": "%[2]s", "imagePullPolicy": "Never", "args": ["liveness"],
			"readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
			"livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1, "failureThreshold": 2}
		}]}}`
	var manifests, pods []string
	for _, n := range c.Nodes {
		manifests = append(manifests, fmt.Sprintf(manifest, n.Name, kube.AgnhostImage))
		pods = append(pods, "pod/mortal-"+n.Name)
	}
	c.ok(c.Apply(c.ctx, strings.Join(manifests, "\n---\n")))
	for _, condition := range []string{
		"condition=Ready", `jsonpath={.status.containerStatuses[0].restartCount}=1`, "condition=Ready",
	} {
		args := append([]string{"wait", "--for=" + condition, "--timeout=" + readyWait.String()}, pods...)
		_, err := c.Kubectl(c.ctx, args...)
		c.ok(err)
	}
	_, err := c.Kubectl(c.ctx, append([]string{"delete"}, pods...)...)
	c.ok(err)
}

// execAndLogs: the API server reaches the kubelets, and these the pods.
func execAndLogs(c *cluster) {
	pods := c.run(workload{name: "said", replicas: len(c.Nodes)})
	for _, p := range pods {
		out, err := c.Kubectl(c.ctx, "exec", p.name, "--", "/agnhost", "dns-suffix")
		c.ok(err)
		if want := "default.svc.cluster.local"; !strings.Contains(out, want) {
			c.t.Errorf("exec in pod %s on node %s says %q, want %q", p.name, p.node.Name, out, want)
		}
		if _, err = c.ask(p, "tcp", p.v6.String(), port); err != nil {
			c.t.Error(err)
		}
		c.until("log of pod "+p.name, func() error {
			out, err := c.Kubectl(c.ctx, "logs", p.name)
			if err == nil && !strings.Contains(out, "GET /clientip") {
				err = fmt.Errorf("it lacks the question that was asked:\n%s", out)
			}
			return err
		})
	}
	c.remove(pods, "said")
}

// scale: from none to forty pods, and back.
func scale(c *cluster) {
	const many, atOnce = 40, 4
	c.run(workload{name: "many", replicas: 0})
	asker := c.run(workload{name: "asker", replicas: 1})[0]
	before := c.attached()
	_, err := c.Kubectl(c.ctx, "scale", "deployment/many", fmt.Sprint("--replicas=", many))
	c.ok(err)
	c.rolledOut("deployment/many")
	pods := c.pods("many")
	if len(pods) != many {
		c.t.Errorf("%d pods, want %d", len(pods), many)
	}
	taken := make(map[netip.Addr]string)
	for _, p := range pods {
		for _, addr := range []netip.Addr{p.v4, p.v6} {
			if other := taken[addr]; other != "" {
				c.t.Errorf("pods %s and %s both have %s", p.name, other, addr)
			}
			taken[addr] = p.name
		}
	}
	var wg sync.WaitGroup
	next := make(chan *pod)
	for range atOnce {
		wg.Go(func() {
			for p := range next {
				c.talk(asker, p)
				c.talk(p, asker)
			}
		})
	}
	for _, p := range pods {
		next <- p
	}
	close(next)
	wg.Wait()
	_, err = c.Kubectl(c.ctx, "scale", "deployment/many", "--replicas=0")
	c.ok(err)
	c.until("pods after scaling to none", func() error {
		if now := c.attached(); now != before {
			return fmt.Errorf("the nodes list %d pods, had %d", now, before)
		}
		return nil
	})
	c.remove([]*pod{asker}, "many", "asker")
}

// attached counts the pods that Warren lists on all nodes.
func (c *cluster) attached() int {
	c.t.Helper()
	count := 0
	for _, n := range c.Nodes {
		out, err := c.Warren(c.ctx, n, "pods")
		c.ok(err)
		count += strings.Count(out, "10.244.")
	}
	return count
}
