package worker

import (
	"sync/atomic"
	"time"
)

// chanWaiter is the Waiter of tests: whoever makes something readable tells it. It does not know what that is, so it
// says that everything is ready in all lanes that it waits for.
type chanWaiter struct {
	woken   chan struct{}
	watched *atomic.Uint32
}

func newChanWaiter(lanes int) chanWaiter {
	c := chanWaiter{woken: make(chan struct{}, 1), watched: new(atomic.Uint32)}
	c.watched.Store(1<<lanes - 1)
	return c
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
	all := c.watched.Load()
	return Ready{Queues: all, Sockets: all, Secure: all}, nil
}

// Watch implements Waiter. What the lane has already, the next Wait says.
func (c chanWaiter) Watch(lane int, on bool) error {
	if !on {
		c.watched.And(^(uint32(1) << lane))
		return nil
	}
	c.watched.Or(1 << lane)
	c.Wake()
	return nil
}

// tell says that there is something in a lane, to whoever waits for it.
func (c chanWaiter) tell(lane int) {
	if c.watched.Load()&(1<<lane) != 0 {
		c.Wake()
	}
}

func (c chanWaiter) Wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}
