package memory

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/warren-net/warren/tunnel"
)

// maxJoined is how many bytes and datagrams GRO joins at most, as the kernel does.
const (
	maxJoinedBytes = tunnel.MaxSendBytes
	maxJoined      = 64
)

// A queued is one datagram that waits at its receiver.
type queued struct {
	from netip.AddrPort
	tos  uint8
	data []byte
}

// A held is a datagram that waits to be overtaken.
type held struct {
	queued
	behind int // datagrams that still have to pass
}

// A queue is the receiving half of a Socket. Buffers of datagrams are used again.
type queue struct {
	limit   int // datagrams
	hold    time.Duration
	network *Network

	mu     sync.Mutex
	ring   []queued // ring[head:head+n], wrapping around
	head   int
	n      int
	held   []held
	spare  [][]byte
	timer  *time.Timer // releases what is held
	closed bool
	notify func()
}

// put appends a copy of d; with behind above zero that many later ones pass first.
func (q *queue) put(d queued, behind int) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		q.network.stats.noReceiver.Add(1)
		return
	}
	if behind > 0 && len(q.held) < q.limit {
		d.data = q.copy(d.data)
		q.held = append(q.held, held{d, behind})
		if len(q.held) == 1 {
			q.startTimer()
		}
		q.mu.Unlock()
		return
	}
	if q.n+len(q.held) >= q.limit {
		q.mu.Unlock()
		q.network.stats.queueFull.Add(1)
		return
	}
	d.data = q.copy(d.data)
	q.push(d)
	q.pass()
	notify := q.notify
	q.mu.Unlock()
	if notify != nil {
		notify()
	}
}

func (q *queue) copy(data []byte) []byte {
	var b []byte
	if n := len(q.spare); n > 0 {
		b, q.spare = q.spare[n-1], q.spare[:n-1]
	}
	return append(b[:0], data...)
}

// push appends to the ring, which grows until it holds limit datagrams, plus those that were held.
func (q *queue) push(d queued) {
	if q.n == len(q.ring) {
		ring := make([]queued, max(64, 2*len(q.ring)))
		for i := range q.n {
			ring[i] = q.ring[(q.head+i)%len(q.ring)]
		}
		q.ring, q.head = ring, 0
	}
	q.ring[(q.head+q.n)%len(q.ring)] = d
	q.n++
	q.network.stats.delivered.Add(1)
}

// pass counts one datagram that overtook the held ones, and releases those that were overtaken often enough.
func (q *queue) pass() {
	for i := range q.held {
		q.held[i].behind--
	}
	q.held = slices.DeleteFunc(q.held, func(h held) bool {
		if h.behind > 0 {
			return false
		}
		q.push(h.queued)
		return true
	})
}

// startTimer sees to it that the last datagrams of a connection arrive although nothing comes to overtake them.
func (q *queue) startTimer() {
	if q.timer == nil {
		q.timer = time.AfterFunc(q.hold, q.release)
		return
	}
	q.timer.Reset(q.hold)
}

func (q *queue) release() {
	q.mu.Lock()
	n := len(q.held)
	for _, h := range q.held {
		q.push(h.queued)
	}
	q.held = q.held[:0]
	notify, closed := q.notify, q.closed
	q.mu.Unlock()
	if n > 0 && notify != nil && !closed {
		notify()
	}
}

// pop removes the first datagram, and hands its buffer back for use by later ones. The caller is done with it.
func (q *queue) pop() {
	d := &q.ring[q.head]
	q.spare = append(q.spare, d.data)
	*d = queued{}
	q.head = (q.head + 1) % len(q.ring)
	q.n--
}

// fill moves datagrams into the slot: one, or as many as GRO joins: of one sender and TOS, all of one size, the last
// maybe shorter. It returns false when there is none. One that is larger than the buffer is thrown away.
func (q *queue) fill(slot *tunnel.Datagrams, join bool) bool {
	slot.N = -1
	for count := 0; q.n > 0 && count < maxJoined; count++ {
		d := &q.ring[q.head]
		if slot.N < 0 {
			slot.From, slot.TOS, slot.SegmentSize = d.from, d.tos, len(d.data)
			if len(d.data) > len(slot.Buf) {
				q.pop()
				count--
				continue
			}
			slot.N = 0
		} else if d.from != slot.From || d.tos != slot.TOS || len(d.data) > slot.SegmentSize || len(d.data) == 0 ||
			slot.N+len(d.data) > min(maxJoinedBytes, len(slot.Buf)) {
			break
		}
		n := len(d.data)
		slot.N += copy(slot.Buf[slot.N:], d.data)
		q.pop()
		if !join || n < slot.SegmentSize || n == 0 {
			break
		}
	}
	return slot.N >= 0
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.ring, q.held, q.spare, q.head, q.n = nil, nil, nil, 0, 0
	if q.timer != nil {
		q.timer.Stop()
	}
}
