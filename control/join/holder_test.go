package join_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/join"
)

// ask asks the etcd for something that every node may read, with the certificate in dir.
func (s *site) ask(dir string) error {
	s.t.Helper()
	c := s.node(dir)
	defer c.Close()
	_, err := c.Settings(s.t.Context())
	return err
}

func (s *site) node(dir string) *etcd.Client {
	s.t.Helper()
	tlsConfig, err := join.Files(dir).Config()
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := etcd.NewClient(etcd.Config{Endpoints: []string{s.o.Client}, TLS: tlsConfig, Network: "test", Node: "x",
		StateDir: dir})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// users are those of the etcd that a host of that name has, or had.
func (s *site) users(name string) []string {
	s.t.Helper()
	resp, err := s.admin.Etcd().UserList(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return slices.DeleteFunc(resp.Users, func(u string) bool {
		return !strings.HasPrefix(strings.TrimPrefix(u, "member:"), name+"@")
	})
}

// hurry has the server's clock go on by a second with each question, so that it does not find there are too many.
func (s *site) hurry() {
	var asked atomic.Int64
	s.now = func() time.Time { return time.Now().Add(time.Duration(asked.Add(1)) * time.Second) }
}

// copyOf is what somebody has who took a host's certificates and keys.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	out := t.TempDir()
	if err := os.CopyFS(join.Dir(out), os.DirFS(join.Dir(dir))); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestOneNameAtOnce: of several hosts that want one name at the same moment, one gets it, and the others are told so
// and have lost nothing.
func TestOneNameAtOnce(t *testing.T) {
	s := newSite(t)
	s.hurry()
	one := s.at
	s.serve(s.ca, s.o.StateDir)
	at := []string{one, s.at}
	type outcome struct {
		dir string
		tok *join.Token
		err error
	}
	for round := range 20 {
		name, results := fmt.Sprintf("n%d", round), make(chan outcome)
		for i := range 4 {
			tok, dir := s.token(join.TokenOptions{Life: 24 * time.Hour}), t.TempDir()
			go func() {
				_, err := join.Join(t.Context(), join.Host{Address: at[i%2], Token: tok, Node: name, StateDir: dir})
				results <- outcome{dir, tok, err}
			}()
		}
		var won, lost []outcome
		for range 4 {
			switch o := <-results; {
			case o.err == nil:
				won = append(won, o)
			case errors.Is(o.err, join.ErrNameTaken):
				lost = append(lost, o)
			default:
				t.Error(o.err)
			}
		}
		if len(won) != 1 {
			t.Fatalf("%d hosts have the name %s", len(won), name)
		}
		if err := s.ask(won[0].dir); err != nil {
			t.Error(err)
		}
		for i, o := range lost {
			nothingIn(t, o.dir)
			if i > 0 {
				continue
			}
			if err := s.join(o.tok, name+"other", o.dir); err != nil {
				t.Errorf("its token was used for nothing: %v", err)
			}
		}
		if u := s.users(name); len(u) != 1 {
			t.Errorf("%v", u)
		}
	}
}

// TestReplaceAtOnce: several hosts that may take a name take it from each other, and one has it in the end.
func TestReplaceAtOnce(t *testing.T) {
	s := newSite(t)
	s.hurry()
	for round := range 10 {
		name, dirs, errs := fmt.Sprintf("n%d", round), make([]string, 4), make(chan error)
		for i := range dirs {
			dirs[i] = t.TempDir()
			tok := s.token(join.TokenOptions{Life: 24 * time.Hour, Replace: true})
			go func() { errs <- s.join(tok, name, dirs[i]) }()
		}
		for range dirs {
			if err := <-errs; err != nil && !errors.Is(err, join.ErrUnable) {
				t.Error(err)
			}
		}
		in := 0
		for _, dir := range dirs {
			if _, err := os.Stat(join.Files(dir).Cert); err != nil {
				continue // it was overtaken
			}
			switch err := s.ask(dir); {
			case err == nil:
				in++
			case !errors.Is(err, etcd.ErrDenied):
				t.Error(err)
			}
		}
		if u := s.users(name); in != 1 || len(u) != 1 {
			t.Fatalf("%d hosts have the name %s: %v", in, name, u)
		}
	}
}

// TestLostAnswer: a host that was let in and did not hear of it asks again, and nobody else gets its name meanwhile.
func TestLostAnswer(t *testing.T) {
	s := newSite(t)
	member, tok, dir := s.at, s.token(join.TokenOptions{}), t.TempDir()
	s.at = losesAnswers(t, member)
	err := s.join(tok, "n", dir)
	if err == nil || !strings.Contains(err.Error(), "try again with the same token") {
		t.Fatalf("%v", err)
	}
	was := s.users("n")
	if len(was) != 1 {
		t.Fatalf("it was not let in: %v", was)
	}
	s.at = member
	if err := s.join(s.token(join.TokenOptions{}), "n", t.TempDir()); !errors.Is(err, join.ErrNameTaken) {
		t.Errorf("another host: %v", err)
	}
	if err := s.join(tok, "n", dir); err != nil {
		t.Fatal(err)
	}
	if err := s.ask(dir); err != nil {
		t.Error(err)
	}
	// The host is running meanwhile: its connections to the etcd hold.
	running := s.node(dir)
	defer running.Close()
	for range 2 { // by the same token, and by a new one
		if _, err := running.Settings(t.Context()); err != nil {
			t.Error(err)
		}
		if err := s.join(tok, "n", dir); err != nil {
			t.Fatal(err)
		}
		tok = s.token(join.TokenOptions{})
	}
	if u := s.users("n"); !slices.Equal(u, was) {
		t.Errorf("%v instead of %v", u, was)
	}
}

// losesAnswers passes everything on to a member but what it answers after the handshake, when the connection breaks.
func losesAnswers(t *testing.T, member string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", member)
			if err != nil {
				client.Close()
				return
			}
			var shook, asked atomic.Bool // the server's part of the handshake passed, and the client spoke after it
			go func() {
				buf := make([]byte, 64<<10)
				for {
					n, err := client.Read(buf)
					asked.Store(asked.Load() || shook.Load())
					if _, werr := server.Write(buf[:n]); err != nil || werr != nil {
						server.Close()
						return
					}
				}
			}()
			go func() {
				defer client.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := server.Read(buf)
					if err != nil || asked.Load() {
						return
					}
					shook.Store(true)
					if _, err := client.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestKilledHalfWay: wherever the member was killed while it let a host in, the host comes in with its next try, and no
// other one. What the first try still does is too late.
func TestKilledHalfWay(t *testing.T) {
	s := newSite(t)
	for steps := range join.Steps {
		t.Run(fmt.Sprintf("after %d steps", steps), func(t *testing.T) {
			name, tok, dir := fmt.Sprintf("n%d", steps), s.token(join.TokenOptions{}), t.TempDir()
			slow, err := join.HalfJoin(t.Context(), s.admin, tok, name, dir, steps)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.join(s.token(join.TokenOptions{}), name, t.TempDir()); !errors.Is(err, join.ErrNameTaken) {
				t.Errorf("another host: %v", err)
			}
			if err := s.join(tok, name, dir); err != nil {
				t.Fatal(err)
			}
			was := s.users(name)
			if err := slow(); err == nil {
				t.Error("the first try got in as well")
			}
			if u := s.users(name); len(u) != 1 || !slices.Equal(u, was) {
				t.Errorf("%v instead of %v", u, was)
			}
			if err := s.ask(dir); err != nil {
				t.Error(err)
			}
			roles, err := s.admin.Etcd().RoleList(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			of := slices.DeleteFunc(roles.Roles, func(r string) bool { return !strings.HasPrefix(r, "node:"+name+"@") })
			if len(of) != 1 {
				t.Errorf("%v", of)
			}
		})
	}
	t.Run("and never came back", func(t *testing.T) {
		if _, err := join.HalfJoin(t.Context(), s.admin, s.token(join.TokenOptions{}), "gone", t.TempDir(), 3); err != nil {
			t.Fatal(err)
		}
		if err := join.Evict(t.Context(), s.admin, "gone"); err != nil {
			t.Fatal(err)
		}
		if u := s.users("gone"); len(u) != 0 {
			t.Errorf("%v", u)
		}
		if err := s.join(s.token(join.TokenOptions{}), "gone", t.TempDir()); err != nil {
			t.Error(err)
		}
	})
	t.Run("while it took a host out", func(t *testing.T) {
		dir, next := t.TempDir(), t.TempDir()
		if err := s.join(s.token(join.TokenOptions{}), "out", dir); err != nil {
			t.Fatal(err)
		}
		if err := join.HalfWithdraw(t.Context(), s.admin, "out"); err != nil {
			t.Fatal(err)
		}
		if err := s.join(s.token(join.TokenOptions{}), "out", next); err != nil {
			t.Fatal(err)
		}
		if err := s.ask(dir); !errors.Is(err, etcd.ErrDenied) {
			t.Errorf("the host that was taken out: %v", err)
		}
		if err := s.ask(next); err != nil {
			t.Error(err)
		}
	})
}

// TestOldCertificate: a certificate of a host that is out is worth nothing for ever, at the etcd and where hosts join,
// whoever has the name since.
func TestOldCertificate(t *testing.T) {
	s := newSite(t)
	refused := func(t *testing.T, old, now string) {
		t.Helper()
		c := s.node(old)
		defer c.Close()
		if _, err := c.Settings(t.Context()); !errors.Is(err, etcd.ErrDenied) {
			t.Errorf("it reads: %v", err)
		}
		for _, key := range []string{"nodes/n", "alive/n", "cidrs/x"} {
			if _, err := c.Etcd().Put(t.Context(), etcd.Prefix("test")+key, "x"); err == nil {
				t.Errorf("it writes %s", key)
			}
		}
		r := &join.Renewer{StateDir: old, Log: slog.New(slog.DiscardHandler),
			Now:   func() time.Time { return time.Now().Add(250 * 24 * time.Hour) },
			Joins: func(context.Context) ([]string, error) { return []string{s.at}, nil }}
		if err := r.Renew(t.Context()); !errors.Is(err, join.ErrRefused) {
			t.Errorf("it is renewed: %v", err)
		}
		if err := join.Leave(t.Context(), old, []string{s.at}); !errors.Is(err, join.ErrRefused) {
			t.Errorf("it takes the other host out: %v", err)
		}
		if err := s.ask(now); err != nil {
			t.Errorf("the host that has the name: %v", err)
		}
		r.StateDir = now
		if err := r.Renew(t.Context()); err != nil {
			t.Errorf("the host that has the name is not renewed: %v", err)
		}
		if err := s.ask(now); err != nil {
			t.Errorf("the host that has the name, renewed: %v", err)
		}
	}
	first, tok := t.TempDir(), s.token(join.TokenOptions{})
	if err := s.join(tok, "n", first); err != nil {
		t.Fatal(err)
	}
	if err := s.ask(first); err != nil {
		t.Fatal(err)
	}
	if err := join.Evict(t.Context(), s.admin, "n"); err != nil {
		t.Fatal(err)
	}
	if err := s.ask(first); !errors.Is(err, etcd.ErrDenied) {
		t.Errorf("%v", err)
	}
	second := t.TempDir()
	if err := s.join(s.token(join.TokenOptions{}), "n", second); err != nil {
		t.Fatal(err)
	}
	t.Run("after another host joined", func(t *testing.T) { refused(t, first, second) })
	third := t.TempDir()
	if err := s.join(s.token(join.TokenOptions{Replace: true}), "n", third); err != nil {
		t.Fatal(err)
	}
	t.Run("after a host took its place", func(t *testing.T) {
		refused(t, second, third)
		refused(t, first, third)
	})
	old := copyOf(t, third)
	if err := join.Evict(t.Context(), s.admin, "n"); err != nil {
		t.Fatal(err)
	}
	if err := s.join(s.token(join.TokenOptions{}), "n", third); err != nil {
		t.Fatal(err)
	}
	t.Run("after the same host joined again, with the same key", func(t *testing.T) { refused(t, old, third) })
	if u := s.users("n"); len(u) != 1 {
		t.Errorf("%v", u)
	}
}

// TestNames: long names do, and no name is another host's user.
func TestNames(t *testing.T) {
	s := newSite(t)
	long, dir := strings.Repeat("a", 253), t.TempDir()
	if err := s.join(s.token(join.TokenOptions{}), long, dir); err != nil {
		t.Fatal(err)
	}
	if err := s.ask(dir); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join(join.Dir(dir), "node.crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !strings.HasPrefix(c.Subject.CommonName, long+"@") {
		t.Errorf("%v, %v", c.Subject, err)
	}
	for _, name := range []string{"n@", "n@aaaaaaaaaaaaaaaa", c.Subject.CommonName[len(long)-1:], "member:n@x", "@n"} {
		if err := s.join(s.token(join.TokenOptions{}), name, t.TempDir()); err == nil {
			t.Errorf("joined as %q", name)
		}
	}
}

// TestTextOfOthers: what whoever answers says does not reach the terminal as more than text.
func TestTextOfOthers(t *testing.T) {
	s := newSite(t)
	tok := s.token(join.TokenOptions{})
	if err := s.join(tok, "n", t.TempDir()); err != nil {
		t.Fatal(err)
	}
	err := s.join(tok, "m", t.TempDir())
	if !errors.Is(err, join.ErrUsed) || !strings.Contains(err.Error(), tok.ID+", used by n:") {
		t.Errorf("it does not say which token was used: %v", err)
	}
	if got := join.PrintableText("a\x1b\u009b31m\u0085\u202e\n…é" + "日本"); got != "a??31m???…é日本" {
		t.Errorf("%q", got)
	}
}
