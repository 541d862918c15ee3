// Package etcdmem is an etcd in memory, for tests of thousands of nodes: the keys and their revisions, transactions,
// leases, watches and compaction, as one member keeps them, without a network and by the clock of the test, also the
// fake one of testing/synctest. The clients that it hands out are etcd's own but for the watcher, which does by itself
// what etcd's does over a stream. What Warren asks for is there; anything else is refused as not implemented.
//
// It is for tests alone.
package etcdmem

import (
	"cmp"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// clusterID tells the etcd from others.
const clusterID = 0x77617272656e

// A Store is one etcd. It is safe for concurrent use. What it hands out, nobody may change.
type Store struct {
	mu        sync.Mutex
	up        chan struct{} // closed while the etcd answers
	revision  int64
	compacted int64   // what was before can be read no more
	items     []*item // sorted by key
	byKey     map[string]*item
	log       []*mvccpb.Event // from the compaction on, by revision
	leases    map[int64]*lease
	lastLease int64
	watches   map[span][]*watch
}

// An item is a key that has versions.
type item struct {
	key      string
	versions []version // by revision
	bare     version   // one of them, as who asks for keys alone gets it; nil: nobody did
}

// bareOf is a version without its value. The last one is kept: every node that joins asks for all.
func (i *item) bareOf(v version) version {
	if i.bare == nil || i.bare.ModRevision != v.ModRevision {
		i.bare = &mvccpb.KeyValue{Key: v.Key, CreateRevision: v.CreateRevision, ModRevision: v.ModRevision,
			Version: v.Version, Lease: v.Lease}
	}
	return i.bare
}

// A version is what a key was from a revision on. A deletion is one too, whose KeyValue has the version 0.
type version = *mvccpb.KeyValue

// New makes an empty one, which answers.
func New() *Store {
	up := make(chan struct{})
	close(up)
	return &Store{up: up, revision: 1, byKey: map[string]*item{}, leases: map[int64]*lease{},
		watches: map[span][]*watch{}}
}

// Revision is the current one.
func (s *Store) Revision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

func (s *Store) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: clusterID, MemberId: 1, Revision: s.revision, RaftTerm: 1}
}

// A span is which keys are asked for, as etcd writes it: one key, those before end, or with the end "\x00" all that
// follow.
type span struct{ from, end string }

func (r span) contains(key string) bool {
	switch r.end {
	case "":
		return key == r.from
	case "\x00":
		return key >= r.from
	}
	return key >= r.from && key < r.end
}

// in are the items of the span.
func (s *Store) in(r span) []*item {
	i, found := slices.BinarySearchFunc(s.items, r.from, byKey)
	if r.end == "" {
		if !found {
			return nil
		}
		return s.items[i : i+1]
	}
	j := len(s.items)
	if r.end != "\x00" {
		j, _ = slices.BinarySearchFunc(s.items, r.end, byKey)
	}
	return s.items[i:max(i, j)]
}

func byKey(i *item, key string) int { return cmp.Compare(i.key, key) }

// now is what a key is; nil: it is not there.
func (s *Store) now(key string) version {
	if i := s.byKey[key]; i != nil {
		return i.at(s.revision)
	}
	return nil
}

// at is what the key was as of a revision; nil: it was not there.
func (i *item) at(revision int64) version {
	for k := len(i.versions) - 1; k >= 0; k-- {
		if v := i.versions[k]; v.ModRevision <= revision {
			if v.Version == 0 {
				return nil
			}
			return v
		}
	}
	return nil
}

