// Package node is one node, assembled: it takes a configuration, opens the device and the sockets, sets the kernel up,
// deals their queues and sockets out to workers, follows the node list, and answers questions about all that.
//
// # Threads
//
//   - Each worker (node/worker) has a goroutine of its own and reads the snapshot that is in force.
//   - One writer goroutine (Run's own) owns everything that changes: the configuration, the node list, what is known
//     of path MTUs. It computes a new snapshot from them, puts it in force, and tells hostnet what the kernel should
//     be.
//   - Questions (API, metrics) read an immutable view that the writer publishes, and the workers' atomic counters.
//
// # Start and end
//
// A start that fails undoes what it made itself, and nothing that a predecessor left. An orderly end takes everything
// away, or leaves it for a successor (onExit). A worker that fails ends the node like a crash: everything stays as it
// is, so that the restarted daemon takes over and pods keep their routes.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/device/tun"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/node/metrics"
	"github.com/warren-net/warren/node/worker"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/udp"
)

// Options are what Run gets beside the configuration.
type Options struct {
	Version string
	Log     *slog.Logger
	Level   *slog.LevelVar  // of Log; moved when a new configuration says so. nil: it stays
	Reload  <-chan struct{} // asks to read the configuration again. nil: nobody asks
	Ready   func()          // called when pods can talk and questions are answered. nil: not called
	Source  control.Source  // where the nodes come from, unless they stand in the file

	// Problems are what people should know of what runs beside the node, for its status. It says them to the log itself.
	// nil: nothing does
	Problems func() []string

	// Said is what the command line says instead of the file, whenever that is read.
	Said config.Source

	// OwnProcess says that the process is there for this node alone: GOMAXPROCS is raised so that every worker can keep a
	// P of the Go runtime to itself.
	OwnProcess bool
}

// maxDefaultWorkers is the number of workers beyond which more CPUs bring nothing by default.
const maxDefaultWorkers = 8

// spareProcs is how many goroutines can run beside the workers.
const spareProcs = 2

// A Node is a running node. Run makes one.
type Node struct {
	opt        Options
	processors int            // of which nobody raised the number yet; workers by default
	cfg        *config.Config // as it was at the start; what the writer goroutine goes by is plan.cfg
	nodes      []control.Node // the peers at the start
	feed       *feed          // nil: the peers stand in the file
	started    time.Time
	podMTU     int

	device   *tun.Device
	sockets  []*udp.Socket
	noVXLAN  error // why there are none
	gso      tunnelGSO
	secure   secure
	roamed   roaming
	direct   direct
	workers  []*worker.Worker
	table    forwarder.Table
	next     atomic.Pointer[config.Config] // parsed by the source, fetched by the writer
	view     atomic.Pointer[view]
	paths    chan tunnel.PathEvent
	pokeLink chan struct{} // the host's devices or addresses changed
	applied  chan applied  // what became of setting the kernel up again
	failed   chan error    // a worker's or a server's end
	serving  sync.WaitGroup
	watching sync.WaitGroup // the watches of the kernel's events
	hostTurn atomic.Uint64  // how often the kernel was set up; counted with hostMu held
	hostMu   sync.Mutex     // held while the kernel is set up
	closers  []func() error // what a stop closes, in reverse order

	nodeAddrs hostnet.Nodes // what the kernel is told of the peers' addresses

	serverMu sync.Mutex
	servers  []*http.Server
}

// errAgain says that the node is another one now, by what the cluster knows of it: it starts again, as after an end
// that leaves everything for a successor.
var errAgain = errors.New("the node starts again")

// Run runs a node until ctx ends (the result is nil), or until something fails that it cannot go on without.
func Run(ctx context.Context, cfg *config.Config, opt Options) error {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkPrivilege(); err != nil {
		return err
	}
	lock, err := claim(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = lock.release() }()
	if cfg.Control == config.Static {
		return newNode(cfg, cfg.Peers(cfg.State), opt).run(ctx)
	}
	return runFed(ctx, cfg, opt)
}

