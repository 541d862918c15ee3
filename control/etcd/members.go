package etcd

import (
	"context"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Member is a host that runs a member of the etcd.
type Member struct {
	Name   string `json:"name"`   // of the node
	Client string `json:"client"` // HOST:PORT at which nodes reach its etcd
	Join   string `json:"join"`   // HOST:PORT at which hosts join
}

type memberRecord struct {
	Version int `json:"version"`
	Member
}

// Members reads who runs members. Records that cannot be read are left out: they are for reaching the etcd, and this
// one was reached.
func (c *Client) Members(ctx context.Context) ([]Member, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	resp, err := c.etcd.Get(ctx, c.keys.members(), clientv3.WithPrefix())
	if err != nil {
		return nil, c.Explain(err)
	}
	var out []Member
	for _, kv := range resp.Kvs {
		var r memberRecord
		if err := unmarshal(kv.Value, &r, &r.Version); err == nil && r.Client != "" {
			r.Name = strings.TrimPrefix(string(kv.Key), c.keys.members())
			out = append(out, r.Member)
		}
	}
	return out, nil
}

// PutMember writes where a member is reached.
func (c *Client) PutMember(ctx context.Context, m Member) error {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	_, err := c.etcd.Put(ctx, c.keys.member(m.Name), marshal(memberRecord{recordVersion, m}))
	return c.Explain(err)
}

// DeleteMember forgets where a member was reached.
func (c *Client) DeleteMember(ctx context.Context, name string) error {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	_, err := c.etcd.Delete(ctx, c.keys.member(name))
	return c.Explain(err)
}

// union is a, and what of b is not in it.
func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
