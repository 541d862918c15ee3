package ipam

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy is the sentinel for a lock that another process kept for too long.
var ErrBusy = errors.New("another process holds the lock")

// flock takes an exclusive lock that ends when the returned file is closed or the process dies. The kernel serves
// waiters in order, so a blocking call is fairer to many processes than polling; it waits in a goroutine of its own
// because it can't be given a time limit.
func flock(path string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) {
		f, err = os.Open(path) // whoever only looks whether there is something to free can do without
	}
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	fd := int(f.Fd())
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
		return f, nil
	}
	locked, abandoned := make(chan error), make(chan struct{})
	go func() {
		err := unix.Flock(fd, unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(fd, unix.LOCK_EX)
		}
		select {
		case locked <- err:
		case <-abandoned:
			_ = f.Close()
		}
	}()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case err = <-locked:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		return f, nil
	case <-timer.C:
		close(abandoned)
		return nil, fmt.Errorf("%w: %s for %s; `lslocks` says which", ErrBusy, path, wait)
	}
}
