// Package worker is the packet loop: it moves superpackets between queues of the device and sockets of the tunnel, as
// forwarder decides.
//
// # One thread, both directions
//
// A worker owns its lanes, its buffers and its counters, and serves both directions from one thread: drain a little
// from a lane's queue, send what came of it, drain a little from its socket, and sleep only when all of them are empty.
// Acknowledgements then ride on the wake-ups of the data they answer; measured against a thread per direction this is
// worth 1.3 to 1.5 times the one-stream rate. Nothing on this path is shared for writing with another worker.
//
// # Lanes
//
// A lane is a queue of the device and a socket, or two: one for VXLAN, one for the encrypted tunnel. A flow is in one
// lane by its hash, mostly in both directions, so that flows of different lanes don't wait for each other: neither in
// the kernel's queue in front of the worker nor in the buffer of the receiver's socket, first in, first out as both
// are. The worker gives the lanes turns (see schedule), a bounded number of bytes each; one that had nothing to do
// comes before those that always have. Lanes in which little happens are in the hands of one worker, see Exchange, and
// small flows leave the lanes of large ones for these, see steering.
//
// # Who owns which buffer
//
// A packet read from the queue stays in the read buffer that it arrived in until the batch was sent: encapsulation
// headers are stamped into the arena and sent beside it. A datagram received stays in the Inbound's slot until its
// superpacket was written to the queue: the coalescer refers to it and edits the first header of a run in place.
// Nothing is copied but headers.
//
// What is to be encrypted is taken from the read buffer, where each segment's header is written over the end of the
// segment before it, which has left by then. The messages are made one behind the other in a buffer that holds a batch,
// and are sent from there. What was received is decrypted where it lies.
//
// # Encryption
//
// A snapshot says to whom is encrypted, tunnel/wireguard has the keys. There is one way from such a peer's packets to a
// socket, and it leads through Session.Seal. While there is no session superpackets wait, bounded in bytes and in time
// (see waitingRoom); when one comes up, or the snapshot changes, they are decided on anew, as if they had just been
// read.
//
// # Failure
//
// A bad, unknown or spoofed packet is a counted drop. Only a closed device or socket ends Run with an error.
package worker

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/vxlan"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// A Lane is a queue of the device and the sockets for the same flows. One of the sockets may be nil.
type Lane struct {
	Number int // among the node's lanes
	Queue  device.Queue
	Socket tunnel.Socket // of VXLAN
	Secure tunnel.Socket // of the encrypted tunnel
}

// MaxLanes is the number of lanes that a worker can have: three of a poller's 64 bits are for each.
const MaxLanes = 16

// Ready says which lanes' queues and sockets may have something: bit k is lane k.
type Ready struct{ Queues, Sockets, Secure uint32 }

// of is r without the lanes that are not in owned.
func (r Ready) of(owned uint32) Ready {
	return Ready{Queues: r.Queues & owned, Sockets: r.Sockets & owned, Secure: r.Secure & owned}
}

// A Waiter blocks until a queue or a socket may have something, or until Wake.
type Waiter interface {
	// Wait returns after at most timeout, at once for 0. It may return early, and may call ready what is not, but not
	// leave out what is.
	Wait(timeout time.Duration) (Ready, error)
	// Wake makes the current or the next Wait return. Safe for concurrent use.
	Wake()
	// Watch begins or ends that Wait waits for a lane; at first it waits for none if there is an Exchange, else for all.
	// After ENOSPC and ENOMEM it is as before, and can be tried again.
	Watch(lane int, on bool) error
}

