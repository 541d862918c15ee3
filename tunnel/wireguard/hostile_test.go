package wireguard

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/tunnel"
)

// A hostile makes messages that a node can't be helped by.
type hostile struct {
	victim      *simNode
	initiations [][]byte // of strangers
	captured    [][]byte
	invited     []simMessage // initiations of strangers who bring the cookie that they got
}

func newHostile(t testing.TB, victim *simNode) *hostile {
	t.Helper()
	h := &hostile{victim: victim}
	for _, m := range victim.sim.sent {
		h.captured = append(h.captured, bytes.Clone(m))
	}
	for range 100 {
		h.initiations = append(h.initiations, h.initiation(t, new(device.CookieGenerator)))
	}
	victim.now, victim.loadedAt = victim.sim.now, victim.sim.now
	for k := range invitedSources {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(k)}), 9)
		cookies := new(device.CookieGenerator)
		m := h.initiation(t, cookies)
		victim.handle(bytes.Clone(m), from)
		answer := victim.out.Pieces[len(victim.out.Pieces)-1]
		reply := device.MessageCookieReply{Receiver: binary.LittleEndian.Uint32(answer[offsetReceiver:])}
		copy(reply.Nonce[:], answer[8:32])
		copy(reply.Cookie[:], answer[32:])
		if !cookies.ConsumeReply(&reply) {
			t.Fatal("a stranger got a cookie that is none")
		}
		cookies.AddMacs(m)
		h.invited = append(h.invited, simMessage{from, m})
		victim.out.Reset()
	}
	return h
}

// invitedSources is how many addresses a stranger can be reached at.
const invitedSources = 32

// initiation is a call by somebody whom the victim does not know, who keeps the cookies he gets.
func (h *hostile) initiation(t testing.TB, cookies *device.CookieGenerator) []byte {
	t.Helper()
	p := PeerConfig{Public: h.victim.key.Public()}
	msg, _, err := newIdentity(key.NewPrivate()).initiation(&initiating{
		h.victim.config.Random, &p, rand.Uint32(), h.victim.config.Stamp(),
	})
	if err != nil {
		t.Fatal(err)
	}
	cookies.Init(device.NoisePublicKey(p.Public))
	cookies.AddMacs(msg)
	return msg
}

// next is some message from somewhere.
func (h *hostile) next() simMessage {
	pick := func(msgs [][]byte) []byte { return bytes.Clone(msgs[rand.IntN(len(msgs))]) }
	random := func(n int) []byte {
		m := make([]byte, n)
		for i := 0; i < n; i += 8 {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], rand.Uint64())
			copy(m[i:], b[:])
		}
		return m
	}
	source := [4]byte{203, 0, byte(113 * rand.IntN(2)), byte(rand.Uint32())}
	m := simMessage{from: netip.AddrPortFrom(netip.AddrFrom4(source),
		uint16(rand.Uint32()))}
	switch rand.IntN(9) {
	case 0, 1, 2:
		m.msg = pick(h.initiations)
	case 3:
		m.msg = pick(h.initiations)
		m.msg[rand.IntN(len(m.msg)-macLen)] ^= byte(1 + rand.IntN(255))
	case 4:
		m.msg = pick(h.captured)
	case 5:
		m.msg, m.from = pick(h.captured), h.victim.sim.other(h.victim).addr
	case 6:
		m.msg = random(4 + rand.IntN(controlSlot-4))
		binary.LittleEndian.PutUint32(m.msg, uint32(rand.IntN(6)))
	case 7:
		typ := 1 + rand.IntN(3)
		m.msg = random([]int{initiationLen, responseLen, cookieReplyLen}[typ-1])
		binary.LittleEndian.PutUint32(m.msg, uint32(typ))
	case 8:
		m.msg = pick(h.captured)
		m.msg = m.msg[:1+rand.IntN(len(m.msg)-1)]
	}
	return m
}

// hostileMessages is how many a test hands over.
func hostileMessages() int {
	if raceEnabled {
		return 50_000
	}
	return 1_000_000
}

