package etcdmem

import (
	"context"
	"errors"
	"slices"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A watch gathers the events of some keys until somebody takes them.
type watch struct {
	keys   span
	sees   func(string) bool
	next   int64 // what is gathered is from this revision on
	found  []*mvccpb.Event
	poked  chan struct{}
	opened bool
}

func (w *watch) poke() {
	select {
	case w.poked <- struct{}{}:
	default:
	}
}

// notify hands the events of one write to the watches.
func (s *Store) notify(events []*mvccpb.Event) {
	for keys, list := range s.watches {
		var mine []*mvccpb.Event
		for _, e := range events {
			if keys.contains(string(e.Kv.Key)) {
				mine = append(mine, e)
			}
		}
		for _, w := range list {
			w.gather(mine)
		}
	}
}

func (w *watch) gather(events []*mvccpb.Event) {
	before := len(w.found)
	for _, e := range events {
		if e.Kv.ModRevision >= w.next && (w.sees == nil || w.sees(string(e.Kv.Key))) {
			w.found = append(w.found, e)
		}
	}
	if len(w.found) > before {
		w.poke()
	}
}

// take is what was gathered. A watch that breaks goes on after the last event of it.
func (w *watch) take() []*mvccpb.Event {
	out := w.found
	w.found = nil
	if len(out) > 0 {
		w.next = out[len(out)-1].Kv.ModRevision + 1
	}
	return out
}

// open begins a watch with what was since its revision; false: that can be read no more.
func (s *Store) open(w *watch) bool {
	if w.next == 0 {
		w.next = s.revision + 1
	}
	if w.next < s.compacted {
		return false
	}
	i, _ := slices.BinarySearchFunc(s.log, w.next, eventAt)
	for _, e := range s.log[i:] {
		if w.keys.contains(string(e.Kv.Key)) {
			w.gather([]*mvccpb.Event{e})
		}
	}
	s.watches[w.keys] = append(s.watches[w.keys], w)
	w.opened = true
	return true
}

// breakWatches ends all, as the end of a connection does. Their clients open them again.
func (s *Store) breakWatches() {
	for _, list := range s.watches {
		for _, w := range list {
			w.opened, w.found = false, nil
			w.poke()
		}
	}
	clear(s.watches)
}

func (s *Store) shut(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if list := slices.DeleteFunc(s.watches[w.keys], func(o *watch) bool { return o == w }); len(list) > 0 {
		s.watches[w.keys] = list
	} else {
		delete(s.watches, w.keys)
	}
}

// A watcher is a client's. Watches go on after the etcd was down, from where they were, as those of etcd's client do.
type watcher struct {
	link *link

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newWatcher(l *link) *watcher {
	w := &watcher{link: l}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// Watch implements clientv3.Watcher.
func (w *watcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	op := clientv3.OpWatch(key, opts...)
	out := make(chan clientv3.WatchResponse, 1)
	if op.IsPrevKV() || op.IsCreatedNotify() || op.IsFilterPut() || op.IsFilterDelete() {
		panic("etcdmem: a watch with an option that is not implemented")
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(w.ctx, cancel)
	w.wg.Go(func() {
		defer stop()
		defer cancel()
		defer close(out)
		w.serve(ctx, &watch{keys: span{string(op.KeyBytes()), string(op.RangeBytes())}, sees: w.link.sees(key),
			next: op.Rev(), poked: make(chan struct{}, 1)}, out)
	})
	return out
}

// serve delivers until ctx ends or what comes next was compacted.
func (w *watcher) serve(ctx context.Context, wa *watch, out chan<- clientv3.WatchResponse) {
	s := w.link.store
	defer s.shut(wa)
	for {
		if err := w.link.travel(ctx); err != nil {
			return
		}
		s.mu.Lock()
		there := wa.opened || s.open(wa)
		resp := clientv3.WatchResponse{Header: s.header(), Events: wa.take()}
		if !there {
			resp = clientv3.WatchResponse{Header: s.header(), CompactRevision: s.compacted, Canceled: true}
		}
		s.mu.Unlock()
		if len(resp.Events) > 0 || !there {
			w.link.opt.Traffic.delivered(len(resp.Events))
			select {
			case out <- resp:
			case <-ctx.Done():
				return
			}
		}
		if !there {
			return
		}
		select {
		case <-wa.poked:
		case <-ctx.Done():
			return
		}
	}
}

// RequestProgress implements clientv3.Watcher.
func (w *watcher) RequestProgress(context.Context) error {
	return errors.New("etcdmem: request of progress is not implemented")
}

// Close implements clientv3.Watcher.
func (w *watcher) Close() error {
	w.cancel()
	w.wg.Wait()
	return nil
}
