package etcd_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/etcdmem"
	"github.com/warren-net/warren/internal/key"
)

// A sim is a network of thousands of nodes over an etcd in memory. Each node is a real source with its registrar and
// its follower, and a ledger behind it, as the daemon has one. The clock is the fake one of testing/synctest.
type sim struct {
	t        *testing.T
	store    *etcdmem.Store
	dir      string
	crowds   int // of how many crowds each node that does not see all sees its own
	settings etcd.Settings
	client   *etcd.Client
	rnd      *rand.Rand

	nodes    []*simNode // also those that left
	leaving  sync.WaitGroup
	observer *observer
}

const simNetwork = "sim"

// farAway is how long a question is on its way: long enough that nodes are in each other's way.
func farAway() time.Duration { return time.Millisecond + rand.N(9*time.Millisecond) }

func newSim(t *testing.T, dir string, crowds int) *sim {
	s := &sim{t: t, store: etcdmem.New(), dir: dir, crowds: crowds, rnd: rand.New(rand.NewPCG(1, 2))}
	// 8,192 pod CIDRs of each family or more, so that most of those that somebody picks are taken.
	s.settings = etcd.Settings{NodePrefix4: 29, NodePrefix6: 64, Ranges: []netip.Prefix{
		netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/51")}}
	var err error
	if s.client, err = etcd.NewClient(s.config("tool", nil, nil)); err != nil {
		t.Fatal(err)
	}
	if err := s.client.WriteSettings(t.Context(), s.settings); err != nil {
		t.Fatal(err)
	}
	s.observer = s.observe()
	t.Cleanup(s.end)
	return s
}

func (s *sim) config(name string, sees func(string) func(string) bool, traffic *etcdmem.Traffic) etcd.Config {
	return etcd.Config{Endpoints: []string{"memory"}, Network: simNetwork, Node: name,
		StateDir: filepath.Join(s.dir, name)}.Through(func() *clientv3.Client {
		return s.store.Client(etcdmem.Options{Delay: farAway, Sees: sees, Traffic: traffic})
	})
}

// A simNode is one node, while it is there and while it is not.
type simNode struct {
	sim     *sim
	index   int
	name    string
	full    bool // it sees all nodes, not just its crowd
	said    control.Node
	traffic etcdmem.Traffic

	source *etcd.Source // nil: it is not there
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	ledger  *control.Ledger
	wholes  int // updates that were all there is
	partial int // other updates
	entries int // in those
	problem error
	seen    atomic.Int64 // problems, all in all
}

// add makes one more node, which is not there yet.
func (s *sim) add(full bool) *simNode {
	i := len(s.nodes)
	n := &simNode{sim: s, index: i, name: fmt.Sprintf("n%05d", i), full: full}
	n.said = control.Node{PublicKey: simKey(), Addresses: []netip.Addr{simAddress(i, 0)}}
	s.nodes = append(s.nodes, n)
	return n
}

func simKey() (k key.Public) {
	for i := 0; i < len(k); i += 8 {
		binary.BigEndian.PutUint64(k[i:], rand.Uint64())
	}
	return k
}

// simAddress is the address of a node's interface that it has for the n-th time.
func simAddress(index, n int) netip.Addr {
	b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	binary.BigEndian.PutUint32(b[8:], uint32(n))
	binary.BigEndian.PutUint32(b[12:], uint32(index))
	return netip.AddrFrom16(b)
}

// sees says what a node finds: all keys but the records of those whom it does not see.
func (n *simNode) sees(from string) func(key string) bool {
	kinds := []string{etcd.Prefix(simNetwork) + "nodes/", etcd.Prefix(simNetwork) + "leased/"}
	if !slices.ContainsFunc(kinds, func(kind string) bool { return strings.HasPrefix(from, kind) }) {
		return nil
	}
	return func(key string) bool {
		for _, kind := range kinds {
			if name, ok := strings.CutPrefix(key, kind); ok {
				return n.seesNode(name)
			}
		}
		return true
	}
}

func (n *simNode) seesNode(name string) bool {
	i, err := strconv.Atoi(name[1:])
	return err == nil && (n.full || i%n.sim.crowds == n.index%n.sim.crowds)
}

// start starts the node's daemon, as far as this package is in it.
func (n *simNode) start() {
	sees := n.sees
	if n.full {
		sees = nil
	}
	source, err := etcd.New(n.sim.config(n.name, sees, &n.traffic))
	if err != nil {
		n.sim.t.Error(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.source, n.cancel = source, cancel
	n.ledger = control.NewLedger(control.Rules{Self: n.name, Cluster: n.sim.settings.Ranges})
	updates := make(chan control.Update)
	n.done.Go(func() {
		defer close(updates)
		if err := source.Run(ctx, updates, n.trouble); err != nil {
			n.sim.t.Errorf("%s ended: %v", n.name, err)
		}
	})
	n.done.Go(func() {
		for u := range updates {
			n.take(u)
		}
	})
	source.Publish(n.said)
}

func (n *simNode) trouble(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.problem = err; err != nil {
		n.seen.Add(1)
	}
}

func (n *simNode) take(u control.Update) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if u.Whole {
		n.wholes++
	} else {
		n.partial++
		n.entries += len(u.Nodes) + len(u.Gone)
	}
	n.ledger.Apply(u)
}

// stop ends the daemon.
func (n *simNode) stop() {
	n.source = nil
	n.cancel()
	n.done.Wait()
}

// leave ends the daemon for good, and has what the node had given back some time later.
func (n *simNode) leave() {
	n.source = nil
	n.cancel()
	n.sim.leaving.Go(func() {
		n.done.Wait()
		err := n.sim.client.Remove(context.Background(), n.name)
		if err != nil && !errors.Is(err, etcd.ErrNoNode) { // it may not have got as far as a record
			n.sim.t.Errorf("%s leaves: %v", n.name, err)
		}
	})
}

// end ends all that goes on.
func (s *sim) end() {
	s.leaving.Wait()
	for _, n := range s.there() {
		s.leaving.Go(n.stop)
	}
	s.leaving.Wait()
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		s.t.Error(err)
	}
}

// change has the node tell of another key or another address.
func (n *simNode) change(version int) {
	if n.sim.rnd.IntN(2) == 0 {
		n.said.PublicKey = simKey()
	} else {
		n.said.Addresses = []netip.Addr{simAddress(n.index, version)}
	}
	n.source.Publish(n.said)
}

// there are the nodes that run.
func (s *sim) there() []*simNode {
	return slices.DeleteFunc(slices.Clone(s.nodes), func(n *simNode) bool { return n.source == nil })
}

// atOnce does something to all of them, spread evenly over the time.
func (s *sim) atOnce(nodes []*simNode, within time.Duration, do func(*simNode)) {
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { do(n) })
		time.Sleep(within / time.Duration(len(nodes)))
	}
	wg.Wait()
}

