package join_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

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

// TestRegisteredAgain: a node that comes up while it is taken out leaves no record, and neither does its sign of life.
func TestRegisteredAgain(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	if err := s.join(s.token(join.TokenOptions{}), "n", dir); err != nil {
		t.Fatal(err)
	}
	c := s.node(dir)
	defer c.Close()
	kv, prefix := c.Etcd(), etcd.Prefix("test")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := kv.Put(ctx, prefix+"nodes/n", "x"); err != nil {
		t.Fatal(err)
	}
	watch := kv.Watch(ctx, prefix+"nodes/n", clientv3.WithCreatedNotify())
	if got := <-watch; !got.Created {
		t.Fatalf("%+v", got)
	}
	again := make(chan error, 1)
	go func() {
		<-watch // the record's end
		_, err := kv.Txn(ctx).Then(clientv3.OpPut(prefix+"nodes/n", "x"), clientv3.OpPut(prefix+"alive/n", "x")).Commit()
		again <- err
	}()
	if err := join.Evict(ctx, s.admin, "n"); err != nil {
		t.Error(err)
	}
	if err := <-again; err != nil {
		t.Fatalf("it came too late to register again: %v", err)
	}
	for _, key := range []string{"nodes/n", "alive/n"} {
		if got, err := s.admin.Etcd().Get(ctx, prefix+key); err != nil || len(got.Kvs) != 0 {
			t.Errorf("%s: %v, %v", key, got, err)
		}
	}
}

// TestHalfDone: a host that was given its name is told of no refusal, after which it would throw its key away.
func TestHalfDone(t *testing.T) {
	for _, refusal := range []error{join.ErrNameTaken, join.ErrRefused, join.ErrUnable} {
		err := join.HalfDone(fmt.Errorf("%w: why", refusal))
		if !errors.Is(err, join.ErrUnable) || refusal != join.ErrUnable && errors.Is(err, refusal) ||
			!strings.Contains(err.Error(), "why") {
			t.Errorf("%v", err)
		}
	}
	if err := join.HalfDone(nil); err != nil {
		t.Error(err)
	}
}
