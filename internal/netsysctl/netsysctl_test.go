package netsysctl_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/netsysctl"
	"golang.org/x/sys/unix"
)

const key = "ipv4/ip_forward"

// own puts the test's thread, which ends with the test, into namespaces of its own.
func own(t *testing.T) {
	t.Helper()
	lab.NeedRoot(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := netsysctl.Set(key, "0"); err != nil {
		t.Fatal(err)
	}
}

func TestSet(t *testing.T) {
	own(t)
	for _, was := range []string{"0", "1"} {
		if got, err := netsysctl.Set(key, "1"); got != was || err != nil {
			t.Errorf("it was %q (%v), want %q", got, err, was)
		}
		if got, err := netsysctl.Get(key); got != "1" || err != nil {
			t.Errorf("it is %q (%v), want 1", got, err)
		}
	}
	if _, err := netsysctl.Set(key, "forward"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a value that is none: %v", err)
	}
	_, setErr := netsysctl.Set("ipv4/no_such", "1")
	_, getErr := netsysctl.Get("ipv4/no_such")
	if !errors.Is(setErr, fs.ErrNotExist) || !errors.Is(getErr, fs.ErrNotExist) {
		t.Errorf("a setting that is not there: %v, %v", setErr, getErr)
	}
}

// mount puts source over the directory of the settings.
func mount(t *testing.T, source string, flags uintptr) {
	t.Helper()
	err := unix.Mount(source, netsysctl.Dir, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", netsysctl.Dir, "", unix.MS_BIND|unix.MS_REMOUNT|flags, "")
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestReadOnly(t *testing.T) {
	own(t)
	mount(t, netsysctl.Dir, unix.MS_RDONLY)
	if was, err := netsysctl.Set(key, "0"); was != "0" || err != nil {
		t.Errorf("the value that it has: %q, %v", was, err)
	}
	if _, err := netsysctl.Set(key, "1"); !errors.Is(err, unix.EROFS) {
		t.Errorf("another value: %v", err)
	}
	if netsysctl.Settable(key) {
		t.Error("it is said to be settable")
	}
}

// TestReadOnlyContainer is a container that is not privileged, with the host's settings at another place.
func TestReadOnlyContainer(t *testing.T) {
	own(t)
	host := t.TempDir()
	if err := unix.Mount(netsysctl.Dir, host, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(host, unix.MNT_DETACH) })
	mount(t, netsysctl.Dir, unix.MS_RDONLY)
	t.Setenv(netsysctl.WritableDirVar, host)
	if !netsysctl.Settable(key) {
		t.Error("it is said not to be settable")
	}
	if was, err := netsysctl.Set(key, "1"); was != "0" || err != nil {
		t.Errorf("it was %q (%v), want 0", was, err)
	}
	if got, err := netsysctl.Get(key); got != "1" || err != nil {
		t.Errorf("it is %q (%v), want 1", got, err)
	}
	if _, err := netsysctl.Set("ipv4/no_such", "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a setting that is not there: %v", err)
	}
}

// /dev/null takes what is written and forgets it, as some containers do.
func TestIgnored(t *testing.T) {
	own(t)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "ipv4"), 0o700); err != nil {
		t.Fatal(err)
	}
	null := filepath.Join(dir, key)
	if err := unix.Mknod(null, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	mount(t, dir, 0)
	if _, err := netsysctl.Set(key, "1"); err == nil || !strings.Contains(err.Error(), "after 1 was written") {
		t.Errorf("a write that was ignored: %v", err)
	}
}
