package worker

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// Bounds of what waits for sessions. One attempt at a key exchange may be lost, on top of what a round trip takes; then
// a TCP connection's first packet still leaves before it would be sent a third time.
const (
	waitingTime  = wireguard.RekeyTimeout + time.Second
	waitingBytes = 256 << 10                       // of a worker
	waitingPeer  = packet.MaxPacket + waitingEntry // of one peer: one large superpacket, or the beginnings of many flows
	waitingEntry = 128                             // what each superpacket counts beside its length
)

// A waiting is a superpacket to a peer without a session.
type waiting struct {
	packet []byte // a copy
	meta   packet.Meta
	peer   int32
	lane   *lane // that it came from
	since  int64
}

func (e *waiting) size() int { return len(e.packet) + waitingEntry }

// A waitingRoom keeps superpackets until there is a session with the peer that they are for. When a peer has too much
// in it the newest is dropped, as in any queue: the first packets are those that flows begin with, and no flow gets a
// hole at its front. When all peers together have too much the oldest go, as the peer that they wait for is the least
// likely to answer. So peers that are down don't keep others out. It belongs to one worker; the zero value is ready.
type waitingRoom struct {
	line  []waiting           // in the order in which they came
	bytes int                 // of all
	of    map[int32]int       // bytes by peer
	snap  *forwarder.Snapshot // by which the first of them was decided on
}

func (r *waitingRoom) empty() bool { return len(r.line) == 0 }

// holds reports whether anything waits for the peer.
func (r *waitingRoom) holds(peer int32) bool { return len(r.line) > 0 && r.of[peer] > 0 }

// add keeps a copy of a superpacket, and returns how many were dropped.
func (r *waitingRoom) add(e waiting) (dropped int) {
	if r.of[e.peer]+e.size() > waitingPeer {
		return 1
	}
	e.packet = bytes.Clone(e.packet)
	return r.admit(e)
}

// admit is add without a copy.
func (r *waitingRoom) admit(e waiting) (dropped int) {
	size := e.size()
	if r.of[e.peer]+size > waitingPeer {
		return 1
	}
	for r.bytes+size > waitingBytes {
		r.dropFirst()
		dropped++
	}
	r.put(e)
	return dropped
}

// put appends to the line what has its place in it.
func (r *waitingRoom) put(e waiting) {
	if r.of == nil {
		r.of = map[int32]int{}
	}
	r.line = append(r.line, e)
	r.bytes += e.size()
	r.of[e.peer] += e.size()
}

func (r *waitingRoom) dropFirst() {
	e := &r.line[0]
	size := e.size()
	r.bytes -= size
	if r.of[e.peer] -= size; r.of[e.peer] == 0 {
		delete(r.of, e.peer)
	}
	*e = waiting{}
	r.line = r.line[1:]
}

// takeFrom takes out what came from a lane.
func (r *waitingRoom) takeFrom(l *lane) (line []waiting) {
	if r.empty() {
		return nil
	}
	for _, e := range r.takeAll() {
		if e.lane == l {
			line = append(line, e)
		} else {
			r.put(e)
		}
	}
	return line
}

// join adds what came from another worker's room, each in its place in time, and returns how many were dropped.
func (r *waitingRoom) join(line []waiting) (dropped int) {
	all := append(r.takeAll(), line...)
	slices.SortStableFunc(all, func(a, b waiting) int { return cmp.Compare(a.since, b.since) })
	for _, e := range all {
		dropped += r.admit(e)
	}
	r.snap = nil // to be decided on anew: a session may have come up on the way
	return dropped
}

// takeAll empties the room.
func (r *waitingRoom) takeAll() []waiting {
	line := r.line
	r.line, r.bytes = nil, 0
	clear(r.of)
	return line
}

// expire drops what has waited for too long, and returns how many.
func (r *waitingRoom) expire(now int64) (dropped int) {
	for len(r.line) > 0 && now-r.line[0].since >= int64(waitingTime) {
		r.dropFirst()
		dropped++
	}
	return dropped
}

// SessionUp says that there is a session with a peer that there was not before, see wireguard.Config.Established. Safe
// for concurrent use.
func (w *Worker) SessionUp() {
	w.sessionUp.Store(true)
	w.Waiter.Wake()
}

// wait keeps a superpacket until there is a session with the peer, and asks for one.
func (w *Worker) wait(p []byte, m packet.Meta, peer *wireguard.Peer) {
	if w.room.empty() {
		w.room.snap = w.snap
	}
	w.Counters.Waited.Add(1)
	w.drop(forwarder.NoSession, w.room.add(waiting{packet: p, meta: m, peer: peer.ID(), lane: w.lane, since: w.clock()}))
	peer.Want()
}

// attend looks at what waits when a session has come up or the snapshot has changed.
func (w *Worker) attend() error {
	up := w.sessionUp.Load() && w.sessionUp.Swap(false)
	if w.room.empty() {
		return nil
	}
	snap := w.Table.Load()
	if !up && snap == w.room.snap {
		return nil
	}
	w.snap, w.at, w.tunnelAt = snap, 0, 0
	return w.review()
}

// review decides anew on everything that waits, and sends what need not wait any more. What is in the batch leaves
// before, as it may be another lane's.
func (w *Worker) review() error {
	turn := w.lane
	defer func() { w.lane = turn }()
	w.room.snap = w.snap
	line := w.room.takeAll()
	for k := range line {
		e := &line[k]
		if e.lane != w.lane || k == 0 {
			if err := w.flush(); err != nil {
				return err
			}
			w.lane = e.lane
		}
		if w.mustWait(e) {
			w.room.put(*e)
			continue
		}
		if err := w.fromQueue(e.packet, e.meta); err != nil {
			return err
		}
	}
	return w.flush()
}

// mustWait reports whether a superpacket still has nobody to be encrypted to but a peer without a session, which is
// noted and called.
func (w *Worker) mustWait(e *waiting) bool {
	if packet.Parse(e.packet, &w.info) != packet.OK {
		return false
	}
	d := w.snap.FromTUN(&w.info, e.meta)
	if d.Verdict != forwarder.ToPeer || !d.Peer.Encrypted {
		return false
	}
	peer := w.tunnelTo(d.Peer)
	if peer == nil || peer.Current() != nil {
		return false
	}
	e.peer = peer.ID()
	peer.Want()
	return true
}
