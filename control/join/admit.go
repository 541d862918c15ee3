package join

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/internal/printable"
)

// join answers a host that has a token.
func (s *Server) join(ctx context.Context, r *question) (*answer, error) {
	info, err := s.authenticate(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := CheckName(r.asked.Node); err != nil {
		return nil, said(ErrRefused, "%v", err)
	}
	csr, err := parseRequest([]byte(r.asked.Request))
	if err != nil {
		return nil, said(ErrRefused, "%v", err)
	}
	if r.asked.Member != nil {
		if err := checkSeeker(r.asked.Member, info); err != nil {
			return nil, err
		}
		if _, _, err := s.members(ctx, r); err != nil {
			return nil, err
		}
	}
	key := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	h, revision, err := s.claim(ctx, info.ID, Use{Node: r.asked.Node, Key: key[:]})
	if err != nil {
		return nil, err
	}
	if !h.Node.Ready {
		if err := (holders{s.o.Client}).ready(ctx, r.asked.Node, h, revision, h.Node); err != nil {
			return nil, fmt.Errorf("%w: rights of node %q: %w", ErrUnable, r.asked.Node, err)
		}
	}
	out, err := s.admit(ctx, r, key[:], h.Node.User)
	return out, halfDone(err)
}

// halfDone is an error of what comes after a host was given its name: whatever it was, the host has to keep the key by
// which it is known when it asks again, so it hears of no refusal.
func halfDone(err error) error {
	for _, c := range codes {
		if c.err != ErrUnable && errors.Is(err, c.err) { //nolint:errorlint // the sentinel itself
			return said(ErrUnable, "%v; then ask again with the same token", err)
		}
	}
	return err
}

// checkSeeker refuses what a host that wants to be a member cannot ask for, before anything is changed for it.
func checkSeeker(m *seeker, info *TokenInfo) error {
	if !info.Member {
		return said(ErrNotAllowed, "it lets in nodes, and no members: make one with `warren token new --member`")
	}
	if _, err := parseRequest([]byte(m.Request)); err != nil {
		return said(ErrRefused, "%v", err)
	}
	for _, hp := range []string{m.Client, m.Peer, m.Join} {
		if host, _, err := net.SplitHostPort(hp); err != nil || net.ParseIP(host) == nil {
			return said(ErrRefused, "address %q of the new member is not IP:PORT", printable.Name(hp))
		}
	}
	return nil
}

// claim counts the use of the token, once for each host, and gives the host the name: both or nothing. Of several that
// want it at one moment, the etcd lets one have it. It returns the record, in which the node's account may have to be
// made still.
func (s *Server) claim(ctx context.Context, id string, use Use) (*holder, int64, error) {
	names := holders{s.o.Client}
	for {
		info, tokenAt, err := s.tokens.get(ctx, id)
		if err != nil {
			return nil, 0, err
		}
		h, nameAt, err := names.get(ctx, use.Node)
		if err != nil {
			return nil, 0, err
		}
		same := h.is(use.Key)
		if !same && h.taken() && !info.Replace {
			return nil, 0, said(ErrNameTaken, "another host joined as %q: choose another name with --node; or, if this host "+
				"takes its place, use a token that says so, from `warren token new --replace`", use.Node)
		}
		if err := s.stillGood(info, &use); err != nil {
			return nil, 0, err
		}
		if err := mayUse(info, use, same); err != nil {
			return nil, 0, err
		}
		ifs := []clientv3.Cmp{s.tokens.unchanged(id, tokenAt), names.unchanged(use.Node, nameAt)}
		var ops []clientv3.Op
		if !slices.ContainsFunc(info.Used, use.is) {
			info.Used = append(info.Used, use)
			ops = append(ops, s.tokens.write(info))
		}
		if !same {
			h.leave()
		}
		if !same || !h.Node.Ready {
			h.Key = use.Key
			h.begin(&h.Node, newUser(use.Node, asNode))
			ops = append(ops, names.write(use.Node, h))
		}
		if len(ops) == 0 {
			return h, nameAt, nil
		}
		revision, err := commit(ctx, s.o.Client, ifs, ops...)
		if err != nil {
			return nil, 0, err
		}
		if revision != 0 { // else somebody was faster, with the token or the name
			return h, revision, nil
		}
	}
}

// mayUse refuses a host that the token let in before, and that has lost its name since.
func mayUse(info *TokenInfo, use Use, same bool) error {
	const another = "make a new one with `warren token new` on a member"
	switch {
	case slices.ContainsFunc(info.Used, use.isLeft):
		return said(ErrUsed, "it is %s, and this host, or one named %q, came with it and was taken out since: %s", info.ID,
			use.Node, another)
	case !same && slices.ContainsFunc(info.Used, use.is):
		return said(ErrUsed, "it is %s, with which this host came, and another host took its place as %q since: %s", info.ID,
			use.Node, another)
	}
	return nil
}

// admit gives the host what it needs, whose node has its rights already, and makes it a member if it wants to be one.
func (s *Server) admit(ctx context.Context, r *question, key []byte, user string) (*answer, error) {
	out := &answer{Version: wireVersion, Network: s.o.Client.Network(), CA: string(s.o.CA.PEM())}
	cert, err := s.o.CA.issue([]byte(r.asked.Request), user)
	if err != nil {
		return nil, said(ErrRefused, "%v", err)
	}
	out.Certificate = string(cert)
	var members []etcd.Member
	err = steady(ctx, func() (err error) {
		members, err = s.o.Client.Members(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnable, err)
	}
	for _, m := range members {
		out.Endpoints = append(out.Endpoints, m.Client)
	}
	if r.asked.Member != nil {
		if out.Member, err = s.admitMember(ctx, r, key); err != nil {
			return nil, err
		}
	}
	s.o.Log.Info("a host was let in", "node", r.asked.Node, "from", r.from, "member", r.asked.Member != nil)
	return out, nil
}

// members lists the etcd's members, and reports whether the host that asks is among them from a try before. It refuses
// one that has the name or the address of another member.
func (s *Server) members(ctx context.Context, r *question) (list []*etcdserverpb.Member, there bool, err error) {
	url := "https://" + r.asked.Member.Peer
	resp, err := s.o.Client.Etcd().MemberList(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrUnable, s.o.Client.Explain(err))
	}
	for _, o := range resp.Members {
		if !slices.Contains(o.PeerURLs, url) && o.Name != r.asked.Node {
			continue
		}
		if o.Name != "" || !o.IsLearner || !slices.Contains(o.PeerURLs, url) {
			return nil, false, said(ErrNameTaken, "node %q at %s is a member already: `warren control demote %s` on another "+
				"member removes it", r.asked.Node, url, r.asked.Node)
		}
		there = true
	}
	return resp.Members, there, nil
}

// admitMember adds the host to the etcd as a learner, which does not count until it has all data.
func (s *Server) admitMember(ctx context.Context, r *question, key []byte) (*admission, error) {
	m := r.asked.Member
	url := "https://" + m.Peer
	list, there, err := s.members(ctx, r) // another member may have come since the first look
	if err != nil {
		return nil, err
	}
	peers := map[string]string{r.asked.Node: url}
	if !there {
		// The etcd learns a member's name when that is started: until then this says whose it is.
		err := steady(ctx, func() error {
			return s.o.Client.PutMember(ctx, etcd.Member{Name: r.asked.Node, Peer: m.Peer})
		})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnable, err)
		}
		if err := s.addLearner(ctx, url); err != nil {
			_ = s.o.Client.DeleteMember(ctx, r.asked.Node) // it names nobody who is there
			return nil, said(ErrUnable, "the etcd takes no new member now: %v; `warren control members` shows whether all are "+
				"well", s.o.Client.Explain(err))
		}
	}
	for _, o := range list {
		if len(o.PeerURLs) > 0 && !slices.Contains(o.PeerURLs, url) {
			peers[etcd.PeerName(o)] = o.PeerURLs[0]
		}
	}
	user, err := (holders{s.o.Client}).member(ctx, r.asked.Node, key)
	if err != nil {
		return nil, fmt.Errorf("%w: rights of member %q: %w", ErrUnable, r.asked.Node, err)
	}
	cert, err := s.o.CA.issue([]byte(m.Request), user)
	if err != nil {
		return nil, said(ErrRefused, "%v", err)
	}
	caKey, err := s.o.CA.keyPEM()
	if err != nil {
		return nil, err
	}
	return &admission{Certificate: string(cert), CAKey: string(caKey), Peers: peers}, nil
}

// addLearner adds a member. The etcd refuses it until all members have been connected for some seconds.
func (s *Server) addLearner(ctx context.Context, url string) error {
	for {
		_, err := s.o.Client.Etcd().MemberAddAsLearner(ctx, []string{url})
		if !isEtcd(err, rpctypes.ErrUnhealthy) && !isEtcd(err, rpctypes.ErrMemberNotEnoughStarted) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(300 * time.Millisecond):
		}
	}
}
