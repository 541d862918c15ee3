//go:build runtime

package cri_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/cri"
)

// TestRuntime is the life of two nodes with a container runtime, which sees no difference between the modes.
func TestRuntime(t *testing.T) {
	for _, mode := range []string{"routed", "bridge"} {
		t.Run(mode, func(t *testing.T) { life(newCluster(t, mode, "a", "b")) })
	}
}

// life is all that nodes go through. Each part leaves them as it found them.
func life(c *cluster) {
	t := c.t
	for _, part := range []struct {
		name string
		test func(*cluster)
	}{
		{"pods talk", podsTalk},
		{"host ports", hostPorts},
		{"bandwidth", bandwidth},
		{"many pods", manyPods},
		{"runtime killed", runtimeKilled},
		{"reboot", func(c *cluster) { reboot(c, keepState) }},
		{"reboot without state", func(c *cluster) { reboot(c, loseState) }},
	} {
		ok := t.Run(part.name, func(t *testing.T) {
			c.t = t
			part.test(c)
			for _, n := range c.nodes {
				c.vacant(n)
			}
		})
		c.t = t
		if !ok {
			t.Fatalf("%s failed, and the nodes are in whatever state it left", part.name)
		}
	}
	c.shutDown()
}

func podsTalk(c *cluster) {
	var pods []*cri.Pod
	for _, n := range c.nodes {
		mine := []*cri.Pod{c.run(n, n.Name+"1", cri.PodOptions{}), c.run(n, n.Name+"2", cri.PodOptions{})}
		c.listed(n, mine)
		pods = append(pods, mine...)
	}
	c.allTalk(pods)
	c.deleteAll(pods)
}

// allTalk checks each pair of pods, both protocols and families: the other one sees the pod's own address.
func (c *cluster) allTalk(pods []*cri.Pod) {
	c.t.Helper()
	for _, from := range pods {
		for _, to := range pods {
			c.talk(from, to)
		}
	}
}

func (c *cluster) talk(from, to *cri.Pod) {
	c.t.Helper()
	for _, family := range []int{4, 6} {
		for _, by := range []string{"tcp", "udp"} {
			seen, err := from.SourceSeen(c.ctx, by, netip.AddrPortFrom(to.Address(family), cri.Port))
			if err != nil {
				c.t.Error(err)
			} else if seen != from.Address(family) {
				c.t.Errorf("%s from pod %s to pod %s comes from %s, want %s", by, from.Name, to.Name, seen,
					from.Address(family))
			}
		}
	}
}

func (c *cluster) deleteAll(pods []*cri.Pod) {
	c.t.Helper()
	for _, p := range pods {
		c.ok(p.Delete(c.ctx))
	}
}

// hostPorts: a port of the node leads to a pod, from wherever it is asked.
func hostPorts(c *cluster) {
	a, b := c.nodes[0], c.nodes[1]
	const port = 30080
	server := c.run(a, "published", cri.PodOptions{HostPort: port})
	near, far := c.run(a, "near", cri.PodOptions{}), c.run(b, "far", cri.PodOptions{})
	for _, family := range []int{4, 6} {
		published := netip.AddrPortFrom(a.Address(family), port)
		outside := netip.MustParseAddr("192.0.2.254")
		if family == 6 {
			outside = netip.MustParseAddr("2001:db8::fe")
		}
		for _, from := range []struct {
			name string
			ns   *lab.NS
			want netip.Addr // the zero Addr: any of the node's
		}{
			{"outside", c.lab.Outside, outside},
			{"the other node", b.NS, b.Address(family)},
			{"its own node", a.NS, netip.Addr{}},
		} {
			answer, err := cri.Get(c.ctx, from.ns, published, "/source")
			if err != nil {
				c.t.Errorf("host port %s from %s: %v", published, from.name, err)
				continue
			}
			seen := netip.MustParseAddrPort(answer).Addr()
			if from.want.IsValid() && seen != from.want {
				c.t.Errorf("host port %s from %s: the pod sees %s, want %s", published, from.name, seen, from.want)
			}
		}
		for _, p := range []*cri.Pod{near, far, server} {
			for _, by := range []string{"tcp", "udp"} {
				seen, err := p.SourceSeen(c.ctx, by, published)
				if err != nil {
					c.t.Error(err)
				} else if !slices.Contains(mayBeSeen(a, p, family, p == far), seen) {
					c.t.Errorf("host port %s from pod %s by %s: the pod sees %s", published, p.Name, by, seen)
				}
			}
		}
	}
	c.deleteAll([]*cri.Pod{server, near, far})
	// The port ends with the pod.
	for _, family := range []int{4, 6} {
		published := netip.AddrPortFrom(a.Address(family), port)
		if answer, err := cri.Get(c.ctx, b.NS, published, "/source"); err == nil {
			c.t.Errorf("host port %s still answers without its pod: %s", published, answer)
		}
	}
}

// mayBeSeen are the source addresses with which a pod may come to a host port. Portmap translates, to the gateway's,
// connections from the subnet of the pod that has the port: in mode routed the pod itself, in mode bridge all of its
// node.
func mayBeSeen(a *node, p *cri.Pod, family int, far bool) []netip.Addr {
	own := []netip.Addr{p.Address(family)}
	if far {
		return own
	}
	cidr := a.PodCIDRs[0]
	if family == 6 {
		cidr = a.PodCIDRs[1]
	}
	return append(own, cidr.Addr().Next())
}

