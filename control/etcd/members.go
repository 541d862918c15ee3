package etcd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Member is a host that runs a member of the etcd.
type Member struct {
	Name   string `json:"name"`   // of the node
	Client string `json:"client"` // HOST:PORT at which nodes reach its etcd
	Join   string `json:"join"`   // HOST:PORT at which hosts join

	// Peer is HOST:PORT at which other members reach it. It is known of a member that was admitted and has not been
	// started yet, which the etcd itself has no name of.
	Peer string `json:"peer,omitempty"`
}

type memberRecord struct {
	Version int `json:"version"`
	Member
}

// Members reads who runs members. Records that cannot be read are left out: they are for reaching the etcd, and this
// one was reached.
func (c *Client) Members(ctx context.Context) ([]Member, error) {
	all, err := c.memberRecords(ctx)
	return slices.DeleteFunc(all, func(m Member) bool { return m.Client == "" }), err
}

// Admitted reads who may run members and has not started one yet. Any member answers, also without a quorum.
func (c *Client) Admitted(ctx context.Context) ([]Member, error) {
	all, err := c.memberRecords(ctx, clientv3.WithSerializable())
	return slices.DeleteFunc(all, func(m Member) bool { return m.Client != "" || m.Peer == "" }), err
}

func (c *Client) memberRecords(ctx context.Context, o ...clientv3.OpOption) ([]Member, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	resp, err := c.etcd.Get(ctx, c.keys.members(), append(o, clientv3.WithPrefix())...)
	if err != nil {
		return nil, c.Explain(err)
	}
	var out []Member
	for _, kv := range resp.Kvs {
		var r memberRecord
		if err := unmarshal(kv.Value, &r, &r.Version); err == nil {
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

// PeerName is a member's name in a list of peers. One that was never started has none of its own yet, and has to be in
// the list all the same.
func PeerName(m *etcdserverpb.Member) string {
	if m.Name == "" {
		return fmt.Sprintf("unstarted-%x", m.ID)
	}
	return m.Name
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
