package wireguard

import (
	"crypto/rand"
	"io"
	"iter"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ratelimiter"
	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/tunnel"
)

// Config says what a Tunnel works with. The functions are called by Run or by workers, must not block, and may be nil.
type Config struct {
	Lanes   int // of the node: sessions are dealt out to them, see tunnel/udp. 0: 1
	Workers int // how many call Sent and Got; their numbers are 0 to Workers-1

	Superframes bool // are made, and offered to peers that are Warren nodes too
	AES         bool // these may be sealed with AES-256-GCM, see FastAES

	Established func(peer int32)         // there is a session with the peer, and there was none before or another one
	Paused      func(peer int32, p bool) // superframes of the peer are not wanted, as pieces are lost; or are again
	Roamed      func(peer int32)         // the address of Peer.Endpoint has changed
	Reachable   func(netip.Addr) bool    // the address may be a peer's endpoint; nil: every one may
	PathEvents  func([]tunnel.PathEvent) // of the control socket
	Now         func() int64             // nanoseconds; nil: of a clock that nobody sets
	Random      io.Reader                // nil: crypto/rand
	Stamp       func() tai64n.Timestamp  // of an initiation; nil: tai64n.Now

	// CallsPerTick is how many peers are greeted in a quarter of a second, so that a start in a large cluster does not
	// take a processor for itself; 0: 64.
	CallsPerTick int
}

// Counters say what happened to handshakes. Safe for concurrent use.
type Counters struct {
	Initiated   atomic.Uint64 // initiations sent
	Completed   atomic.Uint64 // that were answered
	Responded   atomic.Uint64 // initiations answered
	GivenUp     atomic.Uint64 // peers that did not answer for 90 s
	Keepalives  atomic.Uint64 // sent
	CookiesSent atomic.Uint64 // under load, in place of a response
	CookiesGot  atomic.Uint64
	Invalid     atomic.Uint64 // messages that are none, or whose MAC or content is wrong
	UnknownKey  atomic.Uint64 // valid initiations of nobody we know
	Replayed    atomic.Uint64 // initiations with an old timestamp, or too soon after the last
	RateLimited atomic.Uint64 // under load, from one source
	Overflowed  atomic.Uint64 // handed over by workers faster than they are read
}

// A Tunnel is a node's end of the encrypted tunnels to all its peers. All methods are safe for concurrent use, but Run,
// which may be called once.
type Tunnel struct {
	Counters Counters

	config   Config
	offering uint32 // to peers, see offer.go
	index    indexTable
	pieces   []Assembler // by lane
	byID     atomic.Pointer[[]*Peer]

	handMu  sync.Mutex
	handed  []handed // by workers, for Run
	wanting []*Peer
	wake    func() // of Run's waiter; nil before

	mu         sync.Mutex // guards what follows, and what Peer says that it guards
	now        int64
	identities []*identity
	byKey      map[key.Public]*Peer
	handshakes map[uint32]*Peer // by the index that we chose for the handshake that we began
	limiter    ratelimiter.Ratelimiter
	verified   int // handshake messages with a right first MAC in this round
	loadedAt   int64
	stamps     map[key.Public]tai64n.Timestamp // of the last initiation of every key, also of peers that are gone
	stamped    tai64n.Timestamp                // of our own last one
	nonce      Nonce
	scratch    [18]byte
	out        tunnel.Outbound
}

// handed is a message that came to a worker.
type handed struct {
	from netip.AddrPort
	len  int
	msg  [initiationLen]byte
}

// maxHanded is how many of them wait at most.
const maxHanded = 64

