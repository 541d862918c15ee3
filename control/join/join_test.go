package join_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/etcdtest"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/control/join"
)

// A site is a network with one member, and a server that lets hosts in whose clock the test sets.
type site struct {
	t      *testing.T
	o      member.Options
	ca     *join.CA
	admin  *etcd.Client
	tokens *join.Tokens
	now    func() time.Time
	at     string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, now: time.Now, o: member.Options{Name: "first", Network: "test", StateDir: t.TempDir(),
		Log: slog.New(slog.DiscardHandler), Client: etcdtest.FreePort(t), Peer: etcdtest.FreePort(t),
		Join:   etcdtest.FreePort(t),
		Timing: member.Timing{Heartbeat: 50 * time.Millisecond, Election: 500 * time.Millisecond}}}
	settings := etcd.Settings{Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}
	err := member.Bootstrap(t.Context(), s.o, settings, func(context.Context, *etcd.Client) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	started, done := make(chan struct{}), make(chan error, 1)
	o := s.o
	o.Started = func() { close(started) }
	go func() { done <- member.Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-started:
	case <-time.After(time.Minute):
		t.Fatal("the member does not start")
	}
	if s.ca, err = join.LoadCA(s.o.StateDir); err != nil {
		t.Fatal(err)
	}
	if s.admin, err = member.Client(&s.o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.admin.Close() })
	s.tokens = join.NewTokens(s.admin)
	s.serve(s.ca, s.o.StateDir)
	return s
}

// serve lets hosts in at an address of its own, by the site's clock.
func (s *site) serve(ca *join.CA, stateDir string) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	srv := join.NewServer(join.ServerOptions{CA: ca, Client: s.admin, StateDir: stateDir,
		Now: func() time.Time { return s.now() }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	s.at = l.Addr().String()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	})
}

func (s *site) token(o join.TokenOptions) *join.Token {
	s.t.Helper()
	tok, err := s.tokens.New(s.t.Context(), s.ca, o)
	if err != nil {
		s.t.Fatal(err)
	}
	return tok
}

func (s *site) join(tok *join.Token, node, dir string) error {
	_, err := join.Join(s.t.Context(), join.Host{Address: s.at, Token: tok, Node: node, StateDir: dir})
	return err
}

// nothingIn checks that a refused try left nothing.
func nothingIn(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(join.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left in %s: %v, %v", join.Dir(dir), entries, err)
	}
}

