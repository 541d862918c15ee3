package worker

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/warren-net/warren/forwarder"
)

// An Exchange is where the workers of one node give lanes to each other: those in which little happens to the express
// worker, all others back to who they belong to.
//
// A worker with large transfers has work all the time. It gets its share of the processors and waits for the next one
// for milliseconds, and with it everything in its lanes, as an echo that has a lane to itself. The express worker does
// so little that it is never kept waiting: to the kernel's scheduler it has always used less than its share, its slices
// are short (sched_setattr(2)), and where the process may it has the highest priority among the fair.
//
// What it does is bounded, so that nobody gets a processor that way: the lanes that cause it go when it is too much. As
// that shows after a turn, its turns are small, and a lane stays away for quietWindow at least.
//
// A lane is one worker's at a time, so nothing in it needs a lock. Who gives it away does not wait for it any more, and
// does not touch it until it comes back. What waits there for a session goes with it.
type Exchange struct {
	express int // number of the express worker; those before it have the busy lanes
	to      []handover
	waiting [MaxLanes][]waiting // came from the lane; goes with it
}

// A handover is the lanes on their way to a worker.
type handover struct {
	lanes atomic.Uint32
	wake  func()
	_     [48]byte // of its own on a cache line
}

// NewExchange makes one for so many workers and the express worker, which gets the number after theirs, and all the
// lanes at first.
func NewExchange(workers, lanes int) *Exchange {
	x := &Exchange{express: workers, to: make([]handover, workers+1)}
	x.to[workers].lanes.Store(1<<lanes - 1)
	return x
}

// What the express worker does and who else gets a lane. Packets are packets and superpackets read, and receives;
// segments what these are on the wire, and writes to the device.
const (
	// In expressWindow the express worker does so much in all its lanes. When it is more, those with an expressPart of
	// it go: at least one has as much, and an echo beside them does not. All that is some tenth of a processor.
	expressWindow   = 2 * time.Millisecond
	expressBytes    = 64 << 10
	expressPackets  = 32
	expressSegments = 128
	expressPart     = MaxLanes
	// Against what none of these count, as floods of ICMP errors, it has so much of a processor in expressTerm. This is
	// no measure for less: the kernel's work for others that is done in a thread's system calls counts as the thread's.
	expressTerm = 64 * time.Millisecond
	expressTime = expressTerm / 2
	// Its turns are of this size, see queueBatch and queueBytes.
	expressBatch = 4
	expressTurn  = 32 << 10
	// In quietWindow so much happens in a lane that comes back.
	quietWindow  = 20 * time.Millisecond
	quietBytes   = 32 << 10
	quietPackets = 16
	// retryWatch is when a worker tries again to wait for a lane, and until then looks at it.
	retryWatch = time.Millisecond
)

// A traffic is what was moved in a while.
type traffic struct {
	since                    time.Time
	bytes, packets, segments uint64
}

func (t *traffic) add(more traffic) {
	t.bytes += more.bytes
	t.packets += more.packets
	t.segments += more.segments
}

func (t *traffic) sub(less traffic) {
	t.bytes -= less.bytes
	t.packets -= less.packets
	t.segments -= less.segments
}

// tooMuch reports whether t, of all lanes, is more than the express worker is for, and part has to do with it.
func (t *traffic) tooMuch(part *traffic) bool {
	return t.bytes > expressBytes && part.bytes*expressPart >= expressBytes ||
		t.packets > expressPackets && part.packets*expressPart >= expressPackets ||
		t.segments > expressSegments && part.segments*expressPart >= expressSegments
}

// A busy is the time that was used of a processor in a while.
type busy struct {
	since time.Time
	took  time.Duration
}

// tooMuch is traffic's.
func (b *busy) tooMuch(part *busy) bool {
	return b.took > expressTime && part.took*expressPart >= expressTime
}

// IsExpress reports whether w is the express worker.
func (w *Worker) IsExpress() bool { return w.Exchange != nil && w.ID == w.Exchange.express }

// Preferred reports whether it is the express worker and runs as soon as it has something to do, see Thread. Safe for
// concurrent use.
func (w *Worker) Preferred() bool { return w.preferred.Load() }

