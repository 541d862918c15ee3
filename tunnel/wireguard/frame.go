package wireguard

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"
)

// A superframe is an extension between Warren nodes that have offered it to each other (see offer.go): a superpacket
// that is encrypted as one, not segment by segment, and then cut into pieces, one for each datagram. One key stream and
// one tag serve 64 KiB, no header is stamped and no checksum made for the segments, and the receiver has the
// superpacket as it was. A piece that is lost takes all of its superframe along, so a receiver whom pieces fail to
// reach asks for data messages again.
//
// A piece begins with 16 bytes:
//
//	byte 0        TypePiece, which is no message of WireGuard's
//	byte 1        bits 0 to 5: the piece's number; bit 6: it is the last one; bit 7: sealed with AES-256-GCM
//	bytes 2, 3    length of the sealed superframe, little endian
//	bytes 4 to 7  receiver index, as in a data message
//	bytes 8 to 15 counter, as in a data message, which counts these as well
//
// What is sealed is the packet, zeros up to a multiple of 16, and in the last two bytes how many bytes of payload each
// segment has. The keys are derived from the session's, one for each cipher and direction; the nonce is that of a data
// message.
const (
	TypePiece = 0x57

	PieceHeader = HeaderLen // bytes of a piece in front of its part of the superframe

	// MaxPieces is the number of pieces that a superframe can have.
	MaxPieces = 1 << 6

	pieceNumber   = MaxPieces - 1
	pieceLast     = 1 << 6
	pieceAES      = 1 << 7
	offsetTotal   = 2 // of a piece's header
	sealTag       = 16
	segmentSize   = 2 // bytes at the end
	leastFrame    = paddingUnit + sealTag
	maxSealed     = 1<<16 - 1
	frameKeyLabel = "Warren superframe v1 "
)

// FastAES reports whether this processor has instructions for AES-GCM. Without them it would be slow, and its time
// could tell about the key.
func FastAES() bool {
	switch runtime.GOARCH {
	case "amd64":
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41
	case "arm64":
		return cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	}
	return false
}

// frameKeys are what a session's superframes are sealed and opened with, by cipher.
type frameKeys struct{ send, receive [frameCiphers]cipher.AEAD }

// The ciphers of superframes.
const (
	frameChaCha = iota
	frameAES
	frameCiphers
)

// newFrameKeys derives the keys from those of the session.
func newFrameKeys(send, receive *[chacha20poly1305.KeySize]byte) (*frameKeys, error) {
	k := &frameKeys{}
	for _, d := range []struct {
		from *[chacha20poly1305.KeySize]byte
		to   *[frameCiphers]cipher.AEAD
	}{{send, &k.send}, {receive, &k.receive}} {
		for c, name := range []string{frameChaCha: "ChaCha20-Poly1305", frameAES: "AES-256-GCM"} {
			derived, err := hkdf.Expand(sha256.New, d.from[:], frameKeyLabel+name, chacha20poly1305.KeySize)
			if err != nil {
				return nil, fmt.Errorf("key of superframes: %w", err)
			}
			if d.to[c], err = frameCipher(c, derived); err != nil {
				return nil, fmt.Errorf("cipher of superframes: %w", err)
			}
		}
	}
	return k, nil
}

func frameCipher(c int, key []byte) (cipher.AEAD, error) {
	if c == frameChaCha {
		return chacha20poly1305.New(key)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// A Frame is a superpacket that is to leave as a superframe.
type Frame struct {
	Packet      []byte // as it was read: its transport checksum holds the pseudo header's sum alone
	SegmentSize uint16 // transport payload bytes of each segment
	Piece       int    // bytes of the largest datagram to the peer: all pieces but the last have so many
}

// Bounds returns how many bytes and pieces the frame becomes; fits is false when it can't be a superframe.
func (f *Frame) Bounds() (bytes, pieces int, fits bool) {
	part := f.Piece - PieceHeader
	if part < leastFrame {
		return 0, 0, false
	}
	sealed := f.padded() + sealTag
	pieces = (sealed + part - 1) / part
	return sealed + pieces*PieceHeader, pieces, pieces <= MaxPieces && sealed <= maxSealed
}

// padded is the length of what is sealed.
func (f *Frame) padded() int {
	return (len(f.Packet) + segmentSize + paddingUnit - 1) &^ (paddingUnit - 1)
}

// SealFrame appends the pieces of a superframe to dst, which has room for what Bounds returned. The session's
// TakesFrames has said yes, and the head's counter has to be one that Reserve gave for this alone. The bytes behind
// f.Packet, up to its capacity, are overwritten; where they are too few it is copied.
func (s *Session) SealFrame(dst []byte, n *Nonce, h Head, f *Frame) []byte {
	size, pieces, _ := f.Bounds()
	keys, which := s.frames, frameChaCha
	var flags byte
	if s.takes.Load()&takesAES != 0 {
		which, flags = frameAES, pieceAES
	}
	var tail [paddingUnit + segmentSize]byte
	fill := f.padded() - len(f.Packet)
	binary.LittleEndian.PutUint16(tail[fill-segmentSize:], f.SegmentSize)
	plain := append(f.Packet, tail[:fill]...)

	// Sealed in one go where its last part has to be, then the parts move to the front, each one behind its header.
	out := dst[len(dst) : len(dst)+size]
	total := size - pieces*PieceHeader
	sealed := keys.send[which].Seal(out[:pieces*PieceHeader], n.set(h.Counter), plain, nil)[pieces*PieceHeader:]
	part := f.Piece - PieceHeader
	at := 0
	for k := range pieces {
		b := sealed[k*part : min((k+1)*part, total)]
		if k == pieces-1 {
			flags |= pieceLast
		}
		p := out[at : at+PieceHeader+len(b)]
		p[0], p[1] = TypePiece, byte(k)|flags
		binary.LittleEndian.PutUint16(p[offsetTotal:], uint16(total))
		binary.LittleEndian.PutUint32(p[offsetReceiver:], h.Receiver)
		binary.LittleEndian.PutUint64(p[offsetCounter:], h.Counter)
		at += PieceHeader + copy(p[PieceHeader:], b)
	}
	return dst[:len(dst)+size]
}

// OpenFrame decrypts a superframe in place: the header of one of its pieces, and what the pieces hold together. It
// returns the superpacket, maybe with zeros behind it, and the payload bytes of its segments.
func (s *Session) OpenFrame(h PieceHead, sealed []byte, n *Nonce) (packet []byte, size uint16, o Opened) {
	if !s.OpensFrames() {
		return nil, 0, BadSeal
	}
	which := frameChaCha
	if h.flags&pieceAES != 0 {
		if s.peer.tunnel.offering&takesAES == 0 {
			return nil, 0, BadSeal // nor would it be safe: see FastAES
		}
		which = frameAES
	}
	plain, err := s.frames.receive[which].Open(sealed[:0], n.set(h.Counter), sealed, nil)
	if err != nil || len(plain) < segmentSize {
		return nil, 0, BadSeal
	}
	if !s.fresh(h.Counter) {
		return nil, 0, Replayed
	}
	end := len(plain) - segmentSize
	return plain[:end], binary.LittleEndian.Uint16(plain[end:]), Fresh
}
