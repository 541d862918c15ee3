//go:build cluster

package kube_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/kube"
	"github.com/warren-net/warren/node/api"
)

// Traffic is a question and its answer every few milliseconds, and a transfer at a rate, by both families.
type traffic struct {
	c         *cluster
	what      string
	echoes    []*lab.Echo
	transfers []*lab.Transfer
}

const (
	askEvery       = 20 * time.Millisecond
	bytesPerSecond = 4 << 20
)

// start begins traffic from a pod to another.
func (c *cluster) start(from, to *pod) *traffic {
	c.t.Helper()
	t := &traffic{c: c, what: fmt.Sprintf("from %s on node %s to %s on node %s", from.name, from.node.Name, to.name,
		to.node.Name)}
	fromNS, toNS := c.within(from), c.within(to)
	for _, family := range []int{4, 6} {
		path := lab.Path{From: fromNS, To: toNS, Addr: to.address(family)}
		echo, err := lab.StartEcho(c.ctx, path, askEvery)
		c.ok(err)
		transfer, err := lab.StartTransfer(c.ctx, path, lab.TransferOptions{BytesPerSecond: bytesPerSecond})
		c.ok(err)
		t.echoes, t.transfers = append(t.echoes, echo), append(t.transfers, transfer)
	}
	return t
}

// flows checks that questions are answered now.
func (t *traffic) flows() {
	t.c.t.Helper()
	for _, e := range t.echoes {
		if err := e.WaitAnswered(t.c.ctx); err != nil {
			t.c.t.Fatalf("traffic %s: %v", t.what, err)
		}
	}
}

// stop ends the traffic: no connection may have broken, no byte changed, and nobody have waited for an answer too long.
func (t *traffic) stop(longest time.Duration) {
	t.c.t.Helper()
	t.flows()
	for _, e := range t.echoes {
		if gap := e.Longest(); gap > longest {
			t.c.t.Errorf("traffic %s stood still for %v, more than %v", t.what, gap, longest)
		}
		if err := e.Stop(); err != nil {
			t.c.t.Errorf("traffic %s: %v", t.what, err)
		}
	}
	for _, transfer := range t.transfers {
		transfer.Finish()
		r, err := transfer.Wait()
		if err != nil {
			t.c.t.Errorf("traffic %s: %v", t.what, err)
		}
		t.c.t.Logf("traffic %s: %d MB in %v, longest stall %v", t.what, r.Bytes>>20, r.Took.Round(time.Second),
			r.LongestStall.Round(time.Millisecond))
	}
}

// undisturbed is the longest time without an answer where nothing is to be noticed: the machine is busy besides.
const undisturbed = 5 * time.Second

// restarted is the longest time where daemons end and others begin. Userspace carries the packets, which wait for it.
const restarted = 20 * time.Second

// apiServerDown: for a minute nobody answers for the cluster, and pods go on, also those of a node whose daemon crashes
// and has to begin with what it knew.
func apiServerDown(c *cluster) {
	const down = time.Minute
	pods := c.run(workload{name: "client", replicas: 2 * len(c.Nodes)})
	s := c.expose("client", "client", serviceOptions{})
	c.known(s)
	a, b := on(c.Nodes[0], pods), on(c.Nodes[1], pods)
	there, back := c.start(a[0], b[0]), c.start(b[1], a[1])
	c.ok(c.StopAPIServer())
	began := time.Now()
	c.until("a warning on node "+c.Nodes[1].Name, func() error {
		s, err := c.status(c.Nodes[1])
		if err == nil && s.Control.Problem == "" {
			err = errors.New("it does not know that the API server is gone")
		}
		return err
	})
	c.crash(c.Nodes[0])
	for end := began.Add(down); time.Now().Before(end); time.Sleep(5 * time.Second) {
		if _, err := c.Kubectl(c.ctx, "get", "nodes", "--request-timeout=1s"); err == nil {
			c.t.Fatal("the API server answers after it was killed")
		}
		c.allTalk(pods)
		for _, client := range pods {
			c.everyWay(func(family int, by string) {
				c.wantSource(client, by, netip.AddrPortFrom(s.address(family), servicePort))
			})
		}
	}
	c.ok(c.StartAPIServer(c.ctx))
	for _, n := range c.Nodes {
		c.untilWithin(readyWait, "node "+n.Name+" hears of the API server again", func() error {
			s, err := c.status(n)
			if err == nil && s.Control.Problem != "" {
				err = errors.New(s.Control.Problem)
			}
			return err
		})
		c.ok(n.WaitReady(c.ctx))
	}
	there.stop(restarted)
	back.stop(restarted)
	more := c.run(workload{name: "later", replicas: len(c.Nodes)})
	c.allTalk(append(more, a[0], b[0]))
	c.remove(append(more, pods...), "client", "later")
}

