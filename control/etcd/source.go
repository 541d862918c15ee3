package etcd

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/warren-net/warren/control"
)

// A Source is the control.Publisher over an etcd. The node is registered, and leases its pod CIDRs, once Publish was
// called. Run may be called once.
type Source struct {
	cfg Config

	mu   sync.Mutex
	self *control.Node // what is to be told; nil: nothing yet
	news chan struct{} // something else is to be told
}

var _ control.Publisher = (*Source)(nil)

// New makes a source; nothing is read or sent before Run.
func New(cfg Config) (*Source, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Source{cfg: cfg, news: make(chan struct{}, 1)}, nil
}

// Publish implements control.Publisher.
func (s *Source) Publish(self control.Node) {
	s.mu.Lock()
	s.self = &self
	s.mu.Unlock()
	nudge(s.news)
}

// told is what was published last, if anything was.
func (s *Source) told() (control.Node, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.self == nil {
		return control.Node{}, false
	}
	return *s.self, true
}

// nudge leaves a message in a channel of one, unless there is one already.
func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run implements control.Source. What the node remembers of itself has to be readable; everything else is waited for.
func (s *Source) Run(ctx context.Context, updates chan<- control.Update, problem func(error)) error {
	st, err := loadState(&s.cfg)
	if err != nil {
		return err
	}
	cfg := s.cfg
	if cfg.FollowMembers {
		cfg.Endpoints = union(cfg.Endpoints, st.Members)
	}
	client, err := dial(cfg)
	if err != nil {
		return err
	}
	defer client.Close()

	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &problems{tell: problem}
	f := &follower{client: client, id: st.ID, problem: p.part(), updates: updates, own: make(chan struct{}, 1),
		again: make(chan struct{}, 1)}
	r := &registrar{client: client, problem: p.part(), state: st, told: s.told, follower: f}
	wg.Go(func() { r.run(ctx, s.news, f.own) })
	f.run(ctx)
	return nil
}

// problems makes one report of what the parts of a source find.
type problems struct {
	mu    sync.Mutex
	tell  func(error)
	found []error
	last  string // what was told last; empty: all is well
}

// part is the function through which one more part tells what is wrong with it, or with nil that nothing is.
func (p *problems) part() func(error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := len(p.found)
	p.found = append(p.found, nil)
	return func(err error) {
		if errors.Is(err, context.Canceled) {
			return // by who ends the source
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.found[i] = err
		// The first part that has one speaks for all: with the etcd gone they all say the same.
		for _, err = range p.found {
			if err != nil {
				break
			}
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != p.last {
			p.last = text
			p.tell(err)
		}
	}
}

// A backoff says how long to wait after one more failure: twice as long each time, and never as long as others do.
type backoff struct{ first, most, next time.Duration }

func (c *Client) backoff() backoff { return backoff{first: c.cfg.Retry, most: c.cfg.MaxRetry} }

func (b *backoff) reset() { b.next = 0 }

func (b *backoff) failed() time.Duration {
	b.next = min(max(b.first, 2*b.next), b.most)
	return jittered(b.next)
}

// jittered is d less up to a fifth, so that thousands of nodes that began together do not go on together.
func jittered(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}

// wait reports whether the time passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
