package wireguard

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flynn/noise"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/warren-net/warren/internal/key"
)

// A Peer is one that we talk to. The methods are safe for concurrent use, and take no lock but where they say so.
type Peer struct {
	id     int32
	tunnel *Tunnel
	lane   int // that its sessions are steered to

	current  atomic.Pointer[Session]        // to encrypt with
	endpoint atomic.Pointer[netip.AddrPort] // where it was heard last, or is said to be; nil: not known
	wanted   atomic.Bool                    // it is in Tunnel.wanting
	silent   atomic.Bool                    // the last calls were given up
	paused   atomic.Bool                    // its superframes are not wanted now
	marks    []marks                        // one per worker, and one for Run

	mu       sync.Mutex // guards the sessions; never held while another lock is taken but the index table's
	previous *Session   // what was current before: messages of it may still be on their way
	next     *Session   // made by a handshake that the peer began, and not yet used by it

	held       atomic.Int32 // how many sessions there are
	public     atomic.Pointer[key.Public]
	ours       atomic.Pointer[key.Public] // which of our keys it knows us by
	handshaken atomic.Int64               // when the last handshake was, of those that both sides ended; 0: never

	// What follows is guarded by Tunnel.mu.
	config     PeerConfig
	cookies    *device.CookieGenerator
	pending    *pending // the handshake that we began and that is not answered
	stamp      tai64n.Timestamp
	heardInit  int64 // when the last valid initiation of it came
	began      int64 // when the last initiation was sent to it
	identity   int   // which of our keys it has answered to, or begun a handshake with
	identified bool  // identity is from a handshake
	health     health
	greet      bool  // it is still to be called because it is new
	silence    int64 // since when it owes an answer; 0: it does not
	owed       int64 // since when we owe one
}

// PeerConfig is what Tunnel.SetPeers and ChangePeers are told of a peer.
type PeerConfig struct {
	ID        int32 // above 0; of this peer alone, and no other's before nobody knows it by that
	Name      string
	Public    key.Public
	Preshared key.Preshared
	Endpoint  netip.AddrPort // zero: it is known once it has called
	Keepalive time.Duration  // how often a message leaves at least; 0: only when the protocol needs one
	Greet     bool           // call it at once, and again when its key changes, so that nobody waits for a session
}

// pending is a handshake that waits for a response.
type pending struct {
	state    *noise.HandshakeState
	index    uint32
	identity int
	since    int64 // when the first of the attempts was made
	retry    int64 // when the next one is due
	attempts int
}

// marks are one worker's notes on a peer. Written by that worker alone.
type marks struct {
	dataSent atomic.Int64 // the last message that holds a packet
	sent     atomic.Int64 // the last message
	dataGot  atomic.Int64 // the last authentic message that holds a packet
	got      atomic.Int64 // the last authentic message

	frame                 atomic.Int64  // the last superframe
	framesGot, framesLost atomic.Uint64 // their number

	_ [128 - 7*8]byte
}

// ID is the number that the peer was given.
func (p *Peer) ID() int32 { return p.id }

// Current is the session to encrypt with; nil: there is none now, see Want.
func (p *Peer) Current() *Session { return p.current.Load() }

// Endpoint is where the peer is; the zero AddrPort when nobody knows.
func (p *Peer) Endpoint() netip.AddrPort {
	if e := p.endpoint.Load(); e != nil {
		return *e
	}
	return netip.AddrPort{}
}

// Want asks for a session: something waits to be sent. It may take a lock that is held for moments.
func (p *Peer) Want() {
	if !p.wanted.Swap(true) {
		p.tunnel.want(p)
	}
}

// Sent notes that a worker has sent messages to the peer, with packets in them or only a keepalive.
func (p *Peer) Sent(worker int, now int64, data bool) {
	m := &p.marks[worker]
	m.sent.Store(now)
	if data {
		m.dataSent.Store(now)
	}
}

// Got notes that a worker has received authentic messages of the session, the last one from the address. It takes locks
// when that is news: the first message of a new session, or one from another address.
func (s *Session) Got(worker int, now int64, data bool, from netip.AddrPort) {
	p := s.peer
	m := &p.marks[worker]
	m.got.Store(now)
	if data {
		m.dataGot.Store(now)
	}
	if !s.answered.Load() {
		p.confirm(s)
	}
	if e := p.endpoint.Load(); e == nil || *e != from {
		p.moved(from)
	}
}

// moved takes a new endpoint, unless nothing could be sent to it.
func (p *Peer) moved(to netip.AddrPort) {
	before := p.Endpoint()
	if before == to || to.Port() == 0 || !p.tunnel.reachable(to.Addr()) {
		return
	}
	p.endpoint.Store(&to)
	if before.Addr() != to.Addr() {
		p.tunnel.roamed(p)
	}
}

// confirm makes the next session the current one, as the peer has used it.
func (p *Peer) confirm(s *Session) {
	p.mu.Lock()
	ours := p.next == s
	if ours {
		p.drop(p.previous)
		p.previous, p.next = p.current.Load(), nil
		s.answered.Store(true)
		p.current.Store(s)
	}
	p.mu.Unlock()
	if ours {
		// Not when we responded: a peer with another preshared key cannot read that.
		p.handshaken.Store(s.created)
		p.tunnel.established(p)
		if s.extended() {
			p.Want() // an offer is due
		}
	}
}

// add takes the session that a handshake made, as the whitepaper has it in section 6.3.
func (p *Peer) add(s *Session) {
	s.answered.Store(s.initiator)
	p.tunnel.index.set(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held.Add(1)
	current := p.current.Load()
	if !s.initiator {
		p.drop(p.next)
		p.drop(p.previous)
		p.next, p.previous = s, nil
		return
	}
	p.drop(p.previous)
	if p.next != nil {
		p.next.answered.Store(true) // it is not asked any more
		p.drop(current)
		p.previous, p.next = p.next, nil
	} else {
		p.previous = current
	}
	p.current.Store(s)
}

// expire drops the sessions that were made before the time.
func (p *Peer) expire(before int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.current.Load(); s != nil && s.created <= before {
		p.current.Store(nil)
		p.drop(s)
	}
	for _, s := range []**Session{&p.previous, &p.next} {
		if *s != nil && (*s).created <= before {
			p.drop(*s)
			*s = nil
		}
	}
}

// drop ends the index of a session, which nobody finds any more then.
func (p *Peer) drop(s *Session) {
	if s != nil {
		p.held.Add(-1)
		p.tunnel.index.release(s.local)
	}
}

// latest is the latest of all workers' marks of one kind.
func (p *Peer) latest(of func(*marks) *atomic.Int64) int64 {
	var t int64
	for k := range p.marks {
		t = max(t, of(&p.marks[k]).Load())
	}
	return t
}

func dataSent(m *marks) *atomic.Int64 { return &m.dataSent }
func sent(m *marks) *atomic.Int64     { return &m.sent }
func dataGot(m *marks) *atomic.Int64  { return &m.dataGot }
func got(m *marks) *atomic.Int64      { return &m.got }

// sum adds up all workers' counts of one kind.
func (p *Peer) sum(of func(*marks) *atomic.Uint64) uint64 {
	var n uint64
	for k := range p.marks {
		n += of(&p.marks[k]).Load()
	}
	return n
}

func framesGot(m *marks) *atomic.Uint64  { return &m.framesGot }
func framesLost(m *marks) *atomic.Uint64 { return &m.framesLost }
