package wireguard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/warren-net/warren/internal/key"
)

// isOfferMessage tells offers on the wire by their length, which nothing else in these tests has.
func isOfferMessage(msg []byte) bool { return IsData(msg) && len(msg) == Overhead+offerLen }

// offersFrom loses all offers that come from one node, while on says so.
func (s *sim) offersFrom(n *simNode, on *bool) {
	s.lose = func(from, _ *simNode, msg []byte) bool { return *on && from == n && isOfferMessage(msg) }
}

// offersSent is how many were sent so far.
func (s *sim) offersSent() (n int) {
	for _, m := range s.sent {
		if isOfferMessage(m) {
			n++
		}
	}
	return n
}

// toward is the session that n encrypts to p with.
func (n *simNode) toward(p *simNode) *Session { return n.of(p).Current() }

// TestOffers has nodes of every kind meet: each uses what both of them have.
func TestOffers(t *testing.T) {
	kinds := []Config{{}, {AES: true}, {Superframes: true}, {Superframes: true, AES: true}}
	for _, x := range kinds {
		for _, y := range kinds {
			t.Run(fmt.Sprintf("%v %v calls %v %v", x.Superframes, x.AES, y.Superframes, y.AES), func(t *testing.T) {
				s := newSim(t, 2)
				a, b := s.nodes[0], s.nodes[1]
				a.offering, b.offering = x.offering(), y.offering()
				s.peers(nil)
				s.connect(a, b)
				frames, aes := x.Superframes && y.Superframes, x.Superframes && y.Superframes && x.AES && y.AES
				for _, d := range [][2]*simNode{{a, b}, {b, a}} {
					own, other := d[0].toward(d[1]), d[1].toward(d[0])
					if own.TakesFrames() != frames || frames && own.takes.Load()&takesAES != 0 != aes {
						t.Errorf("%s to %s: it takes %b; want superframes %v, AES %v", d[0].name, d[1].name, own.takes.Load(),
							frames, aes)
					}
					if st, _ := d[0].Status(d[0].of(d[1]).ID()); st.Frames != frames {
						t.Errorf("%s: the status says %v", d[0].name, st.Frames)
					}
					for lane := range 300 {
						index := own.To(lane)
						if byte(index) != byte(lane) || d[1].Session(index) != other {
							t.Fatalf("lane %d: index %x leads to %v", lane, index, d[1].Session(index))
						}
					}
				}
				s.exchange(a, b)
				if n := s.offersSent(); n != 2 {
					t.Errorf("%d offers, want one each", n)
				}
			})
		}
	}
}

// Without an offer of the peer's the index is the peer's own, whatever the lane.
func TestNoLaneUntilOffered(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	lost := true
	s.offersFrom(b, &lost)
	s.peers(nil)
	s.connect(a, b)
	for lane := range 256 {
		if a.toward(b).To(lane) != b.toward(a).local || b.toward(a).To(lane) != a.toward(b).local {
			t.Fatalf("lane %d has an index of its own", lane)
		}
	}
}

// TestLostOffers: an offer or an answer that is lost is repeated, each second at most.
func TestLostOffers(t *testing.T) {
	for _, responder := range []bool{true, false} {
		t.Run(fmt.Sprintf("of the responder %v", responder), func(t *testing.T) {
			s := newSim(t, 2)
			a, b := s.nodes[0], s.nodes[1]
			loser := a
			if responder {
				loser = b
			}
			lost := true
			s.offersFrom(loser, &lost)
			s.peers(nil)
			s.connect(a, b)
			for second := range 3 {
				if responder && a.toward(b).TakesFrames() || b.toward(a).TakesFrames() {
					t.Fatal("agreed without the offer that was lost")
				}
				if n, most := s.offersSent(), 2*(second+1); n > most {
					t.Fatalf("%d offers in %d s, want at most %d", n, second, most)
				}
				s.exchange(a, b)
				s.pass(time.Second)
			}
			lost = false
			s.pass(2 * time.Second)
			if !a.toward(b).TakesFrames() || !b.toward(a).TakesFrames() {
				t.Error("not repeated")
			}
			n := s.offersSent()
			s.pass(30 * time.Second)
			if s.offersSent() != n {
				t.Error("repeated though it was answered")
			}
		})
	}
}

