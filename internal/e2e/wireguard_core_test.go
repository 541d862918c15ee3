package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestNoCoreFile has a daemon with a key crash where the kernel writes core files: it leaves none. Another program that
// crashes there does, or the test would show nothing.
func TestNoCoreFile(t *testing.T) {
	c := newEncrypted(t, "core")
	a := c.encrypted("a")
	c.configure()
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	c.ok(err)
	if strings.ContainsAny(string(pattern), "|/") {
		t.Logf("core files go to %q here, so nothing is shown; `sysctl kernel.core_pattern=core` has them where a program "+
			"runs", pattern)
		return
	}
	crash := func(name string, ready func(pid int) error, args ...string) (cores []string) {
		t.Helper()
		dir := t.TempDir()
		in := []string{"env", "-C", dir, "GOTRACEBACK=crash", "sh", "-c", `ulimit -c unlimited && exec "$@"`, "sh"}
		p, err := c.lab.Start(a.NS, name, append(in, args...)...)
		c.ok(err)
		c.eventually(func() error { return ready(p.Pid()) })
		c.ok(p.Signal(syscall.SIGABRT))
		_ = p.Wait(c.ctx) // says how it ended
		cores, err = filepath.Glob(filepath.Join(dir, "*"))
		c.ok(err)
		return cores
	}
	sleeps := func(pid int) error {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && string(comm) != "sleep\n" {
			err = fmt.Errorf("%w: %s runs", errNotYet, comm)
		}
		return err
	}
	if cores := crash("sleep", sleeps, "sleep", "100"); len(cores) != 1 {
		t.Fatalf("a program that crashes left %v, want a core file", cores)
	}
	answers := func(int) error {
		if _, err := a.Warren(c.ctx, "status"); err != nil {
			return fmt.Errorf("%w: %w", errNotYet, err)
		}
		return nil
	}
	if cores := crash("daemon", answers, warren(), "up", "--config", a.ConfigFile); len(cores) != 0 {
		t.Errorf("the daemon left %v", cores)
	}
	if _, err := a.Warren(c.ctx, "down"); err != nil {
		t.Error(err)
	}
}