// heap is how much memory is in use after what can be freed was.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers kept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestHostileMessages hands a node a million messages of all kinds, in batches that tell of load and in others. It has
// no more state than before, and talks with its peer.
func TestHostileMessages(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	b.loadedAt = s.now
	s.connectUnderLoad(a, b)
	s.exchange(a, b)
	h := newHostile(t, b)
	before, slots, used := b.stillness(a), len(*b.index.slots.Load()), heap()
	in := &tunnel.Inbound{}
	var ticked int64
	feed := func(n int, next func() simMessage) {
		in.Slots, in.N = in.Slots[:0], n
		for range n {
			m := next()
			in.Slots = append(in.Slots, tunnel.Datagrams{Buf: m.msg, N: len(m.msg), SegmentSize: len(m.msg), From: m.from})
		}
		b.round(in, s.now, &ticked)
		if len(b.out.Sends) > 2*n {
			t.Fatalf("%d messages sent for %d received", len(b.out.Sends), n)
		}
		b.out.Reset()
	}
	// Without load every initiation is read: some thousand are enough.
	s.now += int64(2 * loadTime)
	for range hostileMessages() / 200 {
		feed(1, h.next)
	}
	if b.Counters.UnknownKey.Load() == 0 {
		t.Error("no initiation was read without load")
	}
	read := b.Counters.UnknownKey.Load()
	b.loadedAt = s.now // as Run notices by the time that it takes
	for sent := 0; sent < hostileMessages(); sent += controlSlots {
		s.now += int64(10 * time.Microsecond)
		feed(controlSlots, h.next)
	}
	if n := b.Counters.UnknownKey.Load() - read; n > 0 {
		t.Errorf("%d initiations were read under load, of senders without a cookie", n)
	}
	if now := b.stillness(a); now != before {
		t.Errorf("%+v, before %+v", now, before)
	}
	if n := len(*b.index.slots.Load()); n != slots {
		t.Errorf("%d slots for sessions, before %d", n, slots)
	}
	// The kinds that come in batches have been counted.
	for name, c := range map[string]uint64{
		"cookies sent": b.Counters.CookiesSent.Load(), "invalid": b.Counters.Invalid.Load(),
	} {
		if c < uint64(hostileMessages()/10) {
			t.Errorf("%s: %d", name, c)
		}
	}
	// A byte for each would be as much.
	if now := heap(); now > used+1<<20 {
		t.Errorf("%d bytes in use, before %d", now, used)
	}
	s.exchange(a, b)
}

// TestInvitedStrangers has strangers who bring cookies call as often as they can: each address is answered to as the
// limit says, whatever comes from others.
func TestInvitedStrangers(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	h := newHostile(t, b)
	before := b.stillness(a)
	begin := time.Now()
	const calls = 100
	for range calls {
		for _, m := range h.invited {
			b.now, b.loadedAt = s.now, s.now
			b.handle(bytes.Clone(m.msg), m.from)
			b.handle(h.next().msg, mustAddrPort("203.0.113.9:9"))
			b.out.Reset()
		}
	}
	read, limited := b.Counters.UnknownKey.Load(), b.Counters.RateLimited.Load()
	const burst, perSecond = 5, 20
	most := invitedSources * (burst + 1 + uint64(perSecond*time.Since(begin).Seconds()))
	if read < invitedSources*burst || read > most || read+limited != calls*invitedSources {
		t.Errorf("%d read and %d limited of %d; want %d to %d read", read, limited, calls*invitedSources,
			invitedSources*burst, most)
	}
	if now := b.stillness(a); now != before {
		t.Errorf("%+v, before %+v", now, before)
	}
}

// TestDeliverIsBounded has workers hand over more than is read.
func TestDeliverIsBounded(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	h := newHostile(t, b)
	const workers = 4
	each := hostileMessages() / 10 / workers
	invalid := b.Counters.Invalid.Load()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for k := range each {
				b.Deliver(h.initiations[k%len(h.initiations)], mustAddrPort("203.0.113.9:9"))
			}
			b.Deliver(make([]byte, initiationLen+1), mustAddrPort("203.0.113.9:9"))
		})
	}
	wg.Wait()
	if n, o := len(b.handed), b.Counters.Overflowed.Load(); n != maxHanded || o != uint64(workers*each-maxHanded) {
		t.Errorf("%d messages wait, %d were refused; want %d and %d", n, o, maxHanded, workers*each-maxHanded)
	}
	if n := b.Counters.Invalid.Load() - invalid; n != workers {
		t.Errorf("%d of %d that are too long were counted", n, workers)
	}
	var ticked int64
	b.round(&tunnel.Inbound{}, s.now, &ticked)
	if n := len(b.out.Sends); len(b.handed) != 0 || n > maxHanded {
		t.Errorf("%d messages wait after a round, which sent %d", len(b.handed), n)
	}
	b.out.Reset()
	s.exchange(a, b)
}
