package member_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/join"
)

// with asks a member's etcd for something that every node may read, with the files.
func (h *host) with(f etcd.Files) error {
	h.t.Helper()
	c := h.clientOf(f)
	_, err := c.Settings(h.t.Context())
	return err
}

// adminWith asks for something that members alone may see.
func (h *host) adminWith(f etcd.Files) error {
	h.t.Helper()
	c := h.clientOf(f)
	_, err := c.Etcd().UserList(h.t.Context())
	return c.Explain(err)
}

func (h *host) clientOf(f etcd.Files) *etcd.Client {
	h.t.Helper()
	tlsConfig, err := f.Config()
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := etcd.NewClient(etcd.Config{Endpoints: []string{h.o.Client}, TLS: tlsConfig, Network: "test", Node: "x",
		StateDir: h.t.TempDir()})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

// TestOneNameAtTwoMembers has two hosts of one name join at the same moment at two members: the etcd lets one in.
func TestOneNameAtTwoMembers(t *testing.T) {
	a, b := first(t, "a"), newHost(t, "b")
	b.admit(a)
	b.run()
	for round := range 15 {
		name, errs := fmt.Sprintf("n%d", round), make(chan error)
		hosts := []*host{newHost(t, name), newHost(t, name)}
		for i, at := range []*host{a, b} {
			tok := a.token(join.TokenOptions{})
			go func() {
				_, err := hosts[i].joinAt(at, tok, nil)
				errs <- err
			}()
		}
		in := 0
		for range hosts {
			if err := <-errs; err == nil {
				in++
			} else if !errors.Is(err, join.ErrNameTaken) {
				t.Error(err)
			}
		}
		good := 0
		for _, h := range hosts {
			if _, err := os.Stat(join.Files(h.o.StateDir).Cert); err == nil && b.with(join.Files(h.o.StateDir)) == nil {
				good++
			}
		}
		if in != 1 || good != 1 {
			t.Fatalf("%d hosts have the name %s, and %d certificates of it are good", in, name, good)
		}
		time.Sleep(50 * time.Millisecond) // below what is served in a second
	}

	// The one that lost can have the name once the other is out, at the other member.
	if err := join.Evict(t.Context(), b.admin(), "n0"); err != nil {
		t.Fatal(err)
	}
	if _, err := newHost(t, "n0").joinAt(b, a.token(join.TokenOptions{}), nil); err != nil {
		t.Error(err)
	}
}

// TestCertificatesHold: what was issued before is good after the members started again, and the first member's own is.
func TestCertificatesHold(t *testing.T) {
	a, n := first(t, "a"), newHost(t, "n")
	if _, err := n.joinAt(a, a.token(join.TokenOptions{}), nil); err != nil {
		t.Fatal(err)
	}
	a.end()
	a.run()
	for _, f := range []etcd.Files{join.Files(n.o.StateDir), join.Files(a.o.StateDir), join.MemberFiles(a.o.StateDir)} {
		if err := a.with(f); err != nil {
			t.Errorf("%s: %v", f.Cert, err)
		}
	}
	if err := a.adminWith(join.Files(a.o.StateDir)); !errors.Is(err, etcd.ErrDenied) {
		t.Errorf("a member's node has a member's rights: %v", err)
	}
	if _, err := newHost(t, "a").joinAt(a, a.token(join.TokenOptions{}), nil); !errors.Is(err, join.ErrNameTaken) {
		t.Errorf("the first member's name: %v", err)
	}
}

// TestOldMembersCertificate: a member's certificate is worth nothing at the etcd once it was taken out, also when the
// host is a member again; its node stays what it is.
func TestOldMembersCertificate(t *testing.T) {
	a, b := first(t, "a"), newHost(t, "b")
	addresses := &join.MemberAddresses{Client: b.o.Client, Peer: b.o.Peer, Join: b.o.Join}
	promote := func() {
		t.Helper()
		got, err := b.joinAt(a, a.token(join.TokenOptions{Member: true}), addresses)
		if err != nil {
			t.Fatal(err)
		}
		b.o.FirstPeers = got.Peers
		b.run()
	}
	promote()
	node := join.Files(b.o.StateDir)
	cert, err := os.ReadFile(node.Cert)
	if err != nil {
		t.Fatal(err)
	}
	taken := t.TempDir()
	if err := os.CopyFS(join.Dir(taken), os.DirFS(join.Dir(b.o.StateDir))); err != nil {
		t.Fatal(err)
	}
	old := join.MemberFiles(taken)
	if err := a.adminWith(old); err != nil {
		t.Fatal(err)
	}
	if err := member.Demote(t.Context(), a.admin(), "b"); err != nil {
		t.Fatal(err)
	}
	if err := a.adminWith(old); !errors.Is(err, etcd.ErrDenied) {
		t.Errorf("%v", err)
	}
	if err := a.with(node); err != nil {
		t.Errorf("its node: %v", err)
	}
	b.end()
	if err := errors.Join(member.RemoveData(b.o.StateDir), join.ForgetMember(b.o.StateDir)); err != nil {
		t.Fatal(err)
	}
	promote()
	if err := a.adminWith(join.MemberFiles(b.o.StateDir)); err != nil {
		t.Errorf("promoted again: %v", err)
	}
	if err := a.adminWith(old); !errors.Is(err, etcd.ErrDenied) {
		t.Errorf("promoted again, its old certificate: %v", err)
	}
	if err := os.WriteFile(node.Cert, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.with(node); err != nil {
		t.Errorf("the node's certificate of before it was promoted, which its daemon has: %v", err)
	}

	// It takes itself out, by its own right.
	if err := member.Demote(t.Context(), a.clientOf(join.MemberFiles(b.o.StateDir)), "b"); err != nil {
		t.Error(err)
	}
	if err := a.adminWith(join.MemberFiles(b.o.StateDir)); !errors.Is(err, etcd.ErrDenied) {
		t.Errorf("%v", err)
	}
}

// TestGuard: who is taken out hears nothing of what a watch says that it began before, and can fill the etcd with
// nothing.
func TestGuard(t *testing.T) {
	a, n, m := first(t, "a"), newHost(t, "n"), newHost(t, "m")
	for _, h := range []*host{n, m} {
		if _, err := h.joinAt(a, a.token(join.TokenOptions{}), nil); err != nil {
			t.Fatal(err)
		}
	}
	key, admin := etcd.Prefix("test")+"nodes/", a.admin()
	out, stays := a.clientOf(join.Files(n.o.StateDir)).Etcd(), a.clientOf(join.Files(m.o.StateDir)).Etcd()
	old := out.Watch(t.Context(), key, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	other := stays.Watch(t.Context(), key, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	put := func(name string) {
		t.Helper()
		if _, err := admin.Etcd().Put(t.Context(), key+name, "x"); err != nil {
			t.Fatal(err)
		}
	}
	heard := func(w clientv3.WatchChan) string {
		t.Helper()
		select {
		case resp := <-w:
			if resp.Err() != nil || len(resp.Events) == 0 {
				return ""
			}
			return string(resp.Events[0].Kv.Key)
		case <-time.After(patience):
			t.Fatal("a watch says nothing")
			return ""
		}
	}
	for _, w := range []clientv3.WatchChan{old, other} {
		if got := <-w; !got.Created {
			t.Fatalf("%+v", got)
		}
	}
	put("x")
	for _, w := range []clientv3.WatchChan{old, other} {
		if got := heard(w); got != key+"x" {
			t.Fatalf("%q", got)
		}
	}
	if _, err := out.Grant(t.Context(), 60); err != nil {
		t.Fatal(err)
	}
	if err := join.Evict(t.Context(), admin, "n"); err != nil {
		t.Fatal(err)
	}
	put("y")
	if got := heard(other); got != key+"y" {
		t.Errorf("the one that stays hears %q", got)
	}
	if got := heard(old); got != "" {
		t.Errorf("the one that is out hears %q", got)
	}
	if lease, err := out.Grant(t.Context(), 60); err == nil {
		t.Errorf("it makes a lease: %+v", lease)
	}
	if list, err := out.MemberList(t.Context()); err == nil {
		t.Errorf("it sees the members: %+v", list)
	}
	if _, err := stays.Grant(t.Context(), 60); err != nil {
		t.Error(err)
	}
}

// TestExpel takes a node out that runs and goes on trying, with the member's rights alone.
func TestExpel(t *testing.T) {
	a, b := first(t, "a"), newHost(t, "b")
	if _, err := b.joinAt(a, a.token(join.TokenOptions{}), nil); err != nil {
		t.Fatal(err)
	}
	da, db := follow(t, a.node(a.o.Client), "192.0.2.1"), follow(t, b.node(a.o.Client), "192.0.2.2")
	da.until("b", func() bool { return len(da.nodes["b"].PodCIDRs) == 1 })
	admin := a.admin()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) { // it says so after it has registered
		nodes, err := admin.Nodes(t.Context())
		if err != nil || time.Now().After(end) {
			t.Fatalf("b is not alive: %+v, %v", nodes, err)
		}
		if slices.ContainsFunc(nodes, func(n etcd.Listed) bool { return n.Name == "b" && n.Alive }) {
			break
		}
	}
	if err := join.Evict(t.Context(), admin, "b"); !errors.Is(err, etcd.ErrAlive) {
		t.Fatalf("%v", err)
	}
	if err := a.with(join.Files(b.o.StateDir)); err != nil {
		t.Errorf("what was refused took its rights: %v", err)
	}
	if err := join.Expel(t.Context(), admin, "b"); err != nil {
		t.Fatal(err)
	}
	da.until("end of b", func() bool { _, ok := da.nodes["b"]; return !ok })
	db.source.Publish(control.Node{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.3")}})
	_ = db.problem(func(err error) bool { return errors.Is(err, etcd.ErrDenied) })
	nodes, err := admin.Nodes(t.Context())
	if err != nil || len(nodes) != 1 {
		t.Errorf("%+v, %v", nodes, err)
	}
	if err := join.Expel(t.Context(), admin, "b"); !errors.Is(err, etcd.ErrNoNode) {
		t.Errorf("%v", err)
	}
}
