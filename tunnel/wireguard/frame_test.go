package wireguard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
)

// framePair is pair where the first one makes superframes for the second, with AES-256-GCM or without.
func framePair(t testing.TB, aes bool) (from, to *Session) {
	t.Helper()
	from, to = pair(t)
	if !from.TakesFrames() || from.takes.Load()&takesAES == 0 {
		t.Fatal("the nodes have not agreed on superframes")
	}
	if !aes {
		from.takes.Store(from.takes.Load() &^ takesAES)
	}
	return from, to
}

// eachCipher runs a test with superframes of each cipher.
func eachCipher(t *testing.T, f func(t *testing.T, from, to *Session)) {
	for _, aes := range []bool{false, true} {
		t.Run(fmt.Sprintf("AES %v", aes), func(t *testing.T) {
			from, to := framePair(t, aes)
			f(t, from, to)
		})
	}
}

// randomPacket is n bytes that nobody can guess.
func randomPacket(n int) []byte {
	p := make([]byte, n)
	for k := range p {
		p[k] = byte(rand.Uint32())
	}
	return p
}

// sealFrame makes a superframe, in the lane, and returns its pieces one behind the other.
func sealFrame(t testing.TB, s *Session, lane int, f Frame) []byte {
	t.Helper()
	size, _, fits := f.Bounds()
	counter, ok := s.Reserve(1)
	if !fits || !ok {
		t.Fatalf("%d bytes in pieces of %d: fits %v, counter %v", len(f.Packet), f.Piece, fits, ok)
	}
	return s.SealFrame(make([]byte, 0, size), new(Nonce), Head{s.To(lane), counter}, &f)
}

// cut is the datagrams of size bytes that lie in b, the last maybe shorter.
func cut(b []byte, size int) (datagrams [][]byte) {
	for ; len(b) > 0; b = b[min(size, len(b)):] {
		datagrams = append(datagrams, b[:min(size, len(b))])
	}
	return datagrams
}

// A taker does with trains of datagrams what a worker does.
type taker struct {
	Assembler
	t       testing.TB
	session func(index uint32) *Session
	tos     uint8 // of what comes
	now     int64
	step    int64 // by how much it grows with each piece
	lent    []Taken
	packets [][]byte
	sizes   []uint16
	marks   []uint8 // TOS of what was complete
	results map[Opened]int
	lost    []uint32
}

// newTaker makes one that has this session alone.
func newTaker(t testing.TB, s *Session) *taker {
	return &taker{t: t, results: map[Opened]int{}, session: func(index uint32) *Session {
		if (index^s.local)&^laneMask == 0 {
			return s
		}
		return nil
	}}
}

// take takes a train of datagrams of size bytes.
func (r *taker) take(train []byte, size int) {
	r.t.Helper()
	for rest := train; len(rest) > 0; {
		msg := rest[:min(size, len(rest))]
		pieces := 1
		if IsPiece(msg) {
			if s := r.session(Receiver(msg)); s != nil {
				pieces = r.takeFirst(s, rest, size)
			}
		}
		rest = rest[min(pieces*size, len(rest)):]
	}
}

func (r *taker) takeFirst(s *Session, b []byte, size int) int {
	r.t.Helper()
	there := (len(b) + size - 1) / size
	t := r.collect(b, size)
	if t.Pieces < 1 || t.Pieces > there {
		r.t.Fatalf("took %d datagrams of %d", t.Pieces, there)
	}
	if t.Lost != 0 {
		r.lost = append(r.lost, t.Lost)
	}
	if t.Sealed == nil {
		return t.Pieces
	}
	r.marks = append(r.marks, t.TOS)
	packet, n, opened := s.OpenFrame(t.Head, t.Sealed, new(Nonce))
	r.results[opened]++
	if opened == Fresh {
		r.packets, r.sizes = append(r.packets, bytes.Clone(packet)), append(r.sizes, n)
	}
	return t.Pieces
}

// collect is Take, for giveBack.
func (r *taker) collect(b []byte, size int) Taken {
	r.now += r.step
	t := r.Take(b, size, Arrival{TOS: r.tos, Now: r.now, Collect: true})
	if t.Collected() {
		r.lent = append(r.lent, t)
	}
	return t
}

// giveBack releases all that was collected.
func (r *taker) giveBack() {
	for k := range r.lent {
		r.Release(&r.lent[k])
	}
	r.lent = r.lent[:0]
}

