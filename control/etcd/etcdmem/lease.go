package etcdmem

import (
	"maps"
	"math"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// A lease ends by the clock, and its keys with it.
type lease struct {
	id, ttl int64 // seconds
	ends    time.Time
	timer   *time.Timer
	keys    map[string]bool
}

// maxTTL is the longest lease in seconds, and minTTL the shortest, which etcd gives instead of a shorter one.
const (
	maxTTL = 9_000_000_000
	minTTL = 1
)

func (s *Store) grant(r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	id := r.ID
	switch {
	case id == 0:
		s.lastLease++
		id = s.lastLease
	case s.leases[id] != nil:
		return nil, rpctypes.ErrGRPCLeaseExist
	}
	if r.TTL > maxTTL {
		return nil, rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	l := &lease{id: id, ttl: max(r.TTL, minTTL), keys: map[string]bool{}}
	s.leases[id] = l
	l.timer = time.AfterFunc(math.MaxInt64, func() { s.expire(l) })
	l.renew()
	return &pb.LeaseGrantResponse{Header: s.header(), ID: id, TTL: l.ttl}, nil
}

func (l *lease) renew() {
	d := time.Duration(l.ttl) * time.Second
	l.ends = time.Now().Add(d)
	l.timer.Reset(d)
}

// expire ends a lease whose time is over, unless it was renewed meanwhile. An etcd that is down ends none.
func (s *Store) expire(l *lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases[l.id] == l && !l.ends.After(time.Now()) && s.answers() {
		s.revoke(l)
	}
}

// revoke ends a lease and deletes its keys, all in one revision.
func (s *Store) revoke(l *lease) {
	l.timer.Stop()
	w := s.begin()
	for _, key := range slices.Sorted(maps.Keys(l.keys)) {
		w.delete(span{from: key}, false)
	}
	w.end()
	delete(s.leases, l.id)
}

// detach takes a key that is written anew from the lease that it had.
func (s *Store) detach(was version) {
	if l := s.leases[was.Lease]; l != nil {
		delete(l.keys, string(was.Key))
	}
}

// keepAlive renews a lease; a TTL of 0 says that there is none.
func (s *Store) keepAlive(r *pb.LeaseKeepAliveRequest) *pb.LeaseKeepAliveResponse {
	resp := &pb.LeaseKeepAliveResponse{Header: s.header(), ID: r.ID}
	if l := s.leases[r.ID]; l != nil {
		l.renew()
		resp.TTL = l.ttl
	}
	return resp
}

// left is how long a lease lasts.
func (s *Store) left(r *pb.LeaseTimeToLiveRequest) *pb.LeaseTimeToLiveResponse {
	resp := &pb.LeaseTimeToLiveResponse{Header: s.header(), ID: r.ID, TTL: -1}
	l := s.leases[r.ID]
	if l == nil {
		return resp
	}
	resp.TTL, resp.GrantedTTL = int64(time.Until(l.ends)/time.Second), l.ttl
	if r.Keys {
		for _, key := range slices.Sorted(maps.Keys(l.keys)) {
			resp.Keys = append(resp.Keys, []byte(key))
		}
	}
	return resp
}

// answers reports whether the etcd is up.
func (s *Store) answers() bool {
	select {
	case <-s.up:
		return true
	default:
		return false
	}
}

// Stop has the etcd answer nothing any more: who asks waits.
func (s *Store) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers() {
		s.up = make(chan struct{})
		s.breakWatches()
	}
}

// Start has it answer again, with the data that it had. Every lease begins anew, as etcd does it, since nobody could
// renew any.
func (s *Store) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers() {
		return
	}
	for _, l := range s.leases {
		l.renew()
	}
	close(s.up)
}
