package etcd

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control"
)

// Errors on which callers decide.
var (
	ErrNameTaken = errors.New("another host has this node's name")
	ErrUsedUp    = errors.New("no pod CIDR is left")
)

// writeGap is the least time between two looks at the own record that something asked for: an address that flaps must
// not become a stream of writes.
const writeGap = time.Second

// looks is how many signs of life pass between two looks at the own record without a reason.
const looks = 3

// A registrar keeps the node's lease, record and CIDRs, and says that it is alive.
type registrar struct {
	client   *Client
	problem  func(error)
	state    *state
	told     func() (control.Node, bool)
	follower *follower

	settings *Settings        // of the last look
	lease    clientv3.LeaseID // that the etcd was seen to have; 0: none
	alive    clientv3.LeaseID
	holds    *record               // what the etcd was last seen to have of this node; nil: something else
	lost     map[netip.Prefix]bool // CIDRs that another node claims for longer; nil: none
	renewed  time.Time
}

// run registers the node and keeps it so until ctx ends. news says that something else is to be told, own that the
// node's record in the etcd changed.
func (r *registrar) run(ctx context.Context, news, own <-chan struct{}) {
	defer r.bye(ctx)
	retry := r.client.backoff()
	look := true // at the own record
	for n := 1; ; n++ {
		began := time.Now()
		err := r.turn(ctx, look || n%looks == 0)
		r.problem(err)
		pause := jittered(r.client.cfg.AliveTTL / 3)
		look = err != nil
		if err != nil {
			pause = retry.failed()
		} else {
			retry.reset()
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
			continue
		case <-news:
		case <-own:
		}
		t.Stop()
		look = true
		if !wait(ctx, max(0, writeGap-time.Since(began))) {
			return
		}
	}
}

// turn does what is due. It is right after anything that may have happened to the etcd or to this host.
func (r *registrar) turn(ctx context.Context, look bool) error {
	self, ok := r.told()
	if !ok {
		return r.ping(ctx)
	}
	if err := r.keepLease(ctx); err != nil {
		return err
	}
	if look || r.holds == nil {
		if r.client.cfg.FollowMembers {
			if err := r.learnMembers(ctx); err != nil {
				return err
			}
		}
		if err := r.register(ctx, &self); err != nil {
			return err
		}
	}
	return r.stayAlive(ctx)
}

// ping sees whether the etcd answers, for a node that has nothing to tell yet.
func (r *registrar) ping(ctx context.Context) error {
	ctx, cancel := r.client.bounded(ctx)
	defer cancel()
	before := r.follower.mark()
	resp, err := r.client.etcd.Get(ctx, r.client.keys.settings(), clientv3.WithKeysOnly())
	if err != nil {
		return r.client.Explain(err)
	}
	r.follower.check(before, resp.Header)
	return nil
}

// keepLease renews the node's lease when a part of it has passed, and takes a new one where it is gone.
func (r *registrar) keepLease(ctx context.Context) error {
	// A day's lease is renewed every ten minutes, so that the day begins with the moment when the node is gone.
	every := min(r.client.cfg.LeaseTTL/3, 10*time.Minute)
	if r.lease != 0 && time.Since(r.renewed) < every {
		return nil
	}
	if r.lease == 0 {
		var err error
		if r.lease, err = r.leaseBefore(ctx); err != nil {
			return err
		}
	}
	if r.lease != 0 {
		gone, err := r.renew(ctx, r.lease)
		switch {
		case err != nil:
			return err
		case !gone:
			r.renewed = time.Now()
			return r.rememberLease(r.lease)
		}
	}
	r.lease, r.holds, r.state.Lease = 0, nil, 0
	id, err := r.grant(ctx, r.client.cfg.LeaseTTL)
	if err != nil {
		return err
	}
	if err := r.rememberLease(id); err != nil {
		return err
	}
	r.lease, r.renewed = id, time.Now()
	return nil
}

// leaseBefore is the lease that the node had before it was started; 0: none. A host that lost its state directory goes
// on with that of its record, so that it has its pod CIDRs since when it had them.
func (r *registrar) leaseBefore(ctx context.Context) (clientv3.LeaseID, error) {
	if r.state.Lease != 0 || !r.client.cfg.Certified { // else it might be another host's, which ends with its lease
		return r.state.Lease, nil
	}
	ctx, cancel := r.client.bounded(ctx)
	defer cancel()
	resp, err := r.client.etcd.Get(ctx, r.client.keys.leased(r.client.cfg.Node))
	if err != nil {
		return 0, r.client.Explain(err)
	}
	return foundIn(resp.Kvs).lease, nil
}

func (r *registrar) rememberLease(id clientv3.LeaseID) error {
	r.state.Lease = id
	return r.state.save(r.client.cfg.StateDir)
}

func (r *registrar) grant(ctx context.Context, ttl time.Duration) (clientv3.LeaseID, error) {
	ctx, cancel := r.client.bounded(ctx)
	defer cancel()
	resp, err := r.client.etcd.Grant(ctx, int64(ttl/time.Second))
	if err != nil {
		return 0, r.client.Explain(err)
	}
	return resp.ID, nil
}

func (r *registrar) renew(ctx context.Context, id clientv3.LeaseID) (gone bool, err error) {
	ctx, cancel := r.client.bounded(ctx)
	defer cancel()
	_, err = r.client.etcd.KeepAliveOnce(ctx, id)
	if isEtcd(err, rpctypes.ErrLeaseNotFound) {
		return true, nil
	}
	return false, r.client.Explain(err)
}

// An owner is the value of the keys that say whose something is.
type owner struct {
	Version int    `json:"version"`
	Node    string `json:"node"`
	ID      string `json:"id"`
}

// stayAlive keeps the key that says so.
func (r *registrar) stayAlive(ctx context.Context) error {
	if r.alive != 0 {
		if gone, err := r.renew(ctx, r.alive); err != nil || !gone {
			return err
		}
	}
	id, err := r.grant(ctx, r.client.cfg.AliveTTL)
	if err != nil {
		return err
	}
	ctx, cancel := r.client.bounded(ctx)
	defer cancel()
	at := r.client.keys.alive(r.client.cfg.Node)
	value := marshal(owner{recordVersion, r.client.cfg.Node, r.state.ID})
	// The id in the record is this node's, so this key may be nobody else's; but it may be from before a restart.
	if _, err := r.client.etcd.Put(ctx, at, value, clientv3.WithLease(id)); err != nil {
		return r.client.Explain(err)
	}
	r.alive = id
	return nil
}

// bye says that the node is away at an orderly end. The lease of its name and its CIDRs stays.
func (r *registrar) bye(ctx context.Context) {
	if r.alive == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := r.client.etcd.Revoke(ctx, r.alive); err != nil {
		r.client.cfg.Log.Debug("etcd was not told that this node is away; it will notice", "error", err)
	}
}

// learnMembers has the client reach the etcd through all members that there are now, also after a restart.
func (r *registrar) learnMembers(ctx context.Context) error {
	members, err := r.client.Members(ctx)
	if err != nil {
		return err
	}
	var list []string
	for _, m := range members {
		list = append(list, m.Client)
	}
	slices.Sort(list)
	if len(list) == 0 || slices.Equal(list, r.state.Members) {
		return nil
	}
	r.state.Members = list
	r.client.etcd.SetEndpoints(endpointURLs(union(r.client.cfg.Endpoints, list), r.client.cfg.TLS != nil)...)
	return r.state.save(r.client.cfg.StateDir)
}
