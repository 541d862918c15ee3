package wireguard

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"
)

// trains puts datagrams of at most size bytes one behind the other as UDP_GRO does, most of them at a time: a shorter
// one ends a train.
func trains(datagrams [][]byte, size, most int) (all [][]byte) {
	var train []byte
	n := 0
	for _, d := range datagrams {
		train = append(train, d...)
		if n++; n == most || len(d) < size {
			all = append(all, train)
			train, n = nil, 0
		}
	}
	if n > 0 {
		all = append(all, train)
	}
	return all
}

// TestPieces has the pieces of some superframes come in any order and in trains cut anywhere, some of them twice. As
// long as no more superframes than maxAssembled are under way, each one opens, once.
func TestPieces(t *testing.T) { eachCipher(t, testPieces) }

func testPieces(t *testing.T, from, to *Session) {
	r := newTaker(t, to)
	for round := range 300 {
		piece := []int{48, 64, 100, 1452}[rand.IntN(4)]
		frames := 1 + rand.IntN(maxAssembled)
		var datagrams [][]byte
		want := map[string]int{}
		for range frames {
			most := min(MaxPieces*(piece-PieceHeader), maxSealed-paddingUnit) - sealTag - paddingUnit - segmentSize
			p := randomPacket(16 + rand.IntN(most-16))
			want[string(p)]++
			datagrams = append(datagrams, cut(sealFrame(t, from, rand.IntN(256), Frame{Packet: p, Piece: piece}), piece)...)
		}
		switch round % 4 {
		case 0: // as they were sent
		case 1: // any order
			rand.Shuffle(len(datagrams), func(i, k int) { datagrams[i], datagrams[k] = datagrams[k], datagrams[i] })
		case 2: // interleaved, and some twice
			for k := range datagrams {
				datagrams = append(datagrams, datagrams[k*7%len(datagrams)])
			}
			rand.Shuffle(len(datagrams), func(i, k int) { datagrams[i], datagrams[k] = datagrams[k], datagrams[i] })
		case 3: // backwards
			slices.Reverse(datagrams)
		}
		r.packets, r.lost = nil, nil
		for _, train := range trains(datagrams, piece, 1+rand.IntN(70)) {
			r.take(bytes.Clone(train), piece)
			if rand.IntN(2) == 0 {
				r.giveBack()
			}
		}
		r.giveBack()
		if len(r.packets) != frames || r.results[BadSeal] > 0 || len(r.lost) > 0 {
			t.Fatalf("round %d: %d of %d superframes opened, %d lost; so far %v", round, len(r.packets), frames, len(r.lost),
				r.results)
		}
		for _, got := range r.packets {
			for p := range want {
				if len(got) >= len(p) && len(got) < len(p)+paddingUnit && string(got[:len(p)]) == p {
					delete(want, p)
				}
			}
		}
		if len(want) > 0 {
			t.Fatalf("round %d: %d superframes have other content", round, len(want))
		}
		if pending := r.pending(); pending > 0 {
			t.Fatalf("round %d: %d are still under way", round, pending)
		}
	}
}

// pending is how many superframes are collected now.
func (a *Assembler) pending() (n int) {
	for k := range a.frames {
		if a.frames[k].buf != nil {
			n++
		}
	}
	return n
}

