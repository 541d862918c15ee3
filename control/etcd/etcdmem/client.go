package etcdmem

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Options say how a client reaches the store.
type Options struct {
	// Delay is how long a question is on its way; nil: no time.
	Delay func() time.Duration

	// Sees says for ranges and watches that begin at a key which keys this client finds in them; nil: all. A simulation
	// of more nodes than it can hold the views of has most of them see a part.
	Sees func(from string) func(key string) bool

	Traffic *Traffic // counts; nil: nobody does
}

// Traffic is what went between clients and the store.
type Traffic struct {
	Requests atomic.Int64 // questions, of any kind
	Keys     atomic.Int64 // keys in the answers
	Batches  atomic.Int64 // answers of watches
	Events   atomic.Int64 // in them
}

func (t *Traffic) asked(keys int) {
	if t != nil {
		t.Requests.Add(1)
		t.Keys.Add(int64(keys))
	}
}

func (t *Traffic) delivered(events int) {
	if t != nil {
		t.Batches.Add(1)
		t.Events.Add(int64(events))
	}
}

// A link is one client's way to the store.
type link struct {
	store *Store
	opt   Options
}

// Client makes a client of the store, for KV, Lease and Watcher. It has no endpoints.
func (s *Store) Client(opt Options) *clientv3.Client {
	l := &link{s, opt}
	c := clientv3.NewCtxClient(context.Background())
	c.KV = clientv3.NewKVFromKVClient(&kvClient{link: l}, c)
	c.Lease = clientv3.NewLeaseFromLeaseClient(&leaseClient{l}, c, 5*time.Second)
	c.Watcher = newWatcher(l)
	return c
}

// sees is which keys the client finds from one on; nil: all.
func (l *link) sees(from string) func(string) bool {
	if l.opt.Sees == nil {
		return nil
	}
	return l.opt.Sees(from)
}

// travel waits until the store has the question.
func (l *link) travel(ctx context.Context) error {
	if l.opt.Delay != nil {
		t := time.NewTimer(l.opt.Delay())
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for ctx.Err() == nil {
		l.store.mu.Lock()
		up, answers := l.store.up, l.store.answers()
		l.store.mu.Unlock()
		if answers {
			return nil
		}
		select {
		case <-up:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// ask does one question under the store's lock. keys counts those in the answer.
func ask[T any](ctx context.Context, l *link, do func(*Store) (T, error), keys func(T) int) (T, error) {
	if err := l.travel(ctx); err != nil {
		var none T
		return none, status.FromContextError(err).Err()
	}
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	resp, err := do(l.store)
	if err != nil {
		l.opt.Traffic.asked(0)
	} else {
		l.opt.Traffic.asked(keys(resp))
	}
	return resp, err
}

func none[T any](T) int { return 0 }

// kvClient is what clientv3 makes a KV of.
type kvClient struct {
	pb.KVClient // what is not here panics

	link *link
}

func (k *kvClient) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	return ask(ctx, k.link, func(s *Store) (*pb.RangeResponse, error) {
		if err := s.checkRange(r); err != nil {
			return nil, err
		}
		return s.read(r, k.link.sees(string(r.Key))), nil
	}, func(resp *pb.RangeResponse) int { return len(resp.Kvs) })
}

func (k *kvClient) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	return ask(ctx, k.link, func(s *Store) (*pb.PutResponse, error) {
		if err := s.checkPut(r); err != nil {
			return nil, err
		}
		w := s.begin()
		defer w.end()
		return w.put(r), nil
	}, none)
}

func (k *kvClient) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest,
	_ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	return ask(ctx, k.link, func(s *Store) (*pb.DeleteRangeResponse, error) {
		if len(r.Key) == 0 {
			return nil, rpctypes.ErrGRPCEmptyKey
		}
		w := s.begin()
		resp := w.delete(span{string(r.Key), string(r.RangeEnd)}, r.PrevKv)
		w.end()
		resp.Header = s.header()
		return resp, nil
	}, none)
}

func (k *kvClient) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	return ask(ctx, k.link, func(s *Store) (*pb.TxnResponse, error) { return s.txn(r, k.link) },
		func(resp *pb.TxnResponse) int {
			n := 0
			for _, r := range resp.Responses {
				n += len(r.GetResponseRange().GetKvs())
			}
			return n
		})
}

func (k *kvClient) Compact(ctx context.Context, r *pb.CompactionRequest,
	_ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	if err := k.link.travel(ctx); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	if err := k.link.store.Compact(r.Revision); err != nil {
		return nil, err
	}
	return &pb.CompactionResponse{Header: &pb.ResponseHeader{Revision: k.link.store.Revision()}}, nil
}

// leaseClient is what clientv3 makes a Lease of.
type leaseClient struct{ link *link }

func (c *leaseClient) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest,
	_ ...grpc.CallOption) (*pb.LeaseGrantResponse, error) {
	return ask(ctx, c.link, func(s *Store) (*pb.LeaseGrantResponse, error) { return s.grant(r) }, none)
}

func (c *leaseClient) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest,
	_ ...grpc.CallOption) (*pb.LeaseRevokeResponse, error) {
	return ask(ctx, c.link, func(s *Store) (*pb.LeaseRevokeResponse, error) {
		l := s.leases[r.ID]
		if l == nil {
			return nil, rpctypes.ErrGRPCLeaseNotFound
		}
		s.revoke(l)
		return &pb.LeaseRevokeResponse{Header: s.header()}, nil
	}, none)
}

func (c *leaseClient) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest,
	_ ...grpc.CallOption) (*pb.LeaseTimeToLiveResponse, error) {
	return ask(ctx, c.link, func(s *Store) (*pb.LeaseTimeToLiveResponse, error) { return s.left(r), nil }, none)
}

func (c *leaseClient) LeaseLeases(context.Context, *pb.LeaseLeasesRequest,
	...grpc.CallOption) (*pb.LeaseLeasesResponse, error) {
	return nil, status.Error(codes.Unimplemented, "etcdmem: the list of leases")
}

func (c *leaseClient) LeaseKeepAlive(ctx context.Context,
	_ ...grpc.CallOption) (grpc.BidiStreamingClient[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse], error) {
	return &keepAlives{ctx: ctx, link: c.link}, nil
}

// keepAlives is a stream on which each question is answered before the next one.
type keepAlives struct {
	grpc.ClientStream // what is not here panics

	ctx   context.Context
	link  *link
	asked []*pb.LeaseKeepAliveRequest
}

func (k *keepAlives) Send(r *pb.LeaseKeepAliveRequest) error {
	k.asked = append(k.asked, r)
	return nil
}

func (k *keepAlives) Recv() (*pb.LeaseKeepAliveResponse, error) {
	if len(k.asked) == 0 {
		return nil, errors.Join(io.EOF, errors.New("etcdmem: nothing was asked"))
	}
	r := k.asked[0]
	k.asked = k.asked[1:]
	return ask(k.ctx, k.link, func(s *Store) (*pb.LeaseKeepAliveResponse, error) { return s.keepAlive(r), nil }, none)
}

func (k *keepAlives) CloseSend() error { return nil }
