package worker

import "time"

// chanWaiter is the Waiter of tests: whoever makes something readable calls Wake.
type chanWaiter chan struct{}

func newChanWaiter() chanWaiter { return make(chanWaiter, 1) }

func (c chanWaiter) Wait(timeout time.Duration) error {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-c:
	case <-t.C:
	}
	return nil
}

func (c chanWaiter) Wake() {
	select {
	case c <- struct{}{}:
	default:
	}
}