// naiveFrame makes a superframe of the AEAD's output, piece by piece.
func naiveFrame(s *Session, aes bool, h Head, f *Frame) (all []byte) {
	which, flags := frameChaCha, byte(0)
	if aes {
		which, flags = frameAES, 0x80
	}
	plain := bytes.Clone(f.Packet)
	for (len(plain)+2)%16 != 0 {
		plain = append(plain, 0)
	}
	plain = append(plain, byte(f.SegmentSize), byte(f.SegmentSize>>8))
	nonce := binary.LittleEndian.AppendUint64(make([]byte, 4), h.Counter)
	sealed := s.frames.send[which].Seal(nil, nonce, plain, nil)
	parts := cut(sealed, f.Piece-16)
	for k, part := range parts {
		number := byte(k) | flags
		if k == len(parts)-1 {
			number |= 0x40
		}
		all = append(all, 0x57, number, byte(len(sealed)), byte(len(sealed)>>8))
		all = binary.LittleEndian.AppendUint32(all, h.Receiver)
		all = append(binary.LittleEndian.AppendUint64(all, h.Counter), part...)
	}
	return all
}

func TestFrameBounds(t *testing.T) {
	for _, piece := range []int{-1, 0, 15, 16, 17, 47, 48, 49, 64, 100, 576, 1036, 1040, 1452, 9000, 65535} {
		part := max(piece-16, 1)
		for _, n := range []int{0, 1, 13, 14, 15, 16, 30, 31, part - 35, part - 34, part - 33, part, 5*part - 18,
			5*part - 17, 64*part - 34, 64*part - 18, 64*part - 17, 64*part - 2, 64 * part, 65486, 65487, 65502, 65503,
			65535, 70000} {
			if n < 0 || n > 70000 {
				continue
			}
			sealed := n + 2
			for sealed%16 != 0 {
				sealed++
			}
			sealed += 16
			pieces := 0
			for left := sealed; left > 0; left -= part {
				pieces++
			}
			want := piece-16 >= 32 && pieces <= 64 && sealed < 1<<16
			f := Frame{Packet: make([]byte, n), Piece: piece}
			size, got, fits := f.Bounds()
			if fits != want || fits && (size != sealed+16*pieces || got != pieces) {
				t.Errorf("%d bytes in pieces of %d: %d bytes, %d pieces, %v; want %d, %d, %v", n, piece, size, got, fits,
					sealed+16*pieces, pieces, want)
			}
		}
	}
}

// TestFrames seals superpackets of lengths around every border, and gives their pieces to the other side in one train.
func TestFrames(t *testing.T) { eachCipher(t, testFrames) }

func testFrames(t *testing.T, from, to *Session) {
	aes := from.takes.Load()&takesAES != 0
	r := newTaker(t, to)
	for _, piece := range []int{48, 49, 63, 64, 100, 1452, 1453, 8932} {
		part := piece - PieceHeader
		var lengths []int
		for _, around := range []int{1, 16, 32, 48, part, 2 * part, 3 * part, 7 * part, MaxPieces * part, maxSealed} {
			for d := -37; d <= 3; d++ {
				lengths = append(lengths, around+d)
			}
		}
		for _, n := range lengths {
			f := Frame{Packet: randomPacket(max(n, 0)), SegmentSize: uint16(rand.Uint32()), Piece: piece}
			size, pieces, fits := f.Bounds()
			if n < 0 || !fits {
				continue
			}
			before := bytes.Clone(f.Packet)
			counter, _ := from.Reserve(1)
			h := Head{from.To(n), counter}
			const front = 7
			dst := bytes.Repeat([]byte{0xee}, front+size+front)
			all := from.SealFrame(dst[:front], new(Nonce), h, &f)
			if len(all) != front+size || &all[0] != &dst[0] || !bytes.Equal(f.Packet, before) ||
				!bytes.Equal(dst[:front], dst[front+size:]) {
				t.Fatalf("%d bytes in pieces of %d: %d bytes appended; or another's were written", n, piece, len(all)-front)
			}
			all = all[front:]
			if !bytes.Equal(all, naiveFrame(from, aes, h, &f)) {
				t.Fatalf("%d bytes in pieces of %d: other bytes than a naive one", n, piece)
			}
			for k, d := range cut(all, piece) {
				if !IsPiece(d) || IsData(d) || IsHandshake(d) {
					t.Fatalf("piece %d of %d is taken for something else: %x", k, pieces, d[:PieceHeader])
				}
			}
			r.packets, r.sizes = nil, nil
			r.take(all, piece)
			if len(r.packets) != 1 || r.sizes[0] != f.SegmentSize || !bytes.HasPrefix(r.packets[0], f.Packet) {
				t.Fatalf("%d bytes in %d pieces of %d did not open: %v", n, pieces, piece, r.results)
			}
			if rest := r.packets[0][n:]; len(rest) >= paddingUnit || bytes.Count(rest, []byte{0}) != len(rest) {
				t.Fatalf("%d bytes: followed by %x", n, rest)
			}
			if len(r.lent) > 0 {
				t.Fatalf("%d bytes in %d pieces: a train of all was copied", n, pieces)
			}
		}
	}
}

