package join_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/join"
)

// TestTokenWithUsesLeft: who was taken out does not come back with a token that is good for others still.
func TestTokenWithUsesLeft(t *testing.T) {
	s := newSite(t)
	s.hurry()
	t.Run("taken out", func(t *testing.T) {
		tok, dir := s.token(join.TokenOptions{Uses: 10}), t.TempDir()
		if err := s.join(tok, "n", dir); err != nil {
			t.Fatal(err)
		}
		if err := join.Evict(t.Context(), s.admin, "n"); err != nil {
			t.Fatal(err)
		}
		if err := s.join(tok, "n", dir); !errors.Is(err, join.ErrUsed) || !strings.Contains(err.Error(), "taken out") {
			t.Errorf("as itself: %v", err)
		}
		if err := s.join(tok, "m", dir); !errors.Is(err, join.ErrUsed) {
			t.Errorf("by another name: %v", err)
		}
		if err := s.join(tok, "n", t.TempDir()); !errors.Is(err, join.ErrUsed) {
			t.Errorf("with another key: %v", err)
		}
		if err := s.ask(dir); !errors.Is(err, etcd.ErrDenied) {
			t.Errorf("its certificate: %v", err)
		}
		if err := s.join(tok, "o", t.TempDir()); err != nil {
			t.Errorf("another host: %v", err)
		}
		if err := s.join(s.token(join.TokenOptions{}), "n", dir); err != nil {
			t.Errorf("with a new token: %v", err)
		}
	})
	t.Run("not to be trusted any more", func(t *testing.T) {
		tok, other, dir := s.token(join.TokenOptions{Uses: 10}), s.token(join.TokenOptions{Uses: 2}), t.TempDir()
		if err := s.join(tok, "bad", dir); err != nil {
			t.Fatal(err)
		}
		stays := t.TempDir()
		for _, tok := range []*join.Token{tok, other} {
			if err := s.join(tok, "good", stays); err != nil {
				t.Fatal(err)
			}
		}
		if err := join.Expel(t.Context(), s.admin, "bad"); err != nil {
			t.Fatal(err)
		}
		if err := s.join(tok, "bad", dir); !errors.Is(err, join.ErrRevoked) {
			t.Errorf("as itself: %v", err)
		}
		if err := s.join(tok, "p", t.TempDir()); !errors.Is(err, join.ErrRevoked) {
			t.Errorf("by another name, with another key: %v", err)
		}
		if err := s.ask(dir); !errors.Is(err, etcd.ErrDenied) {
			t.Errorf("its certificate: %v", err)
		}
		if err := s.ask(stays); err != nil {
			t.Errorf("the host that came with the same token: %v", err)
		}
		if err := s.join(other, "q", t.TempDir()); err != nil {
			t.Errorf("with a token that it never used: %v", err)
		}
	})
}

// TestReplacedHost: who lost its name to another host does not take it back with the token that it came with.
func TestReplacedHost(t *testing.T) {
	s := newSite(t)
	for _, uses := range []int{1, 10} {
		o := join.TokenOptions{Replace: true, Uses: uses}
		tok, lost, has := s.token(o), t.TempDir(), t.TempDir()
		for range 2 {
			if err := s.join(tok, "n", lost); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.join(s.token(o), "n", has); err != nil {
			t.Fatal(err)
		}
		if err := s.join(tok, "n", lost); !errors.Is(err, join.ErrUsed) || !strings.Contains(err.Error(), "took its place") {
			t.Errorf("%d uses: %v", uses, err)
		}
		if err := s.ask(has); err != nil {
			t.Errorf("%d uses, the host that has the name: %v", uses, err)
		}
		if err := s.ask(lost); !errors.Is(err, etcd.ErrDenied) {
			t.Errorf("%d uses, the host that had it: %v", uses, err)
		}
		if err := s.join(s.token(o), "n", lost); err != nil {
			t.Errorf("%d uses, with a new token: %v", uses, err)
		}
	}
}
