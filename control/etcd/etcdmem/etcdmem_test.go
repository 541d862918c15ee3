package etcdmem_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/warren-net/warren/control/etcd/etcdmem"
	"github.com/warren-net/warren/control/etcd/etcdtest"
)

// An actor does one of two etcds what the test does to both, and says in one form what came of it.
type actor struct {
	client *clientv3.Client
	leases []clientv3.LeaseID // in the order in which they were granted
}

func (a *actor) lease(id int64) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprint(" lease ", slices.Index(a.leases, clientv3.LeaseID(id)))
}

func (a *actor) kv(kv *mvccpb.KeyValue) string {
	return fmt.Sprintf("%s=%s created %d changed %d version %d%s", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision,
		kv.Version, a.lease(kv.Lease))
}

func (a *actor) kvs(list []*mvccpb.KeyValue) string {
	var out []string
	for _, kv := range list {
		out = append(out, a.kv(kv))
	}
	return strings.Join(out, "; ")
}

func (a *actor) answer(resp any, err error) string {
	if err != nil {
		return "error " + err.Error()
	}
	switch r := resp.(type) {
	case *clientv3.GetResponse:
		return fmt.Sprintf("at %d: %d more %v: %s", r.Header.Revision, r.Count, r.More, a.kvs(r.Kvs))
	case *clientv3.PutResponse:
		return fmt.Sprintf("at %d: put", r.Header.Revision)
	case *clientv3.DeleteResponse:
		return fmt.Sprintf("at %d: deleted %d: %s", r.Header.Revision, r.Deleted, a.kvs(r.PrevKvs))
	case *clientv3.TxnResponse:
		out := fmt.Sprintf("at %d: %v", r.Header.Revision, r.Succeeded)
		for _, o := range r.Responses {
			switch o := o.Response.(type) {
			case *pb.ResponseOp_ResponseRange:
				out += fmt.Sprintf(" [%d: %s]", o.ResponseRange.Count, a.kvs(o.ResponseRange.Kvs))
			case *pb.ResponseOp_ResponseDeleteRange:
				out += fmt.Sprintf(" [deleted %d]", o.ResponseDeleteRange.Deleted)
			case *pb.ResponseOp_ResponsePut:
				out += " [put]"
			}
		}
		return out
	}
	return fmt.Sprintf("%T", resp)
}

// A step is one thing to do to an etcd.
type step func(context.Context, *actor) string

// draw makes a step. The same one is done to both.
func draw(rnd *rand.Rand, revision int64) (name string, do step) {
	key := func() string { return fmt.Sprintf("%s/%d", []string{"a", "b", "c"}[rnd.IntN(3)], rnd.IntN(4)) }
	op, asked := drawOp(rnd, key, revision)
	switch k := rnd.IntN(20); {
	case k < 9:
		return asked, func(ctx context.Context, a *actor) string {
			o := op(a)
			r, err := a.client.Do(ctx, o)
			switch {
			case err != nil:
				return a.answer(nil, err)
			case o.IsGet():
				return a.answer(r.Get(), nil)
			case o.IsPut():
				return a.answer(r.Put(), nil)
			}
			return a.answer(r.Del(), nil)
		}
	case k < 15:
		var cmps []clientv3.Cmp
		for range rnd.IntN(3) {
			cmps = append(cmps, drawCmp(rnd, key(), revision))
		}
		ops := [2][]func(*actor) clientv3.Op{}
		for i := range 4 {
			o, text := drawOp(rnd, key, revision)
			ops[i%2], asked = append(ops[i%2], o), asked+", "+text
		}
		return "txn " + asked, func(ctx context.Context, a *actor) string {
			made := func(list []func(*actor) clientv3.Op) (out []clientv3.Op) {
				for _, o := range list {
					out = append(out, o(a))
				}
				return out
			}
			return a.answer(a.client.Txn(ctx).If(cmps...).Then(made(ops[0])...).Else(made(ops[1])...).Commit())
		}
	case k < 17:
		return "grant", func(ctx context.Context, a *actor) string {
			r, err := a.client.Grant(ctx, 1000)
			if err != nil {
				return err.Error()
			}
			a.leases = append(a.leases, r.ID)
			return fmt.Sprint(r.TTL)
		}
	}
	which, kind := rnd.IntN(1000), rnd.IntN(4)
	return fmt.Sprint("lease ", kind), func(ctx context.Context, a *actor) string { return a.doLease(ctx, which, kind) }
}

