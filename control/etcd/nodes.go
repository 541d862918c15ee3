package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control"
)

// A Listed is what the etcd says of one node.
type Listed struct {
	control.Node
	Alive bool      // its daemon has contact
	Since time.Time // when it was registered first, by its own clock; zero: unknown

	// Left is how long an away node keeps its name and CIDRs; 0: unknown.
	Left time.Duration
}

// Nodes lists all nodes by name.
func (c *Client) Nodes(ctx context.Context) ([]Listed, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	resp, err := c.etcd.Txn(ctx).Then(clientv3.OpGet(c.keys.nodes(), clientv3.WithPrefix()),
		clientv3.OpGet(c.keys.allAlive(), clientv3.WithPrefix())).Commit()
	if err != nil {
		return nil, c.Explain(err)
	}
	alive := map[string]bool{}
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		alive[strings.TrimPrefix(string(kv.Key), c.keys.allAlive())] = true
	}
	out := []Listed{} // a list also when it is empty
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		name := strings.TrimPrefix(string(kv.Key), c.keys.nodes())
		n, r := decodeNode(name, kv.Value, kv.ModRevision)
		l := Listed{Node: n, Alive: alive[name]}
		if r != nil && r.Since > 0 {
			l.Since = time.Unix(r.Since, 0)
		}
		if !l.Alive && kv.Lease != 0 {
			if left, err := c.etcd.TimeToLive(ctx, clientv3.LeaseID(kv.Lease)); err == nil && left.TTL > 0 {
				l.Left = time.Duration(left.TTL) * time.Second
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// Away says that this host's daemon has stopped, for one that was killed or could not say so itself.
func (c *Client) Away(ctx context.Context) error {
	st, err := loadState(&c.cfg)
	if err != nil {
		return err
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	at := c.keys.alive(c.cfg.Node)
	mine := marshal(owner{recordVersion, c.cfg.Node, st.ID})
	_, err = c.etcd.Txn(ctx).If(clientv3.Compare(clientv3.Value(at), "=", mine)).Then(clientv3.OpDelete(at)).Commit()
	return c.Explain(err)
}

// Ours reports whether the node's name is this host's, or nobody's, and not another's that has it too.
func (c *Client) Ours(ctx context.Context) (bool, error) {
	st, err := loadState(&c.cfg)
	if err != nil {
		return false, err
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	resp, err := c.etcd.Get(ctx, c.keys.node(c.cfg.Node))
	if err != nil || len(resp.Kvs) == 0 {
		return true, c.Explain(err)
	}
	_, r := decodeNode(c.cfg.Node, resp.Kvs[0].Value, 0)
	return r == nil || r.ID == st.ID, nil
}

// ErrNoNode says that the network has no such node.
var ErrNoNode = errors.New("there is no such node")

// ErrAlive says that a node runs that must not.
var ErrAlive = errors.New("the node runs")

// Remove gives a node's name and pod CIDRs back and removes its records, at once. One whose daemon has contact
// would register again at once: it is ErrAlive, and nothing is changed.
func (c *Client) Remove(ctx context.Context, name string) error {
	const tries = 10
	for range tries {
		done, err := c.remove(ctx, name)
		if done || err != nil {
			return err
		}
	}
	return fmt.Errorf("the records of node %q change all the time: is its daemon running?", name)
}

func (c *Client) remove(ctx context.Context, name string) (done bool, err error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	at := c.keys.node(name)
	resp, err := c.etcd.Txn(ctx).Then(clientv3.OpGet(at), clientv3.OpGet(c.keys.alive(name)),
		clientv3.OpGet(c.keys.cidrs(), clientv3.WithPrefix()), clientv3.OpGet(c.keys.leased(name))).Commit()
	if err != nil {
		return false, c.Explain(err)
	}
	if len(resp.Responses[1].GetResponseRange().Kvs) > 0 {
		return false, fmt.Errorf("node %q: %w: stop its daemon first; one that was killed counts as away within %s", name,
			ErrAlive, c.cfg.AliveTTL)
	}
	// That it is not alive is compared again where it counts.
	ifs := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(c.keys.alive(name)), "=", 0)}
	var dels []clientv3.Op
	own := slices.Concat(resp.Responses[0].GetResponseRange().Kvs, resp.Responses[3].GetResponseRange().Kvs)
	for _, kv := range own {
		ifs = append(ifs, clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision))
		dels = append(dels, clientv3.OpDelete(string(kv.Key)))
	}
	more := false
	for _, kv := range resp.Responses[2].GetResponseRange().Kvs {
		var o owner
		if err := json.Unmarshal(kv.Value, &o); err == nil && o.Node == name {
			// An honest node has two; but any node can write these keys, and a transaction bears no more than 128.
			if more = len(dels) >= maxDeleted; more {
				break
			}
			ifs = append(ifs, clientv3.Compare(clientv3.ModRevision(string(kv.Key)), "=", kv.ModRevision))
			dels = append(dels, clientv3.OpDelete(string(kv.Key)))
		}
	}
	if len(dels) == 0 {
		return false, fmt.Errorf("node %q: %w in network %q: `warren nodes` lists them", name, ErrNoNode, c.cfg.Network)
	}
	txn, err := c.etcd.Txn(ctx).If(ifs...).Then(dels...).Commit()
	if err != nil {
		return false, c.Explain(err)
	}
	return txn.Succeeded && !more, nil
}

// maxDeleted bounds what one transaction deletes.
const maxDeleted = 100
