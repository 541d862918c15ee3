package wireguard

import (
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/warren-net/warren/internal/key"
)

func TestHandshake(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	if a.send(b, "too early") {
		t.Fatal("sent without a session")
	}
	s.settle()
	if got := [3]int{s.count(TypeInitiation), s.count(TypeResponse), s.count(TypeData)}; got != [3]int{1, 1, 3} {
		t.Errorf("initiations, responses, and data messages: %v, want 1, 1, and a keepalive and two offers", got)
	}
	if a.established != 1 || b.established != 1 {
		t.Errorf("established %d and %d times, want once each", a.established, b.established)
	}
	s.exchange(a, b)
	if st, _ := a.Status(a.of(b).ID()); !st.Session || st.Public != b.key.Public() || st.Ours != a.key.Public() ||
		st.Endpoint != b.addr || time.Since(st.Handshake).Abs() > time.Minute {
		t.Errorf("status %+v", st)
	}
}

func TestResponderWaitsForConfirmation(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.lose = func(_, _ *simNode, msg []byte) bool { return msg[0] == TypeData }
	a.of(b).Want()
	s.settle()
	if b.of(a).Current() != nil {
		t.Fatal("the responder uses a session that the initiator has not used")
	}
	if st, _ := b.Status(b.of(a).ID()); !st.Handshake.IsZero() {
		t.Errorf("the responder has a handshake of %v that the initiator has not ended", st.Handshake)
	}
	s.lose = nil
	a.send(b, "first")
	s.settle()
	if b.of(a).Current() == nil {
		t.Fatal("the responder does not use a session that the initiator has used")
	}
	if st, _ := b.Status(b.of(a).ID()); time.Since(st.Handshake).Abs() > time.Minute {
		t.Errorf("the responder has a handshake of %v", st.Handshake)
	}
}

func TestKeysThatDoNotFit(t *testing.T) {
	psk := key.NewPreshared()
	tests := []struct {
		name   string
		change func(n, p *simNode, c *PeerConfig)
		count  func(s *sim) uint64
	}{
		{"preshared key on one side", func(n, _ *simNode, c *PeerConfig) {
			if n.name == "n0" {
				c.Preshared = psk
			}
		}, func(s *sim) uint64 { return s.nodes[0].Counters.Invalid.Load() }},
		{"wrong key of the responder", func(n, _ *simNode, c *PeerConfig) {
			if n.name == "n0" {
				c.Public = key.NewPrivate().Public()
			}
		}, func(s *sim) uint64 { return s.nodes[1].Counters.Invalid.Load() }},
		{"unknown initiator", func(n, _ *simNode, c *PeerConfig) {
			if n.name == "n1" {
				c.Public = key.NewPrivate().Public()
			}
		}, func(s *sim) uint64 { return s.nodes[1].Counters.UnknownKey.Load() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(t, 2)
			s.peers(tt.change)
			s.nodes[0].of(s.nodes[1]).Want()
			s.settle()
			if s.nodes[0].of(s.nodes[1]).Current() != nil || s.nodes[1].of(s.nodes[0]).Current() != nil {
				t.Error("there is a session")
			}
			if tt.count(s) != 1 {
				t.Errorf("counted %d times, want once", tt.count(s))
			}
		})
	}
}

func TestPresharedKey(t *testing.T) {
	s := newSim(t, 2)
	psk := key.NewPreshared()
	s.peers(func(_, _ *simNode, c *PeerConfig) { c.Preshared = psk })
	s.connect(s.nodes[0], s.nodes[1])
	s.exchange(s.nodes[0], s.nodes[1])
}

// find is the session of node n whose messages carry the index.
// An initiator that only receives calls anew before the session is refused.
// A node that starts calls those that it is to greet, so that they need not find out by themselves.
func TestReplayedInitiation(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	current := b.of(a).Current()
	s.pass(time.Second)
	b.inbox = append(b.inbox, simMessage{a.addr, s.sent[0]})
	s.settle()
	if b.Counters.Replayed.Load() != 1 || b.of(a).Current() != current || s.count(TypeResponse) != 1 {
		t.Errorf("replayed %d, %d responses", b.Counters.Replayed.Load(), s.count(TypeResponse))
	}
}

func TestBothCallAtOnce(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	a.of(b).Want()
	b.of(a).Want()
	a.step()
	call := b.inbox
	b.inbox = nil
	b.step()
	b.inbox = call
	if len(a.inbox) != 1 || len(b.inbox) != 1 {
		t.Fatal("they did not both call")
	}
	s.settle()
	for range 200 {
		s.exchange(a, b)
		s.pass(time.Second)
	}
}

func TestRoaming(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	home := b.addr
	for _, addr := range []string{"192.0.2.77:4000", "[2001:db8::7]:51820"} {
		calls := a.roamedCalls
		b.addr = mustAddrPort(addr)
		b.send(a, "from elsewhere")
		s.settle()
		if a.of(b).Endpoint() != b.addr || a.roamedCalls != calls+1 {
			t.Errorf("endpoint %v, told %d times", a.of(b).Endpoint(), a.roamedCalls-calls)
		}
		s.exchange(a, b)
	}
	// Back at home without a word: found by the configured address.
	b.addr = home
	b.index.release(b.of(a).Current().local)
	for range 40 {
		a.send(b, "where are you")
		s.pass(time.Second)
	}
	s.exchange(a, b)
}

