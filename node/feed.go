package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/remember"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/printable"
	"github.com/warren-net/warren/node/config"
)

// A feed follows a control plane other than the file: it takes the source's updates in, has a ledger judge them,
// gathers what has changed until the writer asks for it, and keeps the last state on disk. It outlives a node that has
// to start again as it is another one now. A nil feed is that of a node whose peers stand in its file.
type feed struct {
	log    *slog.Logger
	dir    string // state directory
	name   string
	source control.Source
	news   chan struct{} // there is something to take

	memory

	mu       sync.Mutex
	ledger   *control.Ledger
	cluster  []netip.Prefix
	wanted   []netip.Prefix // ranges that the source has for the cluster and that are not in force; empty: there are none
	unfit    string         // why they are not
	pending  map[string]pending
	restart  bool   // the cluster's ranges have changed
	problem  string // why the source delivers nothing
	refusals []string
	told     control.Node // what the source was told of this node
}

// A pending is what has changed of a node since the writer asked.
type pending struct {
	node *control.Node // nil: it is gone
	left bool          // it was gone in between
}

// newFeed makes one, with what was written down before.
func newFeed(cfg *config.Config, source control.Source, log *slog.Logger) *feed {
	f := &feed{
		log: log, dir: cfg.StateDir, name: cfg.Node, source: source, news: make(chan struct{}, 1), memory: newMemory(),
		cluster: cfg.Cluster, pending: map[string]pending{},
	}
	known, err := remember.Read(f.dir)
	if err != nil {
		log.Warn("the last state of the cluster is not known", "error", err)
	}
	if known != nil && known.Node != f.name {
		log.Info("what is known of the cluster is another node's and is not used", "node", known.Node)
		known = nil
	}
	if known != nil && len(f.cluster) == 0 {
		f.cluster = known.CIDRs
	}
	f.ledger = f.remembered(known)
	f.configured(cfg)
	return f
}

// remembered is a ledger in which what was in force is again. That holds for this node's pod CIDRs, which its pods
// have, also where they are outside the cluster's ranges now.
func (f *feed) remembered(known *remember.Cluster) *control.Ledger {
	rules := control.Rules{Self: f.name, Cluster: f.cluster}
	if known == nil {
		return control.NewLedger(rules)
	}
	nodes := slices.DeleteFunc(known.Nodes, func(n control.Node) bool { return n.Roams })
	if i := slices.IndexFunc(nodes, func(n control.Node) bool { return n.Name == f.name }); i >= 0 {
		rules.Cluster = rangesOf(f.cluster, &nodes[i])
	}
	l := control.NewLedger(rules)
	l.Apply(control.Update{Whole: true, Nodes: nodes})
	if _, err := l.SetCluster(f.cluster); err != nil {
		f.log.Warn("control plane", "error", err)
	}
	return l
}

// rangesOf are the cluster's ranges for a node: and what it has outside of them.
func rangesOf(cluster []netip.Prefix, self *control.Node) []netip.Prefix {
	out := slices.Clone(cluster)
	for _, p := range self.PodCIDRs {
		if !control.Within(p, cluster) {
			out = append(out, p)
		}
	}
	return out
}

// run follows the source until ctx ends.
func (f *feed) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var keeping sync.WaitGroup
	keeping.Go(func() { f.keep(ctx) })
	err := f.follow(ctx)
	cancel()
	keeping.Wait()
	f.keepLast()
	return err
}

// follow takes in what the source says until ctx ends, and what it says to the end.
func (f *feed) follow(ctx context.Context) error {
	updates, ended := make(chan control.Update), make(chan error, 1)
	go func() { ended <- f.source.Run(ctx, updates, f.trouble) }()
	for {
		select {
		case u := <-updates:
			f.take(u)
		case err := <-ended:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("control plane: %w", err)
		}
	}
}

// trouble is the source's problem; nil: it is over.
func (f *feed) trouble(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.problem
	f.problem = ""
	if err != nil {
		f.problem = fmt.Sprintf("the control plane says nothing, and what it said last stays in force: %v", err)
	}
	if before == f.problem {
		return
	}
	if err != nil {
		f.log.Warn("control plane", "error", err)
	} else {
		f.log.Info("the control plane answers again")
	}
	poke(f.news)
}

// take lets the ledger judge an update.
func (f *feed) take(u control.Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(u.Cluster) > 0 {
		f.wanted = u.Cluster
	}
	f.setCluster()
	f.note(f.ledger.Apply(f.staying(u)))
	f.setCluster() // this node may be elsewhere now
	f.report()
}

// setCluster takes in ranges that are wanted, as soon as this node can have them. The caller holds the lock.
func (f *feed) setCluster() {
	if slices.Equal(f.wanted, f.cluster) {
		f.wanted = nil
	}
	if len(f.wanted) == 0 {
		f.unfit = ""
		return
	}
	change, err := f.ledger.SetCluster(f.wanted)
	if err != nil {
		f.unfit = err.Error()
		return
	}
	f.cluster, f.wanted, f.unfit, f.restart = f.wanted, nil, "", true
	poke(f.news) // also where no node changes with them
	f.changed()
	f.note(change)
}

// staying is the update without an end of this node, which goes on as it is while the cluster does not know it: what
// its pods and its tunnel have is nobody else's here meanwhile, whoever the cluster gives it to.
func (f *feed) staying(u control.Update) control.Update {
	self := f.ledger.Node(f.name)
	if self == nil {
		return u
	}
	own := func(n control.Node) bool { return n.Name == f.name }
	if u.Whole && !slices.ContainsFunc(u.Nodes, own) {
		u.Nodes = append(slices.Clone(u.Nodes), *self)
	}
	u.Gone = slices.DeleteFunc(slices.Clone(u.Gone), func(name string) bool { return name == f.name })
	return u
}

