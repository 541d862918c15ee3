package wireguard

import (
	"fmt"
	"testing"

	"github.com/warren-net/warren/internal/key"
)

// BenchmarkTick is one look at the timers of 10,000 peers, eight workers: none with a session, or all.
func BenchmarkTick(b *testing.B) {
	for _, live := range []bool{false, true} {
		b.Run(fmt.Sprintf("sessions=%v", live), func(b *testing.B) {
			t := New(Config{Workers: 8})
			t.SetKeys([]key.Private{key.NewPrivate()}, 0)
			peers := make([]PeerConfig, 10_000)
			for k := range peers {
				peers[k] = PeerConfig{ID: int32(k + 1), Public: key.Public{0: 1, 1: byte(k), 2: byte(k >> 8)}}
			}
			t.SetPeers(peers, 0)
			t.now = t.Now()
			for p := range t.all() {
				if !live {
					break
				}
				index, _ := t.index.reserve(p.lane)
				s, err := newSession(p, new([32]byte), new([32]byte))
				if err != nil {
					b.Fatal(err)
				}
				s.local, s.created = index, t.now
				p.add(s)
			}
			for b.Loop() {
				t.tick()
			}
		})
	}
}

// BenchmarkHandshake is what a node does to answer an initiation, and to begin a handshake and end it.
func BenchmarkHandshake(b *testing.B) {
	s := newSim(b, 2)
	s.peers(nil)
	x, y := s.nodes[0], s.nodes[1]
	for b.Loop() {
		s.now += int64(RekeyTimeout)
		x.of(y).wanted.Store(true)
		x.of(y).current.Store(nil)
		s.sent = nil
		s.settle()
		if x.of(y).Current() == nil {
			b.Fatal("no session")
		}
	}
}
