package wireguard

import (
	"math/rand/v2"
	"time"
)

// tickTime is how often the timers are looked at while there is a session or a handshake; they are exact to that. The
// longest of their times that matter is five seconds.
const tickTime = 250 * time.Millisecond

// jitterTime keeps two peers from calling each other at the same moment again and again (whitepaper, 6.1).
const jitterTime = 333 * time.Millisecond

func (t *Tunnel) jitter() int64 { return rand.Int64N(int64(jitterTime)) }

// tick looks at all timers, and reports whether there is anything to look at again. The caller holds t.mu.
func (t *Tunnel) tick() (active bool) {
	calls := t.config.CallsPerTick
	for p := range t.all() {
		if p.greet && calls > 0 {
			p.greet = false
			calls--
			t.initiate(p)
		}
		if t.step(p) || p.greet {
			active = true
		}
	}
	return active
}

// step is the timer state machine of one peer (whitepaper, 6.2 to 6.5), and reports whether it is active.
func (t *Tunnel) step(p *Peer) bool {
	if p.held.Load() == 0 && p.pending == nil && !p.wanted.Load() && p.config.Keepalive == 0 {
		return false
	}
	p.expire(t.now - int64(RejectAfterTime))
	if s := p.Current(); s != nil && p.pending != nil && s.created > p.pending.since {
		t.forget(p) // the peer was faster
		p.pending = nil
	}
	if h := p.pending; h != nil && t.now >= h.retry {
		if t.now-h.since >= int64(RekeyAttemptTime) {
			t.forget(p)
			p.pending = nil
			p.wanted.Store(false) // whoever still sends wants it again
			p.silent.Store(true)
			t.Counters.GivenUp.Add(1)
		} else {
			t.initiate(p)
		}
	}
	lastDataSent, lastSent := p.latest(dataSent), p.latest(sent)
	lastDataGot, lastGot := p.latest(dataGot), p.latest(got)
	if s := p.Current(); s != nil {
		t.rekey(p, s, lastSent, lastGot)
	}
	t.offer(p)
	t.satisfy(p)
	// A peer that does not answer may have lost its sessions: call it again.
	switch {
	case lastDataSent <= lastGot:
		p.silence = 0
	case p.silence == 0 || lastGot > p.silence:
		p.silence = lastDataSent
	case t.now-p.silence >= int64(KeepaliveTimeout+RekeyTimeout) && p.pending == nil:
		p.silence = 0
		t.initiate(p)
	}
	// And it takes our silence for that, too.
	switch {
	case lastDataGot <= lastSent:
		p.owed = 0
	case p.owed == 0 || lastSent > p.owed:
		p.owed = lastDataGot
	case t.now-p.owed >= int64(KeepaliveTimeout):
		p.owed = 0
		t.keepalive(p)
	}
	if k := int64(p.config.Keepalive); k > 0 && t.now-lastSent >= k {
		if p.Current() != nil {
			t.keepalive(p)
		} else if p.pending == nil {
			t.initiate(p)
		}
		return true
	}
	return p.pending != nil || p.wanted.Load() || p.held.Load() > 0
}

// satisfy begins the handshake that somebody wants, unless there is no need any more or one is under way.
func (t *Tunnel) satisfy(p *Peer) {
	if !p.wanted.Load() || p.pending != nil {
		return
	}
	s := p.Current()
	if s != nil && s.counter.Load() <= RekeyAfterMessages || !t.callAt(p).IsValid() || t.Peer(p.id) != p {
		p.wanted.Store(false)
		return
	}
	t.initiate(p)
}

// rekey begins a handshake when the session that we began grows old and is in use.
func (t *Tunnel) rekey(p *Peer, s *Session, lastSent, lastGot int64) {
	if !s.initiator || p.pending != nil {
		return
	}
	old := s.created + int64(RekeyAfterTime)
	veryOld := s.created + int64(RejectAfterTime-KeepaliveTimeout-RekeyTimeout)
	if lastSent >= old || lastGot >= veryOld {
		t.initiate(p)
	}
}
