package join

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control/etcd"
)

// A holder is what the network's etcd knows of the host that has a name. Who writes it first has the name.
//
// Each joining gets a user of its own in the etcd, and certificates are for that user: one that was deleted never comes
// back, so neither do the rights of a certificate. For this a user is added by one try alone, the one that made it up,
// and a certificate for it is signed only after the record, unchanged since that try wrote it, was written to say that
// it is ready. A try that is too late, as another one or a removal came first, finds it changed, and what it still adds
// is a user that nobody has a certificate for.
type holder struct {
	Version int      `json:"version"`
	Key     []byte   `json:"key,omitempty"` // SHA-256 of its public key, by which the host is known when it asks again
	Node    *account `json:"node,omitempty"`
	Member  *account `json:"member,omitempty"`
	Stale   []string `json:"stale,omitempty"` // users that nobody is to be any more, which may be there still
}

// An account is a user of the etcd, which is the common name of its certificates.
type account struct {
	User  string `json:"user"`
	Ready bool   `json:"ready,omitempty"` // it has its rights, and certificates may be out
}

const holderVersion = 1

// userMark ends the name in a user; etcd.CheckName admits it in no name.
const userMark = "@"

// newUser is the user of a new joining, which no other one ever has.
func newUser(name string, as role) string {
	const size = 10 // bytes
	var b [size]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return as.prefix() + name + userMark + text.EncodeToString(b[:])
}

// nameIn is the name of the host in a user, and what the user is; empty: it is none of this package's.
func nameIn(user string) (string, role) {
	as := asNode
	rest, ok := strings.CutPrefix(user, memberPrefix)
	if ok {
		as = asMember
	}
	name, _, ok := strings.Cut(rest, userMark)
	if !ok {
		return "", asNode
	}
	return name, as
}

// taken reports whether a host has the name.
func (h *holder) taken() bool { return h.Node != nil }

// is reports whether it is the host with the key.
func (h *holder) is(key []byte) bool { return h.taken() && bytes.Equal(h.Key, key) }

// begin gives the host an account that is to be made; what it had in its place is stale.
func (h *holder) begin(a **account, user string) {
	h.end(a)
	*a = &account{User: user}
}

func (h *holder) end(a **account) {
	if *a != nil && !slices.Contains(h.Stale, (*a).User) {
		h.Stale = append(slices.Clone(h.Stale), (*a).User)
	}
	*a = nil
}

// leave frees the name.
func (h *holder) leave() {
	h.end(&h.Node)
	h.end(&h.Member)
	h.Key = nil
}

// holders are the records of a network's names. Only members may write them.
type holders struct{ client *etcd.Client }

func (s holders) at(name string) string { return etcd.Prefix(s.client.Network()) + "hosts/" + name }

// get reads a record with its revision, which is 0 where there is none.
func (s holders) get(ctx context.Context, name string) (*holder, int64, error) {
	var resp *clientv3.GetResponse
	err := steady(ctx, func() (err error) {
		resp, err = s.client.Etcd().Get(ctx, s.at(name))
		return err
	})
	if err != nil {
		return nil, 0, s.client.Explain(err)
	}
	if len(resp.Kvs) == 0 {
		return &holder{Version: holderVersion}, 0, nil
	}
	h := &holder{}
	if err := json.Unmarshal(resp.Kvs[0].Value, h); err != nil || h.Version != holderVersion {
		return nil, 0, fmt.Errorf("the etcd's record of who has the name %q cannot be read (version %d): use the same "+
			"version of Warren on all members", name, h.Version)
	}
	return h, resp.Kvs[0].ModRevision, nil
}

func (s holders) unchanged(name string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(s.at(name)), "=", revision)
}

func (s holders) write(name string, h *holder) clientv3.Op {
	b, err := json.Marshal(h)
	if err != nil {
		panic("join: " + err.Error()) // nothing in it can fail
	}
	return clientv3.OpPut(s.at(name), string(b))
}

