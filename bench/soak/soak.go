package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// A Config says how long and with which programs.
type Config struct {
	Duration time.Duration // of the load
	BinDir   string        // holds warren and warren-cni
	Prefix   string        // of the lab; a process has one per prefix at a time
	Progress io.Writer     // where news go; nil: nowhere
}

// MinDuration is the shortest run in which everything happens once.
const MinDuration = 10 * time.Second

// metricsAddress is where each daemon serves its metrics, in its own namespace.
const metricsAddress = "127.0.0.1:9187"

// nodes of the lab, by what happens to them.
const (
	first   = iota // whose configuration changes
	second         // where pods come and go
	killed         // whose daemon is killed
	members        // how many
)

// A run is a soak that goes on.
type run struct {
	Config
	lab     *lab.Lab
	nodes   [members]*lab.Node
	pods    [members]*lab.Pod
	beside  *lab.Pod // a second pod on the first node
	begin   time.Time
	stop    chan struct{} // closed when the load is to end
	trouble trouble
	sampler *sampler

	mu       sync.Mutex
	tallies  []*tally
	failures []string
}

// Run soaks. The result is nil only when nothing could be measured; the error says that, or that the context ended.
// Whatever was found is in the result.
func Run(ctx context.Context, c Config) (result *Result, err error) {
	if c.Duration < MinDuration {
		return nil, fmt.Errorf("a soak of %v is too short for everything to happen once: take %v or more", c.Duration,
			MinDuration)
	}
	r := &run{Config: c, stop: make(chan struct{}), begin: time.Now()}
	if r.lab, err = lab.New(lab.Options{Prefix: c.Prefix, BinDir: c.BinDir}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.lab.Close()) }()
	if err := r.setUp(ctx); err != nil {
		return nil, err
	}
	r.sampler = newSampler(r)
	before, err := r.sampler.settled(ctx, nil)
	if ctx.Err() != nil { // to the daemons' clients a deadline is a daemon that does not answer
		return nil, interrupted(ctx)
	}
	if err != nil {
		return nil, err
	}
	r.say("three nodes are up, idle with %s", before)
	// What runs ends by itself soon after the load is to end; the context is for what does not, and for Ctrl-C.
	loaded, cancel := context.WithTimeoutCause(ctx, c.Duration+patience, errLate)
	defer cancel()
	var tasks sync.WaitGroup
	for _, task := range append(r.load(), r.troubles()...) {
		tasks.Go(func() { task(loaded) })
	}
	r.begin = time.Now()
	r.sampler.watch(ctx, c.Duration)
	close(r.stop)
	r.say("the load ends")
	tasks.Wait()
	if ctx.Err() != nil {
		return nil, interrupted(ctx)
	}
	after, err := r.sampler.settled(ctx, before)
	if err != nil {
		r.fail("after the load: %v", err)
	}
	return r.judge(before, after), nil
}

// patience is how much longer than planned what runs may take: a TCP connection to the killed node waits for its
// retransmission.
const patience = time.Minute

var errLate = fmt.Errorf("not over %v after the end of the load", patience)

func interrupted(ctx context.Context) error {
	return fmt.Errorf("the soak was interrupted: %w", context.Cause(ctx))
}

func (r *run) setUp(ctx context.Context) error {
	for i, name := range []string{"a", "b", "c"} {
		n, err := r.lab.AddNode(name)
		if err != nil {
			return err
		}
		n.Settings.Workers, n.Settings.Metrics = 2, metricsAddress
		r.nodes[i] = n
	}
	if err := r.lab.WriteConfigs(); err != nil {
		return err
	}
	for i, n := range r.nodes {
		if err := n.Up(ctx); err != nil {
			return err
		}
		pod, err := n.AddPod(ctx, "pod", lab.PodOptions{})
		if err != nil {
			return err
		}
		r.pods[i] = pod
	}
	var err error
	r.beside, err = r.nodes[first].AddPod(ctx, "beside", lab.PodOptions{})
	return err
}

func (r *run) say(format string, args ...any) {
	if r.Progress != nil {
		fmt.Fprintf(r.Progress, "%6.0fs  %s\n", time.Since(r.begin).Seconds(), fmt.Sprintf(format, args...))
	}
}

// fail notes what must not happen. A failure that goes on fills no memory.
func (r *run) fail(format string, args ...any) {
	const enough = 50
	text := fmt.Sprintf("after %v: ", time.Since(r.begin).Round(time.Second)) + fmt.Sprintf(format, args...)
	r.mu.Lock()
	if len(r.failures) < enough {
		r.failures = append(r.failures, text)
	}
	r.mu.Unlock()
	r.say("FAIL %s", text)
}

// pause waits and reports whether the load goes on.
func (r *run) pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-r.stop:
	case <-ctx.Done():
	}
	return false
}

// A tally counts one kind of load.
type tally struct {
	name string

	mu      sync.Mutex
	done    int           // how often
	bytes   int64         // in all
	longest time.Duration // stall or round trip
}

func (r *run) tally(name string) *tally {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &tally{name: name}
	r.tallies = append(r.tallies, t)
	return t
}

func (t *tally) add(bytes int64, longest time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done++
	t.bytes += bytes
	t.longest = max(t.longest, longest)
}
