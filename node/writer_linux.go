package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/static"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/tunnel"
)

// How often what no event told is looked at, and how long events are gathered before they are acted on.
const (
	lookEvery = 10 * time.Second
	settle    = 50 * time.Millisecond
)

// A writer owns the node's changing state: one goroutine computes and publishes it.
type writer struct {
	node        *Node
	log         *slog.Logger
	plan        plan
	generation  uint64
	lastReload  *api.Reload
	hostTurn    uint64    // of the last outcome that was taken in
	hostError   string    // why the kernel could not be set up again
	keyError    string    // why the node's keys could not be read again
	pathsAt     time.Time // when peers were last planned anew for paths
	pathNews    bool      // they are to be for others
	lost        []string  // what the kernel lacks, and what does not work for it
	directSaid  []string  // which pods are reached by the tunnel, and should not
	feedTrouble string    // why the control plane says nothing
	feedSaid    []string  // what people should know of the control plane
	secureSaid  []string  // what people should know of keys, as of the last look
	owed        owed
	refusedAt   map[netip.Addr]time.Time
}

// A view is what questions are answered from. It is immutable once published.
type view struct {
	snapshot   *forwarder.Snapshot
	cfg        *config.Config
	underlay   []api.Underlay
	publicKeys []string
	since      time.Time // of the snapshot
	lastReload *api.Reload
	control    api.Control
	warnings   []string
}

// publish computes the whole snapshot and puts it in force. When that fails, the old one stays.
func (w *writer) publish(nodes []control.Node) error {
	out, err := w.plan.build(w.generation+1, nodes)
	if err != nil {
		return fmt.Errorf("forwarding table: %w", err)
	}
	w.secureSaid = w.secureWarnings()
	placed, _ := w.plan.sift(nodes)
	w.node.direct.reset(w.plan.cfg, placed)
	w.enforce(out)
	return nil
}

// publishChange does the same for the peers that are new, changed or gone.
func (w *writer) publishChange(set []control.Node, gone []string) error {
	out, err := w.plan.change(w.generation+1, set, gone)
	if err != nil {
		return fmt.Errorf("forwarding table: %w", err)
	}
	w.enforce(out)
	return nil
}

// enforce puts a snapshot in force.
func (w *writer) enforce(out *outcome) {
	if out.same {
		w.showAgain()
		return
	}
	w.generation++
	w.node.secure.tell(w.plan.cfg, out) // before anything can be sent to them
	w.node.table.Store(out.snapshot)
	w.show(&view{snapshot: out.snapshot, since: time.Now()})
	poke(w.node.gso.poked)
}

// show publishes a view: v with everything but the snapshot brought up to date.
func (w *writer) show(v *view) {
	v.cfg, v.underlay, v.lastReload = w.plan.cfg, w.plan.underlay, w.lastReload
	v.publicKeys = w.node.secure.publicKeys()
	v.control = api.Control{Source: string(w.plan.cfg.Control), Problem: w.feedTrouble}
	w.directSaid = w.node.direct.warnings()
	v.warnings = slices.Concat(w.plan.allWarnings(), w.lost, w.directSaid, w.secureSaid, w.feedSaid,
		w.owed.warnings())
	if w.hostError != "" {
		v.warnings = append(v.warnings, w.hostError)
	}
	var before []string
	if old := w.node.view.Load(); old != nil {
		before = old.warnings
	}
	if !slices.Equal(before, v.warnings) {
		w.tellWarnings(before, v.warnings)
	}
	w.node.view.Store(v)
}

// tellWarnings writes down which warnings are new and which hold no longer. With the underlay gone there may be one for
// each peer.
func (w *writer) tellWarnings(before, now []string) {
	had, has := setOf(before), setOf(now)
	for _, text := range now {
		if !had[text] {
			w.log.Warn("warning", "text", text)
		}
	}
	for _, text := range before {
		if !has[text] {
			w.log.Info("warning no longer holds", "text", text)
		}
	}
}

// showAgain publishes the view anew for the same snapshot.
func (w *writer) showAgain() {
	v := *w.node.view.Load()
	w.show(&v)
}

// begin finishes the start: the kernel, the node file, and the socket that tells others that the node is up.
func (w *writer) begin() error {
	n := w.node
	if err := w.applyHost(); err != nil {
		return err
	}
	if err := n.writeNodeFile(w.plan.cfg); err != nil {
		return err
	}
	warnOfStrays(w.plan.cfg, attachedPods(w.plan.cfg, w.log), w.log)
	w.showAgain()
	if err := n.serveAPI(); err != nil {
		return err
	}
	n.opt.Log.Info("node is up", "node", n.cfg.Node, "version", n.opt.Version, "device", n.cfg.Device,
		"created", n.device.Created(), "workers", len(n.workers), "mtu", n.podMTU,
		"vxlanPort", n.cfg.PortOf(&n.cfg.Self), "wireguardPort", n.cfg.WireGuardPortOf(&n.cfg.Self),
		"peers", n.view.Load().snapshot.PeerCount)
	return nil
}

