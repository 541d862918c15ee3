package wireguard

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
)

// A PieceHead is the header of a piece of a superframe.
type PieceHead struct {
	Index   uint32 // of the receiver
	Counter uint64
	total   int // bytes of the sealed superframe
	flags   byte
}

func (h *PieceHead) number() int { return int(h.flags & pieceNumber) }
func (h *PieceHead) last() bool  { return h.flags&pieceLast != 0 }

// of is what all pieces of a superframe have in common.
func (h *PieceHead) of() PieceHead {
	c := *h
	c.flags &= pieceAES
	return c
}

// IsPiece reports whether a datagram may be a piece of a superframe.
func IsPiece(msg []byte) bool {
	if len(msg) <= PieceHeader || msg[0] != TypePiece {
		return false
	}
	total := int(binary.LittleEndian.Uint16(msg[offsetTotal:]))
	return total >= leastFrame && len(msg)-PieceHeader <= total
}

// readPiece reads the header of a datagram for which IsPiece holds.
func readPiece(msg []byte) PieceHead {
	return PieceHead{
		Index: Receiver(msg), Counter: binary.LittleEndian.Uint64(msg[offsetCounter:]),
		total: int(binary.LittleEndian.Uint16(msg[offsetTotal:])), flags: msg[1],
	}
}

// gather moves together what a superframe's pieces hold, in place, when the datagrams of size bytes each, the last
// maybe shorter, begin with all of them in the order in which they leave. It returns their number then, else 0.
func gather(b []byte, size int, h PieceHead) (sealed []byte, pieces int) {
	part := size - PieceHeader
	if part <= 0 || h.number() != 0 {
		return nil, 0
	}
	pieces = (h.total + part - 1) / part
	end := h.total + pieces*PieceHeader
	if pieces > MaxPieces || end > len(b) {
		return nil, 0
	}
	for k := range pieces {
		flags := byte(k) | h.flags&pieceAES
		if k == pieces-1 {
			flags |= pieceLast
		}
		p := b[k*size:]
		if p[0] != TypePiece || p[1] != flags || !bytes.Equal(p[offsetTotal:PieceHeader], b[offsetTotal:PieceHeader]) {
			return nil, 0
		}
	}
	at := PieceHeader
	for k := range pieces {
		at += copy(b[at:], b[k*size+PieceHeader:min((k+1)*size, end)])
	}
	return b[PieceHeader:at], pieces
}

// maxAssembled is how many superframes are collected at the same time, and how many buffers for them are kept.
const maxAssembled = 8

// bufferUnit is what the size of a buffer is a multiple of, in bytes, so that the next superframe may fit too.
const bufferUnit = 16 << 10

// An Assembler puts superframes together. In most cases all pieces of one come in one receive; else the wire lost or
// delayed some, or whoever joined them (UDP_GRO) did not take all at once, and they are collected here. It belongs to
// one worker. Nothing it holds is authentic: a stranger who knows an index can fill it, which costs others'
// superframes, and no memory beyond that of maxAssembled. The zero value is ready.
type Assembler struct {
	frames   [maxAssembled]assembled
	arrival  uint64
	free     [][]byte
	lent     [][]byte                    // until Release
	done     [2 * maxAssembled]PieceHead // those that were completed last, as their pieces may come twice
	finished int
}

// An assembled is a superframe some of whose pieces have come.
type assembled struct {
	of    PieceHead
	buf   []byte
	have  uint64 // pieces, by number
	count int    // of all pieces; 0: the last one has not come
	bytes int    // that have come
	tos   uint8  // of their outer headers
	born  uint64 // in the order of arrival; 0: free
}

// A Taken is what became of a piece.
type Taken struct {
	Head   PieceHead
	Sealed []byte // the superframe, now complete; valid until Release. nil: it is not
	Pieces int    // how many datagrams were taken: all of a superframe, or 1
	TOS    uint8  // of the outer headers: of all pieces the one that says most of congestion
	Lost   uint32 // index of a session whose superframe was given up, as pieces of it did not come; 0: none
}

