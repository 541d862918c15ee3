package wireguard

import (
	"crypto/cipher"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/replay"
)

// A Session encrypts to a peer and decrypts what comes from it. All methods are safe for concurrent use.
type Session struct {
	peer      *Peer
	local     uint32 // the index in messages to us
	remote    uint32 // the index in messages to the peer
	initiator bool   // we began the handshake
	created   int64
	send      cipher.AEAD
	receive   cipher.AEAD

	// answered says that the peer has used the session, so that we may: the responder of a handshake does not know
	// before whether its response arrived (key confirmation).
	answered atomic.Bool

	// What Warren nodes tell each other, see offer.go.
	frames *frameKeys    // nil: its initiation had no mark; set before anybody else knows the session
	heard  atomic.Bool   // an offer of the peer's
	asked  atomic.Bool   // it waits for ours
	takes  atomic.Uint32 // what it has offered, of what this node knows
	offers offers

	_       [64]byte
	counter atomic.Uint64 // of the next message to the peer
	_       [64]byte

	mu     sync.Mutex
	window replay.Filter
	latest atomic.Uint64 // counter of an authentic message; written under mu
}

// newSession makes a session of the two keys that a handshake derived.
func newSession(p *Peer, send, receive *[chacha20poly1305.KeySize]byte) (*Session, error) {
	s := &Session{peer: p}
	var err error
	if s.send, err = chacha20poly1305.New(send[:]); err != nil {
		return nil, err
	}
	s.receive, err = chacha20poly1305.New(receive[:])
	return s, err
}

// extended reports whether the peer is a Warren: its initiation had the mark, or it has made an offer.
func (s *Session) extended() bool { return s.frames != nil && (!s.initiator || s.heard.Load()) }

// Peer is whose session it is.
func (s *Session) Peer() *Peer { return s.peer }

// Reserve takes the counters first to first+n-1 for n messages. False: the session has encrypted as many messages as it
// may. It asks for a new session in time.
func (s *Session) Reserve(n int) (first uint64, ok bool) {
	end := s.counter.Add(uint64(n))
	if end <= RekeyAfterMessages { // as good as always
		return end - uint64(n), true
	}
	s.peer.Want()
	if end > RejectAfterMessages {
		s.counter.Store(RejectAfterMessages) // never around: a nonce must not come twice
		return 0, false
	}
	return end - uint64(n), true
}

// A Head is what tells a message to the peer from others.
type Head struct {
	Receiver uint32 // the index, see Session.To
	Counter  uint64 // that Reserve gave for this message alone
}

// To is the receiver index of messages to the peer from a lane. A peer that has offered it sees by it which lane a flow
// has here, so that it can have the same one there.
func (s *Session) To(lane int) uint32 {
	if s.takes.Load()&takesLanes == 0 {
		return s.remote
	}
	return s.remote&^laneMask | uint32(lane)&laneMask
}

// Acknowledge is To for a packet that acknowledges and carries nothing itself, from a worker's lane. When a lone stream
// of superframes comes to the worker, the peer's that sends it has enough to do: then it is the next lane's, which is
// another worker's where there are several. That is worth a tenth of the stream's rate. With streams in several
// workers, each of which is busy, it would cost as much.
func (s *Session) Acknowledge(lane, worker int, now int64) uint32 {
	if s.peer.streams(worker, now) {
		lane ^= 1
	}
	return s.To(lane)
}

// A Nonce is the room that the AEAD's nonce needs beside the stack. The zero value is ready; it belongs to one worker.
type Nonce [chacha20poly1305.NonceSize]byte

func (n *Nonce) set(counter uint64) []byte {
	binary.LittleEndian.PutUint64(n[4:], counter)
	return n[:]
}

// Seal appends a data message to dst. The packet must either lie exactly HeaderLen bytes behind the end of dst, in the
// same array, where it is encrypted in place, or not overlap the room behind dst at all. It is padded by whoever made
// it, see PaddedLen. An empty packet is a keepalive.
func (s *Session) Seal(dst []byte, n *Nonce, h Head, packet []byte) []byte {
	at := len(dst)
	dst = append(dst, TypeData, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, h.Receiver)
	dst = binary.LittleEndian.AppendUint64(dst, h.Counter)
	return s.send.Seal(dst[:at+HeaderLen], n.set(h.Counter), packet, nil)
}

// PaddedLen is how long a packet of so many bytes is sent: a multiple of 16, unless the path carries only less.
func PaddedLen(n, mtu int) int {
	padded := (n + paddingUnit - 1) &^ (paddingUnit - 1)
	if padded > mtu {
		return max(n, mtu)
	}
	return padded
}

// An Opened is what became of a data message.
type Opened uint8

// The results of Open. BadSeal: it was not encrypted by the peer for this session, or was changed. Replayed: it came
// before, or is older than the window of some 8,000 messages.
const (
	Fresh Opened = iota
	BadSeal
	Replayed
)

// Open decrypts a data message of the session in place. What it returns is a part of msg: the packet with its padding,
// nothing for a keepalive.
func (s *Session) Open(msg []byte, n *Nonce) ([]byte, Opened) {
	counter := binary.LittleEndian.Uint64(msg[offsetCounter:])
	sealed := msg[HeaderLen:]
	packet, err := s.receive.Open(sealed[:0], n.set(counter), sealed, nil)
	if err != nil {
		return nil, BadSeal
	}
	if !s.fresh(counter) {
		return nil, Replayed
	}
	return packet, Fresh
}

// fresh moves the window, which only what is authentic may, and reports whether the counter is new.
func (s *Session) fresh(counter uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := s.window.ValidateCounter(counter, RejectAfterMessages)
	if fresh && counter > s.latest.Load() {
		s.latest.Store(counter)
	}
	return fresh
}

// OpensFrames reports whether the peer may send superframes in the session: this node has offered to take them.
func (s *Session) OpensFrames() bool {
	return s.peer.tunnel.offering&takesFrames != 0 && s.frames != nil
}

// The counters that Collects lets pass, by their distance from the latest: what is older is out of the window.
const (
	collectBehind = 1 << 13
	collectAhead  = 1 << 16
)

// Collects reports whether a piece from this address may be kept until the others have come. It may be a stranger's all
// the same, who knows where the peer is, the index, and how many messages there were.
func (s *Session) Collects(msg []byte, from netip.AddrPort) bool {
	counter, latest := binary.LittleEndian.Uint64(msg[offsetCounter:]), s.latest.Load()
	return s.peer.Endpoint().Addr() == from.Addr() && counter+collectBehind > latest && counter < latest+collectAhead
}