// An applied is the outcome of setting the kernel up.
type applied struct {
	lost []string
	err  error
	turn uint64 // which of all, see Node.hostTurn
}

// applyHost makes the kernel what the configuration wants.
func (w *writer) applyHost() error {
	w.node.hostMu.Lock()
	defer w.node.hostMu.Unlock()
	changes, err := hostnet.Apply(w.node.hostSpec(w.plan.cfg, attachedPods(w.plan.cfg, w.log)), w.log)
	w.node.direct.note(changes.Direct)
	w.note(applied{changes.Lost, err, w.node.hostTurn.Add(1)})
	return err
}

func (w *writer) note(a applied) {
	w.hostTurn = a.turn
	w.lost = a.lost
	w.hostError = ""
	if a.err != nil {
		w.hostError = a.err.Error()
	}
}

// repaired takes in what the watch of the kernel did.
func (w *writer) repaired(a applied) {
	if a.turn < w.hostTurn {
		return // of a configuration that is no longer the one
	}
	lost, hostError := w.lost, w.hostError
	if a.err == nil && w.lastReload != nil && w.lastReload.Incomplete != "" {
		whole := *w.lastReload
		whole.Incomplete = ""
		w.lastReload = &whole
	}
	w.note(a)
	if !slices.Equal(lost, w.lost) || hostError != w.hostError || !slices.Equal(w.node.direct.warnings(), w.directSaid) {
		w.showAgain()
	}
}

// follow reacts to everything that changes until ctx ends, and returns an error when a worker failed.
func (w *writer) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n := w.node
	file := static.New(static.Options{Path: n.cfg.File, Load: n.load})
	updates, problems := make(chan control.Update), make(chan error)
	sourceDone := make(chan struct{})
	go func() {
		defer close(sourceDone)
		_ = file.Run(ctx, updates, func(err error) {
			select {
			case problems <- err:
			case <-ctx.Done():
			}
		})
	}()
	// Whoever removes what the node made must find nobody who puts it back.
	defer func() { cancel(); <-sourceDone; n.watching.Wait() }()
	w.watch(ctx)

	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for first := true; ; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-n.failed:
			return err
		case <-n.opt.Reload:
			file.Reload()
		case <-updates:
			next := n.next.Load()
			if !first || !w.running(next) {
				w.reload(next)
			}
			first = false
		case err := <-problems:
			w.problem(err)
			first = false
		case <-n.feed.newsOf():
			if err := w.eat(n.feed.fetch()); err != nil {
				return err
			}
		case e := <-n.paths:
			w.path(e)
		case <-n.pokeLink:
			wait(ctx, settle)
			w.look()
		case <-look.C:
			w.look()
		case a := <-n.applied:
			w.repaired(a)
		}
	}
}

// running reports whether the file says what the node began with.
func (w *writer) running(next *config.Config) bool {
	began := *w.node.cfg
	if began.Control != config.Static {
		began.Self, began.Cluster, began.State = next.Self, next.Cluster, next.State
	}
	return reflect.DeepEqual(next, &began)
}

// wait lets events gather.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// load is the source's hook: it checks the whole file and keeps it for the writer.
func (n *Node) load(data []byte) (control.State, error) {
	src := n.opt.Said
	src.File, src.Data, src.Hostname = n.cfg.File, data, n.cfg.Node
	next, err := config.Parse(src)
	if err != nil {
		return control.State{}, err
	}
	n.next.Store(next)
	return next.State, nil
}

// reload applies a new configuration as far as that is possible while the node runs.
func (w *writer) reload(next *config.Config) {
	old := w.plan.cfg
	result := api.Reload{Time: time.Now(), NeedsRestart: old.NeedsRestart(next)}
	adopted, err := old.Adopt(next)
	if err != nil {
		w.problem(err)
		return
	}
	nodes := w.plan.nodes()
	if adopted.Control == config.Static {
		nodes = adopted.Peers(adopted.State)
	}
	if err := w.adopt(adopted, nodes); err != nil {
		w.problem(err)
		return
	}
	w.node.feed.configured(adopted)
	if w.node.opt.Level != nil {
		w.node.opt.Level.Set(w.plan.cfg.LogLevel)
	}
	err = errors.Join(w.applyHost(), w.node.writeNodeFile(w.plan.cfg))
	w.node.feed.tell(adopted, w.node.secure.newest()) // who hears of it may act at once
	if err != nil {
		result.Incomplete = err.Error()
		w.log.Error("configuration applied, but not in full", "error", err)
	} else {
		w.log.Info("configuration applied", "generation", w.generation, "peers", w.node.view.Load().snapshot.PeerCount)
	}
	if len(result.NeedsRestart) > 0 {
		w.log.Warn("the configuration has changes that need a restart of warren", "settings", result.NeedsRestart)
	}
	w.lastReload = &result
	w.showAgain()
}

