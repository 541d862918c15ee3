package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/printable"
)

// A sight is what the etcd has of this node.
type sight struct {
	record *record // nil: none that can be read
	node   found   // where the record is
	leased term    // since when the node has which pod CIDRs
	alive  string  // the id of who is alive under this name
	cidrs  map[netip.Prefix]held
}

// found says of a key what a transaction compares.
type found struct {
	modified int64 // revision; 0: the key is not there
	lease    clientv3.LeaseID
}

func foundIn(kvs []*mvccpb.KeyValue) found {
	if len(kvs) == 0 {
		return found{}
	}
	return found{kvs[0].ModRevision, clientv3.LeaseID(kvs[0].Lease)}
}

// A term is which pod CIDRs a node has, and since which revision.
type term struct {
	found
	cidrs []netip.Prefix
}

func termIn(kvs []*mvccpb.KeyValue) term {
	t := term{found: foundIn(kvs)}
	if t.modified > 0 {
		t.cidrs, _ = decodeLeased(kvs[0].Value) // what cannot be read is nothing
	}
	return t
}

// held says whose a pod CIDR is by its key.
type held struct {
	found
	owner owner
	term  term // of an owner that is another node
}

// register makes the node's record and the keys of its CIDRs what they should be, in one transaction that fails when
// somebody else was faster; then it looks again.
func (r *registrar) register(ctx context.Context, self *control.Node) error {
	if err := checkAddresses(self.Addresses); err != nil {
		return fmt.Errorf("this node's %w", err)
	}
	const tries = 100 // each lost to a node that got something
	for range tries {
		s, err := r.look(ctx)
		if err != nil {
			return err
		}
		done, err := r.settle(ctx, self, s)
		if done || err != nil {
			return err
		}
		if !wait(ctx, jittered(50*time.Millisecond)) {
			return ctx.Err()
		}
	}
	return fmt.Errorf("this node lost its pod CIDR to another one %d times; it tries again", tries)
}

// look reads the node's record, and who has the CIDRs that it had.
func (r *registrar) look(ctx context.Context) (*sight, error) {
	k, name := r.client.keys, r.client.cfg.Node
	ctx, cancel := r.client.bounded(ctx)
	defer cancel()
	before := r.follower.mark()
	resp, err := r.client.etcd.Txn(ctx).Then(clientv3.OpGet(k.node(name)), clientv3.OpGet(k.alive(name)),
		clientv3.OpGet(k.settings()), clientv3.OpGet(k.leased(name))).Commit()
	if err != nil {
		return nil, r.client.Explain(err)
	}
	r.follower.check(before, resp.Header)
	// Each time: an etcd that lost its data is not one to register in.
	settings, err := r.client.settingsIn(resp.Responses[2].GetResponseRange().Kvs)
	if err != nil {
		return nil, err
	}
	r.settings = &settings
	s := &sight{cidrs: map[netip.Prefix]held{}, leased: termIn(resp.Responses[3].GetResponseRange().Kvs)}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		s.node = foundIn(kvs)
		var n control.Node
		if n, s.record = decodeNode(name, kvs[0].Value, 0); n.Broken != "" {
			var v record
			if err := unmarshal(kvs[0].Value, &v, &v.Version); errors.Is(err, ErrNewer) {
				return nil, fmt.Errorf("this node in etcd: %w", err)
			}
			r.client.cfg.Log.Warn("this node's record in etcd cannot be read, and is written anew", "problem", n.Broken)
		}
	}
	if kvs := resp.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		var o owner
		_ = json.Unmarshal(kvs[0].Value, &o) // what cannot be read is nobody's
		s.alive = o.ID
	}
	return s, r.lookAt(ctx, s)
}

// candidates are the CIDRs that the node may have had, the likeliest first.
func (r *registrar) candidates(s *sight) []netip.Prefix {
	list := s.leased.cidrs
	if s.record != nil {
		list = slices.Concat(list, s.record.PodCIDRs)
	}
	return slices.Concat(list, r.state.PodCIDRs)
}

// lookAt reads who has the node's candidates.
func (r *registrar) lookAt(ctx context.Context, s *sight) error {
	var ops []clientv3.Op
	var asked []netip.Prefix
	for _, p := range r.candidates(s) {
		if _, known := s.cidrs[p]; !known && !slices.Contains(asked, p) && r.settings.admits(p) {
			asked = append(asked, p)
			ops = append(ops, clientv3.OpGet(r.client.keys.cidr(p.String())))
		}
	}
	if len(ops) == 0 {
		return nil
	}
	resp, err := r.client.etcd.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return r.client.Explain(err)
	}
	for i, p := range asked {
		kvs := resp.Responses[i].GetResponseRange().Kvs
		h := held{found: foundIn(kvs)}
		if h.modified > 0 {
			_ = json.Unmarshal(kvs[0].Value, &h.owner) // what cannot be read is somebody else's
		}
		if other := h.owner.Node; other != "" && other != r.client.cfg.Node {
			resp, err := r.client.etcd.Get(ctx, r.client.keys.leased(other))
			if err != nil {
				return r.client.Explain(err)
			}
			h.term = termIn(resp.Kvs)
		}
		s.cidrs[p] = h
	}
	return nil
}

