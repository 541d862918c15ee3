package wireguard

import (
	"testing"
	"time"

	"github.com/warren-net/warren/internal/key"
)

func TestRekeyByTime(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	first := a.of(b).Current()
	for range 119 {
		s.pass(time.Second)
		s.exchange(a, b)
	}
	if a.of(b).Current() != first {
		t.Fatal("rekeyed before its time")
	}
	for range 5 {
		s.pass(time.Second)
		s.exchange(a, b)
	}
	if a.of(b).Current() == first || s.count(TypeInitiation) != 2 {
		t.Fatalf("no new session after 120 s; %d initiations", s.count(TypeInitiation))
	}
	// What the peer encrypted with the old session is still read.
	var nonce Nonce
	late := s.find(b, first.local)
	counter, _ := late.Reserve(1)
	before := len(a.got)
	b.transmitTo(late.Seal(nil, &nonce, late.head(counter), []byte("late")), a.addr)
	s.settle()
	if len(a.got) != before+1 {
		t.Error("a message of the session before is not read")
	}
	s.pass(70 * time.Second)
	if a.Session(first.local) != nil {
		t.Error("the session outlives its three minutes")
	}
}

func (s *sim) find(n *simNode, remote uint32) *Session {
	for _, sl := range *n.index.slots.Load() {
		if x := sl.session.Load(); x != nil && x.remote == remote {
			return x
		}
	}
	s.t.Fatalf("%s has no session with index %x", n.name, remote)
	return nil
}

func TestRekeyOfAReceiver(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	first := b.of(a).Current()
	for range 190 {
		s.pass(time.Second)
		if !b.send(a, "one way") {
			t.Fatalf("no session after %v", time.Duration(s.now-first.created))
		}
	}
	if b.of(a).Current() == first {
		t.Error("the session was not renewed")
	}
}

func TestRekeyByCount(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	s.pass(10 * time.Second)
	for _, n := range []*simNode{a, b} { // either side renews, not only who began
		o := b
		if n == b {
			o = a
		}
		first := n.of(o).Current()
		first.counter.Store(RekeyAfterMessages)
		n.send(o, "one more")
		s.settle()
		if n.of(o).Current() == first {
			t.Errorf("%s goes on with a session that is used up", n.name)
		}
		s.pass(10 * time.Second)
	}
}

func TestCounterNeverComesAround(t *testing.T) {
	s := newSim(t, 2)
	s.peers(nil)
	s.connect(s.nodes[0], s.nodes[1])
	x := s.nodes[0].of(s.nodes[1]).Current()
	x.counter.Store(RejectAfterMessages - 1)
	if n, ok := x.Reserve(1); !ok || n != RejectAfterMessages-1 {
		t.Errorf("the last counter: %d, %v", n, ok)
	}
	for range 1 << 10 {
		if n, ok := x.Reserve(64); ok {
			t.Fatalf("counter %d given out after the last", n)
		}
	}
}

func TestRetriesEnd(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.lose = func(_, _ *simNode, _ []byte) bool { return true }
	a.send(b, "nobody hears")
	s.pass(2 * RekeyAttemptTime)
	// Every five seconds and up to a third of a second and a tick more, for ninety.
	if n := s.count(TypeInitiation); n < 15 || n > 19 {
		t.Errorf("%d initiations, want 16 to 18", n)
	}
	if st, _ := a.Status(a.of(b).ID()); !st.Silent {
		t.Error("a peer that does not answer is not called silent")
	}
	if a.Counters.GivenUp.Load() != 1 || len(a.handshakes) != 0 {
		t.Errorf("given up %d times, %d handshakes left", a.Counters.GivenUp.Load(), len(a.handshakes))
	}
	s.lose = nil
	a.send(b, "again")
	s.settle()
	s.exchange(a, b)
	if st, _ := a.Status(a.of(b).ID()); st.Silent {
		t.Error("a peer that answers is called silent")
	}
}

func TestPassiveKeepalive(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	for range 40 { // one way without a pause
		a.send(b, "data")
		s.pass(time.Second)
	}
	if n := s.count(TypeInitiation); n != 1 {
		t.Errorf("%d initiations: the sender took the receiver for lost", n)
	}
	if n := b.Counters.Keepalives.Load(); n < 3 || n > 4 {
		t.Errorf("%d keepalives in 40 s, want one each 10 s", n)
	}
	before := s.count(TypeData)
	s.pass(100 * time.Second)
	if n := s.count(TypeData) - before; n > 1 {
		t.Errorf("%d messages while nobody has anything to say", n)
	}
}

func TestLostPeerIsCalledAgain(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	// b starts anew and knows no session.
	fresh := New(b.config)
	fresh.limiter.Init()
	defer fresh.limiter.Close()
	b.Tunnel = fresh
	b.SetKeys([]key.Private{b.key}, 0)
	b.SetPeers(b.configs(nil), 0)
	for range 16 {
		a.send(b, "into the dark")
		s.pass(time.Second)
	}
	if b.unknown == 0 {
		t.Error("b found a session that it does not have")
	}
	s.exchange(a, b)
}

func TestGreeting(t *testing.T) {
	s := newSim(t, 3)
	a, b, c := s.nodes[0], s.nodes[1], s.nodes[2]
	s.peers(func(_, p *simNode, pc *PeerConfig) { pc.Greet = p.name == "n1" })
	s.pass(time.Second)
	if a.of(b).Current() == nil || c.of(b).Current() == nil {
		t.Error("a peer to be greeted was not called")
	}
	if a.of(c).Current() != nil {
		t.Error("a peer that is not to be greeted was called")
	}
}

func TestPersistentKeepalive(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(func(n, _ *simNode, c *PeerConfig) {
		if n.name == "n0" {
			c.Keepalive = 25 * time.Second
		}
	})
	s.pass(10 * time.Minute)
	if b.of(a).Current() == nil {
		t.Error("no session is kept")
	}
	if n := a.Counters.Keepalives.Load(); n < 20 || n > 32 {
		t.Errorf("%d keepalives in ten minutes", n)
	}
}

func TestTimersSleep(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	s.pass(RejectAfterTime + time.Second)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tick() {
		t.Error("timers run on without sessions")
	}
}
