//go:build cluster

package kube_test

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab/kube"
)

// anotherAddress: a node loses its power and comes back with other addresses.
func anotherAddress(c *cluster) {
	n := c.Nodes[1]
	c.run(workload{name: "client", replicas: 2 * len(c.Nodes)})
	s := c.expose("client", "client", serviceOptions{nodePort: 30090})
	c.known(s)
	old := []netip.Addr{n.V4, n.V6}
	c.ok(c.MoveNode(c.ctx, n, netip.MustParseAddr("192.0.2.102"), netip.MustParseAddr("2001:db8::66")))

	booted := time.Now()
	c.untilWithin(readyWait, "pods of node "+n.Name, func() error { return c.answering(n, "client") })
	c.t.Logf("pods of node %s answer again %v after its boot", n.Name, time.Since(booted).Round(time.Second))
	c.rolledOut("deployment/client")
	pods := c.pods("client")
	c.allTalk(pods)
	c.known(s)
	c.everyWay(func(family int, by string) {
		if _, err := c.askFrom(c.Lab.Outside, by, netip.AddrPortFrom(n.Address(family), uint16(s.nodePort))); err != nil {
			c.t.Error(err)
		}
	})
	for _, other := range c.Nodes {
		peers, err := c.Warren(c.ctx, other, "peers")
		c.ok(err)
		for _, addr := range old {
			if strings.Contains(peers, addr.String()) { // no other node's begins like it
				c.t.Errorf("node %s still knows %s:\n%s", other.Name, addr, peers)
			}
		}
	}
	c.remove(pods, "client")
}

// answering is nil when the pods of a workload on a node answer at the addresses that the API server has for them.
func (c *cluster) answering(n *kube.Node, app string) error {
	pods, err := c.listPods(app)
	if err != nil {
		return err
	}
	mine := on(n, pods)
	if len(mine) == 0 {
		return errors.New("there is none")
	}
	for _, p := range mine {
		if _, err := c.askFrom(n.NS, "tcp", netip.AddrPortFrom(p.v4, port)); err != nil {
			return err
		}
	}
	return nil
}
