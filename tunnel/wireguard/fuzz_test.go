package wireguard

import (
	"bytes"
	"testing"
	"time"
)

// FuzzHandshakeMessages gives a node messages of every type, as they are and changed, and anything else. Whoever does
// not hold a peer's key must get neither a session nor any state, and must not disturb the session that there is.
func FuzzHandshakeMessages(f *testing.F) {
	s := newSim(f, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	b.loadedAt = s.now
	s.connectUnderLoad(a, b)
	for _, m := range s.sent {
		f.Add(m, uint16(0), byte(0), false)
		f.Add(m, uint16(9), byte(1), true)
	}
	current := b.of(a).Current()
	f.Fuzz(func(t *testing.T, msg []byte, at uint16, flip byte, loaded bool) {
		m := bytes.Clone(msg)
		if len(m) > 0 {
			m[int(at)%len(m)] ^= flip
		}
		for _, n := range []*simNode{a, b} {
			n.now, n.loadedAt = s.now, s.now-int64(2*time.Second)
			if loaded {
				n.loadedAt = s.now
			}
			handshakes, free := len(n.handshakes), len(n.index.free)
			n.handle(m, mustAddrPort("203.0.113.9:9"))
			n.out.Reset()
			if len(n.handshakes) != handshakes || len(n.index.free) != free {
				t.Fatalf("%s: state for a stranger", n.name)
			}
			if e := n.of(s.other(n)).Endpoint(); e != s.other(n).addr {
				t.Fatalf("%s: the peer moved to %v", n.name, e)
			}
		}
		if b.of(a).Current() != current {
			t.Fatal("another session")
		}
	})
}

// FuzzDataMessages gives a session messages that were changed on their way: none of them may be taken.
func FuzzDataMessages(f *testing.F) {
	s := newSim(f, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	from, to := a.of(b).Current(), b.of(a).Current()
	var nonce Nonce
	for _, n := range []int{0, 16, 100, 1420} {
		counter, _ := from.Reserve(1)
		msg := from.Seal(nil, &nonce, from.head(counter), make([]byte, n))
		f.Add(msg)
		if _, o := to.Open(bytes.Clone(msg), &nonce); o != Fresh {
			f.Fatal(o)
		}
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		if !IsData(msg) {
			return
		}
		if s := b.Session(Receiver(msg)); s != nil && s != to {
			t.Fatal("a session that is not there")
		}
		if got, o := to.Open(bytes.Clone(msg), new(Nonce)); o == Fresh {
			t.Fatalf("took %d bytes that nobody sent", len(got))
		}
	})
}

// connectUnderLoad has a call b, which asks for a cookie first.
func (s *sim) connectUnderLoad(a, b *simNode) {
	a.of(b).Want()
	for range 40 {
		b.loadedAt = s.now
		s.pass(tickTime)
	}
	if b.of(a).Current() == nil || s.count(TypeCookieReply) == 0 {
		s.t.Fatal("no session, or no cookie")
	}
}

func (s *sim) other(n *simNode) *simNode {
	if n == s.nodes[0] {
		return s.nodes[1]
	}
	return s.nodes[0]
}
