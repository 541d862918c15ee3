package member

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/join"
)

// Listed is one member of the etcd.
type Listed struct {
	Name    string // of the node; empty: it was never started
	Client  string // HOST:PORT
	Peer    string
	Learner bool // it does not vote yet
	Leader  bool
	Problem string // why it does not answer; empty: it does
	id      uint64
}

// List asks for the members, and each of them whether it is well. The client is a member's.
func List(ctx context.Context, client *etcd.Client) ([]Listed, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	resp, err := client.Etcd().MemberList(ctx)
	if err != nil {
		return nil, client.Explain(err)
	}
	var out []Listed
	for _, m := range resp.Members {
		l := Listed{Name: m.Name, Learner: m.IsLearner, id: m.ID, Client: host(m.ClientURLs), Peer: host(m.PeerURLs)}
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
// end. The client is a member's, of one that stays if it can be.
func Demote(ctx context.Context, client *etcd.Client, name string) error {
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
	// The record first: nodes look for another member, and the one that is told last to go may be this one.
	if err := client.DeleteMember(ctx, name); err != nil {
		return err
	}
	if _, err := client.Etcd().MemberRemove(ctx, found.id); err != nil {
		return fmt.Errorf("take %q out of the etcd: %w", name, client.Explain(err))
	}
	return join.WithdrawMember(ctx, client, name)
}
