package wireguard

import "time"

// TookFrame notes that a worker has opened a superframe of the peer's.
func (p *Peer) TookFrame(worker int, now int64) {
	m := &p.marks[worker]
	m.framesGot.Add(1)
	m.frame.Store(now)
}

// streamTime is how long a stream goes on without a superframe.
const streamTime = 10 * time.Millisecond

// streams reports whether superframes come from the peer to this worker, and to no other.
func (p *Peer) streams(worker int, now int64) bool {
	late := now - int64(streamTime)
	if p.marks[worker].frame.Load() <= late {
		return false
	}
	for k := range p.marks {
		if k != worker && p.marks[k].frame.Load() > late {
			return false
		}
	}
	return true
}

// LostFrame notes that a worker has given up a superframe of the peer's, for want of pieces.
func (p *Peer) LostFrame(worker int) { p.marks[worker].framesLost.Add(1) }

// A health says whether superframes of a peer get through. One in 64 that does not costs about what they save: each is
// sent again as a whole.
type health struct {
	since     int64 // when counting began
	got, lost uint64
	until     int64 // they are not wanted before
	wait      int64
}

// The limits of health: how many are lost within healthWindow before anything is done, and how long superframes are not
// asked for then; twice as long each time, and as at first after a good hour.
const (
	healthWindow = 10 * time.Second
	lostLeast    = 8
	lostShare    = 64
	firstWait    = 30 * time.Second
	longestWait  = 16 * time.Minute
	goodTime     = time.Hour
)

// bad takes the numbers so far, and reports whether the peer is not to send superframes now.
func (h *health) bad(now int64, got, lost uint64) bool {
	if now < h.until || now-h.since >= int64(healthWindow) {
		h.since, h.got, h.lost = now, got, lost
		return now < h.until
	}
	n := lost - h.lost
	if n < lostLeast || n*lostShare < got-h.got {
		return false
	}
	if now-h.until > int64(goodTime) {
		h.wait = 0
	}
	h.wait = min(max(2*h.wait, int64(firstWait)), int64(longestWait))
	h.until = now + h.wait
	return true
}
