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
// Who is told to go may overtake himself, once, as what he has in the old queue waits there. That is little, as there
// was little of him for a while, and most often nothing: who waits for an answer has nothing else on its way. A flow of
// which nothing comes in can't be told.
type steering struct {
	lanes uint32
	to    [buckets]atomic.Uint32 // by hash: 0: home; else 1 + the lane
	away  atomic.Int32           // how many are not at home
	quiet atomic.Uint32          // the express worker's lanes
}

// buckets is how many flows are told apart: so few that going over all of them is cheap, and so many that a quiet one
// seldom has a large one's.
const buckets = 1024

const (
	// A bucket is large when it alone keeps a lane from being quiet in quietWindow, and small with a half of that.
	smallBytes   = quietBytes / 2
	smallPackets = quietPackets / 2
	// calmWindows is in how many windows it has to have been small: a connection begins so, also one that has much to
	// send, and is not to be moved then.
	calmWindows = 3
	// homeAfter is for how long a home has to have been the express worker's before a flow goes back.
	homeAfter = time.Second
)

// A use is what a worker saw of a bucket in a window.
type use struct {
	bytes   uint32
	queues  uint16 // that it was read from
	packets uint8  // superpackets read and written, both directions; saturates
	calm    uint8  // windows with something of it, and little, one after the other; saturates
}

func (u *use) large() bool { return u.bytes >= quietBytes || u.packets >= quietPackets }
func (u *use) small() bool { return u.bytes < smallBytes && u.packets < smallPackets }

func (u *use) add(bytes int) {
	u.bytes += uint32(bytes)
	if u.packets < 1<<8-1 {
		u.packets++
	}
}

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

// send tells a bucket's flows to go to a lane.
func (s *steering) send(bucket, lane uint32) {
	if s.to[bucket].Swap(lane+1) == 0 {
		s.away.Add(1)
	}
}

// sendHome sends those home that are in the lanes of the set, and whose home is.
func (s *steering) sendHome(set uint32) {
	if s.away.Load() == 0 {
		return
	}
	for b := range uint32(buckets) {
		to := s.to[b].Load()
		if to != 0 && set&(1<<(to-1)) != 0 && set&(1<<s.home(b)) != 0 && s.to[b].CompareAndSwap(to, 0) {
			s.away.Add(-1)
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
	s, bucket := &w.Exchange.steering, hash%buckets
	if w.uses != nil {
		w.uses[bucket].add(bytes)
	}
	if to := s.to[bucket].Load(); to != 0 {
		return w.Writers[to-1]
	}
	return w.Writers[s.home(bucket)]
}

// backTo is the queue to which a packet from the device is written: the one that it came from, which the kernel chose
// by a hash of its own, unless its flow was told to go.
func (w *Worker) backTo(i *packet.Info) device.Queue {
	if w.Exchange != nil && w.Exchange.steering.away.Load() != 0 {
		if to := w.Exchange.steering.to[i.FlowHash()%buckets].Load(); to != 0 {
			return w.Writers[to-1]
		}
	}
	return w.lane.Queue
}

// came notes a packet that was read from the lane's queue.
func (w *Worker) came(i *packet.Info, bytes int) {
	if w.uses == nil {
		return
	}
	u := &w.uses[i.FlowHash()%buckets]
	u.add(bytes)
	u.queues |= 1 << w.lane.Number
}

// makeWay ends a window of a worker with busy lanes: small flows leave those that have a large one. One goes at a time,
// so that the express worker's lanes don't get too much all at once.
func (w *Worker) makeWay() {
	s := &w.Exchange.steering
	var large uint32
	for b := range w.uses {
		if u := &w.uses[b]; u.large() {
			large |= uint32(u.queues)
		}
	}
	room := s.quiet.Load()
	for b := range w.uses {
		u := &w.uses[b]
		if u.packets == 0 {
			continue
		}
		u.end()
		if room != 0 && u.calm == calmWindows && uint32(u.queues)&large != 0 && w.move(uint32(b), uint32(u.queues), room) {
			room = 0
		}
		*u = use{calm: u.calm}
	}
}

// move tells a bucket that was read from these queues to go to one of the lanes in room, unless it has been told.
func (w *Worker) move(bucket, queues, room uint32) bool {
	s := &w.Exchange.steering
	if to := s.to[bucket].Load(); to != 0 && queues&(1<<(to-1)) == 0 {
		return false
	}
	s.send(bucket, s.choose(bucket, room))
	w.Counters.FlowsMoved.Add(1)
	return true
}

// sendHome ends the stay of flows in other lanes, where theirs have been the express worker's for long enough.
func (w *Worker) sendHome(now time.Time) {
	var set uint32
	for owned := w.owned; owned != 0; owned &= owned - 1 {
		if k := bits.TrailingZeros32(owned); now.Sub(w.all[k].taken) >= homeAfter {
			set |= 1 << k
		}
	}
	w.Exchange.steering.sendHome(set)
}
