// Package wireguard is the encrypted encapsulation: the WireGuard protocol (J. Donenfeld, "WireGuard: Next Generation
// Kernel Network Tunnel", NDSS 2017, and wireguard.com/protocol), which any WireGuard implementation speaks.
//
// # Terms
//
//   - A peer is somebody with a public key. A session is what one handshake with it left: a pair of keys, one for each
//     direction, for at most three minutes. An index is the 32-bit number under which the receiver of a message knows a
//     session or a handshake that is under way; the receiver chose it.
//   - Handshake messages are the initiation, the response and the cookie reply; data messages carry a packet, or none
//     (keepalive).
//
// # Who does what
//
// Workers encrypt and decrypt where they read: Session.Seal, Session.Open and what they need for these (Tunnel.Peer,
// Tunnel.Session, Peer.Current) take no lock that anybody else holds for long, allocate nothing and wait for nobody.
// Everything else (handshakes, timers, cookies) belongs to the goroutine of Tunnel.Run, which has a socket of its own
// on the same port: a flood of handshakes fills that socket's buffer and takes that goroutine's share of a processor,
// and data passes beside it. Nobody who has not proved to hold a known key gets any state here, but for a bounded room
// in which pieces of superframes wait for each other (Assembler).
//
// # What comes from libraries
//
// The Noise handshake is github.com/flynn/noise, the AEAD golang.org/x/crypto/chacha20poly1305; cookies, replay window,
// timestamps and the rate limit by source are those of golang.zx2c4.com/wireguard. Here are the messages, the timers,
// and the data path.
//
// # Clocks
//
// Times are nanoseconds of one clock, Config.Now, which only goes forward: a system whose clock is set neither prolongs
// its keys nor stops calling. Tests turn it. The timestamps in initiations are of the system's clock, to 16 ms, and
// only grow while the process lives: where the clock was set back before its start, peers refuse them until it has
// caught up.
package wireguard

import (
	"encoding/binary"
	"math"
	"time"
)

// The protocol's constants (whitepaper, 6.1).
const (
	RekeyAfterMessages  = 1 << 60
	RejectAfterMessages = math.MaxUint64 - 1<<13
	RekeyAfterTime      = 120 * time.Second
	RejectAfterTime     = 180 * time.Second
	RekeyAttemptTime    = 90 * time.Second
	RekeyTimeout        = 5 * time.Second
	KeepaliveTimeout    = 10 * time.Second
)

// The first byte of a message.
const (
	TypeInitiation  = 1
	TypeResponse    = 2
	TypeCookieReply = 3
	TypeData        = 4
)

// Sizes, in bytes.
const (
	HeaderLen = 16             // of a data message
	Overhead  = HeaderLen + 16 // what a data message adds to the packet in it: header and authentication tag
	Overhead4 = 20 + 8 + Overhead
	Overhead6 = 40 + 8 + Overhead
	Port      = 51820 // what WireGuard programs use by default; IANA assigned none

	paddingUnit    = 16
	initiationLen  = 148
	responseLen    = 92
	cookieReplyLen = 64
	macLen         = 16
)

// Offsets in messages, which begin with a type and three zero bytes.
const (
	offsetSender   = 4 // of initiation and response: the index that the sender chose
	offsetReceiver = 4 // of data and cookie reply: the one that the receiver chose
	offsetAnswered = 8 // of the response: the one of the initiation
	offsetCounter  = 8 // of data
)

// identifier is what both sides mix in first: the protocol's name and version (whitepaper, 5.4).
const identifier = "WireGuard v1 zx2c4 Jason@zx2c4.com"

// typeOf is the type of a message by its first byte, with the length that goes with it and the reserved bytes zero; 0:
// it is no message.
func typeOf(msg []byte) uint32 {
	if len(msg) < Overhead { // the shortest there is
		return 0
	}
	typ, n := binary.LittleEndian.Uint32(msg), len(msg)
	switch {
	case typ == TypeInitiation && n == initiationLen, typ == TypeResponse && n == responseLen,
		typ == TypeCookieReply && n == cookieReplyLen, typ == TypeData:
		return typ
	}
	return 0
}

// IsData reports whether a datagram may be a data message: its header and an authentication tag are there.
func IsData(msg []byte) bool { return typeOf(msg) == TypeData }

// IsHandshake reports whether a datagram may be a message of a handshake, for Tunnel.Deliver.
func IsHandshake(msg []byte) bool {
	typ := typeOf(msg)
	return typ != 0 && typ != TypeData
}

// Receiver is the index of a data message for which IsData holds.
func Receiver(msg []byte) uint32 { return binary.LittleEndian.Uint32(msg[offsetReceiver:]) }
