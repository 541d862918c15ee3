package node

import (
	"errors"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
)

// inEmptyNamespace calls f in a network namespace of its own, which goes with the thread that f ran on.
func inEmptyNamespace(t *testing.T, f func()) {
	t.Helper()
	lab.NeedRoot(t)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestSetUpAnewShows: what comes of setting the kernel up again shows, although the watch of the kernel, which finds
// the same soon after, has nothing new to say.
func TestSetUpAnewShows(t *testing.T) {
	c := newBigCluster(t, 1)
	w := c.writer
	inEmptyNamespace(t, w.setUpAnew)
	if w.hostError == "" {
		t.Fatal("a kernel without the device can be set up")
	}
	w.repaired(applied{lost: w.lost, err: errors.New(w.hostError), turn: w.hostTurn + 1})
	if !slices.Contains(c.warnings(), w.hostError) {
		t.Errorf("%q does not show: %q", w.hostError, c.warnings())
	}
}