// TestOffersEnd: who gets no answer stops, and data goes on as with anybody else.
func TestOffersEnd(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	lost := true
	s.offersFrom(b, &lost)
	s.peers(nil)
	s.connect(a, b)
	for range 60 {
		s.pass(time.Second)
		s.exchange(a, b)
	}
	if n := s.offersSent(); n != maxOffers {
		t.Errorf("%d offers that nobody answered, want %d", n, maxOffers)
	}
	if a.toward(b).extended() || a.toward(b).TakesFrames() || b.toward(a).TakesFrames() {
		t.Error("agreed on something")
	}
}

// TestOffersOfASession: the next session begins without, and agrees anew.
func TestOffersOfASession(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	lost := false
	s.offersFrom(b, &lost)
	s.peers(nil)
	s.connect(a, b)
	first := a.toward(b)
	lost = true
	for a.toward(b) == first {
		s.pass(time.Second)
		s.exchange(a, b)
	}
	if !first.TakesFrames() || a.toward(b).TakesFrames() || b.toward(a).TakesFrames() {
		t.Error("what was offered in one session holds in another")
	}
	// Nor does what comes late in the one before.
	first.Offered(append([]byte{0, offerVersion, takesFrames | isAnswer, 0}, offerText...))
	if a.toward(b).TakesFrames() {
		t.Error("an offer of the session before was taken for this one")
	}
	lost = false
	s.pass(2 * time.Second)
	if !a.toward(b).TakesFrames() || !b.toward(a).TakesFrames() {
		t.Error("not agreed in the new session")
	}
}

// Offers are no data: who has agreed and has nothing to say says nothing, and the session ends in its time.
func TestOffersAreNoData(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	if !a.toward(b).TakesFrames() || !b.toward(a).TakesFrames() {
		t.Fatal("not agreed")
	}
	sent := len(s.sent)
	s.pass(RejectAfterTime + time.Minute)
	if n := len(s.sent) - sent; n > 0 {
		t.Errorf("%d messages while nobody has anything to say", n)
	}
	for _, n := range []*simNode{a, b} {
		if n.toward(s.other(n)) != nil {
			t.Errorf("%s: the session has not ended", n.name)
		}
		n.mu.Lock()
		if n.tick() {
			t.Errorf("%s: timers run on", n.name)
		}
		n.mu.Unlock()
		if st, _ := n.Status(n.of(s.other(n)).ID()); !st.LastData.IsZero() {
			t.Errorf("%s: an offer is taken for data", n.name)
		}
	}
}

// What looks like an offer, but is not.
func TestNoOffers(t *testing.T) {
	good := append([]byte{0, offerVersion, takesFrames | takesAES | takesLanes | isAnswer, 0}, offerText...)
	if !IsOffer(good) || !IsOffer(append(bytes.Clone(good), make([]byte, 16)...)) {
		t.Fatal("an offer is not taken for one, alone or padded")
	}
	for n := range len(good) {
		if IsOffer(good[:n]) {
			t.Errorf("%d bytes of an offer are taken for one", n)
		}
	}
	for at := range good {
		if at == 2 || at == 3 { // flags, and one that nobody looks at
			continue
		}
		b := bytes.Clone(good)
		b[at]++
		if IsOffer(b) {
			t.Errorf("changed at byte %d it is still taken for an offer", at)
		}
	}
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	b.offering = (&Config{}).offering()
	s.peers(nil)
	s.connect(a, b)
	good[2] = 0x7f // all that there is, and what there will be
	a.toward(b).Offered(good)
	b.toward(a).Offered(good)
	if x, y := a.toward(b).takes.Load(), b.toward(a).takes.Load(); x != a.offering || y != takesLanes {
		t.Errorf("who gets an offer of everything uses %b and %b", x, y)
	}
	s.pass(2 * time.Second) // both answer, which ends it
	sent := len(s.sent)
	s.pass(5 * time.Second)
	if n := len(s.sent) - sent; n > 1 {
		t.Errorf("%d messages about it", n)
	}
	// In a session that began without the mark it is nothing.
	old := &Session{peer: a.of(b)}
	old.Offered(good)
	if old.TakesFrames() || old.extended() || old.To(5) != 0 {
		t.Error("somebody who did not make the mark has offered something")
	}
}