func (w *Worker) prefer() {
	err := w.Thread.Prefer()
	w.preferred.Store(err == nil)
	if err != nil && w.NotPreferred != nil {
		w.NotPreferred(err)
	}
}

// takeLanes takes over what was given to the worker, and gives quiet lanes back.
func (w *Worker) takeLanes() error {
	x := w.Exchange
	if x == nil {
		return nil
	}
	if mine := &x.to[w.ID].lanes; mine.Load() != 0 {
		w.take(mine.Swap(0))
	}
	if err := w.watch(); err != nil {
		return err
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

// take takes over lanes.
func (w *Worker) take(lanes uint32) {
	w.owned |= lanes
	w.unwatched |= lanes
	for set := lanes; set != 0; set &= set - 1 {
		k := bits.TrailingZeros32(set)
		l := &w.all[k]
		// What it is like shows in the next window.
		*l = lane{Lane: l.Lane, slots: fewestSlots, secureSlots: fewestSlots, moved: traffic{packets: quietPackets}}
		if line := w.Exchange.waiting[k]; len(line) > 0 {
			w.Exchange.waiting[k] = nil
			for i := range line {
				line[i].lane = l
			}
			w.drop(forwarder.NoSession, w.room.join(line))
		}
	}
}

// watch begins to wait for the lanes that the worker has and does not wait for yet. The kernel may have no room for
// that at the moment (epoll_ctl(2), max_user_watches is one user's for all programs); it will not be the end of the
// node.
func (w *Worker) watch() error {
	for set := w.unwatched; set != 0; set &= set - 1 {
		k := bits.TrailingZeros32(set)
		switch err := w.Waiter.Watch(k, true); {
		case err == nil:
			w.unwatched &^= 1 << k
		case !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.ENOMEM):
			return fmt.Errorf("worker %d: lane %d: %w", w.ID, k, err)
		}
	}
	return nil
}

// account notes what the turn of lane k has moved, and gives it away if that is too much for the express worker; given
// says whether it did.
func (w *Worker) account(k int, did traffic) (given bool, err error) {
	w.moved += did.bytes
	l := &w.all[k]
	switch {
	case w.Exchange == nil:
		return false, nil
	case !w.IsExpress():
		l.moved.add(did)
		return false, nil
	}
	now := w.Now()
	if now.Sub(w.window.since) >= expressWindow {
		w.window = traffic{since: now}
	}
	if l.moved.since != w.window.since {
		l.moved = traffic{since: w.window.since}
	}
	l.moved.add(did)
	w.window.add(did)
	if !w.window.tooMuch(&l.moved) && !w.tooBusy(l, now) {
		return false, nil
	}
	w.window.sub(l.moved)
	w.busy.took -= l.busy.took
	return true, w.giveLane(k, k%w.Exchange.express)
}

// tooBusy notes the time that passed in the thread until the end of lane l's turn, and reports whether it is too much.
func (w *Worker) tooBusy(l *lane, now time.Time) bool {
	if w.Thread == nil {
		return false
	}
	if now.Sub(w.busy.since) >= expressTerm {
		w.busy = busy{since: now}
	}
	if l.busy.since != w.busy.since {
		l.busy = busy{since: w.busy.since}
	}
	used := w.Thread.Used()
	l.busy.took += used - w.used
	w.busy.took += used - w.used
	w.used = used
	return w.busy.tooMuch(&l.busy)
}

// giveLane gives a lane that is in no line to another worker.
func (w *Worker) giveLane(k, to int) error {
	if w.unwatched&(1<<k) == 0 {
		if err := w.Waiter.Watch(k, false); err != nil {
			return fmt.Errorf("worker %d: lane %d: %w", w.ID, k, err)
		}
	}
	w.owned &^= 1 << k
	w.unwatched &^= 1 << k
	w.Counters.LanesGiven.Add(1)
	x := w.Exchange
	x.waiting[k] = w.room.takeFrom(&w.all[k])
	x.to[to].lanes.Or(1 << k)
	x.to[to].wake()
	return nil
}
