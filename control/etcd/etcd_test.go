package etcd_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/etcdtest"
	"github.com/warren-net/warren/internal/key"
)

// testSettings hold 4 nodes of each family.
func testSettings() etcd.Settings {
	return etcd.Settings{Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22"),
		netip.MustParsePrefix("fd00:10:244::/48")}}
}

// A cluster is an etcd with a network in it.
type cluster struct {
	t       *testing.T
	server  *etcdtest.Server
	network string
}

func newCluster(t *testing.T, s etcd.Settings) *cluster {
	t.Helper()
	c := &cluster{t: t, server: etcdtest.Start(t), network: "test"}
	if err := c.client().WriteSettings(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) config(node, dir string) etcd.Config {
	return etcd.Config{Endpoints: c.server.Endpoints(), Network: c.network, Node: node, StateDir: dir,
		AliveTTL: 5 * time.Second, Retry: 20 * time.Millisecond, MaxRetry: 200 * time.Millisecond,
		Timeout: 2 * time.Second}
}

func (c *cluster) client() *etcd.Client {
	c.t.Helper()
	client, err := etcd.NewClient(c.config("tool", c.t.TempDir()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { client.Close() })
	return client
}

// put writes a key of the network behind everybody's back.
func (c *cluster) put(at, value string) {
	c.t.Helper()
	if _, err := c.client().Etcd().Put(c.t.Context(), etcd.Prefix(c.network)+at, value); err != nil {
		c.t.Fatal(err)
	}
}

// get reads one.
func (c *cluster) get(at string) string {
	c.t.Helper()
	resp, err := c.client().Etcd().Get(c.t.Context(), etcd.Prefix(c.network)+at)
	if err != nil {
		c.t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// A daemon stands in for the node daemon: it applies updates as they come.
type daemon struct {
	t        *testing.T
	name     string
	source   *etcd.Source
	stop     context.CancelFunc
	done     chan error
	updates  chan control.Update
	problems chan error
	nodes    map[string]control.Node
	wholes   int
	count    int // of updates
}

func (c *cluster) start(cfg etcd.Config) *daemon {
	c.t.Helper()
	d := c.startQuiet(cfg)
	d.source.Publish(self(1))
	return d
}

// startQuiet starts a daemon that tells nothing.
func (c *cluster) startQuiet(cfg etcd.Config) *daemon {
	c.t.Helper()
	s, err := etcd.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	d := &daemon{t: c.t, name: cfg.Node, source: s, stop: stop, done: make(chan error, 1),
		updates: make(chan control.Update), problems: make(chan error, 1000), nodes: map[string]control.Node{}}
	go func() { d.done <- s.Run(ctx, d.updates, func(err error) { d.problems <- err }) }()
	c.t.Cleanup(d.end)
	return d
}

// end stops the daemon in order.
func (d *daemon) end() {
	d.stop()
	for {
		select {
		case <-d.updates:
		case err := <-d.done:
			d.done <- err
			if err != nil {
				d.t.Errorf("%s: %v", d.name, err)
			}
			return
		case <-time.After(20 * time.Second):
			d.t.Errorf("%s does not end", d.name)
			return
		}
	}
}

func self(i int) control.Node {
	k := key.NewPrivate().Public()
	return control.Node{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}, PublicKey: k}
}

func (d *daemon) apply(u control.Update) {
	d.count++
	if u.Whole {
		d.wholes++
		clear(d.nodes)
	}
	for _, n := range u.Nodes {
		d.nodes[n.Name] = n
	}
	for _, name := range u.Gone {
		if _, ok := d.nodes[name]; !ok {
			d.t.Errorf("%s: %s is gone, and was not there", d.name, name)
		}
		delete(d.nodes, name)
	}
}

// patience is how long a test waits for what has to come; nothing is asserted about how long it took.
const patience = 60 * time.Second

// until applies updates until ok says so.
func (d *daemon) until(what string, ok func() bool) {
	d.t.Helper()
	late := time.After(patience)
	for !ok() {
		select {
		case u := <-d.updates:
			d.apply(u)
		case err := <-d.done:
			d.t.Fatalf("%s ended before %s: %v", d.name, what, err)
		case <-late:
			d.t.Fatalf("%s: no %s; knows %v; last problem %v", d.name, what, d.nodes, d.lastProblem())
		}
	}
}

// registered waits until the daemon has heard of itself, and returns that.
func (d *daemon) registered() control.Node {
	d.t.Helper()
	d.until("registration", func() bool { return len(d.nodes[d.name].PodCIDRs) > 0 })
	return d.nodes[d.name]
}

func (d *daemon) lastProblem() error {
	var last error
	for {
		select {
		case last = <-d.problems:
		default:
			return last
		}
	}
}

// problem waits for a problem that ok accepts, applying updates meanwhile.
func (d *daemon) problem(ok func(error) bool) error {
	d.t.Helper()
	late := time.After(patience)
	for {
		select {
		case u := <-d.updates:
			d.apply(u)
		case err := <-d.problems:
			if ok(err) {
				return err
			}
		case <-late:
			d.t.Fatalf("%s: no such problem", d.name)
		}
	}
}

func TestNodesFindEachOther(t *testing.T) {
	c := newCluster(t, testSettings())
	a := c.start(c.config("a", t.TempDir()))
	got := a.registered()
	if len(got.PodCIDRs) != 2 || got.PodCIDRs[0].Bits() != 24 || got.PodCIDRs[1].Bits() != 64 || got.Order == 0 {
		t.Errorf("%+v", got)
	}
	b := c.start(c.config("b", t.TempDir()))
	other := b.registered()
	a.until("b", func() bool { return len(a.nodes) == 2 })
	b.until("a", func() bool { return len(b.nodes) == 2 })
	if !ptr(b.nodes["a"]).Equal(ptr(a.nodes["a"])) || !ptr(a.nodes["b"]).Equal(&other) {
		t.Errorf("a knows %v, b knows %v", a.nodes, b.nodes)
	}
	if a.nodes["a"].Order >= a.nodes["b"].Order {
		t.Errorf("a came first: %v", a.nodes)
	}

	moved := self(77)
	moved.Encapsulation, moved.WireGuardPort, moved.MAC = control.VXLAN, 4242, []byte{2, 0, 0, 0, 0, 9}
	b.source.Publish(moved)
	a.until("the move", func() bool { return slices.Equal(a.nodes["b"].Addresses, moved.Addresses) })
	n := a.nodes["b"]
	if n.Encapsulation != control.VXLAN || n.WireGuardPort != 4242 || n.MAC.String() != "02:00:00:00:00:09" ||
		n.PublicKey != moved.PublicKey || !slices.Equal(n.PodCIDRs, other.PodCIDRs) {
		t.Errorf("%+v", n)
	}
	if a.wholes != 1 || b.wholes != 1 {
		t.Errorf("%d and %d whole updates, want one each", a.wholes, b.wholes)
	}
	if err := a.lastProblem(); err != nil {
		t.Error(err)
	}
}

func ptr[T any](v T) *T { return &v }
