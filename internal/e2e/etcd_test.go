package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// network makes a network of nodes by `warren init` on the first and `warren join` on the others, and runs them.
func (c *cluster) network(names ...string) []*lab.Node {
	c.t.Helper()
	nodes := make([]*lab.Node, len(names))
	for i, name := range names {
		nodes[i] = c.node(name)
		nodes[i].Settings.OnExit = "leave"
		if i == 0 {
			c.ok(nodes[i].Init(c.ctx))
		} else {
			c.ok(nodes[i].Join(c.ctx, nodes[0]))
		}
		c.ok(nodes[i].Up(c.ctx))
	}
	return nodes
}

// A listed is a line of `warren nodes`.
type listed struct {
	Name     string         `json:"name"`
	State    string         `json:"state"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

func (c *cluster) statusOf(n *lab.Node) api.Status {
	c.t.Helper()
	return ask[api.Status](c, n, "status")
}

// nodesOf is what `warren nodes` lists on a node, by name.
func (c *cluster) nodesOf(n *lab.Node) (map[string]listed, error) {
	out, err := n.Warren(c.ctx, "nodes", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list []listed
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	all := map[string]listed{}
	for _, l := range list {
		all[l.Name] = l
	}
	return all, nil
}

// TestNetworkWithoutItsEtcd: the only member of the etcd dies while pods of the other nodes talk; one of these starts
// anew without it, from what it knew; and when it comes back all is as before, and new nodes join.
func TestNetworkWithoutItsEtcd(t *testing.T) {
	c := newCluster(t, lab.Options{})
	nodes := c.network("a", "b", "c")
	a, b, d := nodes[0], nodes[1], nodes[2]
	pa, pb, pc := c.pod(a, "a1"), c.pod(b, "b1"), c.pod(d, "c1")
	for _, family := range families() {
		c.ping(pa.NS, pb.Address(family), lab.Ping{})
		c.ping(pb.NS, pc.Address(family), lab.Ping{})
	}
	transfer, err := lab.StartTransfer(c.ctx, lab.Path{From: pb.NS, To: pc.NS, Addr: pc.V4},
		lab.TransferOptions{BytesPerSecond: 8 << 20})
	c.ok(err)
	before := b.PodCIDRs

	c.ok(a.Kill())
	c.ping(pb.NS, pc.V4, lab.Ping{})
	c.eventually(func() error {
		if s := c.statusOf(b); s.Control.Source != "etcd" || s.Control.Problem == "" || s.Snapshot.Peers != 2 {
			return fmt.Errorf("%w: %+v, %d peers", errNotYet, s.Control, s.Snapshot.Peers)
		}
		return nil
	})
	c.ok(b.Kill())
	c.ok(b.Up(c.ctx)) // from what it knew
	c.ping(pb.NS, pc.V4, lab.Ping{})
	c.ping(pc.NS, pb.V6, lab.Ping{})
	if !slices.Equal(b.PodCIDRs, before) {
		t.Errorf("pod CIDRs %v, before %v", b.PodCIDRs, before)
	}

	c.ok(a.Up(c.ctx))
	c.ping(pa.NS, pb.V4, lab.Ping{})
	c.ping(pc.NS, pa.V6, lab.Ping{})
	c.eventually(func() error {
		if s := c.statusOf(b); s.Control.Problem != "" || len(s.Warnings) > 0 {
			return fmt.Errorf("%w: %+v, %q", errNotYet, s.Control, s.Warnings)
		}
		return nil
	})
	transfer.Finish()
	if r, err := transfer.Wait(); err != nil || r.Bytes == 0 {
		t.Errorf("a transfer between nodes that both lost the etcd: %d bytes, %v", r.Bytes, err)
	}

	// A node joins, one leaves in order, and what it had is free again.
	e := c.node("e")
	c.ok(e.Join(c.ctx, a))
	c.ok(e.Up(c.ctx))
	pe := c.pod(e, "e1")
	c.ping(pe.NS, pb.V4, lab.Ping{})
	if out, err := e.Warren(c.ctx, "leave"); err == nil || !strings.Contains(err.Error(), "1 pod is attached") {
		t.Errorf("a node with a pod leaves: %s, %v", out, err)
	}
	c.ok(pe.Delete(c.ctx, lab.PodOptions{}))
	c.ok(e.Down(c.ctx))
	if _, err := e.Warren(c.ctx, "leave"); err != nil {
		t.Error(err)
	}
	c.eventually(func() error {
		list, err := c.nodesOf(b)
		if err != nil {
			return err
		}
		if len(list) != 3 || list["c"].State == "" || !slices.Equal(list["c"].PodCIDRs, d.PodCIDRs) {
			return fmt.Errorf("%w: %+v", errNotYet, list)
		}
		if s := c.statusOf(b); s.Snapshot.Peers != 2 {
			return fmt.Errorf("%w: %d peers", errNotYet, s.Snapshot.Peers)
		}
		return nil
	})
}

// TestKeyRotationInANetwork: the others hear of a node's new key from the network.
func TestKeyRotationInANetwork(t *testing.T) {
	c := newCluster(t, lab.Options{})
	nodes := c.network("a", "b")
	a, b := nodes[0], nodes[1]
	pa, pb := c.pod(a, "a1"), c.pod(b, "b1")
	c.ping(pa.NS, pb.V4, lab.Ping{})
	old := c.statusOf(b).Tunnel.PublicKeys[0]
	if _, err := b.Warren(c.ctx, "key", "rotate"); err != nil {
		t.Fatal(err)
	}
	c.eventually(func() error {
		for _, p := range ask[[]api.Peer](c, a, "peers") {
			if p.Name == "b" && p.PublicKey != old && p.PublicKey == c.statusOf(b).Tunnel.PublicKeys[0] {
				return nil
			}
		}
		return errNotYet
	})
	if _, err := b.Warren(c.ctx, "key", "rotate", "--finish"); err != nil {
		t.Error(err)
	}
	c.eventually(func() error {
		if n := len(c.statusOf(b).Tunnel.PublicKeys); n != 1 {
			return fmt.Errorf("%w: %d keys", errNotYet, n)
		}
		return nil
	})
	c.ping(pa.NS, pb.V4, lab.Ping{})
	c.ping(pb.NS, pa.V6, lab.Ping{})
}