func TestTokens(t *testing.T) {
	s := newSite(t)
	t.Run("works once, and again for the same host", func(t *testing.T) {
		tok, dir := s.token(join.TokenOptions{}), t.TempDir()
		for range 2 {
			if err := s.join(tok, "once", dir); err != nil {
				t.Fatal(err)
			}
		}
		other := t.TempDir()
		err := s.join(tok, "other", other)
		if !errors.Is(err, join.ErrUsed) || !strings.Contains(err.Error(), "by once") {
			t.Errorf("%v", err)
		}
		nothingIn(t, other)
		// A host of the same name without the key is another host.
		if err := s.join(tok, "once", t.TempDir()); !errors.Is(err, join.ErrNameTaken) && !errors.Is(err, join.ErrUsed) {
			t.Errorf("%v", err)
		}
		for name, mode := range map[string]os.FileMode{"node.key": 0o600, "node.crt": 0o600, "ca.crt": 0o600} {
			if st, err := os.Stat(filepath.Join(join.Dir(dir), name)); err != nil || st.Mode().Perm() != mode {
				t.Errorf("%s: %v, %v", name, st, err)
			}
		}
		if _, err := os.Stat(filepath.Join(join.Dir(dir), "ca.key")); err == nil {
			t.Error("a node got the authority's key")
		}
	})
	t.Run("several uses", func(t *testing.T) {
		tok := s.token(join.TokenOptions{Uses: 2})
		for i := range 3 {
			err := s.join(tok, fmt.Sprintf("several%d", i), t.TempDir())
			if i < 2 && err != nil || i == 2 && !errors.Is(err, join.ErrUsed) {
				t.Errorf("%d: %v", i, err)
			}
		}
	})
	t.Run("at the same moment", func(t *testing.T) {
		tok, errs := s.token(join.TokenOptions{}), make(chan error)
		for i := range 8 {
			go func() { errs <- s.join(tok, fmt.Sprintf("race%d", i), t.TempDir()) }()
		}
		in := 0
		for range 8 {
			if err := <-errs; err == nil {
				in++
			} else if !errors.Is(err, join.ErrUsed) {
				t.Error(err)
			}
		}
		if in != 1 {
			t.Errorf("%d hosts joined with a token for one", in)
		}
	})
	t.Run("wrong secret", func(t *testing.T) {
		tok := s.token(join.TokenOptions{})
		parts := strings.Split(tok.Reveal(), ".")
		secret := []byte(parts[2])
		secret[3] = map[bool]byte{true: 'b', false: 'a'}[secret[3] == 'a']
		parts[2] = string(secret)
		forged, err := join.ParseToken(strings.Join(parts, "."))
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		wrong := s.join(forged, "forger", dir)
		parts[1] = "aaaaaaaa" // a token that is not there
		if forged, err = join.ParseToken(strings.Join(parts, ".")); err != nil {
			t.Fatal(err)
		}
		absent := s.join(forged, "forger", dir)
		if !errors.Is(wrong, join.ErrWrongToken) || absent == nil || wrong.Error() != absent.Error() {
			t.Errorf("one can tell whether a token is there:\n%v\n%v", wrong, absent)
		}
		nothingIn(t, dir)
		// The same of one that has ended: only who has the secret hears of it.
		if err := s.tokens.Revoke(t.Context(), tok.ID); err != nil {
			t.Fatal(err)
		}
		parts[1] = tok.ID
		if forged, err = join.ParseToken(strings.Join(parts, ".")); err != nil {
			t.Fatal(err)
		}
		if err := s.join(forged, "forger", dir); err == nil || err.Error() != wrong.Error() {
			t.Errorf("%v", err)
		}
		if err := s.join(tok, "forger", dir); !errors.Is(err, join.ErrRevoked) {
			t.Errorf("%v", err)
		}
	})
	t.Run("expired, by the member's clock", func(t *testing.T) {
		tok := s.token(join.TokenOptions{Life: time.Hour})
		defer func() { s.now = time.Now }()
		s.now = func() time.Time { return time.Now().Add(61 * time.Minute) }
		err := s.join(tok, "late", t.TempDir())
		if !errors.Is(err, join.ErrExpired) || !strings.Contains(err.Error(), "by the member's clock") {
			t.Errorf("%v", err)
		}
		// A clock that is behind makes it last longer, and breaks nothing.
		s.now = func() time.Time { return time.Now().Add(-48 * time.Hour) }
		if err := s.join(tok, "late", t.TempDir()); err != nil {
			t.Error(err)
		}
	})
	t.Run("names", func(t *testing.T) {
		if err := s.join(s.token(join.TokenOptions{}), "first", t.TempDir()); !errors.Is(err, join.ErrNameTaken) {
			t.Errorf("a name that is there: %v", err)
		}
		if err := s.join(s.token(join.TokenOptions{}), "once", t.TempDir()); !errors.Is(err, join.ErrNameTaken) {
			t.Errorf("a name that is there: %v", err)
		}
		if err := s.join(s.token(join.TokenOptions{Replace: true}), "once", t.TempDir()); err != nil {
			t.Errorf("a name that may be replaced: %v", err)
		}
		for _, name := range []string{"", "root", "member:first", "a/b", strings.Repeat("a", 300)} {
			if err := s.join(s.token(join.TokenOptions{}), name, t.TempDir()); err == nil {
				t.Errorf("joined as %q", name)
			}
		}
	})
	t.Run("no members by a node's token", func(t *testing.T) {
		_, err := join.Join(t.Context(), join.Host{Address: s.at, Token: s.token(join.TokenOptions{}), Node: "climber",
			StateDir: t.TempDir(),
			Member:   &join.MemberAddresses{Client: "192.0.2.1:1", Peer: "192.0.2.1:2", Join: "192.0.2.1:3"}})
		if !errors.Is(err, join.ErrNotAllowed) {
			t.Errorf("%v", err)
		}
	})
	t.Run("limits", func(t *testing.T) {
		for _, o := range []join.TokenOptions{{Life: 25 * time.Hour}, {Life: -1}, {Uses: -1}} {
			if _, err := s.tokens.New(t.Context(), s.ca, o); err == nil {
				t.Errorf("%+v", o)
			}
		}
		list, err := s.tokens.List(t.Context())
		if err != nil || len(list) < 8 {
			t.Errorf("%d, %v", len(list), err)
		}
	})
}