// configured takes in which peers that are no nodes the file has.
func (f *feed) configured(cfg *config.Config) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note(f.ledger.Configure(cfg.State.Nodes))
	f.report()
}

// report notes which claims are refused, and the ranges. The caller holds the lock.
func (f *feed) report() {
	refusals := make([]string, 0, len(f.refusals))
	if f.unfit != "" {
		refusals = append(refusals, f.unfit)
	}
	for _, r := range f.ledger.Refusals() {
		text := "what node %s says of itself is refused: %s"
		if r.Machine {
			text = "peer %s of this host's configuration is left out: %s"
		}
		refusals = append(refusals, fmt.Sprintf(text, printable.Name(r.Name), r.Why))
	}
	if !slices.Equal(refusals, f.refusals) {
		f.refusals = refusals
		poke(f.news)
	}
}

// note adds a change to what is to be taken. The caller holds the lock.
func (f *feed) note(c control.Change) {
	if c.Empty() {
		return
	}
	for k := range c.Set {
		n := &c.Set[k]
		before, known := f.pending[n.Name]
		f.pending[n.Name] = pending{n, before.left || known && before.node == nil}
	}
	for _, name := range c.Gone {
		f.pending[name] = pending{}
	}
	poke(f.news)
	f.changed()
}

// await waits until the cluster knows this node and what its ranges are, and returns the configuration to start with
// and the peers. What is known of those then is not news any more.
func (f *feed) await(ctx context.Context, cfg *config.Config) (*config.Config, []control.Node, error) {
	for waited := false; ; waited = true {
		f.mu.Lock()
		self, cluster := f.ledger.Node(f.name), f.cluster
		if self != nil && len(cluster) > 0 && len(self.PodCIDRs) > 0 && len(self.Addresses) > 0 {
			nodes := f.peers()
			f.pending = map[string]pending{}
			f.restart = false
			poke(f.news) // problems and refusals are, to the writer that starts
			f.mu.Unlock()
			next, err := cfg.With(*self, rangesOf(cluster, self))
			return next, nodes, err
		}
		why := slices.Concat([]string{f.problem}, f.refusals)
		f.mu.Unlock()
		if !waited {
			f.log.Info("waiting until the cluster knows this node, its pod CIDRs and its addresses", "node", f.name,
				"control", string(cfg.Control), "problems", slices.DeleteFunc(why, func(s string) bool { return s == "" }))
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-f.news:
		}
	}
}

// underlayWait is how often a node looks whether it has the addresses that the cluster has for it.
const underlayWait = time.Second

// awaitHere is await for a node that has the addresses which the cluster has for it. One that has moved knows its old
// ones, from before and perhaps from the cluster: who has the new ones says so soon, and cannot if the node gives up.
func (f *feed) awaitHere(ctx context.Context, cfg *config.Config, check func([]netip.Addr) error) (*config.Config,
	[]control.Node, error) {
	var waiting string // why
	for {
		known, nodes, err := f.await(ctx, cfg)
		if err != nil {
			return nil, nil, err
		}
		err = check(known.Self.Addresses)
		if !errors.Is(err, hostnet.ErrNoUnderlay) {
			return known, nodes, nil // what else is wrong, the start says
		}
		if why := err.Error(); why != waiting {
			waiting = why
			f.log.Warn("waiting until the node has the addresses that the cluster has for it, or the cluster its new ones",
				"node", f.name, "problem", why)
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-f.news:
		case <-time.After(underlayWait):
		}
	}
}

// peers are all nodes in force but this one. The caller holds the lock.
func (f *feed) peers() []control.Node {
	return slices.DeleteFunc(f.ledger.Nodes(), func(n control.Node) bool { return n.Name == f.name })
}

// A fed is what a feed has for the writer.
type fed struct {
	set      []control.Node // peers that are new or changed
	gone     []string       // peers that have left, also those that came again and are in set
	self     *control.Node  // nil: as it was
	restart  bool           // the cluster's ranges have changed
	problem  string
	warnings []string // the problem among them
}

// fetch is what has changed since the last call.
func (f *feed) fetch() fed {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := fed{restart: f.restart, problem: f.problem, warnings: slices.Clone(f.refusals)}
	if f.problem != "" {
		out.warnings = append([]string{f.problem}, out.warnings...)
	}
	for _, name := range slices.Sorted(maps.Keys(f.pending)) {
		p := f.pending[name]
		if name == f.name {
			out.self = p.node // while the cluster does not know this node, it goes on as it is
			continue
		}
		if p.node == nil || p.left {
			out.gone = append(out.gone, name)
		}
		if p.node != nil {
			out.set = append(out.set, *p.node)
		}
	}
	f.pending = map[string]pending{} // going through one that held thousands costs as if it still did
	return out
}

// newsOf is the channel that tells of something to fetch.
func (f *feed) newsOf() <-chan struct{} {
	if f == nil {
		return nil
	}
	return f.news
}

// tell tells the cluster of this node, as far as it does not know already.
func (f *feed) tell(cfg *config.Config, public key.Public) {
	p, ok := f.publisher()
	if !ok {
		return
	}
	self := control.Node{
		Name: cfg.Node, Addresses: cfg.Own.Addresses, Encapsulation: cfg.Own.Encapsulation,
		Port: cfg.Port, WireGuardPort: cfg.WireGuardPort, PublicKey: public,
	}
	f.mu.Lock()
	known := f.told.Equal(&self)
	f.told = self
	f.mu.Unlock()
	if !known {
		p.Publish(self)
	}
}

func (f *feed) publisher() (control.Publisher, bool) {
	if f == nil {
		return nil, false
	}
	p, ok := f.source.(control.Publisher)
	return p, ok
}
