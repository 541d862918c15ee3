package etcd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

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

// TestForgedLocks forges and deletes the keys that keep nodes from leasing one pod CIDR: nobody gets what another has.
func TestForgedLocks(t *testing.T) {
	// Two are there, one for each.
	c := newCluster(t, etcd.Settings{Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/23")}})
	a := c.start(c.config("a", t.TempDir()))
	had := a.registered().PodCIDRs[0]
	free := netip.MustParsePrefix("10.244.0.0/24")
	if had == free {
		free = netip.MustParsePrefix("10.244.1.0/24")
	}
	lock := func(p netip.Prefix) string { return "cidrs/" + strings.ReplaceAll(p.String(), "/", "_") }
	remove := func(at string) {
		t.Helper()
		if _, err := c.client().Etcd().Delete(t.Context(), etcd.Prefix("test")+at); err != nil {
			t.Fatal(err)
		}
	}
	c.put(lock(free), `{"version":1,"node":"nobody","id":"x"}`)
	remove(lock(had))
	b := c.start(c.config("b", t.TempDir()))
	_ = b.problem(func(err error) bool { return errors.Is(err, etcd.ErrUsedUp) })
	remove(lock(free))
	if got := b.registered().PodCIDRs[0]; got != free {
		t.Errorf("b has %v", got)
	}
	moved := self(11)
	a.source.Publish(moved)
	a.until("a look", func() bool { return a.nodes["a"].PublicKey == moved.PublicKey })
	if got := a.nodes["a"].PodCIDRs[0]; got != had || !strings.Contains(c.get(lock(had)), `"a"`) {
		t.Errorf("a has %v, and the key says %s", got, c.get(lock(had)))
	}
}

// TestClaimBeforehand has a node claim what the next one is to get: beforehand, and in the moment in which that one
// takes it. It gets what nobody claims.
func TestClaimBeforehand(t *testing.T) {
	c := newCluster(t, etcd.Settings{Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22")}})
	claim := func(node, cidr string) {
		c.put("leased/"+node, fmt.Sprintf(`{"version":1,"podCIDRs":[%q]}`, cidr))
	}
	claim("x", "10.244.0.0/24")
	var mu sync.Mutex
	taken, again := map[string]bool{"10.244.0.0/24": true}, 0
	cfg := c.config("b", t.TempDir())
	cfg = cfg.Through(func() *clientv3.Client {
		client, err := clientv3.New(clientv3.Config{Endpoints: c.server.Endpoints(), Logger: zap.NewNop(),
			DialOptions: []grpc.DialOption{
				grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
					invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
					txn, _ := req.(*etcdserverpb.TxnRequest)
					mu.Lock()
					for _, op := range txn.GetSuccess() {
						var l struct{ PodCIDRs []string }
						if put := op.GetRequestPut(); put != nil && strings.HasSuffix(string(put.Key), "/leased/b") && again < 2 {
							if err := json.Unmarshal(put.Value, &l); err != nil {
								t.Error(err)
							}
							again++
							taken[l.PodCIDRs[0]] = true
							claim(fmt.Sprint("y", again), l.PodCIDRs[0])
						}
					}
					mu.Unlock()
					return invoke(ctx, method, req, reply, conn, opts...)
				})}})
		if err != nil {
			t.Error(err)
		}
		return client
	})
	b := c.start(cfg)
	last := func() string {
		if n := b.nodes["b"]; len(n.PodCIDRs) > 0 {
			return n.PodCIDRs[0].String()
		}
		return ""
	}
	b.until("a pod CIDR of its own", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(taken) == 3 && last() != "" && !taken[last()]
	})

	// By the watch too: what it says in its record counts as far as it has it.
	c.put("nodes/x", `{"version":1,"id":"x","addresses":["192.0.2.66"],"podCIDRs":["10.244.3.0/24"]}`)
	b.until("the claim", func() bool { return b.nodes["x"].Broken != "" })
	c.put("nodes/x", `{"version":1,"id":"x","addresses":["192.0.2.66"],"podCIDRs":["10.244.0.0/24"]}`)
	b.until("another", func() bool { return b.nodes["x"].Broken == "" })
	if n := b.nodes["x"]; n.Order == 0 || n.Order >= b.nodes["b"].Order {
		t.Errorf("%+v", n)
	}
}