// settle writes what is missing. done is false when the etcd changed meanwhile.
func (r *registrar) settle(ctx context.Context, self *control.Node, s *sight) (done bool, err error) {
	name := r.client.cfg.Node
	// A host that lost its state directory has another id than before. It gets its name back as long as nobody lives
	// under it, if a certificate or an address says that it is the same one.
	foreign := s.record != nil && s.record.ID != r.state.ID
	same := foreign && (r.client.cfg.Certified || slices.ContainsFunc(self.Addresses, func(a netip.Addr) bool {
		return slices.Contains(s.record.Addresses, a)
	}))
	switch alive := foreign && s.alive != "" && s.alive != r.state.ID; {
	case alive && same:
		return false, fmt.Errorf("%w: node %q of network %q runs already, at %s: give this one another name with `node`; if "+
			"it is this host, which lost its state directory, it gets its name within %s", ErrNameTaken, name,
			r.client.cfg.Network, texts(s.record.Addresses), r.client.cfg.AliveTTL)
	case alive:
		return false, fmt.Errorf("%w: node %q of network %q runs already, at %s: give this one another name with `node`",
			ErrNameTaken, name, r.client.cfg.Network, texts(s.record.Addresses))
	case foreign && !same:
		return false, fmt.Errorf("%w: node %q of network %q is the one at %s, which is away: give this one another name "+
			"with `node`; if it takes that one's place, `warren leave --node %s` on another host frees the name",
			ErrNameTaken, name, r.client.cfg.Network, texts(s.record.Addresses), name)
	}
	if foreign && len(r.state.PodCIDRs) > 0 {
		// It was here before, so it did not lose its state: somebody else had the name meanwhile.
		r.client.cfg.Log.Warn("another host had this node's name, and is away: the name is taken back", "node", name,
			"was", texts(s.record.Addresses))
	}
	cidrs, err := r.choose(ctx, s)
	if err != nil {
		return false, err
	}
	want := record{Version: recordVersion, ID: r.state.ID, Since: r.state.Since, PodCIDRs: cidrs}
	if want.Since == 0 && !foreign && s.record != nil {
		want.Since = s.record.Since // of a write whose answer got lost
	}
	if want.Since == 0 {
		want.Since = time.Now().Unix()
	}
	want.tell(self)

	var w writes
	k := r.client.keys
	// Who follows looks at the terms when it sees the record.
	sameTerm := slices.Equal(s.leased.cidrs, cidrs) && s.leased.lease == r.lease
	w.put(k.leased(name), s.leased.found, marshal(leased{recordVersion, cidrs}), r.lease, sameTerm)
	w.put(k.node(name), s.node, want.marshal(), r.lease, sameTerm && s.record != nil && s.record.same(&want))
	for _, p := range cidrs {
		h, mine := s.cidrs[p], owner{recordVersion, name, r.state.ID}
		w.put(k.cidr(p.String()), h.found, marshal(mine), r.lease, h.owner == mine)
		if other := h.owner.Node; other != "" && other != name {
			w.unchanged(k.leased(other), h.term.found)
			r.client.cfg.Log.Warn("the key of this node's pod CIDR in etcd was another node's, which has it for less long "+
				"or not at all: it is written anew", "podCIDR", p, "was", printable.Name(other))
		}
	}
	if len(w.puts) > 0 {
		ctx, cancel := r.client.bounded(ctx)
		defer cancel()
		resp, err := r.client.etcd.Txn(ctx).If(w.ifs...).Then(w.puts...).Commit()
		switch {
		case isEtcd(err, rpctypes.ErrLeaseNotFound):
			r.lease, r.state.Lease = 0, 0
			return false, errors.New("this node's lease ended; it takes a new one")
		case err != nil:
			return false, r.client.Explain(err)
		case !resp.Succeeded:
			return false, nil
		}
	}
	if contested, err := r.contested(ctx, s, cidrs); err != nil || contested {
		return false, err
	}
	return true, r.remember(&want)
}

// contested reports whether another node claims a CIDR for longer that this one has only now: between the look and the
// write it may have written so, and nobody would believe this one then.
func (r *registrar) contested(ctx context.Context, s *sight, cidrs []netip.Prefix) (bool, error) {
	if !slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return !slices.Contains(s.leased.cidrs, p) }) {
		return false, nil
	}
	terms, err := r.terms(ctx)
	if err != nil {
		return false, err
	}
	mine, found := terms[r.client.cfg.Node], false
	for name, t := range terms {
		for _, p := range t.cidrs {
			if name != r.client.cfg.Node && slices.Contains(cidrs, p) && t.modified < mine.modified {
				if r.lost == nil {
					r.lost = map[netip.Prefix]bool{}
				}
				r.lost[p], found = true, true
			}
		}
	}
	return found, nil
}

