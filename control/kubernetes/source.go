package kubernetes

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/warren-net/warren/control"
)

// Options say which cluster a Source belongs to.
type Options struct {
	NodeName   string       // of this node's object; required
	Kubeconfig string       // path; empty: the service account of the pod that this process runs in
	Server     string       // URL of the API server, instead of the one that the above name
	Version    string       // of Warren, for the API server's logs
	Log        *slog.Logger // nil: nothing is logged
}

// How long is waited between attempts, of watching and of patching: this long at first, and then ever longer. Jitter
// keeps the nodes of a cluster from coming back in step.
const (
	firstRetry   = 500 * time.Millisecond
	longestRetry = 5 * time.Second
)

// A Source is a control.Publisher over a cluster's Node objects.
type Source struct {
	opt    Options
	client *client
	store  *store
	wake   chan struct{} // Run's own
	told   chan struct{} // the publisher's

	answered atomic.Bool // a watch was opened

	mu        sync.Mutex
	troubles  [troubleKinds]*trouble
	streaming bool              // the list that is under way comes by a watch
	want      map[string]string // this node's annotations; nil: Publish was not called yet
	ready     *bool             // nil: Ready was not called yet
	urgent    bool              // something else is wanted than at the last attempt
}

var _ control.Publisher = (*Source)(nil)

// New makes a source. It reads the credentials, and asks nobody before Run.
func New(opt Options) (*Source, error) {
	if opt.NodeName == "" {
		return nil, errors.New("the node has no name: give it the name of its Node object (--node; in a DaemonSet the " +
			"environment variable NODE_NAME from spec.nodeName)")
	}
	if why := badServer(opt.Server); why != "" {
		return nil, errors.New("the API server " + excerpt(opt.Server) + " " + why + "; write it as https://192.0.2.1:6443")
	}
	cfg, err := restConfig(&opt)
	if err != nil {
		return nil, err
	}
	return newSource(opt, cfg)
}

func newSource(opt Options, cfg *rest.Config) (*Source, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	c, err := newClient(cfg, "warren/"+opt.Version)
	if err != nil {
		return nil, err
	}
	s := &Source{opt: opt, client: c, wake: make(chan struct{}, 1), told: make(chan struct{}, 1)}
	s.store = newStore(opt.NodeName, s.changed, s.complete)
	return s, nil
}

// Run implements control.Source. Updates and problems come from the goroutine that calls it.
func (s *Source) Run(ctx context.Context, updates chan<- control.Update, problem func(error)) error {
	log := quietLogger(s.opt.Log)
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, log))
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	reflector := cache.NewReflectorWithOptions(s, &corev1.Node{}, s.store, cache.ReflectorOptions{Logger: &log,
		Name: "nodes", TypeDescription: "Node", Clock: endingClock{ctx: ctx}, Backoff: &wait.Backoff{Duration: firstRetry,
			Cap: longestRetry, Steps: 20, Factor: 2, Jitter: 1}})
	running.Go(func() { s.follow(ctx, reflector) })
	running.Go(func() { s.publish(ctx) })

	said := "" // the problem that was reported last
	var out chan<- control.Update
	var next control.Update
	for {
		if out == nil {
			var news bool
			if next, news = s.store.take(); news {
				out = updates
			}
		}
		s.look()
		if t := s.worst(); t == nil && said != "" {
			said = ""
			problem(nil)
		} else if t != nil && t.cause != said {
			said = t.cause
			problem(t.err)
		}
		select {
		case <-ctx.Done():
			return nil
		case out <- next:
			out = nil
		case <-s.wake:
		}
	}
}

// follow lists and watches until ctx ends. It is the reflector's own loop, but for one thing: that one goes on waiting
// as long as it did while the API server was away, when that is back and wants no more than to be listed anew.
func (s *Source) follow(ctx context.Context, reflector *cache.Reflector) {
	const long = time.Minute // a watch that held so long is no failure
	var pause backoff
	answered := false
	for ctx.Err() == nil {
		begun, before := time.Now(), answered
		s.answered.Store(false)
		if err := reflector.ListAndWatchWithContext(ctx); err != nil {
			s.opt.Log.Debug("list and watch nodes", "error", err)
		}
		answered = s.answered.Load()
		if answered && !before || time.Since(begun) > long {
			pause = backoff{}
		}
		pause.failed(time.Now())
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(pause.next)):
		}
	}
}

// changed has Run and the publisher look again.
func (s *Source) changed() {
	poke(s.wake)
	poke(s.told)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it will look anyway
	}
}

// look notes what the own object lacks.
func (s *Source) look() {
	own, listed := s.store.ownNode()
	switch {
	case !listed:
	case !own.there:
		s.set(troubleOwn, absent(s.opt.NodeName))
	case own.broken != "":
		s.set(troubleOwn, &trouble{own.broken, errors.New(own.broken)})
	case own.missing != (gap{}):
		s.set(troubleOwn, &trouble{own.missing.what, errors.New(own.missing.String())})
	default:
		s.set(troubleOwn, nil)
	}
}

// complete notes that the reflector has a whole list; one that came by a watch goes on as one.
func (s *Source) complete() {
	s.mu.Lock()
	streaming := s.streaming
	s.mu.Unlock()
	if streaming {
		s.set(troubleWatch, nil)
	}
}

// List implements cache.ListerWatcher.
func (s *Source) List(opt metav1.ListOptions) (runtime.Object, error) {
	return s.ListWithContext(context.Background(), opt)
}

// Watch implements cache.ListerWatcher.
func (s *Source) Watch(opt metav1.ListOptions) (watch.Interface, error) {
	return s.WatchWithContext(context.Background(), opt)
}

// ListWithContext implements cache.ListerWatcherWithContext.
func (s *Source) ListWithContext(ctx context.Context, opt metav1.ListOptions) (runtime.Object, error) {
	list, err := s.client.list(ctx, opt, s.store.Transformer())
	if err != nil {
		s.failed(ctx, "list", err)
		return nil, err // not a list that is nil
	}
	return list, nil
}

// WatchWithContext implements cache.ListerWatcherWithContext.
func (s *Source) WatchWithContext(ctx context.Context, opt metav1.ListOptions) (watch.Interface, error) {
	w, err := s.client.watch(ctx, opt)
	streaming := opt.SendInitialEvents != nil
	switch {
	case err == nil:
		s.answered.Store(true)
		s.mu.Lock()
		s.streaming = streaming
		s.mu.Unlock()
		if !streaming {
			s.set(troubleWatch, nil)
		}
	case streaming && refused(err): // an API server that cannot stream lists; the list that follows will show
	default:
		s.failed(ctx, "watch", err)
	}
	return w, err
}

func (s *Source) failed(ctx context.Context, verb string, err error) {
	if ctx.Err() == nil {
		s.set(troubleWatch, s.client.watchTrouble(verb, err))
	}
}
