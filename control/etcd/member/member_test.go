package member_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/etcdtest"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/join"
)

const patience = 60 * time.Second

func settings() etcd.Settings {
	return etcd.Settings{Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/20")}}
}

// A host is one of a test: a state directory and a name.
type host struct {
	t    *testing.T
	o    member.Options
	stop context.CancelFunc
	done chan error
}

func newHost(t *testing.T, name string) *host {
	return &host{t: t, o: member.Options{Name: name, Network: "test", StateDir: t.TempDir(),
		Log: slog.New(slog.DiscardHandler), Client: etcdtest.FreePort(t), Peer: etcdtest.FreePort(t),
		Join: etcdtest.FreePort(t), Timing: member.Timing{Heartbeat: 50 * time.Millisecond,
			Election: 500 * time.Millisecond, Retry: 50 * time.Millisecond}}}
}

// first makes a network with the host as its first member, and returns what was made in it.
func first(t *testing.T, name string) *host {
	t.Helper()
	h := newHost(t, name)
	err := member.Bootstrap(t.Context(), h.o, settings(), func(context.Context, *etcd.Client) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	h.run()
	return h
}

// run runs the member until the test ends or it is killed.
func (h *host) run() {
	h.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	h.stop, h.done = stop, make(chan error, 1)
	started := make(chan struct{})
	o := h.o
	o.Started = func() { close(started) }
	go func() { h.done <- member.Run(ctx, o) }()
	h.t.Cleanup(h.end)
	select {
	case <-started:
	case err := <-h.done:
		h.done <- err
		h.t.Fatalf("%s: %v", h.o.Name, err)
	case <-time.After(patience):
		h.t.Fatalf("%s does not start", h.o.Name)
	}
}

func (h *host) end() {
	h.stop()
	select {
	case err := <-h.done:
		h.done <- err
	case <-time.After(patience):
		h.t.Errorf("%s does not end", h.o.Name)
	}
}

// admin is a client with the rights of a member.
func (h *host) admin() *etcd.Client {
	h.t.Helper()
	c, err := member.Client(&h.o)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

func (h *host) token(o join.TokenOptions) *join.Token {
	h.t.Helper()
	ca, err := join.LoadCA(h.o.StateDir)
	if err != nil {
		h.t.Fatal(err)
	}
	tok, err := join.NewTokens(h.admin()).New(h.t.Context(), ca, o)
	if err != nil {
		h.t.Fatal(err)
	}
	return tok
}

// joinAt has the host ask the member at first, again where it does not let hosts in yet.
func (h *host) joinAt(first *host, tok *join.Token, m *join.MemberAddresses) (*join.Joined, error) {
	h.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		got, err := join.Join(h.t.Context(), join.Host{Address: first.o.Join, Token: tok, Node: h.o.Name,
			StateDir: h.o.StateDir, Member: m})
		if err != nil && strings.Contains(err.Error(), "connection refused") && time.Now().Before(end) {
			continue
		}
		return got, err
	}
}

// node is the configuration of the host's source.
func (h *host) node(endpoints ...string) etcd.Config {
	h.t.Helper()
	tlsConfig, err := join.Files(h.o.StateDir).Config()
	if err != nil {
		h.t.Fatal(err)
	}
	return etcd.Config{Endpoints: endpoints, TLS: tlsConfig, Network: "test", Node: h.o.Name, StateDir: h.o.StateDir,
		FollowMembers: true, AliveTTL: 5 * time.Second, Retry: 50 * time.Millisecond, MaxRetry: 300 * time.Millisecond,
		Timeout: 2 * time.Second}
}

// A daemon stands in for the node daemon.
type daemon struct {
	t        *testing.T
	source   *etcd.Source
	updates  chan control.Update
	problems chan error
	nodes    map[string]control.Node
	gone     int
}

func follow(t *testing.T, cfg etcd.Config, address string) *daemon {
	t.Helper()
	s, err := etcd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	d := &daemon{t: t, source: s, updates: make(chan control.Update, 1000), problems: make(chan error, 1000),
		nodes: map[string]control.Node{}}
	go func() { done <- s.Run(ctx, d.updates, func(err error) { d.problems <- err }) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	s.Publish(control.Node{Addresses: []netip.Addr{netip.MustParseAddr(address)}})
	return d
}

func (d *daemon) until(what string, ok func() bool) {
	d.t.Helper()
	late := time.After(patience)
	for !ok() {
		select {
		case u := <-d.updates:
			if u.Whole {
				clear(d.nodes)
			}
			for _, n := range u.Nodes {
				d.nodes[n.Name] = n
			}
			for _, name := range u.Gone {
				delete(d.nodes, name)
				d.gone++
			}
		case <-late:
			var last error
			for len(d.problems) > 0 {
				last = <-d.problems
			}
			d.t.Fatalf("no %s; knows %v; problem %v", what, d.nodes, last)
		}
	}
}

func (d *daemon) problem(ok func(error) bool) error {
	d.t.Helper()
	late := time.After(patience)
	for {
		select {
		case err := <-d.problems:
			if ok(err) {
				return err
			}
		case <-late:
			d.t.Fatal("no such problem")
		}
	}
}

// TestInitAndJoin is the whole way: a first host, one that joins, and what that may and may not do.
func TestInitAndJoin(t *testing.T) {
	a := first(t, "a")
	b := newHost(t, "b")
	got, err := b.joinAt(a, a.token(join.TokenOptions{}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Network != "test" || len(got.Endpoints) != 1 || got.Endpoints[0] != a.o.Client {
		t.Errorf("%+v", got)
	}
	da := follow(t, a.node(a.o.Client), "192.0.2.1")
	db := follow(t, b.node(got.Endpoints...), "192.0.2.2")
	for _, d := range []*daemon{da, db} {
		d.until("both", func() bool { return len(d.nodes["a"].PodCIDRs) == 1 && len(d.nodes["b"].PodCIDRs) == 1 })
	}

	// b may not write what is a's, nor change the etcd.
	c, err := etcd.NewClient(b.node(a.o.Client))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for what, do := range map[string]func() error{
		"a's record":   func() error { _, err := c.Etcd().Put(t.Context(), etcd.Prefix("test")+"nodes/a", "x"); return err },
		"a's end":      func() error { _, err := c.Etcd().Delete(t.Context(), etcd.Prefix("test")+"nodes/a"); return err },
		"settings":     func() error { _, err := c.Etcd().Put(t.Context(), etcd.Prefix("test")+"settings", "x"); return err },
		"tokens":       func() error { _, err := c.Etcd().Put(t.Context(), etcd.Prefix("test")+"tokens/x", "x"); return err },
		"outside":      func() error { _, err := c.Etcd().Get(t.Context(), "/else"); return err },
		"members":      func() error { _, err := c.Etcd().MemberAdd(t.Context(), []string{"https://192.0.2.9:1"}); return err },
		"users":        func() error { _, err := c.Etcd().UserAdd(t.Context(), "eve", "x"); return err },
		"a's lease":    func() error { _, err := c.Etcd().Put(t.Context(), etcd.Prefix("test")+"leased/a", "x"); return err },
		"a's liveness": func() error { _, err := c.Etcd().Put(t.Context(), etcd.Prefix("test")+"alive/a", "x"); return err },
	} {
		if err := do(); err == nil || !errors.Is(c.Explain(err), etcd.ErrDenied) {
			t.Errorf("%s: %v, want %v", what, c.Explain(err), etcd.ErrDenied)
		}
	}

	// Who has no certificate of the network gets nowhere.
	bare := b.node(a.o.Client)
	other := newHost(t, "b")
	ca, err := join.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ca.Save(other.o.StateDir), ca.Issue(other.o.StateDir, "b")); err != nil {
		t.Fatal(err)
	}
	bare.TLS, err = join.Files(other.o.StateDir).Config()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := etcd.NewClient(bare)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.Settings(t.Context()); !errors.Is(err, etcd.ErrUnreachable) ||
		!strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v", err)
	}

	// b is taken out: its certificate is worth nothing then.
	if err := join.Withdraw(t.Context(), a.admin(), "b"); err != nil {
		t.Fatal(err)
	}
	db.source.Publish(control.Node{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.3")}})
	_ = db.problem(func(err error) bool { return errors.Is(err, etcd.ErrDenied) })
}

// TestThreeMembers promotes two hosts, loses one member, then the quorum, and gets it back.
func TestThreeMembers(t *testing.T) {
	a := first(t, "a")
	hosts := []*host{a}
	for _, name := range []string{"b", "c"} {
		h := newHost(t, name)
		h.admit(a)
		h.run() // until it votes
		hosts = append(hosts, h)
	}
	list, err := member.List(t.Context(), a.admin())
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, m := range list {
		if m.Learner || m.Problem != "" {
			t.Errorf("%+v", m)
		}
	}

	// A node that knew the first member alone goes on through the others.
	n := newHost(t, "n")
	got, err := n.joinAt(hosts[1], a.token(join.TokenOptions{}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Endpoints) != 3 {
		t.Errorf("%v", got.Endpoints)
	}
	d := follow(t, n.node(a.o.Client), "192.0.2.9")
	d.until("itself", func() bool { return len(d.nodes["n"].PodCIDRs) == 1 })
	was := d.nodes["n"]
	move := func(i int) {
		t.Helper()
		d.source.Publish(control.Node{Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i))}})
	}
	at := func(i int) func() bool {
		return func() bool { return d.nodes["n"].Addresses[0].String() == fmt.Sprintf("192.0.2.%d", i) }
	}
	a.end()
	move(10)
	d.until("news without the first member", at(10))

	// The second one away is the quorum.
	hosts[1].end()
	move(11)
	_ = d.problem(func(err error) bool { return errors.Is(err, etcd.ErrNoQuorum) || errors.Is(err, etcd.ErrUnreachable) })
	hosts[1].run()
	d.until("news after the quorum is back", at(11))
	_ = d.problem(func(err error) bool { return err == nil })
	if d.gone > 0 || d.nodes["n"].PodCIDRs[0] != was.PodCIDRs[0] {
		t.Errorf("%d were gone; was %+v, is %+v", d.gone, was, d.nodes["n"])
	}
	a.run()

	// One is taken out.
	if err := member.Demote(t.Context(), a.admin(), "c"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-hosts[2].done:
		hosts[2].done <- err
		if !errors.Is(err, member.ErrRemoved) {
			t.Errorf("%v", err)
		}
	case <-time.After(patience):
		t.Error("the member that was taken out runs on")
	}
	if err := member.Demote(t.Context(), a.admin(), "c"); !errors.Is(err, member.ErrNoMember) {
		t.Errorf("%v", err)
	}
	if err := member.Demote(t.Context(), a.admin(), "b"); err != nil {
		t.Fatal(err)
	}
	if err := member.Demote(t.Context(), a.admin(), "a"); !errors.Is(err, member.ErrLastMember) {
		t.Errorf("%v", err)
	}
}

// TestLateStart holds that members which were admitted one after the other, and started late, are members of the one
// etcd: a start that failed must not have the next one begin an etcd of its own, which is empty.
func TestLateStart(t *testing.T) {
	a := first(t, "a")
	hosts := map[string]*host{}
	for _, name := range []string{"b", "c"} {
		h := newHost(t, name)
		got, err := h.joinAt(a, a.token(join.TokenOptions{Member: true}),
			&join.MemberAddresses{Client: h.o.Client, Peer: h.o.Peer, Join: h.o.Join})
		if err != nil {
			t.Fatal(err)
		}
		h.o.FirstPeers, h.o.Others, hosts[name] = got.Peers, got.Endpoints, h
	}
	list, err := member.List(t.Context(), a.admin())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if m.Name == "" || m.Name != "a" && m.Problem == "" {
			t.Errorf("%+v", m)
		}
	}

	// The first start of b fails: nobody else is there.
	b := hosts["b"]
	a.end()
	if err := member.Run(t.Context(), b.o); err == nil {
		t.Fatal("it started without the others")
	}
	if member.HasData(b.o.StateDir) {
		t.Error("what a start that failed left counts as data")
	}
	late := b.o
	late.FirstPeers = nil
	if err := member.Run(t.Context(), late); err == nil {
		t.Fatal("it began an etcd of its own")
	}
	a.run()
	b.run()
	if err := member.Demote(t.Context(), a.admin(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := member.Run(t.Context(), hosts["c"].o); !errors.Is(err, member.ErrRemoved) {
		t.Errorf("%v", err)
	}
	list, err = member.List(t.Context(), b.admin())
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, m := range list {
		if m.Learner || m.Problem != "" {
			t.Errorf("%+v", m)
		}
	}
}

// TestBootstrapAgain holds that a try which was killed half way can be repeated, and one that was not as well.
func TestBootstrapAgain(t *testing.T) {
	h := newHost(t, "a")
	failed := errors.New("half way")
	err := member.Bootstrap(t.Context(), h.o, settings(), func(context.Context, *etcd.Client) error { return failed })
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	hash := func() string {
		t.Helper()
		ca, err := join.LoadCA(h.o.StateDir)
		if err != nil {
			t.Fatal(err)
		}
		return string(ca.PEM())
	}
	was := hash()
	for range 2 {
		if err := member.Bootstrap(t.Context(), h.o, settings(), func(ctx context.Context, c *etcd.Client) error {
			_, err := c.Settings(ctx)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if hash() != was {
		t.Error("the authority is another one, so that tokens that were printed are worth nothing")
	}
	other := settings()
	other.NodePrefix4 = 26
	err = member.Bootstrap(t.Context(), h.o, other, func(context.Context, *etcd.Client) error { return nil })
	if !errors.Is(err, etcd.ErrOtherSettings) {
		t.Errorf("%v", err)
	}
	// A port that is taken is named.
	l, err := net.Listen("tcp", h.o.Client)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := member.Run(t.Context(), h.o); err == nil || !strings.Contains(err.Error(), "another process listens at") {
		t.Errorf("%v", err)
	}
	// So is the one where hosts join, which is tried when the etcd runs.
	o := newHost(t, "b").o
	o.Join = h.o.Client
	err = member.Bootstrap(t.Context(), o, settings(), func(ctx context.Context, c *etcd.Client) error {
		<-ctx.Done()
		return ctx.Err()
	})
	if err == nil || !strings.Contains(err.Error(), "let hosts in at "+o.Join) {
		t.Errorf("%v", err)
	}
}

// TestPeersAreMembers holds that a node's certificate opens no door to what members say to each other.
func TestPeersAreMembers(t *testing.T) {
	a := first(t, "a")
	b := newHost(t, "b")
	if _, err := b.joinAt(a, a.token(join.TokenOptions{}), nil); err != nil {
		t.Fatal(err)
	}
	get := func(f etcd.Files) error {
		t.Helper()
		cfg, err := f.Config()
		if err != nil {
			t.Fatal(err)
		}
		client := http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
		resp, err := client.Get("https://" + a.o.Peer + "/members")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
	if err := get(join.MemberFiles(a.o.StateDir)); err != nil {
		t.Errorf("a member's certificate: %v", err)
	}
	if err := get(join.Files(b.o.StateDir)); err == nil {
		t.Error("a node's certificate speaks as a peer")
	}
	if err := get(join.Files(a.o.StateDir)); err == nil {
		t.Error("a node's certificate speaks as a peer")
	}
}