// Config says what a worker works with. All of it but Table belongs to the worker from New on.
type Config struct {
	ID       int                // its number among the node's workers; index of its cell in forwarder.PeerStats
	Lanes    []Lane             // 1 to MaxLanes: the worker's, or with an Exchange all of the node's
	Exchange *Exchange          // nil: the lanes stay with the worker
	Writers  []device.Queue     // the node's queues, for writing: handles of this worker's own; nil: the lanes'
	Whole    tunnel.WholeSender // sends superpackets uncut to the peers that take them; nil: all of them are cut
	Waiter   Waiter
	Thread   Thread // with LockThread; may be nil
	Moderate bool   // pause, see moderation; with Thread
	// NotPreferred is told why the express worker's thread is as the others are, see Thread. nil: nobody is.
	NotPreferred func(error)
	Table        *forwarder.Table
	Decoder      vxlan.Decoder
	Crypt        *wireguard.Tunnel        // encrypts and decrypts; nil: lanes have no Secure
	PathEvents   func([]tunnel.PathEvent) // called on the worker's thread; must not block. nil: ignored
	Now          func() time.Time         // nil: time.Now
	LockThread   bool                     // keep to one OS thread: for real devices
}

// Sizes of a turn. Bytes bound it, so that what one step wrote is still in the processor's second-level cache when the
// next one reads it; packets bound it where they are small, so that neither direction waits long for the other.
const (
	queueBatch  = 64        // superpackets
	queueBytes  = 128 << 10 // after so many no further one is read
	socketSlots = 64        // receives; how many of them are used follows from socketBytes
	fewestSlots = 4
	socketBytes = 256 << 10
	// waitLimit bounds a wait, so that counters and path events of an idle worker are never older than this.
	waitLimit = time.Second
	// A busy worker looks at the clock once in so many turns, and asks for path events so often.
	eventTurns    = 64
	eventInterval = 50 * time.Millisecond
)

// A turnSize is how much a turn reads from the queue, and how many receives a lane has at first.
type turnSize struct{ packets, bytes, slots int }

// A Worker is one packet loop. New makes one; Run runs it.
type Worker struct {
	Config
	Counters Counters

	snap     *forwarder.Snapshot // in force for the current batch
	at       int64               // the current turn's time, see now; 0: nobody has asked yet
	tunnelAt int64               // the same, see clock
	turn     schedule
	owned    uint32 // the lanes that are the worker's at present
	// Of an Exchange:
	unwatched uint32        // those of them that Waiter does not wait for yet
	retried   time.Time     // to wait for them
	looked    time.Time     // for quiet lanes, not the express worker
	window    traffic       // of all lanes, the express worker alone
	busy      busy          // the same
	used      time.Duration // of a processor, at the last account
	uses      []use         // by bucket, see steering; not the express worker
	firstUse  uint32        // who may move first
	rests     moderation
	moved     uint64 // bytes, in all turns
	lane      *lane  // whose turn it is
	all       []lane
	size      turnSize
	info      packet.Info
	icmp      icmpLimit

	preferred atomic.Bool // see Thread
	sessionUp atomic.Bool // since attend looked
	room      waitingRoom

	// From the queue to the socket.
	reads []byte // a batch's superpackets, one behind the other
	arena packet.Arena
	segs  packet.Segments
	frags packet.Fragments
	out   tunnel.Outbound
	seals sealer
	whole tunnel.Superpacket // on its way; here as it would be allocated elsewhere

	// From the socket to the queue.
	in      *tunnel.Inbound
	slots   []tunnel.Datagrams // all that in can have
	join    *packet.Coalescer
	iovecs  [][]byte
	lent    []lent
	nonce   wireguard.Nonce
	scratch []byte // an ICMP error, or a run that must be flattened because the device refused it

	events []tunnel.PathEvent
	asked  time.Time // for path events
}