// runFed runs a node whose peers come from a control plane.
func runFed(ctx context.Context, cfg *config.Config, opt Options) error {
	ring, _, err := key.LoadOrCreate(cfg.StateDir) // the cluster is told of the public half before anything else
	if err != nil {
		return fmt.Errorf("this node's key: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f := newFeed(cfg, opt.Source, opt.Log)
	f.tell(cfg, ring.Newest().Public())
	var fed sync.WaitGroup
	defer fed.Wait()
	defer cancel(nil)
	fed.Go(func() {
		if err := f.run(ctx); err != nil {
			cancel(err)
		}
	})
	ready := opt.Ready
	var open time.Time                  // see direct
	processors := runtime.GOMAXPROCS(0) // which the node raises
	for {
		known, nodes, err := f.awaitHere(ctx, cfg, checkUnderlay)
		if ctx.Err() != nil {
			return failure(ctx)
		}
		if err != nil {
			return err
		}
		opt.Ready, ready = ready, nil // once
		n := newNode(known, nodes, opt)
		n.feed, n.direct.open, n.processors = f, open, processors
		if err := n.run(ctx); !errors.Is(err, errAgain) {
			return errors.Join(err, failure(ctx))
		}
		cfg = n.view.Load().cfg // which the file may have changed
		open = n.direct.openUntil(cfg, time.Now())
	}
}

// failure is why a context was ended, unless somebody just wanted the end.
func failure(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func newNode(cfg *config.Config, nodes []control.Node, opt Options) *Node {
	return &Node{
		opt: opt, cfg: cfg, nodes: nodes, started: time.Now(),
		paths: make(chan tunnel.PathEvent, 256), failed: make(chan error, 1),
		pokeLink: make(chan struct{}, 1), applied: make(chan applied),
		gso: newTunnelGSO(), processors: runtime.GOMAXPROCS(0),
	}
}

// checkPrivilege says what is missing in one sentence, before the first of many system calls fails with EPERM.
func checkPrivilege() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read this process's capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("this process lacks the capability CAP_NET_ADMIN; run warren as root")
	}
	return nil
}

// claim makes the directories and takes the run directory's lock.
func claim(cfg *config.Config) (*instance, error) {
	for _, d := range []struct{ key, path string }{{"runDir", cfg.RunDir}, {"stateDir", cfg.StateDir}} {
		if err := os.MkdirAll(d.path, 0o755); err != nil {
			return nil, fmt.Errorf("%s: %s cannot be made: %w; name another directory in `%s`", d.key, d.path, err, d.key)
		}
	}
	return acquire(cfg.RunDir)
}

// workerCount is the number of workers.
func (n *Node) workerCount() int {
	if n.cfg.Workers > 0 {
		return n.cfg.Workers
	}
	return min(n.processors, maxDefaultWorkers)
}

// lanesWanted is the number of lanes of a node, unless it has more workers: enough for small flows to find some without
// a large transfer. More of them would let a hostile pod fill more queues with its flows; see deviceQueueLength.
const lanesWanted = 16

// laneCount is the number of lanes of all workers together: as many for each.
func laneCount(workers int) int {
	return workers * max(1, min(lanesWanted/workers, worker.MaxLanes))
}

// threadCount is the number of threads that move packets: the workers, and the express worker where each of them can
// have every lane (see worker.Exchange).
func (n *Node) threadCount(workers int) int {
	if !n.cfg.Express || laneCount(workers) > worker.MaxLanes {
		return workers
	}
	return workers + 1
}

// run starts everything, follows changes, and ends everything.
func (n *Node) run(ctx context.Context) error {
	w, err := n.start()
	if err != nil {
		return errors.Join(err, n.undo())
	}
	workersCtx, stopWorkers := context.WithCancel(context.Background())
	defer stopWorkers()
	workersDone := n.runWorkers(workersCtx)
	stop := func() error {
		stopWorkers()
		<-workersDone
		return n.close()
	}
	if err := w.begin(); err != nil {
		return errors.Join(err, stop(), n.undo())
	}
	if n.opt.Ready != nil {
		n.opt.Ready()
	}
	err = w.follow(ctx)
	if errors.Is(err, errAgain) {
		return errors.Join(err, stop(), n.device.Close())
	}
	if err != nil {
		n.opt.Log.Error("node fails; everything is left as it is for the next start", "error", err)
		return errors.Join(err, stop(), n.device.Close())
	}
	n.opt.Log.Info("node stops", "onExit", string(w.plan.cfg.OnExit))
	err = stop()
	if w.plan.cfg.OnExit == config.Leave {
		return errors.Join(err, n.device.Close())
	}
	return errors.Join(err, n.remove(w.plan.cfg))
}

// start opens everything that a worker needs. What it opened, n.undo closes.
func (n *Node) start() (*writer, error) {
	cfg := n.cfg
	if err := checkAlone(); err != nil {
		return nil, err
	}
	if err := checkUnderlay(cfg.Self.Addresses); err != nil {
		return nil, err
	}
	underlay, err := underlayOf(cfg.Self.Addresses)
	if err != nil {
		return nil, err
	}
	if n.podMTU, err = podMTU(cfg, underlay); err != nil {
		return nil, err
	}
	workers := n.workerCount()
	threads := n.threadCount(workers)
	if procs := threads + spareProcs; n.opt.OwnProcess && runtime.GOMAXPROCS(0) < procs {
		runtime.GOMAXPROCS(procs) // from then on it does not follow the cgroup's limit any more
	}
	lanes := laneCount(workers)
	if err := n.openSockets(lanes); err != nil {
		return nil, err
	}
	if err := n.openDevice(lanes); err != nil {
		return nil, err
	}
	if err := n.openSecure(lanes, threads); err != nil { // late, as it may make a key, which stays
		return nil, err
	}
	w := &writer{node: n, log: n.opt.Log, refusedAt: map[netip.Addr]time.Time{}, plan: plan{
		cfg: cfg, podMTU: n.podMTU, underlay: underlay, paths: pathLimits{}, secure: &n.secure, noVXLAN: n.noVXLAN,
		grace: map[string]time.Time{}, numbers: new(numbers), workers: threads,
	}}
	if err := w.publish(n.nodes); err != nil {
		return nil, err
	}
	n.openTunnelGSO(threads)
	if err := n.makeWorkers(workers); err != nil {
		return nil, err
	}
	if cfg.Metrics != "" {
		if err := n.serveMetrics(); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// undo takes back what a failed start made.
func (n *Node) undo() error {
	err := n.close()
	if n.device == nil {
		return err
	}
	if !n.device.Created() {
		return errors.Join(err, n.device.Close())
	}
	return errors.Join(err, n.remove(n.cfg))
}

// close closes what the workers used and stops the servers; not the device.
func (n *Node) close() error {
	n.serverMu.Lock()
	servers := n.servers
	n.servers = nil
	n.serverMu.Unlock()
	var errs []error
	for _, s := range servers {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if s.Shutdown(ctx) != nil {
			errs = append(errs, s.Close())
		}
		cancel()
	}
	n.serving.Wait()
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	return errors.Join(errs...)
}

// fail ends the node with err; the first one counts.
func (n *Node) fail(err error) {
	select {
	case n.failed <- err:
	default:
	}
}

// serveMetrics opens the metrics' address.
func (n *Node) serveMetrics() error {
	h, err := metrics.Handler(answers{n})
	if err != nil {
		return err
	}
	l, err := metrics.Listen(n.cfg.Metrics)
	if err != nil {
		return err
	}
	n.serve(l, h)
	return nil
}

// serveAPI opens the API socket: from then on `warren status` answers, which is how others know that the node is up.
func (n *Node) serveAPI() error {
	l, err := api.Listen(n.cfg.SocketPath())
	if err != nil {
		return err
	}
	n.serve(l, api.Handler(answers{n}))
	return nil
}
