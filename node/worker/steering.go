package worker

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
)

// A steering says to which queue the packets of a flow are written, as the indirection table of a network card does
// (receive side scaling). The kernel then hands the flow's other direction to that queue (tun_flow_update, Linux 6.18),
// and what is read from a queue leaves through its lane's socket: so it decides on the lane of what this node sends.
//
// A flow has a home, which both its nodes find by its hash: there its two directions share a lane. A small flow whose
// home is a large one's too waits behind that, in the kernel's queue, where no order of turns helps. So it is told to
// go, into one of the express worker's lanes, and home again when that is quiet. Each node decides on what it sends,
// and needs to know nothing of the other's decisions.
//
// Who is told to go, or home, may overtake himself, as what he has in the old queue, and in the old lane's socket at
// the other node, waits there. That is little, as there was little of him for a while, and most often nothing: who
// waits for an answer has nothing else on its way. A flow of which nothing comes in can't be told.
type steering struct {
	lanes   uint32
	buckets uint32          // a multiple of lanes
	to      []atomic.Uint32 // by bucket, see told; 0: home
	_       [64]byte        // what follows is written more often

	away   atomic.Int32           // how many are not at home
	guests [MaxLanes]atomic.Int32 // how many of them are in a lane
	since  [MaxLanes]atomic.Int64 // from when on it is the express worker's, Unix nanoseconds; 0: it is not
}

const (
	// mostBuckets is how many flows are told apart: so few that going over all of them is cheap, and so many that a quiet
	// one seldom has a large one's bucket. mostGuests is how many may come to a lane: as many again as are at home there.
	mostBuckets = 1024
	mostGuests  = mostBuckets / MaxLanes
	// In quietWindow a bucket is large with largeBytes or largePackets, and others are better off elsewhere; it is small,
	// and may go, with less than smallBytes and smallPackets: an answer for a request is two packets, or three.
	largeBytes   = quietBytes
	largePackets = 128
	smallBytes   = quietBytes / 2
	smallPackets = 32
	// calmWindows is in how many windows it has to have been small since it last moved: a connection begins so, also one
	// that has much to send, and is not to be moved then.
	calmWindows = 3
	// movesAtOnce is how many go in a window, so that the express worker's lanes don't get too much at once.
	movesAtOnce = 4
	// roomAfter is for how long a lane has to have been the express worker's before others come: a large flow may pause.
	// homeAfter is for how long both of a flow's lanes have before it goes home, and for how long it stays.
	roomAfter = 200 * time.Millisecond
	homeAfter = time.Second
)

func newSteering(lanes int) *steering {
	buckets := mostBuckets / lanes * lanes
	return &steering{lanes: uint32(lanes), buckets: uint32(buckets), to: make([]atomic.Uint32, buckets)}
}

// A told is what a bucket was told: to go to a lane, and when, in ticks of 134 ms. 0: nothing, it is at home.
type told uint32

const (
	toldTick = 27 // bits of nanoseconds
	toldBits = 8  // of the lane
)

func tell(lane uint32, now time.Time) told {
	return told(uint32(now.UnixNano()>>toldTick)<<toldBits | (lane + 1))
}

func (t told) lane() uint32 { return uint32(t)&(1<<toldBits-1) - 1 }

// age is for how long it holds; after 26 days it begins anew.
func (t told) age(now time.Time) time.Duration {
	ticks := (uint32(now.UnixNano()>>toldTick)<<toldBits - uint32(t)&^(1<<toldBits-1)) >> toldBits
	return time.Duration(ticks) << toldTick
}

// A use is what a worker saw of a bucket in a window.
type use struct {
	bytes   uint32
	packets uint8 // superpackets read and written, both directions; saturates
	calm    uint8 // windows with something of it, and little
	queue   uint8 // 1 + the lane where it was read last; 0: it was not
	from    uint8 // 1 + the lane where it was received last; 0: it was not
}

func (u *use) large() bool { return u.bytes >= largeBytes || u.packets >= largePackets }
func (u *use) small() bool { return u.bytes < smallBytes && u.packets < smallPackets }

func (u *use) add(i *packet.Info, bytes int) {
	u.bytes += uint32(bytes)
	if u.packets < 1<<8-1 {
		u.packets++
	}
	if i.TCPFlags&tcpSYN != 0 {
		u.calm = 0
	}
}

// lanes are those where it was seen.
func (u *use) lanes() uint32 { return (1<<u.queue | 1<<u.from) >> 1 }

// end ends a window with something in it.
func (u *use) end() {
	switch {
	case !u.small():
		u.calm = 0
	case u.calm < calmWindows:
		u.calm++
	}
}

// home is the lane that a bucket has by its number.
func (s *steering) home(bucket uint32) uint32 { return bucket % s.lanes }

// took notes that a lane is the express worker's from now on.
func (s *steering) took(lane int, now time.Time) { s.since[lane].Store(now.UnixNano()) }

// gave notes that it is not any more.
func (s *steering) gave(lane int) { s.since[lane].Store(0) }

// quietFor is the set of the lanes that have been the express worker's for so long.
func (s *steering) quietFor(d time.Duration, now time.Time) (set uint32) {
	for k := range s.lanes {
		if since := s.since[k].Load(); since != 0 && now.UnixNano()-since >= int64(d) {
			set |= 1 << k
		}
	}
	return set
}

