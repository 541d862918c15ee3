package member_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/join"
)

// admit lets the host in as a member, which is not started.
func (h *host) admit(at *host) {
	h.t.Helper()
	got, err := h.joinAt(at, at.token(join.TokenOptions{Member: true}),
		&join.MemberAddresses{Client: h.o.Client, Peer: h.o.Peer, Join: h.o.Join})
	if err != nil {
		h.t.Fatal(err)
	}
	h.o.FirstPeers = got.Peers
}

// TestDemotedHalfWay: a demotion that ended after the etcd had let the member go leaves it the rights of one. The next
// demotion takes them away, and only the one after that says that it is no member.
func TestDemotedHalfWay(t *testing.T) {
	a, b := first(t, "a"), newHost(t, "b")
	b.admit(a)
	b.run()
	admin, old := a.admin(), join.MemberFiles(b.o.StateDir)
	list, err := admin.Etcd().MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if m.Name != "b" {
			continue
		}
		for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) { // until all are found well
			_, err := admin.Etcd().MemberRemove(t.Context(), m.ID)
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	if err := a.adminWith(old); err != nil {
		t.Fatalf("it has no rights to lose: %v", err)
	}
	if err := member.Demote(t.Context(), admin, "b"); err != nil {
		t.Errorf("%v", err)
	}
	if err := a.adminWith(old); !errors.Is(err, etcd.ErrDenied) {
		t.Errorf("with what it had as a member: %v", err)
	}
	if err := a.with(join.Files(b.o.StateDir)); err != nil {
		t.Errorf("its node: %v", err)
	}
	if known, err := admin.Members(t.Context()); err != nil || len(known) != 1 {
		t.Errorf("%+v, %v", known, err)
	}
	if err := member.Demote(t.Context(), admin, "b"); !errors.Is(err, member.ErrNoMember) {
		t.Errorf("%v", err)
	}
}

// TestAloneTakesRights: the only member that is left leaves no other one its rights: not one that was admitted and
// never started, nor one that an earlier try has forgotten already.
func TestAloneTakesRights(t *testing.T) {
	a, b, c := first(t, "a"), newHost(t, "b"), newHost(t, "c")
	b.admit(a)
	b.run()
	c.admit(a)
	if err := a.admin().DeleteMember(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	b.end()
	a.end()
	if err := member.MakeAlone(t.Context(), a.o); err != nil {
		t.Fatal(err)
	}
	a.run()
	for _, h := range []*host{b, c} {
		if err := a.adminWith(join.MemberFiles(h.o.StateDir)); !errors.Is(err, etcd.ErrDenied) {
			t.Errorf("%s has a member's rights: %v", h.o.Name, err)
		}
		if err := a.with(join.Files(h.o.StateDir)); err != nil {
			t.Errorf("the node of %s: %v", h.o.Name, err)
		}
	}
	if admitted, err := a.admin().Admitted(t.Context()); err != nil || len(admitted) != 0 {
		t.Errorf("%+v, %v", admitted, err)
	}
	if err := a.adminWith(join.MemberFiles(a.o.StateDir)); err != nil {
		t.Errorf("its own: %v", err)
	}
}

// TestOtherName: a network that was made under one name is not made again under another, which would overwrite the only
// certificates that its etcd knows.
func TestOtherName(t *testing.T) {
	a := first(t, "a")
	a.end()
	other := a.o
	other.Name = "b"
	none := func(context.Context, *etcd.Client) error { return nil }
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := member.Bootstrap(ctx, other, settings(), none)
	if err == nil || !strings.Contains(err.Error(), "--node a goes on with it") {
		t.Errorf("%v", err)
	}
	if err := member.Bootstrap(ctx, a.o, settings(), none); err != nil {
		t.Errorf("as it was made: %v", err)
	}
}

// TestUnknownToItsData: where the data knows nothing of the member's certificate, what waits for the member ends.
func TestUnknownToItsData(t *testing.T) {
	a := first(t, "a")
	a.end()
	if err := os.Remove(join.MemberFiles(a.o.StateDir).Cert); err != nil {
		t.Fatal(err)
	}
	ca, err := join.LoadCA(a.o.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(a.o.StateDir, "a"); err != nil { // as it finds none, for a user of its own
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	none := func(context.Context, *etcd.Client) error { return nil }
	for what, err := range map[string]error{
		"alone": member.MakeAlone(ctx, a.o), "init": member.Bootstrap(ctx, a.o, settings(), none),
	} {
		if !errors.Is(err, etcd.ErrDenied) || !strings.Contains(err.Error(), "knows nothing of this host's certificate") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