// check compares what each node that runs has in force with what the etcd has, and that with what the nodes said.
func (s *sim) check(when string) {
	s.t.Helper()
	listed, err := s.client.Nodes(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	truth := map[string]*control.Node{}
	for i := range listed {
		if l := &listed[i]; truth[l.Name] == nil {
			truth[l.Name] = &l.Node
		}
	}
	there := s.there()
	if len(truth) != len(there) {
		s.t.Errorf("%s: the etcd has %d nodes, and %d run", when, len(truth), len(there))
	}
	crowds := make([]int, s.crowds)
	for name := range truth {
		i, _ := strconv.Atoi(name[1:]) // which sees has read before
		crowds[i%s.crowds]++
	}
	for _, n := range there {
		want := crowds[n.index%s.crowds]
		if n.full {
			want = len(truth)
		}
		if err := n.compare(truth, want); err != nil {
			s.t.Errorf("%s: %s: %v", when, n.name, err)
		}
	}
	if s.t.Failed() {
		s.t.FailNow()
	}
}

func (n *simNode) compare(truth map[string]*control.Node, want int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.problem != nil {
		return fmt.Errorf("it has a problem: %w", n.problem)
	}
	own := truth[n.name]
	switch {
	case own == nil:
		return errors.New("the etcd does not have it")
	case own.PublicKey != n.said.PublicKey || !slices.Equal(own.Addresses, n.said.Addresses):
		return fmt.Errorf("the etcd has %v of it, and it said %v", own, n.said)
	case len(own.PodCIDRs) != 2:
		return fmt.Errorf("it has the pod CIDRs %v", own.PodCIDRs)
	case len(n.ledger.Refusals()) > 0:
		return fmt.Errorf("it refuses %v", n.ledger.Refusals())
	}
	inForce := n.ledger.Nodes()
	if len(inForce) != want {
		return fmt.Errorf("it knows %d nodes of %d", len(inForce), want)
	}
	for i := range inForce {
		if o := truth[inForce[i].Name]; o == nil || !o.Equal(&inForce[i]) {
			return fmt.Errorf("it knows %v, and the etcd has %v", inForce[i], o)
		}
	}
	return nil
}

// An observer looks at every revision of the etcd.
type observer struct {
	sim    *sim
	events atomic.Int64 // of nodes' records

	owners map[string]string   // by the key of a CIDR
	has    map[string][]string // keys of CIDRs, by node
}

// observe checks after each transaction that every pod CIDR is one node's, the one whose key says so, and that none is
// taken from another node before that gave it back.
func (s *sim) observe() *observer {
	o := &observer{sim: s, owners: map[string]string{}, has: map[string][]string{}}
	c := s.store.Client(etcdmem.Options{})
	events := c.Watch(context.Background(), etcd.Prefix(simNetwork), clientv3.WithPrefix(), clientv3.WithRev(1))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for resp := range events {
			if resp.Err() != nil {
				s.t.Errorf("the observer missed something: %v", resp.Err())
			}
			for i := 0; i < len(resp.Events); {
				j := i
				for j < len(resp.Events) && resp.Events[j].Kv.ModRevision == resp.Events[i].Kv.ModRevision {
					j++
				}
				o.apply(resp.Events[i:j])
				i = j
			}
		}
	}()
	o.sim.t.Cleanup(func() { c.Close(); <-done })
	return o
}