// An incomplete superframe gives way to newer ones, the oldest first, and the session that loses it is told.
func TestLostPieces(t *testing.T) {
	from, to := framePair(t, true)
	const piece = 100
	r := newTaker(t, to)
	frames := make([][][]byte, 3*maxAssembled)
	r.step = stallTime
	for k := range frames { // the lane says which one it is
		frames[k] = cut(sealFrame(t, from, k+1, Frame{Packet: randomPacket(400), Piece: piece}), piece)
		r.take(bytes.Clone(frames[k][k%len(frames[k])]), piece)
	}
	want := func(what string, first, n int) {
		t.Helper()
		if len(r.lost) != n {
			t.Fatalf("%s: %d were given up, want %d", what, len(r.lost), n)
		}
		for k, index := range r.lost {
			if index != from.To(first+k+1) {
				t.Errorf("%s: the one in lane %d was given up, want %d", what, index&laneMask, first+k+1)
			}
		}
		r.lost = nil
	}
	want("too many at once", 0, 2*maxAssembled)
	// Those that are left are completed by what they lack; what comes in one train does not need room.
	for k := 2 * maxAssembled; k < 3*maxAssembled; k++ {
		r.take(sealFrame(t, from, 0, Frame{Packet: randomPacket(5000), Piece: piece}), piece)
		for n, d := range frames[k] {
			if n != k%len(frames[k]) {
				r.take(bytes.Clone(d), piece)
			}
		}
	}
	want("complete", 0, 0)
	if len(r.packets) != 2*maxAssembled {
		t.Errorf("%d superframes opened, want %d", len(r.packets), 2*maxAssembled)
	}
	// Pieces that are twice on their way begin nothing anew.
	for k := 2 * maxAssembled; k < 3*maxAssembled; k++ {
		r.take(bytes.Clone(frames[k][1]), piece)
	}
	if n := r.pending(); n > 0 || len(r.lost) > 0 {
		t.Errorf("%d superframes are collected a second time", n)
	}
}

// More superframes at once than there is room for: those that began first become complete, and each of the others is
// lost once.
func TestManySenders(t *testing.T) {
	from, to := framePair(t, true)
	const piece, senders = 100, 2*maxAssembled + 7
	r := newTaker(t, to)
	var frames [senders][][]byte
	for k := range frames {
		frames[k] = cut(sealFrame(t, from, 0, Frame{Packet: randomPacket(900), Piece: piece}), piece)
	}
	for n := range frames[0] {
		for k := range frames {
			r.take(bytes.Clone(frames[k][n]), piece)
		}
	}
	if len(r.packets) != maxAssembled || len(r.lost) != senders-maxAssembled || r.pending() > 0 {
		t.Errorf("%d of %d opened, %d were lost, %d are under way", len(r.packets), senders, len(r.lost), r.pending())
	}
	// One that gets no further has to go, as another one comes much later, room or not.
	r.lost = nil
	old := cut(sealFrame(t, from, 0, Frame{Packet: randomPacket(900), Piece: piece}), piece)
	r.take(bytes.Clone(old[3]), piece)
	r.now += giveUpTime
	r.take(bytes.Clone(cut(sealFrame(t, from, 0, Frame{Packet: randomPacket(900), Piece: piece}), piece)[1]), piece)
	if len(r.lost) != 1 || r.pending() != 1 {
		t.Errorf("%d were lost, %d are under way", len(r.lost), r.pending())
	}
}

// Whichever piece comes twice, and next to its twin: the superframe opens, and nothing of it is left behind.
func TestPiecesTwice(t *testing.T) {
	from, to := framePair(t, true)
	const piece = 100
	r := newTaker(t, to)
	for twice := range 6 {
		datagrams := cut(sealFrame(t, from, 0, Frame{Packet: randomPacket(450), Piece: piece}), piece)
		datagrams = slices.Insert(datagrams, twice, datagrams[twice])
		for _, train := range trains(datagrams, piece, len(datagrams)) {
			r.take(train, piece)
		}
		r.giveBack()
		r.bounded()
		if len(r.packets) != twice+1 || r.pending() > 0 {
			t.Errorf("piece %d twice: %d superframes opened of %d, %d are under way", twice, len(r.packets), twice+1,
				r.pending())
		}
	}
}

