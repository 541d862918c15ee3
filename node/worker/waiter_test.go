package worker

import "time"

// chanWaiter is the Waiter of tests: whoever makes something readable calls Wake. It does not know who that is, so it
// says that all lanes are ready.
type chanWaiter struct {
	woken chan struct{}
	all   uint32
}

func newChanWaiter(lanes int) chanWaiter {
	return chanWaiter{woken: make(chan struct{}, 1), all: 1<<lanes - 1}
}

func (c chanWaiter) Wait(timeout time.Duration) (Ready, error) {
	if timeout == 0 {
		select {
		case <-c.woken:
		default:
			return Ready{}, nil
		}
	} else {
		t := time.NewTimer(timeout)
		defer t.Stop()
		select {
		case <-c.woken:
		case <-t.C:
		}
	}
	return Ready{Queues: c.all, Sockets: c.all, Secure: c.all}, nil
}

// Watch does nothing: the worker leaves out what is not its own.
func (c chanWaiter) Watch(int, bool) error { return nil }

func (c chanWaiter) Wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}
