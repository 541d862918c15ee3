package etcd_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control/etcd"
)

// TestLeaseRace has fifty nodes lease from a range that holds sixty-four, at the same moment.
func TestLeaseRace(t *testing.T) {
	const nodes = 50
	c := newCluster(t, etcd.Settings{Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/18"),
		netip.MustParsePrefix("fd00:10:244::/58")}})
	var wg sync.WaitGroup
	var mu sync.Mutex
	owners := map[netip.Prefix]string{}
	for i := range nodes {
		name := fmt.Sprintf("n%d", i)
		d := c.start(c.config(name, t.TempDir()))
		wg.Go(func() {
			n := d.registered()
			mu.Lock()
			defer mu.Unlock()
			for _, p := range n.PodCIDRs {
				if was := owners[p]; was != "" {
					t.Errorf("%s belongs to %s and %s", p, was, name)
				}
				owners[p] = name
			}
			go func() {
				for u := range d.updates {
					_ = u
				}
			}()
		})
	}
	wg.Wait()
	if len(owners) != 2*nodes {
		t.Errorf("%d CIDRs for %d nodes", len(owners), nodes)
	}
}

func TestRangeUsedUp(t *testing.T) {
	c := newCluster(t, testSettings())
	var last *daemon
	for i := range 4 {
		last = c.start(c.config(fmt.Sprintf("n%d", i), t.TempDir()))
		last.registered()
	}
	late := c.start(c.config("late", t.TempDir()))
	err := late.problem(func(err error) bool { return errors.Is(err, etcd.ErrUsedUp) })
	for _, want := range []string{`"late"`, "10.244.0.0/22, which holds 4 of /24", "warren leave --node NAME"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	// It has no CIDR, and knows the others all the same.
	late.until("knowledge of the others", func() bool { return late.wholes == 1 && len(late.nodes) == 4 })

	// One leaves, and the one that waits gets what it had; nothing has to be started again.
	had := last.nodes["n3"].PodCIDRs
	last.end()
	if err := c.client().Remove(t.Context(), "n3"); err != nil {
		t.Fatal(err)
	}
	if got := late.registered(); got.PodCIDRs[0] != had[0] {
		t.Errorf("got %v, want what n3 had, %v", got.PodCIDRs, had)
	}
	if err := late.problem(func(err error) bool { return err == nil }); err != nil {
		t.Error(err)
	}
}

func TestTwoNodesOfOneName(t *testing.T) {
	c := newCluster(t, testSettings())
	home, dir := t.TempDir(), t.TempDir()
	first := c.start(c.config("a", home))
	was := first.registered()
	second := c.start(c.config("a", dir))
	err := second.problem(func(err error) bool { return errors.Is(err, etcd.ErrNameTaken) })
	if !strings.Contains(err.Error(), was.Addresses[0].String()) || !strings.Contains(err.Error(), "another name") {
		t.Error(err)
	}
	if got := first.nodes["a"]; !got.Equal(&was) {
		t.Errorf("the second one changed the record: %+v", got)
	}
	// What the record says is the first one's, and not for the second one to be.
	second.until("record", func() bool { return second.nodes["a"].Name != "" })
	if got := second.nodes["a"]; got.Broken == "" || len(got.PodCIDRs)+len(got.Addresses) > 0 ||
		!strings.Contains(got.Broken, was.Addresses[0].String()) {
		t.Errorf("the second one takes itself for the first one: %+v", got)
	}
	if err := c.client().Remove(t.Context(), "a"); !errors.Is(err, etcd.ErrAlive) {
		t.Errorf("removed a node that runs: %v", err)
	}
	for d, want := range map[string]bool{dir: false, home: true} {
		client, err := etcd.NewClient(c.config("a", d))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if ours, err := client.Ours(t.Context()); err != nil || ours != want {
			t.Errorf("the name is its own: %t, %v, want %t", ours, err, want)
		}
	}

	// One that is away for a while keeps its name, unless it is taken out.
	second.end()
	first.end()
	elsewhere := c.startQuiet(c.config("a", t.TempDir()))
	elsewhere.source.Publish(self(2))
	err = elsewhere.problem(func(err error) bool { return errors.Is(err, etcd.ErrNameTaken) })
	if !strings.Contains(err.Error(), "which is away") || !strings.Contains(err.Error(), "warren leave --node a") {
		t.Error(err)
	}
	if err := c.client().Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := elsewhere.registered(); got.Addresses[0] != self(2).Addresses[0] {
		t.Errorf("%+v", got)
	}
}

// TestStateLost holds that a host which lost its state directory gets its name and CIDRs back by its name.
func TestStateLost(t *testing.T) {
	c := newCluster(t, testSettings())
	first := c.start(c.config("a", t.TempDir()))
	was := first.registered()
	first.end()
	cfg := c.config("a", t.TempDir())
	cfg.Certified = true
	again := c.start(cfg)
	again.until("the new key", func() bool { return again.registered().PublicKey != was.PublicKey })
	if got := again.nodes["a"]; !slices.Equal(got.PodCIDRs, was.PodCIDRs) {
		t.Errorf("had %+v, has %+v", was, got)
	}
	// Who comes later sees that it has them for as long as before.
	late := c.startQuiet(c.config("late", t.TempDir()))
	late.until("the list", func() bool { return late.wholes > 0 })
	if got := late.nodes["a"]; got.Order != was.Order {
		t.Errorf("had its pod CIDRs since %d, and has since %d", was.Order, got.Order)
	}
}

// TestLeaseOutlivesRestarts restarts the node and the etcd, in order and at once.
func TestLeaseOutlivesRestarts(t *testing.T) {
	c := newCluster(t, testSettings())
	dir := t.TempDir()
	a := c.start(c.config("a", dir))
	was := a.registered()
	c.server.Restart()
	a.end()
	b := c.start(c.config("a", dir))
	if got := b.registered(); !slices.Equal(got.PodCIDRs, was.PodCIDRs) || got.Order != was.Order {
		t.Errorf("had %+v, has %+v", was, got)
	}
	// While it runs, and with an etcd that is away for a while.
	c.server.Stop()
	_ = b.problem(func(err error) bool { return errors.Is(err, etcd.ErrUnreachable) })
	c.server.Restart()
	_ = b.problem(func(err error) bool { return err == nil })
	if got := b.nodes["a"]; !slices.Equal(got.PodCIDRs, was.PodCIDRs) {
		t.Errorf("had %+v, has %+v", was, got)
	}
}

// TestExpiry has a node's lease end while it is away: its CIDR is somebody else's then, and it gets another one.
func TestExpiry(t *testing.T) {
	c := newCluster(t, etcd.Settings{Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/23")}})
	cfg := c.config("a", t.TempDir())
	cfg.LeaseTTL = 5 * time.Second
	a := c.start(cfg)
	was := a.registered()
	b := c.start(c.config("b", t.TempDir()))
	b.until("a", func() bool { return len(b.nodes) == 2 })
	a.end()
	b.until("the end of a's lease", func() bool { return len(b.nodes) == 1 })

	third := c.start(c.config("c", t.TempDir()))
	if got := third.registered(); got.PodCIDRs[0] != was.PodCIDRs[0] {
		t.Errorf("got %v, and %v is the only one left", got.PodCIDRs, was.PodCIDRs)
	}
	again := c.start(cfg)
	_ = again.problem(func(err error) bool { return errors.Is(err, etcd.ErrUsedUp) })
	again.until("knowledge of the others", func() bool { return len(again.nodes) == 2 })
}

// TestRecordDeleted takes a running node's keys away: it writes them again, with the CIDRs that it has.
func TestRecordDeleted(t *testing.T) {
	c := newCluster(t, testSettings())
	a := c.start(c.config("a", t.TempDir()))
	was := a.registered()
	kv := c.client().Etcd()
	for _, what := range []string{"nodes/", "cidrs/", ""} {
		if what == "" {
			resp, err := kv.Get(t.Context(), etcd.Prefix("test")+"nodes/a")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := kv.Revoke(t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease)); err != nil {
				t.Fatal(err)
			}
		} else if _, err := kv.Delete(t.Context(), etcd.Prefix("test")+what, clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
		if what == "cidrs/" { // nothing of it shows in the records; it is found when the node looks
			c.until("the CIDRs", func() bool {
				resp, err := kv.Get(t.Context(), etcd.Prefix("test")+what, clientv3.WithPrefix())
				return err == nil && len(resp.Kvs) == 2
			})
			continue
		}
		a.until("its end", func() bool { return len(a.nodes) == 0 })
		if got := a.registered(); !slices.Equal(got.PodCIDRs, was.PodCIDRs) {
			t.Errorf("after the loss of %q: %v, want %v", what, got.PodCIDRs, was.PodCIDRs)
		}
	}
}

// until waits for something in the etcd.
func (c *cluster) until(what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("no %s", what)
		}
	}
}

func TestStateFile(t *testing.T) {
	c := newCluster(t, testSettings())
	dir := t.TempDir()
	a := c.start(c.config("a", dir))
	was := a.registered()
	a.end()
	file := filepath.Join(dir, "etcd", "node.json")
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	if st, err := os.Stat(filepath.Dir(file)); err != nil || st.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", st, err)
	}
	// A torn file is one that was lost.
	if err := os.WriteFile(file, []byte(`{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	a = c.start(c.config("a", dir))
	a.until("a new key", func() bool { return a.registered().PublicKey != was.PublicKey })
	if got := a.nodes["a"]; !slices.Equal(got.PodCIDRs, was.PodCIDRs) {
		t.Errorf("%v, want %v", got.PodCIDRs, was.PodCIDRs)
	}
	a.end()
	if err := os.WriteFile(file, []byte(`{"id":"x","version":2,"network":"test","node":"a"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := etcd.New(c.config("a", dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), nil, nil); !errors.Is(err, etcd.ErrNewer) {
		t.Errorf("%v", err)
	}
}
