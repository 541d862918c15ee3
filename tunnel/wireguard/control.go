package wireguard

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
)

// leastBetweenInitiations is how much time passes between two initiations of one peer that are answered: its flood, or
// the replays of an attacker who can't make newer timestamps, cost no more (whitepaper, 6.1: 50 a second).
const leastBetweenInitiations = 20 * time.Millisecond

// loadMark is how many handshake messages with a right first MAC in one round mean that the node is under load: its
// goroutine, which takes what has come at once, was kept busy for milliseconds.
const loadMark = 32

// loadTime is how long the rules for a node under load hold after a sign of it (whitepaper, 5.3).
const loadTime = time.Second

// handle takes a message that is not data, or that came to the control socket. The caller holds t.mu.
func (t *Tunnel) handle(msg []byte, from netip.AddrPort) {
	switch typeOf(msg) {
	case TypeInitiation:
		if i := t.admit(msg, from); i != nil {
			t.initiation(i, msg, from)
		}
	case TypeResponse:
		if i := t.admit(msg, from); i != nil {
			t.response(msg, from)
		}
	case TypeCookieReply:
		t.cookieReply(msg)
	default:
		t.Counters.Invalid.Add(1)
	}
}

// admit checks the MACs of a handshake message, and returns which of our identities it is for; nil: ignore it.
func (t *Tunnel) admit(msg []byte, from netip.AddrPort) *identity {
	var ours *identity
	for _, i := range t.identities {
		if i.cookies.CheckMAC1(msg) {
			ours = i
			break
		}
	}
	if ours == nil {
		t.Counters.Invalid.Add(1)
		return nil
	}
	if t.verified++; t.verified >= loadMark {
		t.loadedAt = t.now
	}
	if t.now-t.loadedAt > int64(loadTime) {
		return ours
	}
	source := appendAddrPort(t.scratch[:0], from)
	if !ours.cookies.CheckMAC2(msg, source) {
		t.sendCookie(ours, msg, from, source)
		return nil
	}
	if !t.limiter.Allow(limited(from.Addr())) {
		t.Counters.RateLimited.Add(1)
		return nil
	}
	return ours
}

// limited is what has a rate limit of its own: an IPv4 address, or the /64 of an IPv6 one, as its holder has them all.
func limited(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	const subnet = 64
	p, err := a.Prefix(subnet)
	if err != nil {
		return a
	}
	return p.Addr()
}

// appendAddrPort is the form of a source address that cookies are bound to.
func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	addr := a.Addr().As16()
	return binary.LittleEndian.AppendUint16(append(b, addr[:]...), a.Port())
}

// sendCookie answers a message whose sender has not shown yet that it can be reached where it says it is.
func (t *Tunnel) sendCookie(i *identity, msg []byte, to netip.AddrPort, source []byte) {
	reply, err := i.cookies.CreateReply(msg, binary.LittleEndian.Uint32(msg[offsetSender:]), source)
	if err != nil {
		return // no random numbers: there is nothing to answer with
	}
	b := append(make([]byte, 0, cookieReplyLen), TypeCookieReply, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, reply.Receiver)
	b = append(b, reply.Nonce[:]...)
	b = append(b, reply.Cookie[:]...)
	t.Counters.CookiesSent.Add(1)
	t.transmit(b, to)
}

// cookieReply takes a cookie for the peer to whom we sent the message that it answers.
func (t *Tunnel) cookieReply(msg []byte) {
	index := binary.LittleEndian.Uint32(msg[offsetReceiver:])
	p := t.handshakes[index]
	if p == nil {
		s := t.index.lookup(index) // it may answer our response
		if s == nil {
			t.Counters.Invalid.Add(1)
			return
		}
		p = s.peer
	}
	reply := device.MessageCookieReply{Type: TypeCookieReply, Receiver: index}
	copy(reply.Nonce[:], msg[8:32])
	copy(reply.Cookie[:], msg[32:])
	if !p.cookies.ConsumeReply(&reply) {
		t.Counters.Invalid.Add(1)
		return
	}
	t.Counters.CookiesGot.Add(1)
	// It is used with the next attempt, which is due when it always was: at once would let whoever can answer in the
	// peer's place make us send as fast as it does.
}

// initiation answers the first message of a handshake.
func (t *Tunnel) initiation(i *identity, msg []byte, from netip.AddrPort) {
	c, err := i.readInitiation(t.config.Random, msg)
	if err != nil {
		t.Counters.Invalid.Add(1)
		return
	}
	p := t.byKey[c.public]
	switch {
	case p == nil:
		t.Counters.UnknownKey.Add(1)
		return
	case !c.stamp.After(p.stamp) || t.now-p.heardInit < int64(leastBetweenInitiations):
		t.Counters.Replayed.Add(1)
		return
	}
	p.stamp, p.heardInit = c.stamp, t.now
	t.stamps[c.public] = c.stamp
	index, ok := t.index.reserve(p.lane)
	if !ok {
		return
	}
	answer, send, receive, err := c.respond(p.config.Preshared, index)
	var s *Session
	if err == nil {
		s, err = newSession(p, &send, &receive)
	}
	if err == nil && marked(c.stamp) {
		s.frames, err = newFrameKeys(&send, &receive)
	}
	if err != nil {
		t.index.release(index)
		return
	}
	s.local, s.remote, s.created = index, c.index, t.now
	p.add(s)
	t.identify(p, t.number(i))
	p.identified = true
	p.moved(from)
	p.cookies.AddMacs(answer)
	t.Counters.Responded.Add(1)
	t.transmit(answer, from)
	p.marks[t.config.Workers].sent.Store(t.now)
}

