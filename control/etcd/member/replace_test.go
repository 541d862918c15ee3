package member_test

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/join"
)

// TestReplacedMember: a host that lost its disk is refused while the etcd has its member still, and that costs neither
// its token nor what the member has.
func TestReplacedMember(t *testing.T) {
	a, b := first(t, "a"), newHost(t, "b")
	addresses := &join.MemberAddresses{Client: b.o.Client, Peer: b.o.Peer, Join: b.o.Join}
	got, err := b.joinAt(a, a.token(join.TokenOptions{Member: true}), addresses)
	if err != nil {
		t.Fatal(err)
	}
	b.o.FirstPeers = got.Peers
	b.run()
	fresh, tok := newHost(t, "b"), a.token(join.TokenOptions{Member: true, Replace: true})
	if _, err := fresh.joinAt(a, tok, addresses); !errors.Is(err, join.ErrNameTaken) {
		t.Fatalf("%v", err)
	}
	if _, err := os.Stat(join.Dir(fresh.o.StateDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left of what was refused: %v", err)
	}
	if err := errors.Join(a.with(join.Files(b.o.StateDir)), a.adminWith(join.MemberFiles(b.o.StateDir))); err != nil {
		t.Errorf("what was refused took the member's rights: %v", err)
	}
	if err := member.Demote(t.Context(), a.admin(), "b"); err != nil {
		t.Fatal(err)
	}
	b.end()
	if got, err = fresh.joinAt(a, tok, addresses); err != nil {
		t.Fatalf("the same token: %v", err)
	}
	fresh.o.Client, fresh.o.Peer, fresh.o.Join, fresh.o.FirstPeers = b.o.Client, b.o.Peer, b.o.Join, got.Peers
	fresh.run()
	if err := a.adminWith(join.MemberFiles(fresh.o.StateDir)); err != nil {
		t.Error(err)
	}
}
