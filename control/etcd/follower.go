package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/printable"
)

// A follower reads the records of all nodes and watches them.
type follower struct {
	client  *Client
	id      string // of this host
	problem func(error)
	updates chan<- control.Update

	own   chan struct{} // the own node's record changed
	again chan struct{} // what was read counts no longer

	settings Settings        // of the last list
	terms    map[string]term // since when each node has which pod CIDRs

	seen    atomic.Int64  // the newest revision that was delivered
	cluster atomic.Uint64 // the etcd that it was of
}

// page is how many records one question asks for: 5,000 at once would keep a small etcd from answering others.
const page = 1000

// errAgain says that everything is to be read again.
var errAgain = errors.New("the records are read again")

// run delivers until ctx ends. Whatever ends a watch, reading all records again is right; and only that is right after
// a compaction, or when the etcd was put back to an older state.
func (f *follower) run(ctx context.Context) {
	retry := f.client.backoff()
	for ctx.Err() == nil {
		next, err := f.list(ctx)
		if err == nil {
			f.problem(nil)
			retry.reset()
			err = f.follow(ctx, next)
		}
		if errors.Is(err, errAgain) {
			f.client.cfg.Log.Info("the nodes' records in etcd are read again", "reason", err)
			// A watch that is compacted at once each time must not make this a busy loop.
			if !wait(ctx, retry.first+rand.N(retry.first)) {
				return
			}
			continue
		}
		f.problem(err)
		if !wait(ctx, retry.failed()) {
			return
		}
	}
}

// list reads all records as of one revision, and sends them as what there is.
func (f *follower) list(ctx context.Context) (next int64, err error) {
	select { // what was asked for before is served by this
	case <-f.again:
	default:
	}
	if f.settings, err = f.client.Settings(ctx); err != nil {
		return 0, err
	}
	var (
		nodes    []control.Node
		revision int64
	)
	f.terms = map[string]term{}
	cluster, err := f.client.pages(ctx, f.client.keys.allLeased(), &revision, func(name string, kv *mvccpb.KeyValue) {
		f.terms[name] = termIn([]*mvccpb.KeyValue{kv})
	})
	if err != nil {
		return 0, err
	}
	f.cluster.Store(cluster)
	if _, err := f.client.pages(ctx, f.client.keys.nodes(), &revision, func(name string, kv *mvccpb.KeyValue) {
		nodes = append(nodes, f.node(name, kv))
	}); err != nil {
		return 0, err
	}
	f.seen.Store(revision)
	if !f.send(ctx, control.Update{Whole: true, Nodes: nodes, Cluster: f.settings.Ranges}) {
		return 0, ctx.Err()
	}
	nudge(f.own)
	return revision + 1, nil
}

// pages reads all keys below prefix as of a revision, 0: the newest, which it is set to then. It returns the etcd that
// answered.
func (c *Client) pages(ctx context.Context, prefix string, revision *int64,
	each func(name string, kv *mvccpb.KeyValue)) (cluster uint64, err error) {
	for from, end := prefix, clientv3.GetPrefixRangeEnd(prefix); ; {
		resp, err := c.get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(*revision))
		if err != nil {
			if isEtcd(err, rpctypes.ErrCompacted) {
				return 0, errAgain
			}
			return 0, c.Explain(err)
		}
		if *revision == 0 {
			*revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			each(strings.TrimPrefix(string(kv.Key), prefix), kv)
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return resp.Header.ClusterId, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

func (c *Client) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	return c.etcd.Get(ctx, key, opts...)
}

// follow sends what changes from the given revision on. The client resumes a watch whose connection broke by itself,
// from where it was; what it cannot tell is that the other end is another etcd now, or an older one, for which the
// registrar looks.
func (f *follower) follow(ctx context.Context, next int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A member that lost the others says so instead of staying silent: another one may have them. What is between the two
	// kinds of keys seldom changes.
	events := f.client.etcd.Watch(clientv3.WithRequireLeader(ctx), f.client.keys.allLeased(),
		clientv3.WithRange(clientv3.GetPrefixRangeEnd(f.client.keys.nodes())),
		clientv3.WithRev(next), clientv3.WithProgressNotify(), clientv3.WithFragment())
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.again:
			return errAgain
		case resp, ok := <-events:
			if !ok {
				return errors.Join(ctx.Err(), errAgain)
			}
			if resp.CompactRevision > 0 {
				return errAgain
			}
			if err := resp.Err(); err != nil {
				return f.client.Explain(err)
			}
			f.problem(nil)
			if u := f.update(resp.Events); len(u.Nodes)+len(u.Gone) > 0 && !f.send(ctx, u) {
				return ctx.Err()
			}
			f.seen.Store(max(f.seen.Load(), resp.Header.Revision))
		}
	}
}

