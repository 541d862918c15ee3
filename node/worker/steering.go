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
// go, into one of the express worker's lanes, and home again when that is one of these too. Each node decides on what
// it sends, and needs to know nothing of the other's decisions.
//
// Who is told to go, or home, may overtake himself, as what he has in the old queue, and in the old lane's socket at
// the other node, waits there. That is little, as there was little of him for a while, and most often nothing: who
// waits for an answer has nothing else on its way. A flow of which nothing comes in can't be told.
type steering struct {
	lanes   uint32
	buckets uint32          // a multiple of lanes
	to      []atomic.Uint32 // by bucket, see told; 0: home
	begin   time.Time
	_       [64]byte // what follows is written more often

	away   atomic.Int32           // how many are not at home
	guests [MaxLanes]atomic.Int32 // how many of them are in a lane
	since  [MaxLanes]atomic.Int64 // from when on it is the express worker's, see at; 0: it is not
}

const (
	// mostBuckets is how many flows are told apart: so few that going over all of them is cheap, and so many that a small
	// one seldom has a large one's bucket. mostGuests is how many may come to a lane: of 16 as many as are at home there.
	mostBuckets = 1024
	mostGuests  = mostBuckets / MaxLanes
	// A bucket with so much in quietWindow is large, and others are better off elsewhere; one with less than the half is
	// small, and may go. A request with its answer is two packets, or three.
	largeBytes   = quietBytes
	largePackets = 128
	smallShare   = 2
	// calmWindows is in how many windows it has to have been small since it last moved: a connection begins so, also one
	// that has much to send, and is not to be moved then. Nothing for idleWindows, some seconds, and it begins anew; so
	// has the kernel forgotten by then where to put it.
	calmWindows = 3
	idleWindows = 200
	// movesAtOnce is how many go in a window, so that the express worker's lanes don't get too much at once.
	movesAtOnce = 4
	// roomAfter is for how long a lane has to have been the express worker's before others come: a large flow may pause.
	// homeAfter is for how long both of a flow's lanes have before it goes home, and for how long it stays. After
	// fullAfter it makes place for others where a lane is full: nobody knows whether it still lives.
	roomAfter = 200 * time.Millisecond
	homeAfter = time.Second
	fullAfter = 30 * time.Second
)

func newSteering(lanes int) *steering {
	buckets := mostBuckets / lanes * lanes
	return &steering{
		lanes: uint32(lanes), buckets: uint32(buckets), to: make([]atomic.Uint32, buckets), begin: time.Now(),
	}
}

// at is a time in nanoseconds, more than 0, that no change of the system's clock moves.
func (s *steering) at(now time.Time) int64 { return max(1, int64(now.Sub(s.begin))) }

// A told is what a bucket was told: to go to a lane, and when, in ticks of 134 ms. 0: nothing, it is at home.
type told uint32

const (
	toldTick = 27 // bits of nanoseconds
	toldBits = 8  // of the lane
)

func tell(lane uint32, at int64) told { return told(uint32(at>>toldTick)<<toldBits | (lane + 1)) }

func (t told) lane() uint32 { return uint32(t)&(1<<toldBits-1) - 1 }

// age is for how long it holds; after 26 days it begins anew.
func (t told) age(at int64) time.Duration {
	ticks := (uint32(at>>toldTick)<<toldBits - uint32(t)&^(1<<toldBits-1)) >> toldBits
	return time.Duration(ticks) << toldTick
}

// A use is what a worker saw of a bucket in a window.
type use struct {
	bytes   uint32
	packets uint32 // superpackets read and written, both directions
	calm    uint8  // windows with something of it, and little
	idle    uint8  // windows with nothing of it, since then
	queue   uint8  // 1 + the lane where it was read last; 0: it was not
	from    uint8  // 1 + the lane where it was received last; 0: it was not
	back    bool   // something of it was written back to the device
}

// large says so of a window that was so many times as long as quietWindow; small too.
func (u *use) large(times float64) bool {
	return float64(u.bytes) >= times*largeBytes || float64(u.packets) >= times*largePackets
}

func (u *use) small(times float64) bool {
	twice := use{bytes: smallShare * u.bytes, packets: smallShare * u.packets}
	return !twice.large(times)
}

func (u *use) add(i *packet.Info, bytes int) {
	u.bytes += uint32(bytes)
	u.packets++
	if i.TCPFlags&tcpSYN != 0 {
		u.calm = 0
	}
}

