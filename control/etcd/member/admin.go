package member

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/join"
)

// Listed is one member of the etcd.
type Listed struct {
	Name    string // of the node; empty: nobody knows, as it was never started
	Client  string // HOST:PORT
	Peer    string
	Learner bool // it does not vote yet
	Leader  bool
	Problem string // why it does not answer; empty: it does
	id      uint64
}

// List asks for the members, and each of them whether it is well. Any member knows, also without a quorum, which is
// when one wants to see it.
func List(ctx context.Context, client *etcd.Client) ([]Listed, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	resp, err := client.Etcd().MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil, client.Explain(err)
	}
	var out []Listed
	var admitted []etcd.Member
	if slices.ContainsFunc(resp.Members, func(m *etcdserverpb.Member) bool { return m.Name == "" }) {
		admitted, _ = client.Admitted(ctx) // without them there is no name, which is not what the list is for
	}
	for _, m := range resp.Members {
		l := Listed{Name: m.Name, Learner: m.IsLearner, id: m.ID, Client: host(m.ClientURLs), Peer: host(m.PeerURLs)}
		for _, r := range admitted {
			if l.Name == "" && r.Peer == l.Peer {
				l.Name = r.Name
			}
		}
		switch {
		case len(m.ClientURLs) == 0:
			l.Problem = "it was never started"
		default:
			sctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			st, err := client.Etcd().Status(sctx, m.ClientURLs[0])
			cancel()
			if err != nil {
				l.Problem = "it does not answer"
			} else {
				l.Leader = st.Leader == m.ID
			}
		}
		out = append(out, l)
	}
	return out, nil
}

func host(urls []string) string {
	if len(urls) == 0 {
		return ""
	}
	return strings.TrimPrefix(urls[0], "https://")
}

// Errors on which callers decide.
var (
	ErrNoMember   = errors.New("it is no member of the etcd")
	ErrLastMember = errors.New("it is the last voting member")
)

// Demote takes a member out of the etcd, by the name of its node. The last voting one stays: with it the network would
// end. The client is a member's, of one that stays if it can be. It can be repeated where it failed or was killed half
// way: the member may be out, and have its rights still.
func Demote(ctx context.Context, client *etcd.Client, name string) error {
	out := false
	var none error // that it was out before
	for end := time.Now().Add(removePatience); ; {
		var err error
		if !out {
			err = demote(ctx, client, name)
			if errors.Is(err, ErrNoMember) {
				none, err = err, client.DeleteMember(ctx, name)
			}
			out = err == nil
		}
		if out {
			var had bool
			if had, err = join.WithdrawMember(ctx, client, name); err == nil && !had {
				return none
			}
		}
		// After the last change of members the etcd may be about to choose a leader, or not find all of them well yet, and
		// the client may have been talking to the one that is out.
		again := errors.Is(err, etcd.ErrNoQuorum) || errors.Is(err, errUnwell) || out && errors.Is(err, etcd.ErrUnreachable)
		if !again || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// errUnwell says that the etcd finds too few of its members well to do without one.
var errUnwell = errors.New("not all members are well")

// removePatience is how long that may take.
const removePatience = 30 * time.Second

func demote(ctx context.Context, client *etcd.Client, name string) error {
	list, err := List(ctx, client)
	if err != nil {
		return err
	}
	var found *Listed
	voters := 0
	for i := range list {
		if list[i].Name == name {
			found = &list[i]
		}
		if !list[i].Learner {
			voters++
		}
	}
	switch {
	case found == nil:
		return fmt.Errorf("%q: %w: `warren control members` lists them", name, ErrNoMember)
	case voters == 1 && !found.Learner:
		return fmt.Errorf("%q: %w: promote another host first", name, ErrLastMember)
	}
	// The record first: nodes look for another member, and the one that is asked may be the one that goes.
	was, err := client.Members(ctx)
	if err != nil {
		return err
	}
	if err := client.DeleteMember(ctx, name); err != nil {
		return err
	}
	if _, err := client.Etcd().MemberRemove(ctx, found.id); err != nil {
		if rpctypes.ErrorDesc(err) == rpctypes.ErrorDesc(rpctypes.ErrGRPCUnhealthy) {
			err = errUnwell
		}
		err = fmt.Errorf("take %q out of the etcd: %w", name, client.Explain(err))
		for _, m := range was {
			if m.Name == name {
				err = errors.Join(err, client.PutMember(ctx, m))
			}
		}
		return err
	}
	return nil
}