// New makes a Tunnel without keys and peers.
func New(c Config) *Tunnel {
	c.Lanes = max(c.Lanes, 1)
	if c.Now == nil {
		begin := time.Now()
		c.Now = func() int64 { return begin.UnixNano() + int64(time.Since(begin)) }
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	if c.Stamp == nil {
		c.Stamp = tai64n.Now
	}
	if c.CallsPerTick == 0 {
		c.CallsPerTick = 64
	}
	t := &Tunnel{
		config: c, offering: c.offering(), index: indexTable{lanes: c.Lanes},
		pieces: make([]Assembler, c.Lanes),
		byKey:  map[key.Public]*Peer{}, handshakes: map[uint32]*Peer{}, stamps: map[key.Public]tai64n.Timestamp{},
	}
	t.loadedAt = -int64(loadTime)
	t.byID.Store(new([]*Peer))
	return t
}

// Now is the time on the tunnel's clock: what Sent and Got want to be told.
func (t *Tunnel) Now() int64 { return t.config.Now() }

// Session finds the session of a data message by its index; nil: there is none.
func (t *Tunnel) Session(index uint32) *Session { return t.index.lookup(index) }

// Pieces is where pieces of superframes with this index are collected.
func (t *Tunnel) Pieces(index uint32) *Assembler {
	return &t.pieces[index&laneMask%uint32(len(t.pieces))]
}

// Peer finds a peer by its number; nil: there is none.
func (t *Tunnel) Peer(id int32) *Peer {
	if peers := *t.byID.Load(); id > 0 && int(id) < len(peers) {
		return peers[id]
	}
	return nil
}

// SetKeys says which private keys are ours: all of them are answered to. The preferred one, by its place, is what peers
// are called with unless they have answered to another.
func (t *Tunnel) SetKeys(keys []key.Private, preferred int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.identities
	if slices.EqualFunc(before, keys, func(i *identity, k key.Private) bool { return i.private == k }) {
		return
	}
	t.identities = nil
	for _, k := range keys {
		var i *identity
		for _, old := range before {
			if old.public == k.Public() {
				i = old
			}
		}
		if i == nil {
			i = newIdentity(k)
		}
		t.identities = append(t.identities, i)
	}
	for p := range t.all() {
		var used *identity
		if p.identified && p.identity < len(before) {
			used = before[p.identity]
		}
		t.identify(p, preferred)
		for n, i := range t.identities {
			if i == used {
				t.identify(p, n)
			}
		}
		t.again(p)
	}
	t.poke()
}

// again has a handshake that is under way begin anew, as what it was begun with has changed.
func (t *Tunnel) again(p *Peer) {
	if p.pending != nil {
		t.forget(p)
		p.pending, p.began = nil, 0
		p.wanted.Store(true)
	}
}

// SetPeers says who the peers are, all of them. See ChangePeers.
func (t *Tunnel) SetPeers(peers []PeerConfig, preferred int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	stay := make(map[int32]bool, len(peers))
	for k := range peers {
		stay[peers[k].ID] = true
	}
	var gone []int32
	for p := range t.all() {
		if !stay[p.id] {
			gone = append(gone, p.id)
		}
	}
	t.changePeers(peers, gone, preferred)
}

// ChangePeers says which peers are new or changed, and which have left, by their numbers. Sessions of those that stay
// go on, also when their keys have changed: for at most three minutes, until there is a session of the new key.
func (t *Tunnel) ChangePeers(set []PeerConfig, gone []int32, preferred int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changePeers(set, gone, preferred)
}

func (t *Tunnel) changePeers(set []PeerConfig, gone []int32, preferred int) {
	byID := slices.Clone(*t.byID.Load())
	left := make([]*Peer, 0, len(gone))
	for _, id := range gone {
		if p := t.Peer(id); p != nil {
			left = append(left, p)
			byID[id] = nil
			t.nameless(p)
		}
	}
	for _, c := range set { // before any gets a new one, as keys may go from one to another
		if p := t.Peer(c.ID); p != nil && p.config.Public != c.Public {
			t.nameless(p)
		}
	}
	for _, c := range set {
		if more := int(c.ID) + 1 - len(byID); more > 0 {
			byID = append(byID, make([]*Peer, more)...)
		}
		if byID[c.ID] == nil {
			byID[c.ID] = t.newPeer(c, preferred)
		}
		t.change(byID[c.ID], c)
		t.byKey[c.Public] = byID[c.ID]
	}
	t.byID.Store(&byID)
	for _, p := range left {
		t.forget(p)
		p.pending = nil
		p.expire(math.MaxInt64)
	}
	t.dropStamps()
	t.poke()
}

// nameless ends what finds a peer by its key.
func (t *Tunnel) nameless(p *Peer) {
	if t.byKey[p.config.Public] == p {
		delete(t.byKey, p.config.Public)
	}
}

// spareStamps is of how many keys of peers that are gone the last timestamp is kept. Should such a peer come back after
// so many others have gone, its last initiation can be replayed once, which makes a session that nobody else can use.
const spareStamps = 1 << 16

func (t *Tunnel) dropStamps() {
	if len(t.stamps) < len(t.byKey)+2*spareStamps {
		return
	}
	spare := spareStamps
	for k := range t.stamps {
		if t.byKey[k] != nil {
			continue
		}
		if spare--; spare < 0 {
			delete(t.stamps, k)
		}
	}
}

// all are the peers.
func (t *Tunnel) all() iter.Seq[*Peer] {
	return func(yield func(*Peer) bool) {
		for _, p := range *t.byID.Load() {
			if p != nil && !yield(p) {
				return
			}
		}
	}
}

func (t *Tunnel) newPeer(c PeerConfig, preferred int) *Peer {
	p := &Peer{
		id: c.ID, tunnel: t, lane: int(c.ID) % t.config.Lanes, marks: make([]marks, t.config.Workers+1),
	}
	t.identify(p, preferred)
	return p
}

// change gives a peer another configuration.
func (t *Tunnel) change(p *Peer, c PeerConfig) {
	before := p.config
	p.config = c
	if before.Public != c.Public {
		p.cookies = new(device.CookieGenerator)
		p.cookies.Init(device.NoisePublicKey(c.Public))
		p.public.Store(&c.Public)
		p.stamp, p.heardInit, p.began = t.stamps[c.Public], 0, 0
		p.greet = c.Greet
		if !c.Greet { // a machine that was lost, for instance; what a node does is a rotation
			p.expire(math.MaxInt64)
		}
	}
	if !before.Greet {
		p.greet = c.Greet
	}
	if before.Public != c.Public || before.Preshared != c.Preshared {
		t.again(p)
	}
	if before.Endpoint != c.Endpoint && c.Endpoint.IsValid() {
		p.endpoint.Store(&c.Endpoint)
	}
}

// Deliver takes a message that is no data from a worker, which found it in its own socket. A copy is made.
func (t *Tunnel) Deliver(msg []byte, from netip.AddrPort) {
	h := handed{from: from, len: len(msg)}
	if len(msg) > len(h.msg) {
		t.Counters.Invalid.Add(1)
		return
	}
	copy(h.msg[:], msg)
	t.handMu.Lock()
	defer t.handMu.Unlock()
	if len(t.handed) == maxHanded {
		t.Counters.Overflowed.Add(1)
		return
	}
	t.handed = append(t.handed, h)
	t.wakeRun()
}

// want notes that a peer needs a session.
func (t *Tunnel) want(p *Peer) {
	t.handMu.Lock()
	defer t.handMu.Unlock()
	t.wanting = append(t.wanting, p)
	t.wakeRun()
}

// poke has Run look at everything.
func (t *Tunnel) poke() {
	t.handMu.Lock()
	defer t.handMu.Unlock()
	t.wakeRun()
}

// wakeRun wakes Run, once it runs. The caller holds t.handMu.
func (t *Tunnel) wakeRun() {
	if t.wake != nil {
		t.wake()
	}
}

// established says that there is a session.
func (t *Tunnel) established(p *Peer) {
	p.wanted.Store(false)
	p.silent.Store(false)
	if t.config.Established != nil {
		t.config.Established(p.id)
	}
}

func (t *Tunnel) roamed(p *Peer) {
	if t.config.Roamed != nil {
		t.config.Roamed(p.id)
	}
}

func (t *Tunnel) reachable(a netip.Addr) bool {
	return t.config.Reachable == nil || t.config.Reachable(a)
}

// PeerStatus is what people want to know of a peer.
type PeerStatus struct {
	Public    key.Public
	Ours      key.Public     // which of our keys it was last talked to with
	Endpoint  netip.AddrPort // zero: unknown
	Handshake time.Time      // the last one that was completed; zero: never
	LastData  time.Time      // when the last packet came from it; zero: never
	Session   bool           // there is one to send with
	Frames    bool           // it takes superframes, and this node makes them
	Paused    bool           // it was asked for data messages in place of superframes, as pieces of these are lost
	Silent    bool           // it was called for 90 s in vain, and has not been heard since
}

// Status returns the state of a peer.
func (t *Tunnel) Status(id int32) (PeerStatus, bool) {
	p := t.Peer(id)
	if p == nil {
		return PeerStatus{}, false
	}
	s := PeerStatus{Endpoint: p.Endpoint(), Paused: p.paused.Load(), Silent: p.silent.Load()}
	if c := p.Current(); c != nil {
		s.Session, s.Frames = true, c.TakesFrames()
	}
	if k := p.public.Load(); k != nil {
		s.Public = *k
	}
	if k := p.ours.Load(); k != nil {
		s.Ours = *k
	}
	ago := func(at int64) time.Time {
		if at == 0 {
			return time.Time{}
		}
		return time.Now().Add(-time.Duration(t.config.Now() - at)).Round(time.Millisecond)
	}
	s.Handshake, s.LastData = ago(p.handshaken.Load()), ago(p.latest(dataGot))
	return s, true
}