func (a *actor) doLease(ctx context.Context, which, kind int) string {
	id := clientv3.LeaseID(4711)
	if n := which % (len(a.leases) + 1); n < len(a.leases) {
		id = a.leases[n]
	}
	switch kind {
	case 0:
		r, err := a.client.KeepAliveOnce(ctx, id)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint("kept ", r.TTL)
	case 1:
		r, err := a.client.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
		if err != nil {
			return err.Error()
		}
		slices.SortFunc(r.Keys, slices.Compare)
		return fmt.Sprintf("granted %d, there %v, keys %q", r.GrantedTTL, r.TTL > 0, r.Keys)
	case 2:
		if which%5 > 0 {
			return ""
		}
		if _, err := a.client.Revoke(ctx, id); err != nil {
			return err.Error()
		}
		return "revoked"
	}
	r, err := a.client.Put(ctx, "leased", "x", clientv3.WithLease(id))
	return a.answer(r, err)
}

func drawOp(rnd *rand.Rand, key func() string, revision int64) (func(*actor) clientv3.Op, string) {
	at, value, which := key(), fmt.Sprint(rnd.IntN(5)), rnd.IntN(1000)
	var opts []clientv3.OpOption
	prefix := rnd.IntN(2) == 0
	if prefix {
		at = at[:2]
		opts = append(opts, clientv3.WithPrefix())
	} else if rnd.IntN(8) == 0 {
		opts = append(opts, clientv3.WithFromKey())
	}
	switch kind := rnd.IntN(8); {
	case kind < 3:
		if rnd.IntN(2) == 0 {
			opts = append(opts, clientv3.WithLimit(1+rnd.Int64N(4)))
		}
		if rnd.IntN(3) == 0 {
			opts = append(opts, clientv3.WithRev(max(0, revision-20+rnd.Int64N(24))))
		}
		return func(*actor) clientv3.Op { return clientv3.OpGet(at, opts...) }, fmt.Sprintf("get %s prefix %v", at, prefix)
	case kind < 4:
		return func(*actor) clientv3.Op {
			return clientv3.OpDelete(at, append(slices.Clone(opts), clientv3.WithPrevKV())...)
		}, fmt.Sprintf("delete %s prefix %v", at, prefix)
	}
	leased := rnd.IntN(2) == 0
	return func(a *actor) clientv3.Op {
		if n := len(a.leases); leased && n > 0 {
			return clientv3.OpPut(at, value, clientv3.WithLease(a.leases[which%n])) // which may have been revoked
		}
		return clientv3.OpPut(at, value)
	}, "put " + at
}

func drawCmp(rnd *rand.Rand, key string, revision int64) clientv3.Cmp {
	how := []string{"=", "!=", "<", ">"}[rnd.IntN(4)]
	near := max(0, revision-10+rnd.Int64N(12))
	switch rnd.IntN(4) {
	case 0:
		return clientv3.Compare(clientv3.Value(key), how, fmt.Sprint(rnd.IntN(5)))
	case 1:
		return clientv3.Compare(clientv3.CreateRevision(key), how, rnd.Int64N(2)*near)
	case 2:
		return clientv3.Compare(clientv3.ModRevision(key), how, rnd.Int64N(2)*near)
	}
	return clientv3.Compare(clientv3.Version(key), how, rnd.Int64N(3))
}

// watched is what a watch from the revision on says up to another one, or that it was compacted.
func (a *actor) watched(ctx context.Context, from, to int64) string {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var out []string
	for resp := range a.client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if resp.Err() != nil {
			return fmt.Sprintf("%v, compacted %d", resp.Err(), resp.CompactRevision)
		}
		for _, e := range resp.Events {
			out = append(out, fmt.Sprintf("%v %s", e.Type, a.kv(e.Kv)))
			if e.Kv.ModRevision == to {
				cancel() // what else there is of that revision is in the same answer
			}
		}
	}
	return strings.Join(out, "\n")
}

