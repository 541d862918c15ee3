package tun

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A descriptor is a file descriptor that may be closed beside its use: the number is given back to the kernel only when
// nobody is in a system call with it, or that call could hit a file that got the same number meanwhile.
type descriptor struct {
	n     int
	users atomic.Int64 // system calls in progress, and closing
}

// closing is added to users by close. It is far beyond any number of users.
const closing = 1 << 32

// use announces a system call; false when the descriptor is closed. Every use that is true needs a done.
func (d *descriptor) use() bool {
	if d.users.Add(1) < closing {
		return true
	}
	d.done() // it may be up to us to release it: an earlier user that saw our addition did not
	return false
}

// done ends a use.
func (d *descriptor) done() {
	if d.users.Add(-1) == closing {
		_ = d.release()
	}
}

// close closes the descriptor now, or as soon as it is not in use. A second call does nothing.
func (d *descriptor) close() error {
	for {
		users := d.users.Load()
		if users >= closing {
			return nil
		}
		if d.users.CompareAndSwap(users, users+closing) {
			if users == 0 {
				return d.release()
			}
			return nil
		}
	}
}

// release gives the number back, once.
func (d *descriptor) release() error {
	if !d.users.CompareAndSwap(closing, 2*closing) {
		return nil // a use that came too late is just leaving again, and its done releases
	}
	return unix.Close(d.n)
}
