package e2e_test

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// TestServiceManagerIsTold plays the service manager of a unit with Type=notify: it hears when pods can talk and
// questions are answered, and when the end begins, and nothing from a start that fails.
func TestServiceManagerIsTold(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a, b := c.node("a"), c.node("b")
	c.configure()
	c.up(b)
	far := c.pod(b, "1")
	at := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	c.ok(err)
	defer conn.Close()
	start := func(name string) *lab.Proc {
		t.Helper()
		p, err := c.lab.Start(a.NS, name, "env", "NOTIFY_SOCKET="+at, warren(), "up", "--config", a.ConfigFile)
		c.ok(err)
		return p
	}
	hear := func(want string) {
		t.Helper()
		c.ok(conn.SetReadDeadline(time.Now().Add(20 * time.Second)))
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		c.ok(err)
		if string(buf[:n]) != want {
			t.Fatalf("the service manager was told %q, want %q", buf[:n], want)
		}
	}
	p := start("told")
	hear("READY=1")
	if _, err := a.Warren(c.ctx, "status"); err != nil {
		t.Errorf("ready, but it does not answer: %v", err)
	}
	c.ping(a.NS, far.V4, lab.Ping{Count: 1})

	second := start("second") // of one run directory, which is refused
	if err := second.Wait(c.ctx); err == nil {
		t.Error("a second daemon of one run directory has started")
	}
	c.ok(p.Signal(syscall.SIGTERM))
	hear("STOPPING=1")
	c.ok(p.Wait(c.ctx))
	c.ok(conn.SetReadDeadline(time.Now().Add(time.Millisecond)))
	if n, err := conn.Read(make([]byte, 100)); err == nil {
		t.Errorf("it was told something more, of %d bytes", n)
	}
}