// checkRange refuses what etcd refuses, and what is not there.
func (s *Store) checkRange(r *pb.RangeRequest) error {
	switch {
	case len(r.Key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.Revision > s.revision:
		return rpctypes.ErrGRPCFutureRev
	case r.Revision > 0 && r.Revision < s.compacted:
		return rpctypes.ErrGRPCCompacted
	case r.SortTarget != pb.RangeRequest_KEY || r.SortOrder == pb.RangeRequest_DESCEND || r.CountOnly ||
		r.MinModRevision|r.MaxModRevision|r.MinCreateRevision|r.MaxCreateRevision != 0:
		return status.Error(codes.Unimplemented, "etcdmem: order, count or bounds of revisions")
	}
	return nil
}

// read answers a checked question.
func (s *Store) read(r *pb.RangeRequest, sees func(string) bool) *pb.RangeResponse {
	revision := r.Revision
	if revision == 0 {
		revision = s.revision
	}
	resp := &pb.RangeResponse{Header: s.header(), Kvs: []*mvccpb.KeyValue{}}
	for _, i := range s.in(span{string(r.Key), string(r.RangeEnd)}) {
		if sees != nil && !sees(i.key) {
			continue
		}
		v := i.at(revision)
		if v == nil {
			continue
		}
		resp.Count++
		switch {
		case r.Limit > 0 && int64(len(resp.Kvs)) == r.Limit:
			resp.More = true
		case r.KeysOnly:
			resp.Kvs = append(resp.Kvs, i.bareOf(v))
		default:
			resp.Kvs = append(resp.Kvs, v)
		}
	}
	return resp
}

// A write is one transaction's, which has one revision.
type write struct {
	store  *Store
	events []*mvccpb.Event
}

// begin begins a write. The caller holds the lock until end.
func (s *Store) begin() *write {
	s.revision++
	return &write{store: s}
}

// end tells the watches. A write that changed nothing has not been.
func (w *write) end() {
	s := w.store
	if len(w.events) == 0 {
		s.revision--
		return
	}
	s.log = append(s.log, w.events...)
	s.notify(w.events)
}

func (w *write) put(r *pb.PutRequest) *pb.PutResponse {
	s, key := w.store, string(r.Key)
	was := s.now(key)
	v := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, CreateRevision: s.revision, ModRevision: s.revision, Version: 1,
		Lease: r.Lease}
	if was != nil {
		v.CreateRevision, v.Version = was.CreateRevision, was.Version+1
		s.detach(was)
	}
	s.add(key, v)
	if v.Lease != 0 {
		s.leases[v.Lease].keys[key] = true // which was checked to be there
	}
	w.events = append(w.events, &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: v})
	resp := &pb.PutResponse{Header: s.header()}
	if r.PrevKv {
		resp.PrevKv = was
	}
	return resp
}

func (w *write) delete(r span, wantPrev bool) *pb.DeleteRangeResponse {
	s := w.store
	resp := &pb.DeleteRangeResponse{}
	for _, i := range s.in(r) {
		was := i.at(s.revision)
		if was == nil {
			continue
		}
		s.detach(was)
		gone := &mvccpb.KeyValue{Key: was.Key, ModRevision: s.revision}
		i.versions = append(i.versions, gone)
		w.events = append(w.events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: gone})
		resp.Deleted++
		if wantPrev {
			resp.PrevKvs = append(resp.PrevKvs, was)
		}
	}
	return resp
}

// add notes one more version of a key.
func (s *Store) add(key string, v version) {
	i := s.byKey[key]
	if i == nil {
		i = &item{key: key}
		s.byKey[key] = i
		k, _ := slices.BinarySearchFunc(s.items, key, byKey)
		s.items = slices.Insert(s.items, k, i)
	}
	i.versions = append(i.versions, v)
}

// Compact forgets what was before a revision.
func (s *Store) Compact(revision int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case revision <= s.compacted:
		return rpctypes.ErrGRPCCompacted
	case revision > s.revision:
		return rpctypes.ErrGRPCFutureRev
	}
	s.compacted = revision
	i, _ := slices.BinarySearchFunc(s.log, revision, eventAt)
	s.log = slices.Clone(s.log[i:])
	s.items = slices.DeleteFunc(s.items, func(i *item) bool {
		// The last version that is not younger stays, unless the key is gone since then.
		keep := 0
		for keep+1 < len(i.versions) && i.versions[keep+1].ModRevision <= revision {
			keep++
		}
		if v := i.versions[keep]; v.Version == 0 && v.ModRevision <= revision {
			keep++
		}
		if keep == len(i.versions) {
			delete(s.byKey, i.key)
			return true
		}
		i.versions = slices.Clone(i.versions[keep:])
		return false
	})
	return nil
}

func eventAt(e *mvccpb.Event, revision int64) int { return int(e.Kv.ModRevision - revision) }