// lanes are those where it was seen.
func (u *use) lanes() uint32 { return (1<<u.queue | 1<<u.from) >> 1 }

// end ends a window.
func (u *use) end(times float64) {
	switch {
	case u.packets == 0:
		if u.idle++; u.idle == idleWindows {
			u.calm, u.idle = 0, 0
		}
	case !u.small(times):
		u.calm, u.idle = 0, 0
	default:
		u.calm, u.idle = min(u.calm+1, calmWindows), 0
	}
}

// home is the lane that a bucket has by its number.
func (s *steering) home(bucket uint32) uint32 { return bucket % s.lanes }

// took notes that a lane is the express worker's from now on.
func (s *steering) took(lane int, now time.Time) { s.since[lane].Store(s.at(now)) }

// gave notes that it is not any more.
func (s *steering) gave(lane int) { s.since[lane].Store(0) }

// quietFor is the set of the lanes that have been the express worker's for so long.
func (s *steering) quietFor(d time.Duration, now time.Time) (set uint32) {
	for k := range s.lanes {
		if since := s.since[k].Load(); since != 0 && s.at(now)-since >= int64(d) {
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
		t = tell(lane, s.at(now))
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

// sendHome tells those to go home that have been elsewhere for long enough, in a lane that is the express worker's as
// their home is, and some of those in a full lane.
func (s *steering) sendHome(now time.Time) {
	if s.away.Load() == 0 {
		return
	}
	quiet := s.quietFor(homeAfter, now)
	for b := range s.to {
		t := told(s.to[b].Load())
		if t == 0 {
			continue
		}
		age, both := t.age(s.at(now)), uint32(1<<t.lane()|1<<s.home(uint32(b)))
		goes := age >= homeAfter && quiet&both == both || age >= fullAfter && s.guests[t.lane()].Load() >= mostGuests
		if goes && s.to[b].CompareAndSwap(uint32(t), 0) {
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
	return w.toldQueue(bucket, w.Writers[s.home(bucket)])
}

// backTo is the queue to which a packet from the device is written: the one that it came from, which the kernel chose
// by a hash of its own, unless its flow was told to go.
func (w *Worker) backTo(i *packet.Info) device.Queue {
	if w.Exchange == nil {
		return w.lane.Queue
	}
	s := w.Exchange.steering
	bucket := i.FlowHash() % s.buckets
	if w.uses != nil {
		w.uses[bucket].back = true
	}
	return w.toldQueue(bucket, w.lane.Queue)
}

// toldQueue is the queue that a bucket was told to go to; it is at this one if it was told nothing.
func (w *Worker) toldQueue(bucket uint32, at device.Queue) device.Queue {
	if t := told(w.Exchange.steering.to[bucket].Load()); t != 0 {
		return w.Writers[t.lane()]
	}
	return at
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

// makeWay ends a window of a worker with busy lanes, which took so long: small flows leave the lanes of large ones.
func (w *Worker) makeWay(took time.Duration, now time.Time) {
	times := float64(took) / float64(quietWindow)
	var large, room uint32
	for b := range w.uses {
		if u := &w.uses[b]; u.large(times) {
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
		if u.packets == 0 && u.calm == 0 {
			continue
		}
		u.end(times)
		if u.calm == calmWindows && u.queue != 0 && large&(1<<(u.queue-1)) != 0 && room != 0 && moves < movesAtOnce &&
			w.move(b, u, room, now) {
			u.calm = 0
			room = w.Exchange.steering.room(now)
			if moves++; moves == movesAtOnce {
				w.firstUse = b + 1
			}
		}
		*u = use{calm: u.calm, idle: u.idle}
	}
}

// move tells a bucket to go from the lane where it is read to one of those in room, unless it has been told already.
func (w *Worker) move(bucket uint32, u *use, room uint32, now time.Time) bool {
	s := w.Exchange.steering
	from, home := uint32(u.queue-1), s.home(bucket)
	t := told(s.to[bucket].Load())
	switch {
	case t != 0 && t.lane() != from, t == 0 && from != home && !u.back:
		return false // nothing comes in of it that would tell it
	case t == 0:
		room &^= 1 << home // where it would be told nothing
	}
	if room == 0 {
		return false
	}
	s.send(bucket, s.choose(bucket, room), now)
	w.Counters.FlowsMoved.Add(1)
	return true
}