// Take takes the first of the datagrams in b, which have size bytes each, the last maybe fewer, and for which IsPiece
// holds; and when it is the first of all the pieces of a superframe, these. All came with this TOS. Sealed may be a
// part of b, which is changed.
func (a *Assembler) Take(b []byte, size int, tos uint8) Taken {
	h := readPiece(b)
	if sealed, pieces := gather(b, size, h); pieces > 0 {
		a.forget(h.of())
		a.finish(h.of())
		return Taken{Head: h.of(), Sealed: sealed, Pieces: pieces, TOS: tos}
	}
	t := Taken{Head: h.of(), Pieces: 1, TOS: tos}
	a.put(&t, h, b[PieceHeader:min(size, len(b))])
	return t
}

// put collects a piece that holds part.
func (a *Assembler) put(t *Taken, h PieceHead, part []byte) {
	if slices.Contains(a.done[:], t.Head) {
		return
	}
	f, lost := a.frame(t.Head)
	t.Lost = lost
	at := h.number() * len(part)
	if h.last() {
		at = h.total - len(part)
		f.count = h.number() + 1
	}
	bit := uint64(1) << h.number()
	if at < 0 || at+len(part) > h.total || f.have&bit != 0 {
		return // came before, or is nonsense; what that spoils does not decrypt
	}
	copy(f.buf[at:], part)
	if f.have == 0 || moreCongested(t.TOS, f.tos) {
		f.tos = t.TOS
	}
	f.have |= bit
	f.bytes += len(part)
	if f.count == 0 || f.bytes != h.total || bits.OnesCount64(f.have) != f.count {
		return
	}
	a.finish(f.of)
	a.lent = append(a.lent, f.buf)
	t.Sealed, t.TOS = f.buf[:h.total], f.tos
	*f = assembled{}
}

// moreCongested reports whether the ECN field of x says more of congestion than that of y: as of fragments, the one
// that says most counts (RFC 3168, 5.3; the order is that of RFC 6040, 4.2).
func moreCongested(x, y uint8) bool {
	const mask = 3
	rank := [mask + 1]uint8{0b00: 0, 0b10: 1, 0b01: 2, 0b11: 3}
	return rank[x&mask] > rank[y&mask]
}

// frame returns the superframe that pieces of this kind belong to, or a new one in place of the oldest.
func (a *Assembler) frame(of PieceHead) (f *assembled, lost uint32) {
	f = &a.frames[0]
	for k := range a.frames {
		g := &a.frames[k]
		if g.born != 0 && g.of == of {
			return g, 0
		}
		if g.born < f.born {
			f = g
		}
	}
	if f.born != 0 {
		lost = f.of.Index
		a.keep(f.buf)
	}
	a.arrival++
	*f = assembled{of: of, buf: a.buffer(of.total), born: a.arrival}
	return f, lost
}

// forget ends the collecting of a superframe that is complete all the same: its first pieces came twice.
func (a *Assembler) forget(of PieceHead) {
	for k := range a.frames {
		if f := &a.frames[k]; f.born != 0 && f.of == of {
			a.keep(f.buf)
			*f = assembled{}
		}
	}
}

// buffer returns one for so many bytes.
func (a *Assembler) buffer(n int) []byte {
	for k, b := range a.free {
		if len(b) >= n {
			a.free = slices.Delete(a.free, k, k+1)
			return b
		}
	}
	if len(a.free) == maxAssembled { // all too small
		a.free = slices.Delete(a.free, 0, 1)
	}
	return make([]byte, (n+bufferUnit-1)/bufferUnit*bufferUnit)
}

// keep takes a buffer that is no longer used.
func (a *Assembler) keep(b []byte) {
	if len(a.free) < maxAssembled {
		a.free = append(a.free, b)
	}
}

// finish notes that a superframe is complete.
func (a *Assembler) finish(of PieceHead) {
	a.done[a.finished%len(a.done)] = of
	a.finished++
}

// Release ends the use of what Take has returned.
func (a *Assembler) Release() {
	for _, b := range a.lent {
		a.keep(b)
	}
	clear(a.lent)
	a.lent = a.lent[:0]
}
