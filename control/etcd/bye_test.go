package etcd_test

import (
	"testing"

	"github.com/warren-net/warren/control/etcd"
)

// TestOrderlyEnd holds that a node which ends in order counts as away at once, and keeps its name and CIDRs.
func TestOrderlyEnd(t *testing.T) {
	c := newCluster(t, testSettings())
	a := c.start(c.config("a", t.TempDir()))
	a.registered()
	client := c.client()
	state := func() []etcd.Listed {
		t.Helper()
		nodes, err := client.Nodes(t.Context())
		if err != nil || len(nodes) != 1 {
			t.Fatalf("%+v, %v", nodes, err)
		}
		return nodes
	}
	c.until("the sign of life", func() bool { return state()[0].Alive })
	a.end()
	if n := state()[0]; n.Alive || n.Left == 0 || len(n.PodCIDRs) != 2 {
		t.Errorf("%+v", n)
	}
}