// New makes a worker.
func New(c Config) *Worker {
	if c.Now == nil {
		c.Now = time.Now
	}
	w := &Worker{
		Config: c,
		join:   packet.NewCoalescer(packet.CoalescerOptions{TCP: true, UDP: true}),
		iovecs: make([][]byte, 0, 4),
	}
	if c.Moderate {
		w.rests.thread = c.Thread
	}
	w.segs.Arena = &w.arena
	w.size = turnSize{queueBatch, queueBytes, fewestSlots}
	if w.IsExpress() {
		w.size = turnSize{expressBatch, expressTurn, expressSlots}
	}
	for _, l := range w.Lanes {
		w.all = append(w.all, lane{Lane: l, slots: w.size.slots, secureSlots: w.size.slots})
		if c.Writers == nil {
			w.Writers = append(w.Writers, l.Queue)
		}
	}
	w.lane = &w.all[0]
	if c.Exchange == nil {
		w.owned = 1<<len(w.all) - 1
	} else {
		c.Exchange.to[c.ID].wake = c.Waiter.Wake
		if !w.IsExpress() {
			w.uses = make([]use, c.Exchange.steering.buckets)
		}
	}
	w.reads = make([]byte, queueBytes+device.BufferSize+64) // a superframe grows a little at its end
	receives := socketSlots
	if w.IsExpress() {
		receives = w.size.slots
	}
	w.in = tunnel.NewInbound(receives)
	w.slots = w.in.Slots
	if c.Crypt != nil {
		w.seals.messages = make([]byte, 0, sealedBytes)
	}
	return w
}

// A lane is a Lane and what the worker remembers of it.
type lane struct {
	Lane
	slots, secureSlots int     // receives in its next turn, by socket
	moved              traffic // in the window
	busy               busy    // the same
}

// Run moves packets until ctx ends (and returns nil) or the device or the socket is gone.
func (w *Worker) Run(ctx context.Context) error {
	if w.LockThread {
		runtime.LockOSThread()
		defer func() {
			if !w.IsExpress() { // whose thread is to end with the goroutine: nobody else may have its priority
				runtime.UnlockOSThread()
			}
		}()
	}
	if w.IsExpress() && w.Thread != nil {
		w.prefer()
	}
	stop := context.AfterFunc(ctx, w.Waiter.Wake)
	defer stop()
	if err := w.takeLanes(); err != nil {
		return err
	}
	for turns := 0; ctx.Err() == nil; {
		wait := time.Duration(0)
		if w.turn.empty() {
			w.tick()
			w.rest()
			w.Counters.Wakeups.Add(1)
			wait = waitLimit
			if w.unwatched != 0 {
				wait = retryWatch
			}
		}
		ready, err := w.Waiter.Wait(wait)
		if err != nil {
			return fmt.Errorf("worker %d: wait: %w", w.ID, err)
		}
		if wait > 0 && ready != (Ready{}) && w.rests.thread != nil {
			w.rests.after(w.Now())
		}
		if err := w.takeLanes(); err != nil {
			return err
		}
		if err := w.attend(); err != nil {
			return fmt.Errorf("worker %d: to a peer with a session: %w", w.ID, err)
		}
		w.turn.add(ready.of(w.owned))
		k, side, ok := w.turn.next()
		if !ok {
			continue
		}
		if err := w.serve(k, side); err != nil {
			return fmt.Errorf("worker %d: %w", w.ID, err)
		}
		if turns++; turns%eventTurns == 0 {
			w.tick()
		}
	}
	return nil
}

// serve gives lane k its turn.
func (w *Worker) serve(k int, ready side) error {
	w.lane = &w.all[k]
	w.snap, w.at, w.tunnelAt = w.Table.Load(), 0, 0
	var left side
	var moved int
	packets, segments := w.packets(), w.segments()
	if ready&queueSide != 0 {
		bytes, more, err := w.drainQueue()
		if err != nil {
			return fmt.Errorf("from the device: %w", err)
		}
		if more {
			left |= queueSide
		}
		moved = bytes
	}
	if ready&socketSide != 0 && w.lane.Socket != nil {
		bytes, more, err := w.drainSocket()
		if err != nil {
			return fmt.Errorf("from the underlay: %w", err)
		}
		if more {
			left |= socketSide
		}
		moved += bytes
	}
	if ready&secureSide != 0 && w.lane.Secure != nil {
		bytes, more, err := w.drainSecure()
		if err != nil {
			return fmt.Errorf("from the encrypted tunnel: %w", err)
		}
		if more {
			left |= secureSide
		}
		moved += bytes
	}
	given, err := w.account(k, traffic{
		bytes: uint64(moved), packets: w.packets() - packets, segments: w.segments() - segments,
	})
	if !given {
		w.turn.done(k, left, moved)
	}
	return err
}