// room is the set of the lanes that flows may come to.
func (s *steering) room(now time.Time) uint32 {
	set := s.quietFor(roomAfter, now)
	for rest := set; rest != 0; rest &= rest - 1 {
		if k := bits.TrailingZeros32(rest); s.guests[k].Load() >= mostGuests {
			set &^= 1 << k
		}
	}
	return set
}

// send tells a bucket's flows to go to a lane.
func (s *steering) send(bucket, lane uint32, now time.Time) {
	t := told(0)
	if lane != s.home(bucket) {
		t = tell(lane, now)
		s.away.Add(1)
		s.guests[lane].Add(1)
	}
	s.left(told(s.to[bucket].Swap(uint32(t))))
}

// left counts a bucket that was told something, and does not follow that any more.
func (s *steering) left(t told) {
	if t != 0 {
		s.away.Add(-1)
		s.guests[t.lane()].Add(-1)
	}
}

// sendHome tells those to go home that have been elsewhere for long enough, in a lane that is as quiet as their home.
func (s *steering) sendHome(now time.Time) {
	if s.away.Load() == 0 {
		return
	}
	quiet := s.quietFor(homeAfter, now)
	for b := range s.to {
		t := told(s.to[b].Load())
		if t == 0 || quiet&(1<<t.lane()) == 0 || quiet&(1<<s.home(uint32(b))) == 0 || t.age(now) < homeAfter {
			continue
		}
		if s.to[b].CompareAndSwap(uint32(t), 0) {
			s.left(t)
		}
	}
}

// choose is the lane among those of the set for a bucket's flows; the set is not empty.
func (s *steering) choose(bucket, set uint32) uint32 {
	if home := s.home(bucket); set&(1<<home) != 0 {
		return home
	}
	for range bucket / s.lanes % uint32(bits.OnesCount32(set)) {
		set &= set - 1
	}
	return uint32(bits.TrailingZeros32(set))
}

// queueOf is the queue to which a packet from the wire is written.
func (w *Worker) queueOf(i *packet.Info, bytes int) device.Queue {
	hash := i.FlowHash()
	if w.Exchange == nil {
		return w.Writers[hash%uint32(len(w.Writers))]
	}
	s := w.Exchange.steering
	bucket := hash % s.buckets
	if w.uses != nil {
		u := &w.uses[bucket]
		u.add(i, bytes)
		u.from = uint8(w.lane.Number) + 1
	}
	if t := told(s.to[bucket].Load()); t != 0 {
		return w.Writers[t.lane()]
	}
	return w.Writers[s.home(bucket)]
}

// backTo is the queue to which a packet from the device is written: the one that it came from, which the kernel chose
// by a hash of its own, unless its flow was told to go.
func (w *Worker) backTo(i *packet.Info) device.Queue {
	if w.Exchange != nil && w.Exchange.steering.away.Load() != 0 {
		s := w.Exchange.steering
		if t := told(s.to[i.FlowHash()%s.buckets].Load()); t != 0 {
			return w.Writers[t.lane()]
		}
	}
	return w.lane.Queue
}

// came notes a packet that was read from the lane's queue.
func (w *Worker) came(i *packet.Info, bytes int) {
	if w.uses == nil {
		return
	}
	u := &w.uses[i.FlowHash()%w.Exchange.steering.buckets]
	u.add(i, bytes)
	u.queue = uint8(w.lane.Number) + 1
}

// makeWay ends a window of a worker with busy lanes, which took so long: small flows leave the lanes of large ones. A
// worker that has slept has none.
func (w *Worker) makeWay(took time.Duration, now time.Time) {
	if took > 4*quietWindow {
		for b := range w.uses {
			w.uses[b] = use{calm: w.uses[b].calm}
		}
		return
	}
	var large, room uint32
	for b := range w.uses {
		if u := &w.uses[b]; u.large() {
			large |= u.lanes()
		}
	}
	if large != 0 {
		room = w.Exchange.steering.room(now)
	}
	moves, first, n := 0, w.firstUse, uint32(len(w.uses))
	for k := range n {
		b := (first + k) % n // so that everybody's turn comes
		u := &w.uses[b]
		if u.packets == 0 {
			continue
		}
		u.end()
		if room != 0 && moves < movesAtOnce && u.calm == calmWindows && u.queue != 0 && large&(1<<(u.queue-1)) != 0 &&
			w.move(b, uint32(u.queue-1), room, now) {
			u.calm = 0
			room = w.Exchange.steering.room(now)
			if moves++; moves == movesAtOnce {
				w.firstUse = b + 1
			}
		}
		*u = use{calm: u.calm}
	}
}

// move tells a bucket that is read from a lane to go to one of those in room, unless it has been told already.
func (w *Worker) move(bucket, from, room uint32, now time.Time) bool {
	s := w.Exchange.steering
	switch t := told(s.to[bucket].Load()); {
	case t == 0:
		room &^= 1 << s.home(bucket) // where nothing can tell it to go
	case t.lane() != from:
		return false
	}
	if room == 0 {
		return false
	}
	s.send(bucket, s.choose(bucket, room), now)
	w.Counters.FlowsMoved.Add(1)
	return true
}
