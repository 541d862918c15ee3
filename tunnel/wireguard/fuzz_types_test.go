package wireguard

import (
	"bytes"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// A patch changes a message on its way: bytes from an offset on, and its length.
type patch struct {
	xor  []byte
	at   uint8
	grow int8 // bytes more, or fewer
}

// addPatches gives a fuzz target a change of each of a message's fields, and of its length.
func addPatches(f *testing.F, fields ...uint8) {
	f.Helper()
	for _, at := range fields {
		f.Add([]byte{1}, at, int8(0))
		f.Add(bytes.Repeat([]byte{0xff}, 8), at, int8(0))
	}
	f.Add([]byte{}, uint8(0), int8(-1))
	f.Add([]byte{}, uint8(0), int8(1))
	f.Add([]byte{}, uint8(0), int8(-128))
}

func (p patch) apply(msg []byte) []byte {
	m := append(bytes.Clone(msg), make([]byte, 128)...)[:max(0, len(msg)+int(p.grow))]
	for i, b := range p.xor {
		if at := int(p.at) + i; at < len(m) {
			m[at] ^= b
		}
	}
	return m
}

// mac gives a handshake message a right first MAC, as everybody can who knows the receiver's public key, and no second.
func mac(to *simNode, m []byte) {
	if len(m) < initiationLen && len(m) != responseLen {
		return // whatever it is
	}
	c := new(device.CookieGenerator)
	c.Init(device.NoisePublicKey(to.key.Public()))
	c.AddMacs(m)
}

// caught has node a call node b, and takes the first message of a type from the underlay.
func (s *sim) caught(a, b *simNode, typ byte) (msg []byte) {
	s.t.Helper()
	s.lose = func(_, _ *simNode, m []byte) bool {
		if m[0] != typ || msg != nil {
			return false
		}
		msg = m
		return true
	}
	a.of(b).Want()
	s.settle()
	if msg == nil {
		s.t.Fatalf("no message of type %d was sent", typ)
	}
	return bytes.Clone(msg)
}

// A stillness is what a message of somebody else must leave as it is.
type stillness struct {
	handshakes, free, identities, peers int
	current, next, previous             *Session
	endpoint                            string
	cookies                             uint64
}

func (n *simNode) stillness(p *simNode) stillness {
	peer := n.of(p)
	peer.mu.Lock()
	defer peer.mu.Unlock()
	return stillness{
		handshakes: len(n.handshakes), free: len(n.index.free), identities: len(n.identities), peers: len(n.byKey),
		current: peer.Current(), next: peer.next, previous: peer.previous, endpoint: peer.Endpoint().String(),
		cookies: n.Counters.CookiesGot.Load(),
	}
}

// stranger hands a node a message, which must change nothing and be answered with a cookie at most.
func (n *simNode) stranger(t *testing.T, p *simNode, msg []byte) {
	t.Helper()
	before, cookies := n.stillness(p), n.Counters.CookiesSent.Load()
	n.now = n.sim.now
	n.handle(msg, mustAddrPort("203.0.113.9:9"))
	if now := n.stillness(p); now != before {
		t.Fatalf("%+v, before %+v", now, before)
	}
	sent := n.Counters.CookiesSent.Load() - cookies
	if len(n.out.Sends) != int(sent) || sent > 1 {
		t.Fatalf("%d answers, %d of them cookies", len(n.out.Sends), sent)
	}
	n.out.Reset()
}

// FuzzInitiation changes a call on its way, with a right first MAC. Nothing may come of it, and the call itself is
// answered all the same.
func FuzzInitiation(f *testing.F) {
	addPatches(f, 0, 1, offsetSender, 8, 40, 88, 116, 132)
	f.Fuzz(func(t *testing.T, xor []byte, at uint8, grow int8) {
		s := newSim(t, 2)
		a, b := s.nodes[0], s.nodes[1]
		s.peers(nil)
		call := s.caught(a, b, TypeInitiation)
		m := patch{xor, at, grow}.apply(call)
		// The sender's index alone is not authenticated: who changes that has made the call useless.
		if len(m) == len(call) && bytes.Equal(m[8:116], call[8:116]) && bytes.Equal(m[:4], call[:4]) {
			return
		}
		for _, loaded := range []bool{false, true} {
			b.loadedAt = s.now - int64(2*time.Second)
			if loaded {
				b.loadedAt = s.now
			}
			b.stranger(t, a, bytes.Clone(m))
			mac(b, m)
			b.stranger(t, a, m)
		}
		b.loadedAt = s.now - int64(2*time.Second)
		b.inbox = append(b.inbox, simMessage{a.addr, call})
		s.settle()
		s.exchange(a, b)
	})
}

// FuzzResponse changes the answer to a call on its way, with a right first MAC. It ends no handshake, and the answer
// itself does.
func FuzzResponse(f *testing.F) {
	addPatches(f, 0, 1, offsetSender, offsetAnswered, 12, 44, 60, 76)
	f.Fuzz(func(t *testing.T, xor []byte, at uint8, grow int8) {
		s := newSim(t, 2)
		a, b := s.nodes[0], s.nodes[1]
		s.peers(nil)
		answer := s.caught(a, b, TypeResponse)
		m := patch{xor, at, grow}.apply(answer)
		if len(m) == len(answer) && bytes.Equal(m[8:60], answer[8:60]) && bytes.Equal(m[:4], answer[:4]) {
			return // as with initiations
		}
		for _, loaded := range []bool{false, true} {
			a.loadedAt = s.now - int64(2*time.Second)
			if loaded {
				a.loadedAt = s.now
			}
			a.stranger(t, b, bytes.Clone(m))
			mac(a, m)
			a.stranger(t, b, m)
		}
		a.loadedAt = s.now - int64(2*time.Second)
		a.inbox = append(a.inbox, simMessage{b.addr, answer})
		s.settle()
		s.exchange(a, b)
	})
}

// FuzzCookieReply changes a cookie on its way. It is not taken, and the cookie itself is.
func FuzzCookieReply(f *testing.F) {
	addPatches(f, 0, 1, offsetReceiver, 8, 32, 48, 63)
	f.Fuzz(func(t *testing.T, xor []byte, at uint8, grow int8) {
		s := newSim(t, 2)
		a, b := s.nodes[0], s.nodes[1]
		s.peers(nil)
		b.loadedAt = s.now
		reply := s.caught(a, b, TypeCookieReply)
		m := patch{xor, at, grow}.apply(reply)
		if bytes.Equal(m, reply) {
			return
		}
		a.stranger(t, b, m)
		a.handle(reply, b.addr)
		if n := a.Counters.CookiesGot.Load(); n != 1 {
			t.Fatalf("%d cookies taken, want the one that was sent", n)
		}
	})
}