// packets is how many packets and superpackets were read, and receives.
func (w *Worker) packets() uint64 { return w.Counters.QueueReads.Load() + w.Counters.Receives.Load() }

// segments is how many packets there were on the wire, and writes to the device.
func (w *Worker) segments() uint64 {
	c := &w.Counters
	return c.SegmentsIn.Load() + c.SegmentsOut.Load() + c.QueueWrites.Load()
}

// rest pauses before a wait, if that is worth it.
func (w *Worker) rest() {
	if w.rests.thread == nil {
		return
	}
	if d := w.rests.before(w.Now(), w.packets(), w.moved); d > 0 {
		w.Counters.Pauses.Add(1)
		w.Thread.Pause(d)
	}
}

// now is the time of the turn in Unix nanoseconds: the clock is asked once.
func (w *Worker) now() int64 {
	if w.at == 0 {
		w.at = w.Now().UnixNano()
	}
	return w.at
}

// tick asks for path events, but no more often than eventInterval: asking costs two system calls. They must be asked
// for, as an ICMP error about what the send socket sent makes nothing readable. And it ends the wait of what has waited
// for long enough.
func (w *Worker) tick() {
	if now := w.Now(); now.Sub(w.asked) >= eventInterval {
		w.asked = now
		for set := w.owned; set != 0; set &= set - 1 {
			l := &w.all[bits.TrailingZeros32(set)]
			w.pathEvents(l.Socket)
			w.pathEvents(l.Secure)
		}
		if !w.room.empty() {
			w.drop(forwarder.NoSession, w.room.expire(w.Crypt.Now()))
		}
		if w.IsExpress() {
			w.Exchange.steering.sendHome(now)
		}
	}
}

func (w *Worker) pathEvents(s tunnel.Socket) {
	if s == nil {
		return
	}
	w.events = s.PathEvents(w.events[:0])
	if len(w.events) > 0 && w.PathEvents != nil {
		w.PathEvents(w.events)
	}
}

// drop counts n segments dropped for reason r.
func (w *Worker) drop(r forwarder.Reason, n int) { w.Counters.Drops[r].Add(uint64(n)) }

// deliver writes a superpacket to a queue. One of a kind that the device does not take (any more) is cut into segments
// first.
func (w *Worker) deliver(q device.Queue, m packet.Meta, pieces [][]byte, segments int) error {
	if m.Type != packet.GSONone && !q.Takes(m.Type) {
		return w.deliverCut(q, m, pieces)
	}
	err := q.Write(m, pieces)
	switch {
	case err == nil:
		w.Counters.QueueWrites.Add(1)
	case errors.Is(err, device.ErrNotTaken):
		return w.deliverCut(q, m, pieces)
	case errors.Is(err, device.ErrClosed):
		return err
	default:
		w.drop(forwarder.DeviceWrite, segments)
	}
	return nil
}

// deliverCut writes a superpacket segment by segment.
func (w *Worker) deliverCut(q device.Queue, m packet.Meta, pieces [][]byte) error {
	p := w.scratch[:0]
	for _, piece := range pieces {
		p = append(p, piece...)
	}
	w.scratch = p
	var i packet.Info
	if e := packet.Parse(p, &i); e != packet.OK {
		w.drop(forwarder.FromError(e), 1)
		return nil
	}
	// Headers go into the arena behind those of the batch that waits to be sent, if any; segs is free between packets.
	if e := w.segs.Segment(p, &i, m, nil); e != packet.OK {
		w.drop(forwarder.FromError(e), 1)
		return nil
	}
	for k := range w.segs.N() {
		w.iovecs = w.iovecs[:0]
		if h := w.segs.Header(k); len(h) > 0 {
			w.iovecs = append(w.iovecs, h)
		}
		w.iovecs = append(w.iovecs, w.segs.Payload(k))
		err := q.Write(packet.Meta{}, w.iovecs)
		switch {
		case err == nil:
			w.Counters.QueueWrites.Add(1)
		case errors.Is(err, device.ErrClosed):
			return err
		default:
			w.drop(forwarder.DeviceWrite, 1)
		}
	}
	return nil
}
