package worker

import (
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-net/warren/forwarder"
)

// An Exchange is where the workers of one node give lanes to each other: those in which little happens to the express
// worker, all others back to who they belong to.
//
// A worker with large transfers has work all the time. It gets its share of the processors and waits for the next one
// for milliseconds, and with it everything in its lanes, as an echo that has a lane to itself. The express worker does
// so little that it is never kept waiting: to the kernel's scheduler it has always used less than its share, its slices
// are short (sched_setattr(2)), and where the process may it has the highest priority. What it may do in a while is
// bounded, so that nobody gets processors that way.
//
// A lane is one worker's at a time, so nothing in it needs a lock. Who gives it away does not wait for it any more, and
// does not touch it until it comes back. What waits there for a session goes with it.
type Exchange struct {
	express int // number of the express worker; those before it have the busy lanes
	to      []handover
}

// A handover is the lanes on their way to a worker.
type handover struct {
	wake    func()
	lanes   atomic.Uint32 // changed with mu held
	mu      sync.Mutex
	waiting []waiting // came from these lanes
}

// NewExchange makes one for so many workers and the express worker, which gets the number after theirs, and all the
// lanes at first.
func NewExchange(workers, lanes int) *Exchange {
	x := &Exchange{express: workers, to: make([]handover, workers+1)}
	x.to[workers].lanes.Store(1<<lanes - 1)
	return x
}

// What the express worker does and who else gets a lane. Both counts are packets and superpackets read, and receives.
const (
	// In expressWindow the express worker moves so much in all its lanes; the lane in whose turn it was more goes.
	expressWindow  = 2 * time.Millisecond
	expressBytes   = 64 << 10
	expressPackets = 32
	// In quietWindow so much happens in a lane that comes back.
	quietWindow  = 20 * time.Millisecond
	quietBytes   = 32 << 10
	quietPackets = 16
)

// A traffic is what was moved in a while.
type traffic struct {
	since          time.Time
	bytes, packets uint64
}

func (t *traffic) add(bytes, packets uint64) {
	t.bytes += bytes
	t.packets += packets
}

// IsExpress reports whether w is the express worker.
func (w *Worker) IsExpress() bool { return w.Exchange != nil && w.ID == w.Exchange.express }

// Preferred reports whether it is the express worker and runs as soon as it has something to do, see Thread. Safe for
// concurrent use.
func (w *Worker) Preferred() bool { return w.preferred.Load() }

// takeLanes takes over what was given to the worker, and gives quiet lanes back.
func (w *Worker) takeLanes() error {
	x := w.Exchange
	if x == nil {
		return nil
	}
	if mine := &x.to[w.ID]; mine.lanes.Load() != 0 {
		if err := w.take(mine); err != nil {
			return err
		}
	}
	if w.IsExpress() {
		return nil
	}
	now := w.Now()
	if now.Sub(w.window.since) < quietWindow {
		return nil
	}
	w.window.since = now
	for set := w.owned; set != 0; set &= set - 1 {
		k := bits.TrailingZeros32(set)
		m := &w.all[k].moved
		if m.bytes < quietBytes && m.packets < quietPackets && !w.turn.has(k) {
			if err := w.giveLane(k, x.express); err != nil {
				return err
			}
		}
		*m = traffic{}
	}
	return nil
}

// take takes over what was given to the worker.
func (w *Worker) take(from *handover) error {
	from.mu.Lock()
	lanes, line := from.lanes.Swap(0), from.waiting
	from.waiting = nil
	from.mu.Unlock()
	for set := lanes; set != 0; set &= set - 1 {
		k := bits.TrailingZeros32(set)
		w.owned |= 1 << k
		// What it is like shows in the next window.
		w.all[k] = lane{Lane: w.all[k].Lane, slots: fewestSlots, secureSlots: fewestSlots,
			moved: traffic{packets: quietPackets}}
		if err := w.Waiter.Watch(k, true); err != nil {
			return fmt.Errorf("worker %d: lane %d: %w", w.ID, k, err)
		}
	}
	for i, e := range line {
		line[i].lane = &w.all[slices.IndexFunc(w.all, func(l lane) bool { return l.Number == e.lane.Number })]
	}
	if len(line) > 0 {
		w.drop(forwarder.NoSession, w.room.join(line))
	}
	return nil
}

// account notes what the turn of lane k has moved, and gives it away if that is too much for the express worker; given
// says whether it did.
func (w *Worker) account(k int, bytes, packets uint64) (given bool, err error) {
	w.moved += bytes
	if w.Exchange == nil {
		return false, nil
	}
	w.all[k].moved.add(bytes, packets)
	if !w.IsExpress() {
		return false, nil
	}
	if now := w.Now(); now.Sub(w.window.since) >= expressWindow {
		w.window = traffic{since: now}
	}
	w.window.add(bytes, packets)
	if w.window.bytes <= expressBytes && w.window.packets <= expressPackets {
		return false, nil
	}
	return true, w.giveLane(k, k%w.Exchange.express)
}

// giveLane gives a lane that is in no line to another worker.
func (w *Worker) giveLane(k, to int) error {
	if err := w.Waiter.Watch(k, false); err != nil {
		return fmt.Errorf("worker %d: lane %d: %w", w.ID, k, err)
	}
	w.owned &^= 1 << k
	w.Counters.LanesGiven.Add(1)
	h := &w.Exchange.to[to]
	h.mu.Lock()
	h.waiting = w.room.takeFrom(h.waiting, &w.all[k])
	h.lanes.Or(1 << k)
	h.mu.Unlock()
	h.wake()
	return nil
}