func TestForgedMessageDoesNotMoveAPeer(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	b.send(a, "authentic")
	msg := s.sent[len(s.sent)-1]
	s.settle()
	elsewhere := mustAddrPort("198.51.100.1:1")
	forged := append([]byte(nil), msg...)
	forged[len(forged)-1] ^= 1
	for _, m := range [][]byte{msg, forged} { // a replay, and a change
		a.inbox = append(a.inbox, simMessage{elsewhere, append([]byte(nil), m...)})
	}
	s.settle()
	if a.of(b).Endpoint() != b.addr {
		t.Errorf("endpoint %v", a.of(b).Endpoint())
	}
	if a.results[Replayed] != 1 || a.results[BadSeal] != 1 {
		t.Errorf("results %v, want one replayed and one bad", a.results)
	}
}

// A peer's packets that come through the tunnel itself must not make it the peer's address.
func TestUnreachableEndpointIsRefused(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	a.config.Reachable = func(x netip.Addr) bool { return x != mustAddrPort("10.244.1.1:1").Addr() }
	s.peers(nil)
	s.connect(a, b)
	home := b.addr
	b.addr = mustAddrPort("10.244.1.1:51820")
	b.send(a, "through the tunnel")
	s.settle()
	if a.of(b).Endpoint() != home {
		t.Errorf("endpoint %v", a.of(b).Endpoint())
	}
}

func TestOwnKeyChanges(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	greet := func(_, _ *simNode, c *PeerConfig) { c.Greet = true }
	s.peers(greet)
	s.connect(a, b)
	old, next := a.key, key.NewPrivate()
	a.SetKeys([]key.Private{next, old}, 1) // its entry still names the old one
	for range 130 {
		s.exchange(a, b)
		s.pass(time.Second)
	}
	if st, _ := a.Status(2); st.Ours != old.Public() {
		t.Error("called with a key that the peer does not know")
	}
	// The peer learns the new key, and for a while nobody has told a.
	a.key = next
	b.SetPeers(b.configs(greet), 0)
	for range 300 {
		s.exchange(a, b)
		s.pass(time.Second)
	}
	if st, _ := a.Status(2); st.Ours != next.Public() {
		t.Error("the new key is not in use")
	}
	a.SetKeys([]key.Private{next}, 0)
	for range 300 {
		s.exchange(a, b)
		s.pass(time.Second)
	}
}

func TestPeerThatLeaves(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	index := a.of(b).Current().local
	p := a.of(b)
	a.SetPeers(nil, 0)
	if a.Session(index) != nil || p.Current() != nil || a.Tunnel.Peer(2) != nil {
		t.Error("something of it is left")
	}
	s.pass(time.Second)
	b.send(a, "still there?")
	s.pass(20 * time.Second)
	if a.Counters.UnknownKey.Load() == 0 || len(a.got) > 0 {
		t.Error("it was answered or heard")
	}
}

// strangers has a node that b does not know make initiations for b, each a new one.
// unknownToB is a sim of three, of whom the second does not know the third.
// What anybody can make, without the node's public key, must not have it ask honest peers for cookies.
// A response that only looks like one must not spoil the handshake for the true one, whatever its key is.
func TestForgedResponse(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	a.of(b).Want()
	a.step()
	b.step()
	genuine := a.inbox[0].msg
	for _, change := range []func(m []byte){
		func(m []byte) { m[50] ^= 1 },                 // its tag
		func(m []byte) { clear(m[12:44]) },            // a point of low order
		func(m []byte) { clear(m[12:44]); m[12] = 1 }, // another
		func(m []byte) { m[12] ^= 1 },                 // another ephemeral key
	} {
		forged := append([]byte(nil), genuine...)
		change(forged)
		var macs device.CookieGenerator
		macs.Init(device.NoisePublicKey(a.key.Public()))
		macs.AddMacs(forged)
		a.inbox = append([]simMessage{{mustAddrPort("203.0.113.9:9"), forged}}, a.inbox...)
	}
	s.settle()
	if a.Counters.Invalid.Load() != 4 {
		t.Errorf("%d invalid messages, want 4", a.Counters.Invalid.Load())
	}
	s.exchange(a, b)
}

// A worker may want a session of a peer while it is removed.
func TestRemovedPeerIsNotCalled(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	gone := a.of(b)
	configs := a.configs(nil)
	a.SetPeers(nil, 0)
	gone.Want()
	s.pass(time.Second)
	if s.count(TypeInitiation) != 0 || gone.wanted.Load() {
		t.Errorf("%d initiations to a peer that was removed", s.count(TypeInitiation))
	}
	a.SetPeers(configs, 0)
	s.connect(a, b)
	s.exchange(a, b)
}

