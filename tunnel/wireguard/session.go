package wireguard

import (
	"crypto/cipher"
	"encoding/binary"
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

	_       [64]byte
	counter atomic.Uint64 // of the next message to the peer
	_       [64]byte

	mu     sync.Mutex
	window replay.Filter
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

// A Nonce is the room that the AEAD's nonce needs beside the stack. The zero value is ready; it belongs to one worker.
type Nonce [chacha20poly1305.NonceSize]byte

func (n *Nonce) set(counter uint64) []byte {
	binary.LittleEndian.PutUint64(n[4:], counter)
	return n[:]
}

// Seal appends a data message to dst. The counter has to be one that Reserve gave for this message alone. The packet
// must either lie exactly HeaderLen bytes behind the end of dst, in the same array, where it is encrypted in place, or
// not overlap the room behind dst at all. It is padded by whoever made it, see PaddedLen. An empty packet is a
// keepalive.
func (s *Session) Seal(dst []byte, n *Nonce, counter uint64, packet []byte) []byte {
	at := len(dst)
	dst = append(dst, TypeData, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, s.remote)
	dst = binary.LittleEndian.AppendUint64(dst, counter)
	return s.send.Seal(dst[:at+HeaderLen], n.set(counter), packet, nil)
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
	// Only what is authentic may move the window.
	s.mu.Lock()
	fresh := s.window.ValidateCounter(counter, RejectAfterMessages)
	s.mu.Unlock()
	if !fresh {
		return nil, Replayed
	}
	return packet, Fresh
}