// What Take returned stays as it is until Release; then its memory is used again, and there is a bound to it.
func TestPieceBuffers(t *testing.T) {
	from, to := framePair(t, true)
	const piece = 1452
	r := newTaker(t, to)
	memory := map[*byte]bool{}
	for round := range 20 {
		type held struct {
			taken  Taken
			sealed []byte // as it has to stay
		}
		var all []held
		for range 1 + round%3*maxAssembled {
			train := sealFrame(t, from, 0, Frame{Packet: randomPacket(3000 + 1000*(round%40)), Piece: piece})
			var sealed []byte
			for _, d := range cut(train, piece) {
				sealed = append(sealed, d[PieceHeader:]...)
			}
			datagrams := cut(train, piece)
			slices.Reverse(datagrams)
			for k, d := range datagrams {
				taken := r.collect(d, len(d))
				if (taken.Sealed != nil) != (k == len(datagrams)-1) {
					t.Fatalf("complete after %d pieces of %d", k+1, len(datagrams))
				}
				if taken.Sealed != nil {
					all = append(all, held{taken, sealed})
				}
				clear(d) // the datagram's buffer is another's now
			}
		}
		seen := map[*byte]bool{}
		for k, h := range all {
			if !bytes.Equal(h.taken.Sealed, h.sealed) {
				t.Fatalf("round %d: superframe %d was changed before Release", round, k)
			}
			at := unsafe.SliceData(h.taken.Sealed)
			if seen[at] {
				t.Fatalf("round %d: two superframes in one buffer", round)
			}
			seen[at], memory[at] = true, true
		}
		r.giveBack()
		r.bounded()
	}
	// Of the same size again and again: no buffer is made any more.
	before := len(memory)
	for range 100 {
		for _, d := range cut(sealFrame(t, from, 0, Frame{Packet: randomPacket(3000), Piece: piece}), piece) {
			if taken := r.collect(d, len(d)); taken.Sealed != nil {
				memory[unsafe.SliceData(taken.Sealed)] = true
			}
		}
		r.giveBack()
	}
	if len(memory) > before+1 {
		t.Errorf("%d new buffers for 100 superframes", len(memory)-before)
	}
	// Strangers who know the index.
	r.step = stallTime
	for k := range 5000 {
		h := forged{counter: uint64(1)<<40 + uint64(k), total: leastFrame + k*13, index: to.local}
		b := h.piece(1 + k%16)
		r.take(b, len(b))
		r.giveBack()
		r.bounded()
	}
	b := (&forged{total: 60000, index: to.local}).piece(100)
	counter := uint64(1) << 41
	if n := testing.AllocsPerRun(100, func() {
		binary.LittleEndian.PutUint64(b[offsetCounter:], counter)
		r.collect(b, len(b))
		counter++
	}); n != 0 {
		t.Errorf("%v allocations for a piece that another one has to go for", n)
	}
}

// bounded wants that no more is kept than the Assembler promises.
func (r *taker) bounded() {
	r.t.Helper()
	bytes := 0
	for k := range r.frames {
		bytes += len(r.frames[k].buf)
	}
	for _, b := range r.free {
		bytes += len(b)
	}
	if len(r.free) > maxAssembled || len(r.lent) > 0 || bytes > 2*maxAssembled<<16 {
		r.t.Fatalf("%d free buffers, %d lent, %d bytes", len(r.free), len(r.lent), bytes)
	}
}

// A forged is the header of a piece as a stranger may write it.
type forged struct {
	number, total int
	last          bool
	counter       uint64
	index         uint32
}

// piece is one with so many bytes behind its header.
func (f *forged) piece(n int) []byte {
	b := []byte{TypePiece, byte(f.number), byte(f.total), byte(f.total >> 8)}
	if f.last {
		b[1] |= pieceLast
	}
	b = binary.LittleEndian.AppendUint32(b, f.index)
	b = binary.LittleEndian.AppendUint64(b, f.counter)
	return append(b, randomPacket(n)...)
}