// TestFalseServer has others answer at the member's address. None of them learns anything that it could use.
func TestFalseServer(t *testing.T) {
	s := newSite(t)
	tok := s.token(join.TokenOptions{Uses: 10})
	honest := s.at

	// A member of another network.
	otherDir := t.TempDir()
	other, err := join.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(other.Save(otherDir), other.Issue(otherDir, "first")); err != nil {
		t.Fatal(err)
	}
	s.serve(other, otherDir)
	dir := t.TempDir()
	if err := s.join(tok, "n", dir); !errors.Is(err, join.ErrFalseServer) {
		t.Errorf("another network's member: %v", err)
	}
	nothingIn(t, dir)

	// A node of the right network, which shows its own certificate with the right authority behind it.
	s.at = honest
	node := t.TempDir()
	if err := s.join(tok, "node", node); err != nil {
		t.Fatal(err)
	}
	files := join.Files(node)
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		heard <- b
	}()
	s.at = l.Addr().String()
	if err := s.join(tok, "n", dir); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a node that plays a member: %v", err)
	}
	if b := <-heard; len(b) > 0 {
		t.Errorf("it heard %q", b)
	}
	nothingIn(t, dir)

	// Somebody between the two, who hands the proof on: it is bound to the other TLS session. So there is nobody to try
	// but a member itself, whose TLS ends at another key: the first case.
	s.at = honest
	if err := s.join(tok, "n", dir); err != nil {
		t.Error(err)
	}
	// It is in this network now; a token of another one does not change that.
	s.at = "127.0.0.1:1"
	foreign, err := join.ParseToken(strings.Replace(tok.Reveal(), tok.Reveal()[len(tok.Reveal())-20:],
		strings.Repeat("a", 20), 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.join(foreign, "n", dir); !errors.Is(err, join.ErrOtherNetwork) {
		t.Errorf("%v", err)
	}
}

func TestTooManyTries(t *testing.T) {
	s := newSite(t)
	tok := s.token(join.TokenOptions{})
	text := tok.Reveal()
	forged, err := join.ParseToken(strings.Replace(text, tok.ID, "aaaaaaaa", 1))
	if err != nil {
		t.Fatal(err)
	}
	last := error(nil)
	for range 12 {
		last = s.join(forged, "guesser", t.TempDir())
	}
	if !errors.Is(last, join.ErrTooMany) {
		t.Errorf("%v", last)
	}
	if err := s.join(tok, "guesser", t.TempDir()); !errors.Is(err, join.ErrTooMany) {
		t.Errorf("the right one goes through, so guessing would: %v", err)
	}
	s.now = func() time.Time { return time.Now().Add(2 * time.Minute) }
	if err := s.join(tok, "guesser", t.TempDir()); err != nil {
		t.Error(err)
	}
}

func TestRenewal(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	if err := s.join(s.token(join.TokenOptions{}), "n", dir); err != nil {
		t.Fatal(err)
	}
	files := join.Files(dir)
	read := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	was, key := read(files.Cert), read(files.Key)
	r := &join.Renewer{StateDir: dir, Log: slog.New(slog.DiscardHandler),
		Joins: func(context.Context) ([]string, error) { return []string{"127.0.0.1:1", s.at}, nil }}
	if err := r.Renew(t.Context()); err != nil || read(files.Cert) != was {
		t.Errorf("renewed a certificate that is new: %v", err)
	}
	r.Now = func() time.Time { return time.Now().Add(250 * 24 * time.Hour) }
	if err := r.Renew(t.Context()); err != nil || read(files.Cert) == was || read(files.Key) != key {
		t.Errorf("%v", err)
	}
	if _, err := files.Config(); err != nil {
		t.Error(err)
	}

	// A member renews its own, for its server too.
	m := &join.Renewer{StateDir: s.o.StateDir, CA: s.ca, Log: r.Log, Now: r.Now}
	cert := read(join.MemberFiles(s.o.StateDir).Cert)
	if err := m.Renew(t.Context()); err != nil || read(join.MemberFiles(s.o.StateDir).Cert) == cert {
		t.Errorf("%v", err)
	}
	if err := s.join(s.token(join.TokenOptions{}), "after", t.TempDir()); err != nil {
		t.Error(err)
	}

	// One that was taken out gets no more.
	if err := join.Evict(t.Context(), s.admin, "n"); err != nil && !errors.Is(err, etcd.ErrNoNode) {
		t.Fatal(err)
	}
	if err := r.Renew(t.Context()); !errors.Is(err, join.ErrRefused) {
		t.Errorf("%v", err)
	}
}

// TestTokenOfOneThatWasTakenOut: who was taken out does not come back with the token that let it in, neither as itself
// nor in the place of the host that has its name since.
func TestTokenOfOneThatWasTakenOut(t *testing.T) {
	s := newSite(t)
	tok, dir := s.token(join.TokenOptions{}), t.TempDir()
	for range 2 {
		if err := s.join(tok, "n", dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := join.Evict(t.Context(), s.admin, "n"); err != nil && !errors.Is(err, etcd.ErrNoNode) {
		t.Fatal(err)
	}
	if err := s.join(tok, "n", dir); !errors.Is(err, join.ErrUsed) {
		t.Errorf("back as itself: %v", err)
	}
	if err := s.join(s.token(join.TokenOptions{}), "n", t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if err := s.join(tok, "n", dir); !errors.Is(err, join.ErrNameTaken) {
		t.Errorf("in another one's place: %v", err)
	}
}

// TestLeave has a node give back what it has.
func TestLeave(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	if err := s.join(s.token(join.TokenOptions{}), "n", dir); err != nil {
		t.Fatal(err)
	}
	if err := join.Leave(t.Context(), dir, []string{s.at}); err != nil {
		t.Fatal(err)
	}
	// The name is free, and its certificate is worth nothing.
	if err := join.Leave(t.Context(), dir, []string{s.at}); err == nil {
		t.Error("a node that is out left again")
	}
	if err := s.join(s.token(join.TokenOptions{}), "n", t.TempDir()); err != nil {
		t.Error(err)
	}
}

func TestTokenText(t *testing.T) {
	for _, bad := range []string{"", "x", "warren1", "warren1.a.b.c", "warren2.aaaaaaaa.aaaa.aaaa", "abc.012345678"} {
		if tok, err := join.ParseToken(bad); !errors.Is(err, join.ErrTokenFormat) {
			t.Errorf("%q: %v, %v", bad, tok, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("warren1.nh5jycv5.jjehwzfpsfqazyhuvxb444ky5m.u32hg54aqkrrzqcgxujh4gp5tbjygrazfenfgerigw7pg5zm5o3a")
	f.Add("warren1...")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := join.ParseToken(s)
		if err != nil {
			return
		}
		again, err := join.ParseToken(tok.Reveal())
		if err != nil || *again != *tok {
			t.Errorf("%q: %v, %v", s, again, err)
		}
		if strings.Contains(fmt.Sprint(tok), strings.Split(tok.Reveal(), ".")[2]) {
			t.Error("a log would have the secret")
		}
	})
}