// put writes a record where it is as it was; else the revision is 0.
func (s holders) put(ctx context.Context, name string, h *holder, revision int64) (int64, error) {
	return commit(ctx, s.client, []clientv3.Cmp{s.unchanged(name, revision)}, s.write(name, h))
}

// commit is one transaction; the revision is 0 where the comparisons did not hold.
func commit(ctx context.Context, client *etcd.Client, ifs []clientv3.Cmp, ops ...clientv3.Op) (int64, error) {
	var resp *clientv3.TxnResponse
	err := steady(ctx, func() (err error) {
		resp, err = client.Etcd().Txn(ctx).If(ifs...).Then(ops...).Commit()
		return err
	})
	if err != nil || !resp.Succeeded {
		return 0, client.Explain(err)
	}
	return resp.Header.Revision, nil
}

// errOvertaken says that the record changed while a host was let in.
var errOvertaken = errors.New("another try of this host, one that took its name, or its removal came first: try again")

// ready gives an account of the record its rights, after the stale ones have lost theirs, and says so in the record.
func (s holders) ready(ctx context.Context, name string, h *holder, revision int64, a *account) error {
	if err := s.sweep(ctx, h.Stale); err != nil {
		return err
	}
	var err error
	if _, as := nameIn(a.User); as == asMember {
		err = grantMember(ctx, s.client, a.User)
	} else {
		err = grant(ctx, s.client, name, a.User)
	}
	if err == nil {
		a.Ready, h.Stale = true, nil
		revision, err = s.put(ctx, name, h, revision)
		if err != nil || revision != 0 {
			return err
		}
		err = errOvertaken
	}
	_ = withdraw(ctx, s.client, a.User) // nobody is that user; where this fails, the next try has it in the record
	return err
}

func (s holders) sweep(ctx context.Context, users []string) error {
	for _, u := range users {
		if err := withdraw(ctx, s.client, u); err != nil {
			return err
		}
	}
	return nil
}

// member makes the host with the key a member, and returns its user.
func (s holders) member(ctx context.Context, name string, key []byte) (string, error) {
	h, revision, err := s.get(ctx, name)
	switch {
	case err != nil:
		return "", err
	case !h.is(key) || !h.Node.Ready:
		return "", errOvertaken
	case h.Member != nil && h.Member.Ready:
		return h.Member.User, nil
	}
	h.begin(&h.Member, newUser(name, asMember))
	if revision, err = s.put(ctx, name, h, revision); err != nil {
		return "", err
	}
	if revision == 0 {
		return "", errOvertaken
	}
	return h.Member.User, s.ready(ctx, name, h, revision, h.Member)
}

// forget has change take accounts out of a record, and then their rights. What is left of a try that was killed in
// between is in the record, and goes with the next one.
func (s holders) forget(ctx context.Context, name string, change func(*holder)) error {
	for {
		h, revision, err := s.get(ctx, name)
		if err != nil || revision == 0 {
			return err
		}
		change(h)
		if revision, err = s.put(ctx, name, h, revision); err != nil {
			return err
		}
		if revision == 0 {
			continue
		}
		if err := s.sweep(ctx, h.Stale); err != nil {
			return err
		}
		// The rights are gone, and this client's may be with them. What stays in the record goes with the next change.
		h.Stale = nil
		op := s.write(name, h)
		if !h.taken() {
			op = clientv3.OpDelete(s.at(name))
		}
		_, _ = commit(ctx, s.client, []clientv3.Cmp{s.unchanged(name, revision)}, op)
		return nil
	}
}

// steady repeats what the etcd did not do because somebody's rights changed at that moment, as they do whenever a host
// joins.
func steady(ctx context.Context, do func() error) error {
	const pause = 10 * time.Millisecond
	for {
		err := do()
		if !isEtcd(err, rpctypes.ErrAuthOldRevision) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}
