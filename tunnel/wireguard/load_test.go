package wireguard

import (
	"net/netip"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/key"
)

func (s *sim) strangers(from, b *simNode, n int) []simMessage {
	s.t.Helper()
	var list []simMessage
	for range n {
		p := from.of(b)
		p.began, p.pending = 0, nil
		p.wanted.Store(false)
		p.Want()
		from.step()
		if len(b.inbox) == 0 {
			s.t.Fatal("no initiation")
		}
		list = append(list, simMessage{mustAddrPort("203.0.113.9:9"), b.inbox[len(b.inbox)-1].msg})
		b.inbox = b.inbox[:len(b.inbox)-1]
	}
	return list
}

func unknownToB(t testing.TB) (s *sim, a, b, c *simNode) {
	s = newSim(t, 3)
	s.peers(func(n, p *simNode, pc *PeerConfig) {
		if n.name == "n1" && p.name == "n2" {
			pc.Public = key.NewPrivate().Public()
		}
	})
	return s, s.nodes[0], s.nodes[1], s.nodes[2]
}

func TestCookies(t *testing.T) {
	s, a, b, c := unknownToB(t)
	flood := s.strangers(c, b, 2*loadMark)
	b.inbox = append(b.inbox, flood...)
	a.of(b).Want()
	a.step() // right behind the flood
	b.step()
	cookies, responses := b.Counters.CookiesSent.Load(), b.Counters.Responded.Load()
	if cookies != loadMark+2 || responses != 0 || b.of(a).Current() != nil {
		t.Fatalf("%d cookies, %d responses", cookies, responses)
	}
	// The flood goes on; the honest one gets a cookie, and comes through with it.
	for range 60 {
		b.inbox = append(b.inbox, flood...)
		s.pass(tickTime)
	}
	if a.Counters.CookiesGot.Load() == 0 || b.Counters.Responded.Load() != 1 {
		t.Errorf("%d cookies got, %d responses", a.Counters.CookiesGot.Load(), b.Counters.Responded.Load())
	}
	s.exchange(a, b)
}

func TestGarbageIsNoLoad(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	for k := range 4 * loadMark {
		garbage := make([]byte, []int{1, responseLen, initiationLen, cookieReplyLen}[k%4])
		garbage[0] = byte(k % 5)
		b.inbox = append(b.inbox, simMessage{mustAddrPort("203.0.113.9:9"), garbage})
	}
	a.of(b).Want()
	s.settle()
	if b.Counters.CookiesSent.Load() != 0 || b.Counters.Responded.Load() != 1 {
		t.Errorf("%d cookies, %d responses", b.Counters.CookiesSent.Load(), b.Counters.Responded.Load())
	}
}

func TestLimited(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::",
	} {
		if got := limited(netip.MustParseAddr(in)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %v, want %s", in, got, want)
		}
	}
}

func TestMeter(t *testing.T) {
	const step = int64(time.Millisecond)
	for _, c := range []struct {
		name               string
		messages, verified int   // in a round
		work, pause        int64 // of a round
		rest, load         bool
	}{
		{name: "a flood of handshakes", messages: 2, verified: 2, work: step, rest: true, load: true},
		{name: "a flood of garbage", messages: 64, work: step, rest: true},
		{name: "a quarter of the time", messages: 2, verified: 2, work: step, pause: 3 * step},
		{name: "without a processor", messages: 1, verified: 1, work: 50 * step},
	} {
		var m meter
		at, busy, rested, loads := int64(1e18), int64(0), int64(0), 0
		for range 1000 {
			d, load := m.add(worked{at, at + c.work, c.messages, c.verified})
			at += c.work + c.pause + int64(d)
			busy += c.work
			rested += int64(d)
			if load {
				loads++
			}
		}
		share := float64(busy) / float64(busy+rested)
		if c.rest && (share > 0.51 || share < 0.49) || !c.rest && rested != 0 || c.load != (loads > 0) {
			t.Errorf("%s: it works %.2f of the time, and was %d times under load", c.name, share, loads)
		}
	}
}

func TestLoadedNodeLimitsASource(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	b.loadedAt = s.now
	a.of(b).Want()
	a.step()
	b.step() // a cookie
	a.step()
	s.pass(6 * time.Second)
	b.loadedAt = s.now
	flood := s.sent[len(s.sent)-1]
	for _, m := range s.sent {
		if m[0] == TypeInitiation {
			flood = m
		}
	}
	for range 32 {
		b.inbox = append(b.inbox, simMessage{a.addr, flood})
	}
	b.step()
	if b.Counters.RateLimited.Load() < 20 {
		t.Errorf("%d of 32 were limited, want all but the burst", b.Counters.RateLimited.Load())
	}
}