// response ends a handshake that we began.
func (t *Tunnel) response(msg []byte, from netip.AddrPort) {
	index := binary.LittleEndian.Uint32(msg[offsetAnswered:])
	p := t.handshakes[index]
	if p == nil {
		t.Counters.Invalid.Add(1) // late, or never asked for
		return
	}
	send, receive, err := readResponse(p.pending.state, msg)
	if err != nil {
		t.Counters.Invalid.Add(1)
		return
	}
	s, err := newSession(p, &send, &receive)
	if err == nil {
		s.frames, err = newFrameKeys(&send, &receive) // our initiation had the mark
	}
	if err != nil {
		return
	}
	s.local, s.remote, s.created, s.initiator = index, binary.LittleEndian.Uint32(msg[offsetSender:]), t.now, true
	t.identify(p, p.pending.identity)
	p.identified = true
	delete(t.handshakes, index)
	p.pending, p.silence = nil, 0
	p.add(s)
	p.moved(from)
	t.Counters.Completed.Add(1)
	p.handshaken.Store(t.now)
	p.marks[t.config.Workers].got.Store(t.now)
	// The peer uses the session once it has heard from us in it.
	t.keepalive(p)
	t.established(p)
}

// initiate sends an initiation to the peer, when it can and none was sent a moment ago.
func (t *Tunnel) initiate(p *Peer) {
	if t.Peer(p.id) != p { // a worker wanted it while it was removed
		return
	}
	to := t.callAt(p)
	if !to.IsValid() || len(t.identities) == 0 || p.began != 0 && t.now-p.began < int64(RekeyTimeout) {
		return
	}
	if p.pending != nil {
		t.forget(p)
	} else {
		p.pending = &pending{since: t.now}
	}
	h := p.pending
	// While our key is being changed a peer may know only one of the two. Half as often as callAt changes its mind, so
	// that all combinations have their turn.
	h.identity = (p.identity + h.attempts/2) % len(t.identities)
	index, ok := t.index.reserve(p.lane)
	if !ok {
		p.pending = nil
		return
	}
	msg, state, err := t.identities[h.identity].initiation(&initiating{t.config.Random, &p.config, index, t.stamp()})
	if err != nil {
		t.index.release(index)
		p.pending = nil
		return
	}
	h.attempts++
	h.index, h.state, h.retry = index, state, t.now+int64(RekeyTimeout)+t.jitter()
	t.handshakes[index] = p
	p.began = t.now
	p.cookies.AddMacs(msg)
	t.Counters.Initiated.Add(1)
	t.transmit(msg, to)
	p.marks[t.config.Workers].sent.Store(t.now)
}

// callAt is where the next initiation goes: to where the peer was heard last, and in turns to where it is configured to
// be, as it may have come back there.
func (t *Tunnel) callAt(p *Peer) netip.AddrPort {
	at := p.Endpoint()
	if c := p.config.Endpoint; c.IsValid() && (!at.IsValid() || p.pending != nil && p.pending.attempts%2 == 1) {
		return c
	}
	return at
}

// forget ends the index of a handshake that was not answered.
func (t *Tunnel) forget(p *Peer) {
	if h := p.pending; h != nil && h.state != nil {
		delete(t.handshakes, h.index)
		t.index.release(h.index)
		h.state = nil
	}
}

// keepalive sends an empty packet.
func (t *Tunnel) keepalive(p *Peer) {
	if t.say(p, nil) {
		t.Counters.Keepalives.Add(1)
	}
}

// say sends a packet that is no pod's in the current session. False: it can't.
func (t *Tunnel) say(p *Peer, packet []byte) bool {
	s, to := p.Current(), p.Endpoint()
	if s == nil || !to.IsValid() {
		return false
	}
	counter, ok := s.Reserve(1)
	if !ok {
		return false
	}
	t.transmit(s.Seal(make([]byte, 0, Overhead+len(packet)), &t.nonce, Head{s.remote, counter}, packet), to)
	p.marks[t.config.Workers].sent.Store(t.now)
	return true
}

// number is which of our identities i is.
func (t *Tunnel) number(i *identity) int {
	for n, o := range t.identities {
		if o == i {
			return n
		}
	}
	return 0
}

// identify notes which of our identities the peer knows.
func (t *Tunnel) identify(p *Peer, n int) {
	p.identity = n
	if n < len(t.identities) {
		p.ours.Store(&t.identities[n].public)
	}
}

// stamp is the time of an initiation, with the mark: later than that of all others, also when the system's clock was
// set back.
func (t *Tunnel) stamp() tai64n.Timestamp {
	s := t.config.Stamp()
	mark(&s)
	if !s.After(t.stamped) {
		s = t.stamped
		const step, second = 1 << 24, 1_000_000_000 // tai64n has so many nanoseconds of one value
		nanos := binary.BigEndian.Uint32(s[8:]) + step
		if nanos >= second {
			nanos -= second
			binary.BigEndian.PutUint64(s[:], binary.BigEndian.Uint64(s[:])+1)
		}
		binary.BigEndian.PutUint32(s[8:], nanos)
		mark(&s)
	}
	t.stamped = s
	return s
}