// TestStamps: stamps have the mark, are valid times and only grow, whatever the clock does.
func TestStamps(t *testing.T) {
	var at, step int64
	n := New(Config{Stamp: func() (s tai64n.Timestamp) {
		at += step
		binary.BigEndian.PutUint64(s[:], 1<<62+uint64(at)/1e9)
		binary.BigEndian.PutUint32(s[8:], uint32(at%1e9))
		return s
	}})
	const begin = int64(1_700_000_000_000_000_000)
	for _, tt := range []struct {
		name string
		from int64
		step int64
	}{
		{"a nanosecond", begin, 1}, {"stands still", begin, 0}, {"goes back", begin, -1_000_003},
		{"usual", begin, 5_123_456_789}, {"at the end of a second", begin + 999_999_999, 0},
		{"before that", begin + 990_000_000, 1},
		{"far back", begin / 2, 1_000_000}, {"far ahead", 2 * begin, 17_000_000},
	} {
		at, step = tt.from, tt.step
		for k := range 1000 {
			before := n.stamped
			s := n.stamp()
			nanos := binary.BigEndian.Uint32(s[8:])
			if !s.After(before) || nanos >= 1e9 || !marked(s) {
				t.Fatalf("%s: stamp %d is %x after %x", tt.name, k, s, before)
			}
			// No more than the mark and a step from the clock's, when that is ahead.
			if clock := n.config.Stamp(); step >= 0 && k == 0 && clock.After(before) &&
				binary.BigEndian.Uint64(s[:]) > binary.BigEndian.Uint64(clock[:])+1 {
				t.Errorf("%s: %x is far from %x", tt.name, s, clock)
			}
		}
	}
	for range 100 {
		var s tai64n.Timestamp
		binary.BigEndian.PutUint32(s[8:], rand.Uint32N(1e9)&^stampMask) // as others make them
		if marked(s) || marked(tai64n.Now()) {
			t.Fatalf("%x is taken for a Warren's", s)
		}
		mark(&s)
		if !marked(s) || binary.BigEndian.Uint32(s[8:]) >= 1e9 {
			t.Fatalf("%x", s)
		}
	}
}

// A peer that comes back as another program, or with another configuration, is sent no superframes any more.
func TestOffersAfterARestart(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	c := b.config
	c.Superframes = false
	fresh := New(c)
	fresh.limiter.Init()
	defer fresh.limiter.Close()
	b.Tunnel = fresh
	b.SetKeys([]key.Private{b.key}, 0)
	b.SetPeers(b.configs(nil), 0)
	s.now += int64(time.Second) // or its initiation is as old as that of its session before
	s.connect(b, a)
	if a.toward(b).TakesFrames() || b.toward(a).TakesFrames() {
		t.Error("what it offered before holds on")
	}
	s.exchange(a, b)
}

// A peer that offers again and again is answered once a second.
func TestOffersAreAnsweredSeldom(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	before := s.offersSent()
	again := append([]byte{0, offerVersion, takesLanes, 0}, offerText...)
	for range 1000 {
		a.toward(b).Offered(again)
		s.settle()
	}
	if n := s.offersSent() - before; n > 1 {
		t.Errorf("%d answers at once", n)
	}
	for range 100 {
		a.toward(b).Offered(again)
		s.pass(100 * time.Millisecond)
	}
	if n := s.offersSent() - before; n < 5 || n > 12 {
		t.Errorf("%d answers in ten seconds", n)
	}
}

// What a node has not offered it does not open.
func TestFramesNotOffered(t *testing.T) {
	for _, tt := range []struct {
		name  string
		offer Config // of the receiver
		use   uint32 // what the sender does all the same
		open  bool
	}{
		{name: "as offered", offer: Config{Superframes: true, AES: true}, use: takesFrames | takesAES, open: true},
		{name: "no AES", offer: Config{Superframes: true}, use: takesFrames | takesAES},
		{name: "no AES, not used", offer: Config{Superframes: true}, use: takesFrames, open: true},
		{name: "none", use: takesFrames},
		{name: "none, with AES", use: takesFrames | takesAES},
	} {
		s := newSim(t, 2)
		a, b := s.nodes[0], s.nodes[1]
		b.offering = tt.offer.offering()
		s.peers(nil)
		s.connect(a, b)
		from, to := a.toward(b), b.toward(a)
		from.takes.Store(tt.use)
		r := newTaker(t, to)
		r.take(sealFrame(t, from, 0, Frame{Packet: randomPacket(500), Piece: 100}), 100)
		if (len(r.packets) == 1) != tt.open || to.OpensFrames() != tt.offer.Superframes {
			t.Errorf("%s: %v", tt.name, r.results)
		}
	}
}
