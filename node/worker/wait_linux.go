package worker

import (
	"time"

	"github.com/warren-net/warren/internal/poll"
)

// PollWaiter is the Waiter of real descriptors.
type PollWaiter struct {
	*poll.Poller
}

// Wait implements Waiter. Which descriptor is ready does not matter: the loop asks both sides anyway.
func (p PollWaiter) Wait(timeout time.Duration) error {
	_, _, err := p.Poller.Wait(timeout)
	return err
}
