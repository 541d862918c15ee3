package wireguard

import (
	"encoding/binary"
	"time"

	"golang.zx2c4.com/wireguard/tai64n"
)

// Warren nodes tell each other what they take beyond WireGuard's messages. Nobody else is told anything, and nothing is
// assumed:
//
//   - An initiation's timestamp, which is encrypted and authentic, has a mark in bits that are zero by WireGuard's rule
//     against fine timestamps. Others don't look at them.
//   - Who answers a marked initiation sends an offer once the session is confirmed: a data message whose packet has 0
//     for an IP version. It is repeated for a few seconds, until there is one from the other side.
//   - Who gets an offer that is no answer answers with its own, once a second at most.
//
// An offer holds for its session, and until another one: the next session begins without. Its 16 bytes are 0, a
// version, flags, 0, and offerText.
const (
	takesFrames = 1 << iota // superframes
	takesAES                // and these with AES-256-GCM
	takesLanes              // the lane of a message in the low byte of the receiver index
	isAnswer    = 1 << 7    // the sender has an offer of the receiver's

	offerVersion = 1
	offerLen     = 16
	offerText    = "Warren offer"

	stampMark = 0x57524e // in the low 24 bits of a timestamp's nanoseconds, which stay below a second with it
	stampMask = 1<<24 - 1

	offerInterval = int64(time.Second) // between repetitions
	maxOffers     = 8                  // that are not answered
	repeats       = 2                  // of one that asks for superframes again
)

// offers is what was said of offers in a session. Guarded by Tunnel.mu.
type offers struct {
	flags uint32 // of our last one
	at    int64  // when it was sent; 0: never
	n     int    // how many there were
	again int    // how often it is to be said again
	got   uint64 // superframes that had come from the peer by then
}

// mark makes a timestamp show that a Warren made it.
func mark(s *tai64n.Timestamp) {
	nanos := binary.BigEndian.Uint32(s[8:])
	binary.BigEndian.PutUint32(s[8:], nanos&^stampMask|stampMark)
}

// marked reports whether a Warren made the timestamp.
func marked(s tai64n.Timestamp) bool { return binary.BigEndian.Uint32(s[8:])&stampMask == stampMark }

// IsOffer reports whether what a data message held is an offer, for Session.Offered.
func IsOffer(packet []byte) bool {
	return len(packet) >= offerLen && packet[0] == 0 && packet[1] == offerVersion &&
		string(packet[4:offerLen]) == offerText
}

// Offered takes the peer's offer. It may take a lock that is held for moments.
func (s *Session) Offered(packet []byte) {
	if s.frames == nil {
		return // it began the session without the mark
	}
	flags := uint32(packet[2])
	s.takes.Store(flags & s.peer.tunnel.offering)
	s.heard.Store(true)
	if flags&isAnswer == 0 && !s.asked.Swap(true) {
		s.peer.Want()
	}
}

// TakesFrames reports whether the peer takes superframes in the session, and this node makes them.
func (s *Session) TakesFrames() bool { return s.takes.Load()&takesFrames != 0 }

// offering is what this node takes, and so uses too.
func (c *Config) offering() uint32 {
	flags := uint32(takesLanes)
	if c.Superframes {
		flags |= takesFrames
		if c.AES {
			flags |= takesAES
		}
	}
	return flags
}

// offer sends the peer an offer when one is due. The caller holds t.mu.
func (t *Tunnel) offer(p *Peer) {
	s := p.Current()
	if s == nil || !s.extended() {
		return
	}
	flags := t.offering
	got := p.sum(framesGot)
	bad := p.health.bad(t.now, got, p.sum(framesLost))
	if bad {
		flags &^= takesFrames | takesAES
	}
	if p.paused.Swap(bad) != bad && t.config.Paused != nil {
		t.config.Paused(p.id, bad)
	}
	o, heard, asked := &s.offers, s.heard.Load(), s.asked.Load()
	late, changed := o.at == 0 || t.now-o.at >= offerInterval, heard && o.at != 0 && o.flags != flags
	switch {
	case asked && late, changed:
	case heard && late && o.again > 0:
	case !heard && late && o.n < maxOffers:
	case heard && late && flags&takesFrames == 0 && o.got != got: // our last one was lost
	default:
		return
	}
	said := flags
	if heard {
		said |= isAnswer
	}
	if !t.say(p, append([]byte{0, offerVersion, byte(said), 0}, offerText...)) {
		return
	}
	if heard {
		s.asked.Store(false)
	}
	o.flags, o.at, o.n, o.got, o.again = flags, t.now, o.n+1, got, max(o.again-1, 0)
	if changed && flags&takesFrames != 0 {
		o.again = repeats // nothing will show whether it has come
	}
}
