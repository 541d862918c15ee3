package etcdmem

import (
	"bytes"
	"cmp"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxTxnOps is how many operations etcd takes in one transaction unless it is told otherwise.
const maxTxnOps = 128

// txn does a transaction. The caller holds the lock.
func (s *Store) txn(r *pb.TxnRequest, l *link) (*pb.TxnResponse, error) {
	if max(len(r.Compare), len(r.Success), len(r.Failure)) > maxTxnOps {
		return nil, rpctypes.ErrGRPCTooManyOps
	}
	resp := &pb.TxnResponse{Succeeded: true}
	for _, c := range r.Compare {
		if len(c.RangeEnd) > 0 {
			return nil, status.Error(codes.Unimplemented, "etcdmem: comparison of a range")
		}
		if len(c.Key) == 0 {
			return nil, rpctypes.ErrGRPCEmptyKey
		}
		resp.Succeeded = resp.Succeeded && s.holds(c)
	}
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		if err := duplicate(branch); err != nil {
			return nil, err
		}
	}
	ops := r.Success
	if !resp.Succeeded {
		ops = r.Failure
	}
	for _, op := range ops { // before anything is done
		if err := s.checkOp(op); err != nil {
			return nil, err
		}
	}
	w := s.begin()
	for _, op := range ops {
		resp.Responses = append(resp.Responses, w.do(op, l))
	}
	w.end()
	resp.Header = s.header()
	return resp, nil
}

// duplicate refuses to write one key twice. As etcd does, it does not find that in a deletion of all keys from one on.
func duplicate(ops []*pb.RequestOp) error {
	seen := map[string]bool{}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			if seen[string(p.Key)] {
				return rpctypes.ErrGRPCDuplicateKey
			}
			seen[string(p.Key)] = true
		}
	}
	for _, op := range ops {
		d := op.GetRequestDeleteRange()
		if d == nil || string(d.RangeEnd) == "\x00" {
			continue
		}
		for key := range seen {
			if (span{string(d.Key), string(d.RangeEnd)}).contains(key) {
				return rpctypes.ErrGRPCDuplicateKey
			}
		}
	}
	return nil
}

func (s *Store) checkOp(op *pb.RequestOp) error {
	switch r := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return s.checkRange(r.RequestRange)
	case *pb.RequestOp_RequestPut:
		return s.checkPut(r.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		if len(r.RequestDeleteRange.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
		return nil
	}
	return status.Error(codes.Unimplemented, "etcdmem: a transaction in a transaction")
}

func (s *Store) checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.Key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue || r.IgnoreLease:
		return status.Error(codes.Unimplemented, "etcdmem: a put that leaves something as it is")
	case r.Lease != 0 && s.leases[r.Lease] == nil:
		return rpctypes.ErrGRPCLeaseNotFound
	}
	return nil
}

// do does a checked operation. Reads see what the transaction has written before.
func (w *write) do(op *pb.RequestOp, l *link) *pb.ResponseOp {
	switch r := op.Request.(type) {
	case *pb.RequestOp_RequestPut:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: w.put(r.RequestPut)}}
	case *pb.RequestOp_RequestDeleteRange:
		d := r.RequestDeleteRange
		resp := w.delete(span{string(d.Key), string(d.RangeEnd)}, d.PrevKv)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: resp}}
	}
	get := op.GetRequestRange()
	resp := w.store.read(get, l.sees(string(get.Key)))
	return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: resp}}
}

// holds reports whether a comparison holds.
func (s *Store) holds(c *pb.Compare) bool {
	v := s.now(string(c.Key))
	if v == nil {
		if c.Target == pb.Compare_VALUE {
			return false // there is no way to write the value of a key that is not there
		}
		v = &mvccpb.KeyValue{}
	}
	var is int
	switch c.Target {
	case pb.Compare_VALUE:
		is = bytes.Compare(v.Value, c.GetValue())
	case pb.Compare_CREATE:
		is = cmp.Compare(v.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		is = cmp.Compare(v.ModRevision, c.GetModRevision())
	case pb.Compare_VERSION:
		is = cmp.Compare(v.Version, c.GetVersion())
	case pb.Compare_LEASE:
		is = cmp.Compare(v.Lease, c.GetLease())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return is == 0
	case pb.Compare_NOT_EQUAL:
		return is != 0
	case pb.Compare_GREATER:
		return is > 0
	}
	return is < 0
}