// Pieces that contradict themselves or each other. None of it opens, and another superframe does afterwards.
func TestNonsensePieces(t *testing.T) {
	from, to := framePair(t, true)
	type piece struct {
		forged
		bytes int
	}
	p := func(number, total, bytes int, last bool) piece {
		return piece{forged{number: number, total: total, last: last}, bytes}
	}
	for _, tt := range []struct {
		name     string
		pieces   []piece
		complete bool // but not authentic
	}{
		{name: "beyond the end", pieces: []piece{p(3, 100, 50, false), p(63, 60000, 50000, false)}},
		{name: "number 0 is the last, and does not fill it", pieces: []piece{p(0, 100, 50, true)}},
		{name: "all of it, but not the last one", pieces: []piece{p(0, 100, 100, false)}},
		{name: "the last one first, and it is all", pieces: []piece{p(5, 100, 100, true)}},
		{name: "two last ones", pieces: []piece{p(1, 100, 50, true), p(2, 100, 50, true)}},
		{name: "two last ones and the first", pieces: []piece{p(1, 150, 50, true), p(2, 150, 50, true), p(0, 150, 50, false)},
			complete: true},
		{name: "two sizes, with a hole", pieces: []piece{p(0, 200, 50, false), p(1, 200, 100, false), p(2, 200, 50, true)},
			complete: true},
		{name: "two sizes, one over the other", pieces: []piece{p(0, 150, 60, false), p(1, 150, 40, false),
			p(2, 150, 50, true)}, complete: true},
		{name: "two sizes, with too many bytes", pieces: []piece{p(0, 150, 100, false), p(1, 150, 40, false),
			p(2, 150, 50, true)}},
		{name: "a number after the last one", pieces: []piece{p(0, 150, 50, false), p(2, 150, 50, false),
			p(1, 150, 50, true)}},
		{name: "the same one twice", pieces: []piece{p(0, 100, 50, false), p(0, 100, 50, false)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newTaker(t, to)
			for _, apart := range []bool{true, false} {
				var train []byte
				size := 0
				for _, f := range tt.pieces {
					f.index, f.counter = to.local, 1<<40
					if apart {
						f.counter++
					}
					b := f.piece(f.bytes)
					if !IsPiece(b) {
						t.Fatalf("refused as no piece: %x", b[:PieceHeader])
					}
					if apart {
						r.take(b, len(b))
						continue
					}
					size = max(size, len(b))
					train = append(train, b...)
				}
				r.take(train, max(size, 1))
			}
			if n := r.results[Fresh] + r.results[Replayed]; n > 0 || tt.complete != (r.results[BadSeal] > 0) {
				t.Errorf("%v", r.results)
			}
			for _, d := range cut(sealFrame(t, from, 0, Frame{Packet: randomPacket(300), Piece: 100}), 100) {
				r.take(d, 100)
			}
			if len(r.packets) != 1 {
				t.Errorf("what comes after does not open: %v", r.results)
			}
		})
	}
	for _, f := range []piece{
		p(0, leastFrame-1, 20, true), p(0, leastFrame, 0, true), p(0, 50, 51, true), p(0, 0, 0, true),
	} {
		if b := f.piece(f.bytes); IsPiece(b) {
			t.Errorf("%d bytes of %d are taken for a piece", f.bytes, f.total)
		}
	}
	for n := range PieceHeader + 1 {
		if f := p(0, 50, 0, true); IsPiece(f.piece(0)[:n]) {
			t.Errorf("%d bytes are taken for a piece", n)
		}
	}
}

