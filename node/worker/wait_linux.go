package worker

import (
	"time"

	"github.com/warren-net/warren/internal/poll"
)

// warmTime is how long after traffic a PollWaiter waits for more without giving its processor back to the Go runtime.
// Whoever comes back only after busyTime had traffic meanwhile.
const (
	warmTime = 100 * time.Millisecond
	busyTime = time.Millisecond
)

// PollWaiter is the Waiter of real descriptors.
type PollWaiter struct {
	*poll.Poller

	// Hold has the goroutine keep its P for warmTime after traffic; see poll.WaitHolding for what that asks of the
	// process. The idle round trip between pods was 0.57 times as long with it.
	Hold bool

	traffic time.Time // the last that is known of
	left    time.Time // the end of the last Wait
}

// Wait implements Waiter. Which descriptor is ready does not matter: the loop asks both sides anyway.
func (p *PollWaiter) Wait(timeout time.Duration) error {
	if !p.Hold {
		_, _, err := p.Poller.Wait(timeout)
		return err
	}
	now := time.Now()
	if now.Sub(p.left) > busyTime {
		p.traffic = now
	}
	wait := p.Poller.Wait
	if now.Sub(p.traffic) < warmTime {
		wait = p.WaitHolding
	}
	ready, _, err := wait(timeout)
	p.left = time.Now()
	if ready != 0 {
		p.traffic = p.left
	}
	return err
}
