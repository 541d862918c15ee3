package etcd_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd"
)

// TestTakeover has a node that was there first claim a neighbour's pod CIDR with all that its certificate lets it
// write. The neighbour keeps it, on nodes that start from nothing too.
func TestTakeover(t *testing.T) {
	c := newCluster(t, testSettings())
	old := c.start(c.config("old", t.TempDir()))
	old.registered()
	old.end()
	victim := c.start(c.config("victim", t.TempDir()))
	had := victim.registered()
	p := had.PodCIDRs[0]

	lock := "cidrs/" + strings.ReplaceAll(p.String(), "/", "_")
	c.put(lock, `{"version":1,"node":"old","id":"x"}`)
	c.put("leased/old", fmt.Sprintf(`{"version":1,"podCIDRs":[%q]}`, p))
	c.put("nodes/old", fmt.Sprintf(`{"version":1,"id":"x","addresses":["192.0.2.66"],"podCIDRs":[%q]}`, p))

	inForce := func(when string) {
		t.Helper()
		fresh := c.startQuiet(c.config("fresh", t.TempDir()))
		fresh.until("the list", func() bool { return fresh.wholes > 0 })
		ledger := control.NewLedger(control.Rules{Self: "fresh", Cluster: testSettings().Ranges})
		u := control.Update{Whole: true}
		for _, n := range fresh.nodes {
			u.Nodes = append(u.Nodes, n)
		}
		ledger.Apply(u)
		if n := ledger.Node("victim"); n == nil || !slices.Equal(n.PodCIDRs, had.PodCIDRs) {
			t.Errorf("%s: the victim has %+v", when, n)
		}
		if r := ledger.Refusals(); len(r) != 1 || r[0].Name != "old" || !strings.Contains(r[0].Why, p.String()) {
			t.Errorf("%s: %+v", when, r)
		}
		fresh.end()
	}
	inForce("before the victim looked")

	// A change of its own, after the claim, and the look at its record that comes with it.
	moved := self(7)
	victim.source.Publish(moved)
	victim.until("the change", func() bool { return victim.nodes["victim"].PublicKey == moved.PublicKey })
	if got := victim.nodes["victim"]; !slices.Equal(got.PodCIDRs, had.PodCIDRs) {
		t.Errorf("it had %v, and has %v", had.PodCIDRs, got.PodCIDRs)
	}
	if got := c.get(lock); !strings.Contains(got, `"victim"`) {
		t.Errorf("%s: %s", lock, got)
	}
	inForce("after the victim changed")
}

// TestForgedLocks deletes the keys that keep nodes from leasing one pod CIDR, so that a new node takes one that another
// has. It is the new one that gives way.
func TestForgedLocks(t *testing.T) {
	// Two are there, one for each.
	c := newCluster(t, etcd.Settings{Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/23")}})
	a := c.start(c.config("a", t.TempDir()))
	had := a.registered().PodCIDRs[0]
	free := netip.MustParsePrefix("10.244.0.0/24")
	if had == free {
		free = netip.MustParsePrefix("10.244.1.0/24")
	}
	key := func(p netip.Prefix) string { return "cidrs/" + strings.ReplaceAll(p.String(), "/", "_") }
	c.put(key(free), `{"version":1,"node":"nobody","id":"x"}`)
	if _, err := c.client().Etcd().Delete(t.Context(), etcd.Prefix("test")+key(had)); err != nil {
		t.Fatal(err)
	}
	b := c.start(c.config("b", t.TempDir()))
	if got := b.registered().PodCIDRs[0]; got != had {
		t.Fatalf("b has %v", got)
	}

	look := func(d *daemon, i int) {
		t.Helper()
		d.source.Publish(self(i))
		d.until("a look", func() bool { return d.nodes[d.name].Addresses[0] == self(i).Addresses[0] })
	}
	look(a, 11)
	if got := a.nodes["a"].PodCIDRs[0]; got != had || !strings.Contains(c.get(key(had)), `"a"`) {
		t.Fatalf("a has %v, and the key says %s", got, c.get(key(had)))
	}
	b.source.Publish(self(12))
	_ = b.problem(func(err error) bool { return errors.Is(err, etcd.ErrUsedUp) })
	if _, err := c.client().Etcd().Delete(t.Context(), etcd.Prefix("test")+key(free)); err != nil {
		t.Fatal(err)
	}
	b.until("the other one", func() bool { return b.nodes["b"].PodCIDRs[0] == free })
	look(a, 13)
	if got := a.nodes["a"].PodCIDRs[0]; got != had {
		t.Errorf("a has %v, and had %v", got, had)
	}
}
