package member_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/member"
	"github.com/warren-net/warren/internal/lab"
)

// What has this program be something else than a run of all tests.
const (
	asMember = "WARREN_TEST_MEMBER" // a member's process
	inside   = "WARREN_TEST_INSIDE" // in a mount namespace of its own
)

func TestMain(m *testing.M) {
	if os.Getenv(asMember) == "" {
		os.Exit(m.Run())
	}
	if err := member.Serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A served is a host whose service runs, with the member in a process of its own.
type served struct {
	*host
	service *member.Service

	mu       sync.Mutex
	programs []*exec.Cmd
}

// serve makes a network with the host as its first member, and runs its service until the test ends.
func serve(t *testing.T, h *host) *served {
	t.Helper()
	err := member.Bootstrap(t.Context(), h.o, settings(), func(context.Context, *etcd.Client) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	s := &served{host: h}
	s.service, err = member.NewService(member.Setup{Node: h.o.Name, StateDir: h.o.StateDir, Log: h.o.Log,
		Program: s.program, Spec: etcd.Spec{Endpoints: []string{h.o.Client}, Network: h.o.Network, Embedded: true,
			ListenClients: h.o.Client, ListenPeers: h.o.Peer, ListenJoin: h.o.Join}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.service.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("the service does not end")
		}
		for _, p := range s.all() {
			if p.ProcessState == nil {
				t.Errorf("process %d is there still", p.Process.Pid)
			}
		}
	})
	return s
}

func (s *served) program() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asMember+"=1")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.programs = append(s.programs, cmd)
	return cmd
}

func (s *served) all() []*exec.Cmd {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*exec.Cmd(nil), s.programs...)
}

// until waits until the condition holds.
func (s *served) until(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("no %s; problems %q", what, s.service.Problems())
		}
	}
}

// put writes what the network does not look at.
func (s *served) put(c *etcd.Client, key, value string) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	_, err := c.Etcd().Put(ctx, etcd.Prefix("test")+key, value)
	return err
}

func (s *served) get(c *etcd.Client, key string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	resp, err := c.Etcd().Get(ctx, etcd.Prefix("test")+key)
	if err != nil || len(resp.Kvs) != 1 {
		return "", errors.Join(err, ctx.Err())
	}
	return string(resp.Kvs[0].Value), nil
}

// TestMemberIsKilled holds that a member's crash is its process's alone, and that it is started again with what it had.
func TestMemberIsKilled(t *testing.T) {
	s := serve(t, newHost(t, "a"))
	c := s.admin()
	s.until("write", func() bool { return s.put(c, "x", "1") == nil })
	first := s.all()[0]
	if err := first.Process.Signal(syscall.SIGTERM); err != nil { // which a service manager sends to all
		t.Fatal(err)
	}
	if err := s.put(c, "x", "2"); err != nil {
		t.Error(err)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	said := func() string { return strings.Join(s.service.Problems(), "") }
	s.until("problem", func() bool { return strings.Contains(said(), "its process ended: signal: killed") })
	s.until("second process", func() bool { return len(s.service.Problems()) == 0 })
	s.until("read", func() bool { v, err := s.get(c, "x"); return err == nil && v == "2" })
}

// TestLeftAlone holds that the process of a member ends with the daemon that it is of, whatever that died of.
func TestLeftAlone(t *testing.T) {
	h := newHost(t, "a")
	err := member.Bootstrap(t.Context(), h.o, settings(), func(context.Context, *etcd.Client) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	cmd := (&served{host: h}).program()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := json.NewEncoder(in).Encode(map[string]any{"options": h.o}); err != nil {
		t.Error(err)
	}
	lines := bufio.NewScanner(out)
	started := false
	for !started && lines.Scan() {
		started = strings.Contains(lines.Text(), `"event":"started"`)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
		continue // what it says at last
	}
	if err := cmd.Wait(); !started || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("started: %v; ended: %v", started, err)
	}
}

// TestDiskFull fills the disk up while a member runs. The node is told which directory it is, and the member goes on,
// with all that it had confirmed, when there is room again.
func TestDiskFull(t *testing.T) {
	lab.NeedRoot(t)
	if os.Getenv(inside) == "" {
		// The mount is gone with the process that sees it.
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^TestDiskFull$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	h := newHost(t, "a")
	if err := unix.Mount("tmpfs", h.o.StateDir, "tmpfs", 0, "size=170m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(h.o.StateDir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := serve(t, h)
	c := s.admin()
	s.until("write", func() bool { return s.put(c, "x", "1") == nil })

	fill, err := os.Create(filepath.Join(h.o.StateDir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = fill.Write(block)
	}
	if err := errors.Join(fill.Close(), func() error {
		if errors.Is(err, unix.ENOSPC) {
			return nil
		}
		return err
	}()); err != nil {
		t.Fatal(err)
	}
	if err := member.CheckSpace(filepath.Join(h.o.StateDir, "none", "yet")); err == nil ||
		!strings.Contains(err.Error(), "160 MiB are needed") {
		t.Errorf("%v", err)
	}
	wrote := 0
	for value := strings.Repeat("x", 100<<10); s.put(c, fmt.Sprintf("y%d", wrote), value) == nil; wrote++ {
		if wrote == 1000 {
			t.Fatal("the disk is not full")
		}
	}
	s.until("problem", func() bool {
		said := strings.Join(s.service.Problems(), "")
		return strings.Contains(said, "make room") && strings.Contains(said, h.o.StateDir)
	})
	t.Logf("%d writes, then: %s", wrote, s.service.Problems())
	processes := len(s.all())
	s.until("second try", func() bool { return len(s.all()) > processes })

	if err := os.Remove(fill.Name()); err != nil {
		t.Fatal(err)
	}
	s.until("new start", func() bool { return len(s.service.Problems()) == 0 })
	s.until("write", func() bool { return s.put(c, "z", "1") == nil })
	for i := range wrote {
		if v, err := s.get(c, fmt.Sprintf("y%d", i)); err != nil || len(v) != 100<<10 {
			t.Errorf("write %d of %d, which was confirmed: %d bytes, %v", i, wrote, len(v), err)
		}
	}
}