// terms reads which pod CIDRs all nodes have, and since when.
func (r *registrar) terms(ctx context.Context) (map[string]term, error) {
	out := map[string]term{}
	revision := int64(0)
	_, err := r.client.pages(ctx, r.client.keys.allLeased(), &revision, func(name string, kv *mvccpb.KeyValue) {
		out[name] = termIn([]*mvccpb.KeyValue{kv})
	})
	return out, err
}

// writes are a transaction that is made as long as all keys are as they were found.
type writes struct {
	ifs  []clientv3.Cmp
	puts []clientv3.Op
}

func (w *writes) unchanged(key string, was found) {
	// A key that is not there has the revision 0.
	w.ifs = append(w.ifs, clientv3.Compare(clientv3.ModRevision(key), "=", was.modified))
}

// put writes a key, unless it has that value under that lease.
func (w *writes) put(key string, was found, value string, lease clientv3.LeaseID, same bool) {
	w.unchanged(key, was)
	if !same || was.lease != lease {
		w.puts = append(w.puts, clientv3.OpPut(key, value, clientv3.WithLease(lease)))
	}
}

// remember keeps what the node has now.
func (r *registrar) remember(got *record) error {
	if had := r.state.PodCIDRs; len(had) > 0 && !slices.Equal(had, got.PodCIDRs) {
		r.client.cfg.Log.Warn("this node has other pod CIDRs than before: it was away for longer than its lease, and "+
			"others have them now", "had", had, "has", got.PodCIDRs)
	}
	r.holds = got
	r.state.PodCIDRs, r.state.Since = got.PodCIDRs, got.Since
	return r.state.save(r.client.cfg.StateDir)
}

// choose is the CIDRs that the node is to have, one of each family of the network: those that it had, as long as nobody
// else has them, else free ones.
func (r *registrar) choose(ctx context.Context, s *sight) ([]netip.Prefix, error) {
	var out []netip.Prefix
	var taken map[netip.Prefix]bool
	for _, is4 := range []bool{true, false} {
		if !slices.ContainsFunc(r.settings.Ranges, func(p netip.Prefix) bool { return p.Addr().Is4() == is4 }) {
			continue
		}
		if p, ok := r.had(s, is4); ok {
			out = append(out, p)
			continue
		}
		if taken == nil {
			var err error
			if taken, err = r.taken(ctx); err != nil {
				return nil, err
			}
		}
		p, ok := pickAny(r.settings, is4, taken)
		if !ok {
			return nil, r.usedUp(is4)
		}
		s.cidrs[p] = held{}
		out = append(out, p)
	}
	return out, nil
}

// had is the CIDR of the family that the node had, if it can have it still.
func (r *registrar) had(s *sight, is4 bool) (netip.Prefix, bool) {
	for _, p := range r.candidates(s) {
		if h, known := s.cidrs[p]; known && p.Addr().Is4() == is4 && r.mayHave(p, s, &h) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// mayHave reports whether a CIDR is this node's. Any node can write the key that says whose it is, so that one counts
// only as far as the terms of the two agree.
func (r *registrar) mayHave(p netip.Prefix, s *sight, h *held) bool {
	mine := slices.Contains(s.leased.cidrs, p)
	switch {
	case r.lost[p]:
		return false
	case h.modified == 0 || h.owner.Node == r.client.cfg.Node:
		return true
	case h.owner.Node == "":
		return mine
	case !slices.Contains(h.term.cidrs, p):
		return true
	}
	return mine && s.leased.modified < h.term.modified
}

// taken reads which CIDRs somebody has, or says so.
func (r *registrar) taken(ctx context.Context) (map[netip.Prefix]bool, error) {
	terms, err := r.terms(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := r.client.bounded(ctx)
	defer cancel()
	resp, err := r.client.etcd.Get(ctx, r.client.keys.cidrs(), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, r.client.Explain(err)
	}
	out := make(map[netip.Prefix]bool, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		if p, err := netip.ParsePrefix(r.client.keys.cidrText(string(kv.Key))); err == nil {
			out[p] = true
		}
	}
	for name, t := range terms {
		for _, p := range t.cidrs {
			out[p] = out[p] || name != r.client.cfg.Node || r.lost[p]
		}
	}
	return out, nil
}

func (r *registrar) usedUp(is4 bool) error {
	var parts []string
	for _, p := range r.settings.Ranges {
		if p.Addr().Is4() == is4 {
			parts = append(parts, fmt.Sprintf("%s, which holds %d of /%d", p, uint64(1)<<(r.settings.nodePrefix(p)-p.Bits()),
				r.settings.nodePrefix(p)))
		}
	}
	return fmt.Errorf("%w for node %q in %s: `warren nodes` shows who has them; `warren leave --node NAME` gives back "+
		"those of a host that is gone, or they come back by themselves when its lease ends", ErrUsedUp,
		r.client.cfg.Node, strings.Join(parts, "; and "))
}

func texts(list []netip.Addr) string {
	if len(list) == 0 {
		return "no address"
	}
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}