// Superframes one behind the other, of several sizes, in trains as UDP_GRO makes them.
func TestFramesBehindEachOther(t *testing.T) { eachCipher(t, testFramesBehindEachOther) }

func testFramesBehindEachOther(t *testing.T, from, to *Session) {
	const piece, part = 100, 100 - PieceHeader
	r := newTaker(t, to)
	var train []byte
	var want [][]byte
	for _, sealed := range []int{4, 16, 60, MaxPieces} { // of these many parts exactly: no piece is short
		f := Frame{Packet: randomPacket(sealed*part - sealTag - segmentSize), Piece: piece}
		if (sealed*part)%paddingUnit != 0 {
			t.Fatal("a length that is padded")
		}
		want = append(want, f.Packet)
		train = append(train, sealFrame(t, from, 0, f)...)
	}
	f := Frame{Packet: randomPacket(333), Piece: piece} // the last piece is
	want = append(want, f.Packet)
	r.take(append(train, sealFrame(t, from, 0, f)...), piece)
	if len(r.packets) != len(want) || len(r.lent) > 0 {
		t.Fatalf("%d superframes of %d opened, %d were copied", len(r.packets), len(want), len(r.lent))
	}
	for k, p := range r.packets {
		if !bytes.HasPrefix(p, want[k]) {
			t.Errorf("superframe %d is another one", k)
		}
	}
}

// The padding goes behind the packet where there is room, and nowhere else.
func TestFramePaddingAndCapacity(t *testing.T) {
	from, to := framePair(t, true)
	r := newTaker(t, to)
	for n := range 40 {
		fill := (&Frame{Packet: make([]byte, n)}).padded() - n
		for room := range 20 {
			buf := bytes.Repeat([]byte{0xff}, n+64)
			packet := randomPacket(n)
			copy(buf, packet)
			r.packets = nil
			r.take(sealFrame(t, from, 0, Frame{Packet: buf[: n : n+room], SegmentSize: 0x1234, Piece: 1452}), 1452)
			if len(r.packets) != 1 || !bytes.HasPrefix(r.packets[0], packet) ||
				bytes.Count(r.packets[0][n:], []byte{0}) != len(r.packets[0])-n {
				t.Fatalf("%d bytes with room for %d did not arrive: %x", n, room, r.packets)
			}
			touched := min(fill, room)
			if room < fill {
				touched = 0
			}
			if behind := buf[n+touched:]; !bytes.Equal(buf[:n], packet) || bytes.Count(behind, []byte{0xff}) != len(behind) {
				t.Fatalf("%d bytes with room for %d: the bytes behind became %x", n, room, buf[n:])
			}
		}
	}
}

// Nothing of a superframe can be changed, but the lane in it, which is a hint.
func TestFrameBitFlips(t *testing.T) { eachCipher(t, testFrameBitFlips) }

func testFrameBitFlips(t *testing.T, from, to *Session) {
	for _, tt := range []struct{ n, piece int }{{20, 1452}, {100, 64}, {60, 64}, {30, 80}} {
		packet := randomPacket(tt.n)
		all := sealFrame(t, from, 3, Frame{Packet: packet, SegmentSize: 9, Piece: tt.piece})
		lone := len(all) <= tt.piece
		for bit := range len(all) * 8 {
			if at := bit / 8; lone && at == offsetReceiver {
				continue
			}
			b := bytes.Clone(all)
			b[bit/8] ^= 1 << (bit % 8)
			for _, apart := range []bool{false, true} {
				r := newTaker(t, to)
				if apart {
					for _, d := range cut(bytes.Clone(b), tt.piece) {
						r.take(d, tt.piece)
					}
				} else {
					r.take(bytes.Clone(b), tt.piece)
				}
				if n := r.results[Fresh] + r.results[Replayed]; n > 0 {
					t.Fatalf("bit %d of byte %d, one by one %v: opened all the same", bit%8, bit/8, apart)
				}
			}
		}
		r := newTaker(t, to)
		r.take(bytes.Clone(all), tt.piece)
		if len(r.packets) != 1 || !bytes.HasPrefix(r.packets[0], packet) {
			t.Fatalf("unchanged it does not open: %v", r.results)
		}
		if lone {
			all[offsetReceiver] ^= 0xff
			if r.take(all, tt.piece); r.results[Replayed] != 1 {
				t.Errorf("in another lane: %v", r.results)
			}
		}
	}
}

// What was sealed as one kind of message, for one direction, with one cipher, opens as nothing else.
func TestFrameIsNoOtherMessage(t *testing.T) { eachCipher(t, testFrameIsNoOtherMessage) }