// update is what the events come to together. Each node is in it once, as it is after the last of them.
func (f *follower) update(events []*clientv3.Event) control.Update {
	var u control.Update
	// Who writes both kinds at once writes the terms first.
	latest := make(map[string]*mvccpb.KeyValue, len(events)) // of records; nil: it is gone
	for _, e := range events {
		if name, ok := strings.CutPrefix(string(e.Kv.Key), f.client.keys.allLeased()); ok {
			if f.terms[name] = termIn([]*mvccpb.KeyValue{e.Kv}); e.Type == clientv3.EventTypeDelete {
				delete(f.terms, name)
			}
		}
		if name, ok := strings.CutPrefix(string(e.Kv.Key), f.client.keys.nodes()); ok {
			if name == f.client.cfg.Node {
				nudge(f.own)
			}
			if latest[name] = e.Kv; e.Type == clientv3.EventTypeDelete {
				latest[name] = nil
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(latest)) {
		if kv := latest[name]; kv == nil {
			u.Gone = append(u.Gone, name)
		} else {
			u.Nodes = append(u.Nodes, f.node(name, kv))
		}
	}
	return u
}

// since puts a node's claim in its order: who has its pod CIDRs for longer comes first.
func (f *follower) since(n control.Node) control.Node {
	t := f.terms[n.Name]
	switch {
	case n.Broken != "" || len(n.PodCIDRs) == 0:
		return n
	case !slices.Equal(n.PodCIDRs, t.cidrs):
		return control.Node{Name: n.Name, Order: n.Order, Broken: fmt.Sprintf("node %s in etcd: its record says that it has "+
			"the pod CIDRs %v, and the key of those that it leases says %v; restart Warren on that host, which writes both",
			printable.Name(n.Name), n.PodCIDRs, t.cidrs)}
	}
	n.Order = t.modified
	return n
}

// node reads a record. One with a pod CIDR that is none of those which this network gives would be in the way of many
// nodes.
//
// One under this node's own name that another host wrote says nothing of this one, which would otherwise take that
// one's addresses and pod CIDRs for its own; the registrar settles whose the name is.
func (f *follower) node(name string, kv *mvccpb.KeyValue) control.Node {
	n, r := decodeNode(name, kv.Value, kv.ModRevision)
	for _, p := range n.PodCIDRs {
		if !f.settings.admits(p) {
			return control.Node{Name: name, Order: n.Order, Broken: fmt.Sprintf("node %s in etcd: pod CIDR %s is none that "+
				"this network gives, which are parts of %v; restart Warren on that host", printable.Name(name), p,
				f.settings.Ranges)}
		}
	}
	if r == nil || name != f.client.cfg.Node || r.ID == f.id {
		return f.since(n)
	}
	return control.Node{Name: name, Order: n.Order, Broken: fmt.Sprintf("another host has this node's name in etcd, the "+
		"one at %s: give one of them another name with `node`; if it is this host, which lost its state directory, it gets "+
		"its name back once the other counts as away", texts(r.Addresses))}
}

func (f *follower) send(ctx context.Context, u control.Update) bool {
	select {
	case f.updates <- u:
		return true
	case <-ctx.Done():
		return false
	}
}

// A mark is what the follower had delivered when a question was asked.
type mark struct {
	cluster  uint64
	revision int64
}

func (f *follower) mark() mark { return mark{f.cluster.Load(), f.seen.Load()} }

// check compares the header of a linearizable answer with what was delivered before the question: an etcd that was put
// back to an older state, or another one at the same address, has the follower read everything again.
func (f *follower) check(before mark, h *pb.ResponseHeader) {
	if before.cluster != 0 && (before.cluster != h.ClusterId || h.Revision < before.revision) {
		nudge(f.again)
	}
}