// Congestion that one piece has met is that of the superpacket (RFC 3168, 5.3).
func TestPiecesCongestion(t *testing.T) {
	from, to := framePair(t, true)
	const dscp = 46 << 2
	for _, tt := range []struct {
		tos  []uint8
		want uint8
	}{
		{[]uint8{2, 2, 2}, 2}, {[]uint8{3, 2, 2}, 3}, {[]uint8{2, 3, 2}, 3}, {[]uint8{2, 2, 3}, 3}, {[]uint8{1, 3, 1}, 3},
		{[]uint8{0, 0, 0}, 0}, {[]uint8{0, 3, 0}, 3}, {[]uint8{2, 1, 2}, 1}, {[]uint8{2, 1, 3}, 3},
		{[]uint8{dscp | 2, dscp | 3, dscp | 2}, dscp | 3},
	} {
		r := newTaker(t, to)
		for k, d := range cut(sealFrame(t, from, 0, Frame{Packet: randomPacket(200), Piece: 100}), 100) {
			r.tos = tt.tos[k]
			r.take(d, 100)
		}
		if len(r.marks) != 1 || r.marks[0] != tt.want {
			t.Errorf("pieces with %v make a superframe with %v, want %d", tt.tos, r.marks, tt.want)
		}
		r.tos = tt.tos[1]
		r.take(sealFrame(t, from, 0, Frame{Packet: randomPacket(200), Piece: 100}), 100)
		if r.marks[1] != tt.tos[1] {
			t.Errorf("a train with %d makes a superframe with %d", tt.tos[1], r.marks[1])
		}
	}
}

// FuzzPieces plays with real pieces: a script says, four bytes at a time, which one comes next, what of it is changed,
// and where a train ends; raw comes behind. Whatever that makes, nothing opens but what was sealed, and that once.
func FuzzPieces(f *testing.F) {
	from, to := framePair(f, true)
	const piece = 100
	var real [][]byte
	sealed := map[string]bool{}
	for _, n := range []int{20, 100, 400, 2000} {
		for _, aes := range []uint32{0, takesAES} {
			from.takes.Store(from.takes.Load()&^takesAES | aes)
			p := randomPacket(n)
			sealed[string(p)] = true
			real = append(real, cut(sealFrame(f, from, 0, Frame{Packet: p, Piece: piece}), piece)...)
		}
	}
	const endTrain = 1
	var inOrder, one, backwards []byte
	for k := range real {
		inOrder = append(inOrder, byte(k), 0, 0, 0)
		one = append(one, byte(k), 0, 0, endTrain)
		backwards = append(backwards, byte(len(real)-1-k), 0, 0, endTrain)
	}
	f.Add(inOrder, []byte{}, uint16(piece))
	f.Add(one, []byte{}, uint16(0))
	f.Add(backwards, []byte{}, uint16(piece))
	f.Add(slices.Concat(inOrder, one), []byte{}, uint16(0))
	f.Add([]byte{5, 1, 64, 0, 6, 2, 1, 0, 7, 8, 255, 1}, bytes.Join(real, nil), uint16(piece))
	f.Add([]byte{}, (&forged{number: 63, total: 1 << 15, index: to.local}).piece(100), uint16(50))
	f.Fuzz(func(t *testing.T, script, raw []byte, size uint16) {
		// The window remembers earlier runs: a session of the same keys has seen nothing.
		s := &Session{peer: to.peer, local: to.local, receive: to.receive}
		s.frames = to.frames
		r := newTaker(t, s)
		step := int(size)
		if step == 0 {
			step = piece
		}
		var train []byte
		end := func() {
			r.take(train, step)
			train = nil
		}
		for ; len(script) >= 4; script = script[4:] {
			d := bytes.Clone(real[int(script[0])%len(real)])
			d[int(script[1])%len(d)] ^= script[2]
			train = append(train, d...)
			if script[3]&endTrain != 0 {
				end()
			}
		}
		end()
		r.take(bytes.Clone(raw), step)
		r.giveBack()
		r.bounded()
		seen := map[string]bool{}
		for _, p := range r.packets {
			known := ""
			for q := range sealed {
				if len(p) >= len(q) && len(p) < len(q)+paddingUnit && string(p[:len(q)]) == q {
					known = q
				}
			}
			if known == "" || seen[known] {
				t.Fatalf("%d bytes opened that nobody sealed, or a second time %v", len(p), seen[known])
			}
			seen[known] = true
		}
	})
}
