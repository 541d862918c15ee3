package member_test

import (
	"errors"
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
