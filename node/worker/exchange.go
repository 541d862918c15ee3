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
// little, and where the process may, its thread has the highest priority among the fair: nobody keeps it waiting.
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

	steering *steering
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
	x := &Exchange{express: workers, to: make([]handover, workers+1), steering: newSteering(lanes)}
	x.to[workers].lanes.Store(1<<lanes - 1)
	return x
}

// What the express worker does and who else gets a lane. Packets are packets and superpackets read, and receives;
// segments what these are on the wire, and writes to the device.
const (
	// In expressWindow the express worker does so much in all its lanes; when it is more, the lane with most of it goes.
	// All that is some twentieth of a processor. With four times as many packets the express worker had half of what
	// connections make that come and go, which were a quarter fewer: one more thread that is woken for each packet.
	expressWindow   = 4 * time.Millisecond
	expressBytes    = 64 << 10
	expressPackets  = 16
	expressSegments = 128
	// Against what none of these count, as floods of ICMP errors, it has so much of a processor in expressTerm. This is
	// no measure for less: the kernel's work for others that is done in a thread's system calls counts as the thread's.
	expressTerm = 64 * time.Millisecond
	expressTime = expressTerm / 2
	// Its turns are of this size, see queueBatch, queueBytes and fewestSlots.
	expressBatch = 4
	expressTurn  = 32 << 10
	expressSlots = 1
	// A lane in which less than so much happens in quietWindow comes back.
	quietWindow  = 20 * time.Millisecond
	quietBytes   = 32 << 10
	quietPackets = 16
	// retryWatch is when a worker tries again to wait for a lane; until then it looks at it so often.
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

// A busy is the time that was used of a processor in a while.
type busy struct {
	since time.Time
	took  time.Duration
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
	w.used = w.Thread.Used()
}

// takeLanes takes over what was given to the worker, and gives quiet lanes back.
func (w *Worker) takeLanes() error {
	x := w.Exchange
	if x == nil {
		return nil
	}
	if mine := &x.to[w.ID].lanes; mine.Load() != 0 {
		w.take(mine.Swap(0))
		if err := w.watch(); err != nil {
			return err
		}
	}
	if w.unwatched != 0 {
		if err := w.lookAtUnwatched(); err != nil {
			return err
		}
	}
	if w.IsExpress() {
		return nil
	}
	now := w.Now()
	window := now.Sub(w.looked)
	if window < quietWindow {
		return nil
	}
	w.looked = now
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
	w.makeWay(window, now)
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
		*l = lane{Lane: l.Lane, slots: w.size.slots, secureSlots: w.size.slots, moved: traffic{packets: quietPackets}}
		if w.IsExpress() {
			w.Exchange.steering.took(k, w.Now())
		}
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

// lookAtUnwatched gives those lanes a turn and tries again to wait for them, but no more often than retryWatch: they
// are not to keep the others from theirs.
func (w *Worker) lookAtUnwatched() error {
	now := w.Now()
	if now.Sub(w.retried) < retryWatch {
		return nil
	}
	w.retried = now
	if err := w.watch(); err != nil {
		return err
	}
	w.turn.add(Ready{Queues: w.unwatched, Sockets: w.unwatched, Secure: w.unwatched})
	return nil
}

// account notes what the turn of lane k has moved. When it is too much for the express worker, it gives away the lane
// with most of it; given says whether that is k. One whose turn comes soon goes after that.
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
	w.note(l, did)
	most := w.mostOfTooMuch()
	if most < 0 || most != k && w.turn.has(most) {
		return false, nil
	}
	if m := &w.all[most]; m.moved.since == w.window.since {
		w.window.sub(m.moved)
	}
	if m := &w.all[most]; m.busy.since == w.busy.since {
		w.busy.took -= m.busy.took
	}
	return most == k, w.giveLane(most, most%w.Exchange.express)
}

// note notes what the express worker did in lane l, and the time that its thread used until now.
func (w *Worker) note(l *lane, did traffic) {
	now := w.Now()
	if now.Sub(w.window.since) >= expressWindow {
		w.window = traffic{since: now}
	}
	if l.moved.since != w.window.since {
		l.moved = traffic{since: w.window.since}
	}
	l.moved.add(did)
	w.window.add(did)
	if w.Thread == nil {
		return
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
}

// mostOfTooMuch is the lane that has most of what there is too much of at the express worker; -1: there is not.
func (w *Worker) mostOfTooMuch() int {
	moved := func(l *lane) traffic {
		if l.moved.since != w.window.since {
			return traffic{}
		}
		return l.moved
	}
	switch {
	case w.window.bytes > expressBytes:
		return w.most(func(l *lane) uint64 { return moved(l).bytes })
	case w.window.packets > expressPackets:
		return w.most(func(l *lane) uint64 { return moved(l).packets })
	case w.window.segments > expressSegments:
		return w.most(func(l *lane) uint64 { return moved(l).segments })
	case w.busy.took > expressTime:
		return w.most(func(l *lane) uint64 {
			if l.busy.since != w.busy.since {
				return 0
			}
			return uint64(l.busy.took)
		})
	}
	return -1
}

// most is the lane of the worker's that has most of something.
func (w *Worker) most(of func(*lane) uint64) int {
	most, k := uint64(0), -1
	for set := w.owned; set != 0; set &= set - 1 {
		i := bits.TrailingZeros32(set)
		if n := of(&w.all[i]); n > most {
			most, k = n, i
		}
	}
	return k
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
	if w.IsExpress() {
		x.steering.gave(k)
	}
	x.waiting[k] = w.room.takeFrom(&w.all[k])
	x.to[to].lanes.Or(1 << k)
	x.to[to].wake()
	return nil
}
