package worker

import (
	"errors"
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

	Lanes [][]poll.FD // descriptors by lane, for Watch

	// Hold has the goroutine keep its P for warmTime after traffic; see poll.WaitHolding for what that asks of the
	// process. The idle round trip between pods was 0.57 times as long with it.
	Hold bool

	traffic time.Time // the last that is known of
	left    time.Time // the end of the last Wait
}

// QueueBit is the poller's bit for the queue of lane k.
func QueueBit(k int) int { return k }

// SocketBit is the poller's bit for the descriptors of lane k's socket.
func SocketBit(k int) int { return MaxLanes + k }

// SecureBit is the poller's bit for the descriptors of lane k's socket of the encrypted tunnel.
func SecureBit(k int) int { return 2*MaxLanes + k }

// Watch implements Waiter.
func (p *PollWaiter) Watch(lane int, on bool) error {
	for i, fd := range p.Lanes[lane] {
		if !on {
			if err := p.Remove(fd); err != nil {
				return err
			}
			continue
		}
		if err := p.Add(fd); err != nil {
			for _, added := range p.Lanes[lane][:i] {
				err = errors.Join(err, p.Remove(added))
			}
			return err
		}
	}
	return nil
}

// Wait implements Waiter.
func (p *PollWaiter) Wait(timeout time.Duration) (Ready, error) {
	if timeout == 0 { // does not block, so the runtime need not know
		ready, _, err := p.WaitHolding(0)
		return readyOf(ready), err
	}
	if !p.Hold {
		ready, _, err := p.Poller.Wait(timeout)
		return readyOf(ready), err
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
	return readyOf(ready), err
}

func readyOf(bits uint64) Ready {
	const lanes = 1<<MaxLanes - 1
	return Ready{
		Queues:  uint32(bits & lanes),
		Sockets: uint32(bits >> MaxLanes & lanes),
		Secure:  uint32(bits >> (2 * MaxLanes) & lanes),
	}
}