// adopt goes by another configuration, with these peers. When that fails, nothing has changed.
func (w *writer) adopt(next *config.Config, nodes []control.Node) error {
	old, graces, now := w.plan.cfg, maps.Clone(w.plan.grace), time.Now()
	w.plan.cfg = next
	for k := range nodes {
		w.plan.graceOf(&nodes[k], old, now)
	}
	w.readKeys()
	if err := w.publish(nodes); err != nil {
		w.plan.cfg, w.plan.grace = old, graces
		return err
	}
	return nil
}

// problem reports that the configuration is bad; the old state stays in force.
func (w *writer) problem(err error) {
	if errors.Is(err, static.ErrWatch) {
		w.log.Warn("configuration file", "error", err)
		return
	}
	w.lastReload = &api.Reload{Time: time.Now(), Error: err.Error()}
	w.log.Error("configuration not applied, the old state stays in force", "error", err)
	w.showAgain()
}

// path takes in what the underlay said about a path, and all that came with it. Whoever can send to a node can make the
// kernel report an error about any address, as the sockets are not connected: what is about nobody's is ignored, and
// the rest does not have the table built anew more often than every now and then.
func (w *writer) path(e tunnel.PathEvent) {
	var tooBig []tunnel.PathEvent
	for more := true; more; {
		switch {
		case w.plan.reached[e.To] == 0:
		case errors.Is(e.Err, tunnel.ErrTooBig):
			tooBig = append(tooBig, e)
		default:
			w.refused(e)
		}
		select {
		case e = <-w.node.paths:
		default:
			more = false
		}
	}
	if len(tooBig) == 0 {
		return
	}
	// A send is also refused when the node's own device has shrunk. That is read from the device, not remembered, so
	// that it ends when the device grows again.
	news := w.readUnderlay()
	for _, e := range tooBig {
		if e.MTU < w.plan.underlayMTU(e.To) {
			news = w.plan.paths.note(e.To, e.MTU, time.Now()) || news
		}
	}
	switch now := time.Now(); {
	case !news:
	case now.Sub(w.pathsAt) >= settle:
		w.pathsAt = now
		w.catchUp(nil)
	default:
		w.pathNews = true
		w.pokeLink()
	}
}

// refusedEvery is how often it is said that the underlay refuses packets to one address: a node that is down answers
// each call of the key exchange so.
const refusedEvery = time.Minute

func (w *writer) refused(e tunnel.PathEvent) {
	now := time.Now()
	if now.Sub(w.refusedAt[e.To]) < refusedEvery {
		return
	}
	maps.DeleteFunc(w.refusedAt, func(_ netip.Addr, at time.Time) bool { return now.Sub(at) >= refusedEvery })
	w.refusedAt[e.To] = now
	w.log.Warn("the underlay refuses packets to a peer", "address", e.To, "error", e.Err)
}

// look reads the underlay's state and the keys, and ends what has had its time.
func (w *writer) look() {
	now := time.Now()
	news := w.plan.paths.expire(now) || w.pathNews
	w.pathNews = false
	ended := w.plan.endGraces(now)
	news = w.node.roamed.news.Swap(false) || news
	switch {
	case w.readKeys():
		refused := w.plan.refused
		if err := w.publish(w.plan.nodes()); err != nil {
			w.log.Error("the forwarding table stays as it was", "error", err)
		}
		if !maps.Equal(refused, w.plan.refused) {
			w.setUpAnew() // the kernel knows others by other addresses and routes then
		}
		w.node.feed.tell(w.plan.cfg, w.node.secure.newest())
	case w.readUnderlay() || news || len(ended) > 0:
		w.catchUp(ended)
	}
	if w.node.direct.guardsSince(w.plan.cfg, now) {
		w.setUpAnew()
	}
	for _, news := range w.retry(now) {
		w.tellKernel(news)
	}
	if said := w.secureWarnings(); !slices.Equal(said, w.secureSaid) {
		w.secureSaid = said
		w.showAgain()
	}
}

// catchUp plans the peers anew that are outdated, and those named.
func (w *writer) catchUp(names []string) {
	set := w.plan.outdated()
	for _, name := range names {
		m := w.plan.peers[name]
		if m != nil && !slices.ContainsFunc(set, func(n control.Node) bool { return n.Name == name }) {
			set = append(set, m.node)
		}
	}
	if err := w.publishChange(set, nil); err != nil {
		w.log.Error("the forwarding table stays as it was", "error", err)
	}
	poke(w.node.gso.poked)
}

// readUnderlay reports whether the devices of this node's addresses have changed.
func (w *writer) readUnderlay() bool {
	underlay, err := underlayOf(w.plan.cfg.Self.Addresses)
	if err != nil {
		w.log.Warn("the underlay's devices cannot be read", "error", err)
		return false
	}
	if slices.Equal(underlay, w.plan.underlay) {
		return false
	}
	w.plan.underlay = underlay
	return true
}

func (w *writer) pokeLink() { poke(w.node.pokeLink) }

// poke marks that there is something to do; once is enough.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