// TestAgainstEtcd does the same random things to a real etcd and to this one, and compares all that they say.
func TestAgainstEtcd(t *testing.T) {
	steps := 1500
	if testing.Short() {
		steps = 300
	}
	server := etcdtest.Start(t)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + server.Endpoints()[0]}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	store := etcdmem.New()
	mem := store.Client(etcdmem.Options{})
	defer mem.Close()
	both := [2]*actor{{client: c}, {client: mem}}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	compare := func(what string, do step) {
		t.Helper()
		if want, got := do(ctx, both[0]), do(ctx, both[1]); want != got {
			a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
			i := 0
			for i < min(len(a), len(b))-1 && a[i] == b[i] {
				i++
			}
			t.Fatalf("%s: in line %d of %d etcd says\n%s\nthe one in memory, of %d\n%s", what, i, len(a), a[i], len(b), b[i])
		}
	}
	const seed = 1
	rnd := rand.New(rand.NewPCG(seed, 6))
	first := int64(2) // the first revision that a watch can begin at
	for i := range steps {
		what, do := draw(rnd, store.Revision())
		compare(fmt.Sprint(i, ": ", what), do)
		if i%100 == 99 {
			// A write that both see as the last one, so that a watch has an end.
			compare("put", func(ctx context.Context, a *actor) string { return a.answer(a.client.Put(ctx, "last", "")) })
			to := store.Revision()
			for _, from := range []int64{first, (first + to) / 2} {
				compare("watch", func(ctx context.Context, a *actor) string { return a.watched(ctx, from, to) })
			}
		}
		if i%250 == 249 {
			first = store.Revision() - 30
			for range 2 { // the second time it is an error
				compare("compact", func(ctx context.Context, a *actor) string {
					_, err := a.client.Compact(ctx, first)
					return fmt.Sprint(err)
				})
			}
			compare("watch what is compacted", func(ctx context.Context, a *actor) string {
				return a.watched(ctx, first-1, store.Revision())
			})
		}
	}
	compare("a lease that ends", func(ctx context.Context, a *actor) string {
		from := store.Revision() + 1
		if a == both[0] {
			from = both[0].revision(ctx, t) + 1
		}
		r, err := a.client.Grant(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		a.leases = append(a.leases, r.ID)
		for _, k := range []string{"a/1", "b/1"} {
			if _, err := a.client.Put(ctx, k, "", clientv3.WithLease(r.ID)); err != nil {
				t.Fatal(err)
			}
		}
		return a.watched(ctx, from, from+2)
	})
}

func (a *actor) revision(ctx context.Context, t *testing.T) int64 {
	r, err := a.client.Get(ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	return r.Header.Revision
}

// TestClock: leases end by the clock of the test, but not while the etcd is down, and watches go on after that.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := etcdmem.New()
		c := store.Client(etcdmem.Options{Delay: func() time.Duration { return time.Millisecond }})
		defer c.Close()
		r, err := c.Grant(t.Context(), 60)
		if err != nil {
			t.Fatal(err)
		}
		events := c.Watch(t.Context(), "k")
		time.Sleep(time.Second)
		if _, err := c.Put(t.Context(), "k", "v", clientv3.WithLease(r.ID)); err != nil {
			t.Fatal(err)
		}
		if e := <-events; len(e.Events) != 1 || e.Events[0].Type != clientv3.EventTypePut {
			t.Fatalf("got %v", e)
		}
		began := time.Now()
		time.Sleep(50 * time.Second)
		store.Stop()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := c.Get(ctx, "k"); err == nil {
			t.Error("an etcd that is down answers")
		}
		time.Sleep(time.Hour)
		store.Start()
		if e := <-events; len(e.Events) != 1 || e.Events[0].Type != clientv3.EventTypeDelete {
			t.Fatalf("got %v", e)
		}
		if d := time.Since(began); d < time.Hour+110*time.Second || d > time.Hour+120*time.Second {
			t.Errorf("the lease ended after %v", d)
		}
	})
}

// TestCompactedWhileDown: a watch whose connection broke, and that comes back to an etcd that was compacted since, says
// so.
func TestCompactedWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := etcdmem.New()
		c := store.Client(etcdmem.Options{})
		defer c.Close()
		events := c.Watch(t.Context(), "k")
		synctest.Wait()
		for range 3 {
			if _, err := c.Put(t.Context(), "other", ""); err != nil {
				t.Fatal(err)
			}
		}
		store.Stop()
		if err := store.Compact(store.Revision()); err != nil {
			t.Fatal(err)
		}
		store.Start()
		if e := <-events; e.CompactRevision != store.Revision() {
			t.Errorf("got %+v", e)
		}
		if _, ok := <-events; ok {
			t.Error("the watch goes on")
		}
	})
}
