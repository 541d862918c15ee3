package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

type fake struct{ podsErr error }

func (fake) Status() Status {
	return Status{
		Node: "a", Device: Device{Name: "warren0", Queues: 2, MTU: 1420},
		Snapshot: Snapshot{Generation: 7}, LastReload: &Reload{Error: "bad"}, Warnings: []string{"w"},
	}
}

func (fake) Peers() []Peer {
	seen := time.Unix(1, 0).UTC()
	return []Peer{{Name: "b", Endpoint: netip.MustParseAddrPort("[2001:db8::2]:4789"), LastSeen: &seen}}
}
func (fake) Routes() []Route { return nil }
func (f fake) Pods() ([]Pod, error) {
	return []Pod{{ContainerID: "c", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}}, f.podsErr
}
func (fake) Drops() []Drop { return []Drop{{Reason: "truncated", Count: 3, Meaning: "m"}} }

func serve(t *testing.T, path string, src Source) {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(Handler(src))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
}

func TestQuestions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path, fake{})
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	c, ctx := NewClient(path), context.Background()
	if s, err := c.Status(ctx); err != nil || !reflect.DeepEqual(s, fake{}.Status()) {
		t.Errorf("%+v, %v", s, err)
	}
	if p, err := c.Peers(ctx); err != nil || !reflect.DeepEqual(p, fake{}.Peers()) {
		t.Errorf("%+v, %v", p, err)
	}
	if r, err := c.Routes(ctx); err != nil || r == nil || len(r) != 0 {
		t.Errorf("an empty list is %#v, %v", r, err)
	}
	if p, err := c.Pods(ctx); err != nil || len(p) != 1 || p[0].ContainerID != "c" {
		t.Errorf("%+v, %v", p, err)
	}
	if d, err := c.Drops(ctx); err != nil || !reflect.DeepEqual(d, fake{}.Drops()) {
		t.Errorf("%+v, %v", d, err)
	}
	if err := c.get(ctx, "nonsense", nil); err == nil || !strings.Contains(err.Error(), "no such question") {
		t.Error(err)
	}
}

func TestQuestionThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path, fake{podsErr: errors.New("the records are unreadable")})
	if _, err := NewClient(path).Pods(context.Background()); err == nil || !strings.Contains(err.Error(),
		"the records are unreadable") {
		t.Error(err)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	absent, stale := filepath.Join(dir, "absent"), filepath.Join(dir, "stale")
	makeStale(t, stale)
	for _, path := range []string{absent, stale} {
		_, err := NewClient(path).Status(context.Background())
		if err == nil || !strings.Contains(err.Error(), "no node daemon answers at "+path+"; start it with `warren up`") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// makeStale leaves a socket as a killed process does.
func makeStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	makeStale(t, stale)
	l, err := Listen(stale)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	if _, err := Listen(stale); !errors.Is(err, ErrInUse) {
		t.Errorf("live socket: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("plain file: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, "no", "dir")); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no directory: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestNoAnswer: whoever takes connections and says nothing, or half of it, is named when the time is over.
func TestNoAnswer(t *testing.T) {
	for name, says := range map[string]string{
		"nothing": "", "half an answer": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
	} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			c, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = c.Read(make([]byte, 1000)) // the question: an answer before it is none
			_, _ = c.Write([]byte(says))
			_, _ = io.Copy(io.Discard, c) // until the client hangs up
			_ = c.Close()
		})
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		_, err = NewClient(path).Status(ctx)
		want := fmt.Sprintf("does not answer: its process %d hangs", os.Getpid())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		cancel()
		serving.Wait()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
