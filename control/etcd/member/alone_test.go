package member_test

import (
	"testing"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/member"
)

// TestAlone: of three members two have lost their data. The third one, made the only one, goes on with what it has; and
// one that was lost becomes a member again.
func TestAlone(t *testing.T) {
	a := first(t, "a")
	hosts := []*host{a, newHost(t, "b"), newHost(t, "c")}
	promote := func(h *host) {
		t.Helper()
		h.admit(a)
		h.run() // until it votes
	}
	for _, h := range hosts[1:] {
		promote(h)
	}
	was, err := a.admin().Settings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		h.end()
	}
	lost := hosts[1]
	for _, h := range hosts[1:] {
		if err := member.RemoveData(h.o.StateDir); err != nil {
			t.Fatal(err)
		}
		if err := member.MakeAlone(t.Context(), h.o); err == nil {
			t.Errorf("member %s without data is the only one", h.o.Name)
		}
	}

	for range 2 { // as a second try has to do no harm
		if err := member.MakeAlone(t.Context(), a.o); err != nil {
			t.Fatal(err)
		}
	}
	a.run()
	list, err := member.List(t.Context(), a.admin())
	if err != nil || len(list) != 1 || list[0].Name != "a" || !list[0].Leader {
		t.Errorf("%+v, %v", list, err)
	}
	known, err := a.admin().Members(t.Context())
	if err != nil || len(known) != 1 || known[0] != (etcd.Member{Name: "a", Client: a.o.Client, Join: a.o.Join}) {
		t.Errorf("%+v, %v", known, err)
	}
	if s, err := a.admin().Settings(t.Context()); err != nil || len(s.Ranges) != 1 || s.Ranges[0] != was.Ranges[0] {
		t.Errorf("%+v, %v; was %+v", s, err, was)
	}
	promote(lost)
	if list, err = member.List(t.Context(), a.admin()); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
}
