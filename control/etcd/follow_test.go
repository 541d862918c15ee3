package etcd_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd"
)

// TestCompaction has the source resume a watch behind the etcd's horizon, which is where others have stayed for ever.
func TestCompaction(t *testing.T) {
	c := newCluster(t, testSettings())
	cfg := c.config("a", t.TempDir())
	relay := newRelay(t, c.server.Endpoints()[0])
	cfg.Endpoints = []string{relay.address()}
	a := c.start(cfg)
	a.registered()
	b := c.start(c.config("b", t.TempDir()))
	a.until("b", func() bool { return len(a.nodes) == 2 })

	relay.cut()
	kv := c.client().Etcd()
	b.end()
	if err := c.client().Remove(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	d := c.start(c.config("d", t.TempDir()))
	d.registered()
	resp, err := kv.Put(t.Context(), "/else", "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	wholes := a.wholes
	relay.mend()
	a.until("what changed", func() bool {
		_, has := a.nodes["b"]
		_, hasNew := a.nodes["d"]
		return !has && hasNew
	})
	if a.wholes != wholes+1 {
		t.Errorf("%d whole updates, want one more than %d", a.wholes, wholes)
	}
	// It follows again.
	d.source.Publish(self(99))
	a.until("news", func() bool { return a.nodes["d"].Addresses[0].String() == "192.0.2.99" })
}

// TestReconnect breaks the connection without a compaction: what happened meanwhile arrives, and no node is gone that
// is not.
func TestReconnect(t *testing.T) {
	c := newCluster(t, testSettings())
	cfg := c.config("a", t.TempDir())
	relay := newRelay(t, c.server.Endpoints()[0])
	cfg.Endpoints = []string{relay.address()}
	a := c.start(cfg)
	a.registered()
	b := c.start(c.config("b", t.TempDir()))
	a.until("b", func() bool { return len(a.nodes) == 2 })
	relay.cut()
	b.source.Publish(self(98))
	err := a.problem(func(err error) bool { return err != nil })
	if !errors.Is(err, etcd.ErrUnreachable) || !strings.Contains(err.Error(), relay.address()) {
		t.Error(err)
	}
	if len(a.nodes) != 2 {
		t.Errorf("nodes are gone for lack of contact: %v", a.nodes)
	}
	relay.mend()
	a.until("news", func() bool { return a.nodes["b"].Addresses[0].String() == "192.0.2.98" })
	_ = a.problem(func(err error) bool { return err == nil })
}

// TestAnotherEtcd has the etcd come back without its data, and with an older state than was delivered.
func TestAnotherEtcd(t *testing.T) {
	c := newCluster(t, testSettings())
	a := c.start(c.config("a", t.TempDir()))
	was := a.registered()
	b := c.start(c.config("b", t.TempDir()))
	a.until("b", func() bool { return len(a.nodes) == 2 })
	b.end()
	c.server.Wipe()
	c.server.Restart()
	err := a.problem(func(err error) bool { return errors.Is(err, etcd.ErrNoNetwork) })
	if !strings.Contains(err.Error(), `"test"`) {
		t.Error(err)
	}
	if err := c.client().WriteSettings(t.Context(), testSettings()); err != nil {
		t.Fatal(err)
	}
	a.until("the new state", func() bool { _, has := a.nodes["b"]; return !has && len(a.nodes) == 1 })
	if got := a.nodes["a"]; got.PodCIDRs[0] != was.PodCIDRs[0] {
		t.Errorf("it has %v, and had %v", got.PodCIDRs, was.PodCIDRs)
	}
	_ = a.problem(func(err error) bool { return err == nil })
}

func TestBadRecords(t *testing.T) {
	c := newCluster(t, testSettings())
	put := func(name, value string) { c.put("nodes/"+name, value) }
	bad := map[string]struct{ value, want string }{
		"garbage":   {"\x00\xff{", "not JSON"},
		"empty":     {"", "not JSON"},
		"list":      {"[]", "not JSON"},
		"newer":     {`{"version":2,"id":7,"podCIDRs":"all"}`, "has version 2, written by a newer version of Warren"},
		"older":     {`{}`, "has version 0"},
		"address":   {`{"version":1,"addresses":["127.0.0.1"]}`, "127.0.0.1"},
		"addresses": {`{"version":1,"addresses":["192.0.2.1","192.0.2.2"]}`, "second one of its family"},
		"cidr":      {`{"version":1,"podCIDRs":["10.244.0.1/24"]}`, "10.244.0.1/24"},
		"world":     {`{"version":1,"podCIDRs":["0.0.0.0/0"]}`, "0.0.0.0/0"},
		"wide":      {`{"version":1,"podCIDRs":["10.244.0.0/22"]}`, "10.244.0.0/22 is none that this network gives"},
		"unleased":  {`{"version":1,"podCIDRs":["10.244.0.0/24"]}`, "those that it leases says []"},
		"cidrs":     {`{"version":1,"podCIDRs":["10.244.0.0/24","10.244.1.0/24"]}`, "second one of its family"},
		"key":       {`{"version":1,"publicKey":"short"}`, "publicKey"},
		"mac":       {`{"version":1,"mac":"xx"}`, "xx"},
		"a/b":       {`{"version":1}`, "letters"},
		"new\nline": {`{"version":1}`, `new\nline`},
	}
	put("good", `{"version":1,"addresses":["192.0.2.9"],"podCIDRs":["10.244.3.0/24"],"later":"field"}`)
	c.put("leased/good", `{"version":1,"podCIDRs":["10.244.3.0/24"]}`)
	for name, b := range bad {
		put(name, b.value)
	}
	a := c.start(c.config("a", t.TempDir()))
	check := func(nodes map[string]control.Node) {
		t.Helper()
		for name, b := range bad {
			n, ok := nodes[name]
			if !ok || !strings.Contains(n.Broken, b.want) || n.PodCIDRs != nil || n.Addresses != nil || n.Order == 0 ||
				strings.Contains(n.Broken, "\n") {
				t.Errorf("%q: %+v, want %q in it", name, n, b.want)
			}
		}
		if g := nodes["good"]; g.Broken != "" || len(g.PodCIDRs) != 1 {
			t.Errorf("%+v", g)
		}
	}
	a.registered()
	check(a.nodes)
	// The same by the watch.
	put("good", "no more")
	a.until("the break", func() bool { return a.nodes["good"].Broken != "" })
	put("good", `{"version":1,"addresses":["192.0.2.9"],"podCIDRs":["10.244.3.0/24"]}`)
	a.until("the mending", func() bool { return a.nodes["good"].Broken == "" })
	check(a.nodes)

	// The own record: garbage is written again, what a newer version wrote is left.
	cidr := a.nodes["a"].PodCIDRs
	put("a", "garbage")
	a.until("the break", func() bool { return a.nodes["a"].Broken != "" })
	if got := a.registered(); got.PodCIDRs[0] != cidr[0] {
		t.Errorf("%v, want %v", got.PodCIDRs, cidr)
	}
	put("a", `{"version":9}`)
	_ = a.problem(func(err error) bool { return errors.Is(err, etcd.ErrNewer) })
}

// TestTwoNetworks shares one etcd.
func TestTwoNetworks(t *testing.T) {
	c := newCluster(t, testSettings())
	other := &cluster{t: t, server: c.server, network: "test2"}
	if err := other.client().WriteSettings(t.Context(), testSettings()); err != nil {
		t.Fatal(err)
	}
	for i := range 4 { // both are full, with the same names and ranges
		for _, net := range []*cluster{c, other} {
			net.start(net.config(fmt.Sprintf("n%d", i), t.TempDir())).registered()
		}
	}
	for _, net := range []*cluster{c, other} {
		client := net.client()
		net.until("four nodes that are alive", func() bool {
			nodes, err := client.Nodes(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			there := 0
			for _, n := range nodes {
				if n.Alive && !n.Since.IsZero() {
					there++
				}
			}
			return there == 4 && len(nodes) == 4
		})
	}
}

func TestSettings(t *testing.T) {
	c := newCluster(t, testSettings())
	if err := c.client().WriteSettings(t.Context(), testSettings()); err != nil {
		t.Errorf("the same a second time: %v", err)
	}
	others := testSettings()
	others.NodePrefix4 = 25
	if err := c.client().WriteSettings(t.Context(), others); !errors.Is(err, etcd.ErrOtherSettings) {
		t.Errorf("%v", err)
	}
	s, err := c.client().Settings(t.Context())
	if err != nil || s.NodePrefix4 != 24 || s.NodePrefix6 != 64 || s.Port != 4789 || s.WireGuardPort != 51820 ||
		s.VNI != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := c.client().Etcd().Put(t.Context(), etcd.Prefix("test")+"settings", `{"version":3}`); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client().Settings(t.Context()); !errors.Is(err, etcd.ErrNewer) {
		t.Errorf("%v", err)
	}
}