// A key that is changed is that of a lost machine, unless the peer is a node, which rotates.
func TestChangedKeyEndsSessions(t *testing.T) {
	for _, greet := range []bool{false, true} {
		s := newSim(t, 2)
		a, b := s.nodes[0], s.nodes[1]
		s.peers(nil)
		s.connect(a, b)
		c := a.configs(nil)
		c[0].Public, c[0].Greet = key.NewPrivate().Public(), greet
		a.SetPeers(c, 0)
		if got := a.of(b).Current() != nil; got != greet {
			t.Errorf("node %v: session %v", greet, got)
		}
	}
}

// An initiation that was recorded must not count again when its key comes back.
func TestOldInitiationOfAKeyThatComesBack(t *testing.T) {
	for _, remove := range []bool{false, true} {
		s := newSim(t, 2)
		a, b := s.nodes[0], s.nodes[1]
		s.peers(nil)
		s.connect(a, b)
		old := s.sent[0]
		configs := b.configs(nil)
		if remove {
			b.SetPeers(nil, 0)
		} else {
			other := b.configs(nil)
			other[0].Public = key.NewPrivate().Public()
			b.SetPeers(other, 0)
		}
		b.SetPeers(configs, 0)
		s.pass(time.Second)
		b.inbox = append(b.inbox, simMessage{mustAddrPort("203.0.113.9:9"), old})
		s.settle()
		if b.Counters.Replayed.Load() != 1 || b.of(a).Endpoint() != a.addr {
			t.Errorf("removed %v: replayed %d, endpoint %v", remove, b.Counters.Replayed.Load(), b.of(a).Endpoint())
		}
	}
}

// Our initiations stay newer than those before when the system's clock is set back.
func TestStampsOnlyGrow(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	back := time.Hour
	a.config.Stamp = func() tai64n.Timestamp {
		s.now -= int64(back)
		defer func() { s.now += int64(back) }()
		return s.stamp()
	}
	for range 70 { // beyond a second's worth of steps
		s.pass(RekeyTimeout + time.Second)
		before := a.of(b).Current()
		a.of(b).current.Store(nil)
		a.of(b).Want()
		s.settle()
		if a.of(b).Current() == nil || a.of(b).Current() == before {
			t.Fatal("the peer refuses an initiation after the clock was set back")
		}
	}
}

// All combinations of our two keys and the peer's two addresses are tried.
func TestKeyAndAddressTakeTurns(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	a.SetKeys([]key.Private{a.key, key.NewPrivate()}, 1)
	for _, at := range []string{"192.0.2.2:51820", "198.51.100.7:7"} { // where it is, and where it is not
		for n := range 2 {
			elsewhere := mustAddrPort(at)
			p := a.of(b)
			p.expire(s.now)
			b.of(a).expire(s.now)
			p.endpoint.Store(&elsewhere)
			a.identify(p, n)
			p.wanted.Store(true)
			s.pass(25 * time.Second)
			if p.Current() == nil {
				t.Errorf("no session from key %d and address %v on", n, elsewhere)
			}
		}
	}
}

func TestOddSourcesAreNoEndpoints(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	home := b.addr
	b.addr = netip.AddrPortFrom(home.Addr(), 0)
	b.send(a, "from port 0")
	s.settle()
	if a.of(b).Endpoint() != home {
		t.Errorf("endpoint %v", a.of(b).Endpoint())
	}
}

// TestChangePeers: what is not in a change is not touched, a key may go from one peer to another, and who leaves is
// not known any more.
func TestChangePeers(t *testing.T) {
	s := newSim(t, 3)
	a, b, c := s.nodes[0], s.nodes[1], s.nodes[2]
	s.peers(nil)
	s.connect(a, b)
	s.connect(a, c)
	session := a.of(b).Current()
	configs := a.configs(nil)
	ofC := configs[1]
	gone := ofC.ID
	a.ChangePeers(nil, []int32{gone, 77}, 0)
	if a.Tunnel.Peer(gone) != nil || a.of(b).Current() != session {
		t.Error("one is still there, or the other has lost its session")
	}
	ofC.ID = 99
	a.ChangePeers([]PeerConfig{ofC}, nil, 0)
	a.Tunnel.Peer(99).Want()
	s.pass(time.Second)
	if a.Tunnel.Peer(99).Current() == nil || a.of(b).Current() != session {
		t.Error("the one that came is not reached, or the other has lost its session")
	}
	ofB := configs[0]
	ofB.Public, ofC.Public = ofC.Public, ofB.Public
	a.ChangePeers([]PeerConfig{ofB, ofC}, nil, 0)
	if a.byKey[ofB.Public] != a.of(b) || a.byKey[ofC.Public] != a.Tunnel.Peer(99) || len(a.byKey) != 2 {
		t.Error("two peers that swap their keys are not found by them")
	}
}

func TestStampsAreBounded(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(b, a)
	for n := range 2*spareStamps + 10 {
		a.stamps[key.Public{byte(n), byte(n >> 8), byte(n >> 16), 1}] = a.stamps[b.key.Public()]
	}
	a.ChangePeers(nil, nil, 0)
	if _, kept := a.stamps[b.key.Public()]; len(a.stamps) != spareStamps+1 || !kept {
		t.Errorf("%d are left, a peer's among them: %v", len(a.stamps), kept)
	}
}
