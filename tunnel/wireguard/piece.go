package wireguard

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"sync"
	"time"
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

// Bounds of an Assembler.
const (
	maxAssembled = 16       // superframes that are collected at the same time; as many buffers are kept for the next
	bufferUnit   = 16 << 10 // what the size of a buffer is a multiple of, in bytes, so that the next one may fit too

	// A superframe no piece of which has come for stallTime may be given up for another one, and for giveUpTime is.
	stallTime  = int64(5 * time.Millisecond)
	giveUpTime = int64(time.Second)
)

// An Assembler puts superframes of one lane together. In most cases all pieces of one come in one receive; else the
// wire lost or delayed some, or whoever joins them (UDP_GRO) did not take all at once or behind a datagram of another
// lane, and they are collected here, whichever worker they came to. Nothing it holds is authentic: a stranger whom the
// caller takes for the peer can fill it, which costs others' superframes, and no memory beyond that of maxAssembled.
// The zero value is ready. Safe for concurrent use.
type Assembler struct {
	mu       sync.Mutex
	frames   [maxAssembled]assembled
	free     [][]byte
	done     [4 * maxAssembled]PieceHead // those that ended last, as pieces of them may still come
	finished int
}

// An assembled is a superframe some of whose pieces have come.
type assembled struct {
	of    PieceHead
	buf   []byte // nil: there is none
	have  uint64 // pieces, by number
	count int    // of all pieces; 0: the last one has not come
	bytes int    // that have come
	tos   uint8  // of their outer headers
	at    int64  // when the last one came
}

// An Arrival is where and how datagrams came.
type Arrival struct {
	TOS     uint8 // of their outer headers
	Now     int64 // on the tunnel's clock
	Collect bool  // what is not complete may be kept, see Session.Collects
}

// A Taken is what became of a piece.
type Taken struct {
	Head    PieceHead
	Sealed  []byte // the superframe, now complete, until Release. nil: it is not
	Of      int    // how many pieces that has
	Pieces  int    // how many datagrams were taken: all of a superframe, or 1
	TOS     uint8  // of the outer headers: of all pieces the one that says most of congestion
	Useless bool   // it came before, or is nonsense, or must not be kept
	Lost    uint32 // index of a session whose superframe was given up, as pieces of it did not come; 0: none
	buf     []byte // of the Assembler's that Sealed is in
}

// Collected reports whether Sealed is in a buffer of the Assembler's, which has to be given back by Release.
func (t *Taken) Collected() bool { return t.buf != nil }

// Take takes the first of the datagrams in b, which have size bytes each, the last maybe fewer, and for which IsPiece
// holds; and when it is the first of all the pieces of a superframe, these. Sealed may be a part of b, which is
// changed.
func (a *Assembler) Take(b []byte, size int, in Arrival) Taken {
	h := readPiece(b)
	t := Taken{Head: h.of(), Pieces: 1, TOS: in.TOS}
	sealed, pieces := gather(b, size, h)
	if pieces == 0 && !in.Collect {
		t.Useless = true
		return t
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if pieces > 0 {
		a.forget(t.Head)
		a.end(t.Head)
		t.Sealed, t.Of, t.Pieces = sealed, pieces, pieces
		return t
	}
	a.put(&t, h, b[PieceHeader:min(size, len(b))], in.Now)
	return t
}

// put collects a piece that holds part.
func (a *Assembler) put(t *Taken, h PieceHead, part []byte, now int64) {
	if slices.Contains(a.done[:], t.Head) {
		t.Useless = true
		return
	}
	f, lost := a.frame(t.Head, now)
	if t.Lost = lost; f == nil {
		return
	}
	at := h.number() * len(part)
	if h.last() {
		at = h.total - len(part)
		f.count = h.number() + 1
	}
	bit := uint64(1) << h.number()
	if at < 0 || at+len(part) > h.total || f.have&bit != 0 {
		t.Useless = true // what it spoils does not decrypt
		return
	}
	copy(f.buf[at:], part)
	if f.have == 0 || moreCongested(t.TOS, f.tos) {
		f.tos = t.TOS
	}
	f.have |= bit
	f.bytes += len(part)
	f.at = now
	if f.count == 0 || f.bytes != h.total || bits.OnesCount64(f.have) != f.count {
		return
	}
	t.Sealed, t.Of, t.TOS, t.buf = f.buf[:h.total], f.count, f.tos, f.buf
	a.end(f.of)
	*f = assembled{}
}

// moreCongested reports whether the ECN field of x says more of congestion than that of y: as of fragments, the one
// that says most counts (RFC 3168, 5.3; the order is that of RFC 6040, 4.2).
func moreCongested(x, y uint8) bool {
	const mask = 3
	rank := [mask + 1]uint8{0b00: 0, 0b10: 1, 0b01: 2, 0b11: 3}
	return rank[x&mask] > rank[y&mask]
}

// frame returns the superframe that pieces of this kind belong to, or a new one; nil: there is no room, as pieces of
// all others have come just now, so that these have a chance to become complete. One that was given up is lost then:
// the oldest, or this one.
func (a *Assembler) frame(of PieceHead, now int64) (f *assembled, lost uint32) {
	var oldest *assembled
	for k := range a.frames {
		g := &a.frames[k]
		switch {
		case g.buf == nil:
			f = g
		case g.of == of:
			return g, 0
		case oldest == nil || g.at < oldest.at:
			oldest = g
		}
	}
	if oldest != nil && (f == nil && now-oldest.at >= stallTime || now-oldest.at >= giveUpTime) {
		lost = oldest.of.Index
		a.end(oldest.of)
		a.drop(oldest)
		f = oldest
	}
	if f == nil {
		a.end(of)
		return nil, of.Index
	}
	*f = assembled{of: of, buf: a.buffer(of.total), at: now}
	return f, lost
}

// drop ends the collecting of a superframe.
func (a *Assembler) drop(f *assembled) {
	a.keep(f.buf)
	*f = assembled{}
}

// forget drops a superframe that is complete all the same: its first pieces came twice.
func (a *Assembler) forget(of PieceHead) {
	for k := range a.frames {
		if f := &a.frames[k]; f.buf != nil && f.of == of {
			a.drop(f)
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

// end notes that a superframe is complete, or was given up.
func (a *Assembler) end(of PieceHead) {
	a.done[a.finished%len(a.done)] = of
	a.finished++
}

// Release ends the use of what Take has returned.
func (a *Assembler) Release(t *Taken) {
	if t.buf == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keep(t.buf)
	t.Sealed, t.buf = nil, nil
}