// apply takes one transaction in.
func (o *observer) apply(events []*clientv3.Event) {
	var changed []string
	for _, e := range events {
		kind, name, _ := strings.Cut(strings.TrimPrefix(string(e.Kv.Key), etcd.Prefix(simNetwork)), "/")
		var v struct {
			Node     string   `json:"node"`
			PodCIDRs []string `json:"podCIDRs"`
		}
		if e.Type == clientv3.EventTypePut {
			if err := json.Unmarshal(e.Kv.Value, &v); err != nil {
				o.sim.t.Errorf("%s: %v", e.Kv.Key, err)
			}
		}
		switch kind {
		case "cidrs":
			if was := o.owners[name]; was != "" && v.Node != "" && was != v.Node {
				o.sim.t.Errorf("%s was taken from %s by %s", name, was, v.Node)
			}
			if o.owners[name] = v.Node; v.Node == "" {
				delete(o.owners, name)
			}
		case "nodes":
			o.events.Add(1)
			changed = append(changed, name)
			o.has[name] = v.PodCIDRs
		}
	}
	for _, name := range changed {
		for _, p := range o.has[name] {
			if owner := o.owners[strings.ReplaceAll(p, "/", "_")]; owner != name {
				o.sim.t.Errorf("%s says that it has %s, whose key says %s", name, p, cmp.Or(owner, "nobody"))
			}
		}
	}
}
