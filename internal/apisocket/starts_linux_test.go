package apisocket

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNotYet: a daemon that waits for its network has the lock and no socket yet.
func TestNotYet(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, Name)
	none := func(when string) {
		t.Helper()
		for _, err := range []error{os.ErrNotExist, syscall.ECONNREFUSED} {
			if text := Explain(socket, err).Error(); !strings.Contains(text, "no node daemon answers at "+socket) {
				t.Errorf("%s: %s", when, text)
			}
		}
	}
	none("without a lock file")
	f, err := os.Create(filepath.Join(dir, LockName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	none("with what a daemon left")
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("process %d has begun, and does not answer at %s yet", os.Getpid(), socket)
	if text := Explain(socket, os.ErrNotExist).Error(); !strings.Contains(text, want) {
		t.Errorf("with the lock held: %s", text)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	none("with the lock given back")
}

func TestHolder(t *testing.T) {
	const locks = "1: POSIX  ADVISORY  WRITE 7 00:19:42 0 EOF\n" +
		"2: FLOCK  ADVISORY  WRITE 8 00:19:421 0 EOF\n" +
		"2: -> FLOCK  ADVISORY  WRITE 9 00:19:42 0 EOF\n" +
		"nonsense\n" +
		"3: FLOCK  ADVISORY  WRITE 10 00:19:42 0 EOF\n"
	if got := holder(locks, "00:19:42"); got != 10 {
		t.Errorf("%d, want 10", got)
	}
	if got := holder(locks, "00:19:4"); got != 0 {
		t.Errorf("%d, want nobody", got)
	}
}