// nodeComesAndGoes: a node is added, its pods talk to all others, and it is deleted; traffic of the others goes on.
func nodeComesAndGoes(c *cluster) {
	pods := c.run(workload{name: "client", replicas: len(c.Nodes)})
	t := c.start(pods[0], pods[1])
	added, err := c.AddNodes(c.ctx, "n3")
	c.ok(err)
	n := added[0]
	cidrs, err := c.PodCIDRs(c.ctx, n)
	c.ok(err)
	theirs := c.run(workload{name: "added", replicas: 2, node: n.Name})
	c.allTalk(append(theirs, pods...))

	// Gone for good, without a word: the operator deletes the node.
	_, err = c.Kubectl(c.ctx, "delete", "deployment", "added", "--wait=false")
	c.ok(err)
	c.ok(c.DeleteNode(c.ctx, n))
	for _, other := range c.Nodes {
		c.until("node "+other.Name+" forgets node "+n.Name, func() error {
			routes, err := c.Warren(c.ctx, other, "routes")
			if err == nil && strings.Contains(routes, cidrs[0].String()) {
				err = fmt.Errorf("`warren routes` lists %s", cidrs[0])
			}
			return err
		})
	}
	t.stop(undisturbed)
	c.allTalk(pods)
	c.remove(pods, "client", "added")
}

// rollingRestart: Warren is replaced on one node after the other, and long transfers arrive unchanged.
func rollingRestart(c *cluster) {
	pods := c.run(workload{name: "client", replicas: 2 * len(c.Nodes)})
	a, b := on(c.Nodes[0], pods), on(c.Nodes[1], pods)
	across, back, near := c.start(a[0], b[0]), c.start(b[1], a[1]), c.start(a[0], a[1])
	for _, round := range []struct {
		what string
		do   func() error
	}{
		{"restart", func() error { return c.RestartWarren(c.ctx) }},
		{"upgrade", func() error { return c.UpgradeWarren(c.ctx) }},
	} {
		if err := round.do(); err != nil {
			c.t.Fatalf("%s: %v", round.what, err)
		}
		for _, t := range []*traffic{across, back, near} {
			t.flows()
		}
		c.allTalk(pods)
	}
	for _, t := range []*traffic{across, back, near} {
		t.stop(restarted)
	}
	c.remove(pods, "client")
}

// crash has the daemon of a node crash, and waits until the next one answers.
func (c *cluster) crash(n *kube.Node) {
	c.t.Helper()
	before, err := c.status(n)
	c.ok(err)
	c.ok(c.KillWarren(c.ctx, n))
	c.until("another daemon on node "+n.Name, func() error {
		s, err := c.status(n)
		if err == nil && s.Started.Equal(before.Started) {
			err = errors.New("it is still the one that was killed")
		}
		return err
	})
}

// status is `warren status` of a node.
func (c *cluster) status(n *kube.Node) (s api.Status, err error) {
	out, err := c.Warren(c.ctx, n, "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}