func testFrameIsNoOtherMessage(t *testing.T, from, to *Session) {
	var nonce Nonce
	const piece = 1452
	packet := randomPacket(94) // not padded
	all := sealFrame(t, from, 0, Frame{Packet: packet, SegmentSize: 50, Piece: piece})
	h, sealed := readPiece(all), all[PieceHeader:]
	plain := append(bytes.Clone(packet), 50, 0)

	other := h
	other.flags ^= pieceAES
	if _, _, o := to.OpenFrame(other, bytes.Clone(sealed), &nonce); o != BadSeal {
		t.Errorf("as one of the other cipher: %v, want BadSeal", o)
	}
	data := bytes.Clone(all)
	copy(data, []byte{TypeData, 0, 0, 0})
	if _, o := to.Open(data, &nonce); o != BadSeal {
		t.Errorf("as a data message: %v, want BadSeal", o)
	}
	if _, _, o := from.OpenFrame(h, bytes.Clone(sealed), &nonce); o != BadSeal {
		t.Errorf("sent back: %v, want BadSeal", o)
	}
	same := from.Seal(nil, &nonce, Head{h.Index, h.Counter}, plain)
	if bytes.Equal(same[HeaderLen:], sealed) || bytes.Equal(same[HeaderLen:HeaderLen+16], sealed[:16]) {
		t.Error("a data message of the same counter has the same key stream")
	}
	if _, _, o := to.OpenFrame(h, bytes.Clone(same[HeaderLen:]), &nonce); o != BadSeal {
		t.Errorf("a data message as a superframe: %v, want BadSeal", o)
	}
	old := &Session{peer: to.peer, receive: to.receive}
	if _, _, o := old.OpenFrame(h, bytes.Clone(sealed), &nonce); o != BadSeal {
		t.Errorf("in a session without superframes: %v, want BadSeal", o)
	}

	if _, size, o := to.OpenFrame(h, bytes.Clone(sealed), &nonce); o != Fresh || size != 50 {
		t.Fatalf("as it is: %v, segments of %d bytes", o, size)
	}
	if _, _, o := to.OpenFrame(h, bytes.Clone(sealed), &nonce); o != Replayed {
		t.Errorf("a second time: %v, want Replayed", o)
	}
	if _, o := to.Open(same, &nonce); o != Replayed {
		t.Errorf("a data message with its counter: %v, want Replayed", o)
	}
}

// Sessions, directions and ciphers have keys of their own.
func TestFrameKeys(t *testing.T) {
	a, b := [32]byte(randomPacket(32)), [32]byte(randomPacket(32))
	ours, err := newFrameKeys(&a, &b)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := newFrameKeys(&b, &a)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	nonce := make([]byte, 12)
	for c, name := range []string{frameChaCha: "ChaCha20-Poly1305", frameAES: "AES-256-GCM"} {
		for _, k := range []struct {
			name string
			frameKeys
		}{{"ours", *ours}, {"theirs", *theirs}} {
			sealed := string(k.send[c].Seal(nil, nonce, make([]byte, 32), nil))
			if before, ok := seen[sealed]; ok {
				t.Errorf("%s, %s: the key of %s", k.name, name, before)
			}
			seen[sealed] = k.name + ", " + name
		}
		sealed := ours.send[c].Seal(nil, nonce, []byte("packet"), nil)
		if got, err := theirs.receive[c].Open(nil, nonce, sealed, nil); err != nil || string(got) != "packet" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestFramesDoNotAllocate(t *testing.T) { eachCipher(t, testFramesDoNotAllocate) }

func testFramesDoNotAllocate(t *testing.T, from, to *Session) {
	f := Frame{Packet: make([]byte, 60000, 60000+64), SegmentSize: 1400, Piece: 1452}
	size, pieces, _ := f.Bounds()
	buf, nonce, a := make([]byte, 0, size), new(Nonce), new(Assembler)
	for _, apart := range []bool{false, true} {
		if n := testing.AllocsPerRun(20, func() {
			counter, _ := from.Reserve(1)
			train := from.SealFrame(buf, nonce, Head{from.To(0), counter}, &f)
			step := len(train)
			if apart {
				step = f.Piece
			}
			opened, taken := 0, 0
			for ; len(train) > 0; train = train[min(step, len(train)):] {
				k := a.Take(train[:min(step, len(train))], f.Piece, Arrival{Collect: true})
				taken += k.Pieces
				if k.Sealed != nil {
					if _, _, o := to.OpenFrame(k.Head, k.Sealed, nonce); o == Fresh {
						opened++
					}
				}
				a.Release(&k)
			}
			if opened != 1 || taken != pieces {
				t.Fatalf("%d opened, %d pieces taken of %d", opened, taken, pieces)
			}
		}); n != 0 {
			t.Errorf("one by one %v: %v allocations", apart, n)
		}
	}
}