// manyPods starts and stops 30 pods on each node, some at a time, again and again.
func manyPods(c *cluster) {
	const pods, atOnce, rounds = 30, 6, 2
	for round := range rounds {
		running := make(map[*node][]*cri.Pod)
		var mu sync.Mutex
		c.each(func(n *node) error {
			return parallel(pods, atOnce, func(i int) error {
				p, err := n.runtime.RunPod(c.ctx, fmt.Sprintf("%s-%d-%d", n.Name, round, i), cri.PodOptions{})
				mu.Lock()
				defer mu.Unlock()
				running[n] = append(running[n], p)
				return err
			})
		})
		taken := make(map[netip.Addr]string)
		for _, n := range c.nodes {
			c.listed(n, running[n])
			for _, p := range running[n] {
				for _, addr := range []netip.Addr{p.V4, p.V6} {
					if other := taken[addr]; other != "" {
						c.t.Errorf("pods %s and %s both have %s", p.Name, other, addr)
					}
					taken[addr] = p.Name
				}
			}
		}
		a, b := c.nodes[0], c.nodes[1]
		for i, p := range running[a] {
			c.talk(p, running[b][i])
			c.talk(running[b][i], p)
		}
		c.each(func(n *node) error {
			return parallel(pods, atOnce, func(i int) error { return running[n][i].Delete(c.ctx) })
		})
		for _, n := range c.nodes {
			c.vacant(n)
		}
	}
}

// parallel does something with each number below n, some at once, and returns the first error.
func parallel(n, atOnce int, do func(i int) error) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

// runtimeKilled: pods don't notice that the runtime is gone, and are its pods again afterwards.
func runtimeKilled(c *cluster) {
	a, b := c.nodes[0], c.nodes[1]
	o := cri.PodOptions{}
	pods := []*cri.Pod{c.run(a, "a1", o), c.run(a, "a2", o), c.run(b, "b1", o)}
	identity, err := pods[0].Get(c.ctx, "/identity")
	c.ok(err)
	for _, n := range c.nodes {
		c.ok(n.runtime.Kill(c.ctx))
		if _, err := n.runtime.Sandboxes(c.ctx); err == nil {
			c.t.Fatalf("containerd of node %s answers after it was killed", n.Name)
		}
	}
	c.allTalk(pods)
	c.each(func(n *node) error { return n.runtime.Start(c.ctx) })
	for _, n := range c.nodes {
		sandboxes, err := n.runtime.Sandboxes(c.ctx)
		c.ok(err)
		for id, state := range sandboxes {
			if state != criapi.PodSandboxState_SANDBOX_READY {
				c.t.Errorf("sandbox %s of node %s is %s after the runtime was restarted", id, n.Name, state)
			}
		}
	}
	// Deleted with the daemon of Warren dead as well.
	c.ok(a.Node.Kill())
	c.ok(pods[1].Delete(c.ctx))
	c.ok(a.Up(c.ctx))
	again, err := pods[0].Get(c.ctx, "/identity")
	c.ok(err)
	if again != identity {
		c.t.Errorf("pod a1 is not the same process as before: %s, was %s", again, identity)
	}
	pods[1] = c.run(a, "a3", cri.PodOptions{})
	c.allTalk(pods)
	c.deleteAll(pods)
}

// Whether a reboot loses Warren's state directory as well: it might be on a tmpfs.
const (
	keepState = false
	loseState = true
)

// reboot: a power failure takes the pods, and the runtime then deletes those that it remembers.
func reboot(c *cluster, loseState bool) {
	a, b := c.nodes[0], c.nodes[1]
	lost := []*cri.Pod{c.run(a, "a1", cri.PodOptions{HostPort: 30081}), c.run(a, "a2", cri.PodOptions{})}
	far := c.run(b, "b1", cri.PodOptions{})
	c.ok(a.runtime.PowerOff())
	c.reboot(a, loseState)

	sandboxes, err := a.runtime.Sandboxes(c.ctx)
	c.ok(err)
	for _, p := range lost {
		if state, ok := sandboxes[p.ID]; !ok || state != criapi.PodSandboxState_SANDBOX_NOTREADY {
			c.t.Errorf("pod %s is %s after the reboot (known: %t), want NOTREADY", p.Name, state, ok)
		}
	}
	// A kubelet may start new pods before it has deleted the dead ones. Their deletion must not touch the new ones.
	pods := []*cri.Pod{c.run(a, "new1", cri.PodOptions{}), c.run(a, "new2", cri.PodOptions{HostPort: 30082}), far}
	c.allTalk(pods)
	c.deleteAll(lost)
	c.listed(a, pods[:2])
	c.allTalk(pods)
	if _, err := cri.Get(c.ctx, b.NS, netip.AddrPortFrom(a.V4, 30082), "/source"); err != nil {
		c.t.Errorf("host port of a pod that was started before the dead ones were deleted: %v", err)
	}
	c.deleteAll(pods)
}
