package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"testing"
)

// randomBytes returns n bytes that depend on seed alone.
func randomBytes(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for k := range b {
		b[k] = byte(r.Uint32())
	}
	return b
}

func TestSumAtEveryLengthAndOffset(t *testing.T) {
	mem := randomBytes(2048+16, 1)
	ones := make([]byte, len(mem)) // every addition carries
	for k := range ones {
		ones[k] = 0xff
	}
	for _, buf := range [][]byte{mem, ones} {
		for offset := range 16 {
			var initial [2]byte
			for n := 0; n <= 2048; n++ {
				binary.BigEndian.PutUint16(initial[:], uint16(n*40503))
				b := buf[offset : offset+n]
				want := naiveSum(initial[:], b)
				if got := Sum(binary.BigEndian.Uint16(initial[:]), b); got != want {
					t.Fatalf("offset %d, %d bytes: sum is %#04x, want %#04x", offset, n, got, want)
				}
			}
		}
	}
}

func TestPseudoHeader(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			for _, n := range []int{0, 1, 999, 65000} {
				p := naiveSpec{v6: v6, udp: udp, payload: make([]byte, n)}.build()
				var i Info
				if err := Parse(p, &i); err != OK {
					t.Fatal(err)
				}
				m := naiveMeta(p, 1)
				want := binary.BigEndian.Uint16(p[m.ChecksumStart+m.ChecksumOffset:])
				if got := PseudoHeader(&i, len(p)-int(i.L4)); got != want {
					t.Errorf("v6 %v, udp %v, %d bytes: %#04x, want %#04x", v6, udp, n, got, want)
				}
			}
		}
	}
}

func TestCompleteChecksum(t *testing.T) {
	for n := range 300 {
		for name, spec := range kinds(randomBytes(n, uint64(n))) {
			want := spec.build()
			p := append([]byte(nil), want...)
			m := naiveMeta(p, 0)
			m.Type = GSONone
			if !CompleteChecksum(p, m) {
				t.Fatal("refused")
			}
			if string(p) != string(want) {
				t.Fatalf("%s, %d bytes: %x, want %x", name, n, p, want)
			}
			var i Info
			if Parse(p, &i); !VerifyTransport(p, &i) {
				t.Fatalf("%s, %d bytes: does not verify", name, n)
			}
			p[len(p)-1] ^= 1
			if VerifyTransport(p, &i) {
				t.Fatalf("%s, %d bytes: a wrong checksum verifies", name, n)
			}
		}
	}
}

// zeroSum returns a packet whose UDP payload makes the checksum come out as 0.
func zeroSum(v6 bool) []byte {
	s := naiveSpec{v6: v6, udp: true, payload: []byte{0, 0, 1, 2}}
	p := s.build()
	_, data, _ := naiveL4(p)
	check := binary.BigEndian.Uint16(p[data-2:])
	binary.BigEndian.PutUint16(p[data:], check)
	naiveFinish(p)
	return p
}

func TestUDPChecksumZero(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		p := zeroSum(v6)
		m := naiveMeta(p, 0)
		var i Info
		Parse(p, &i)
		field := p[i.L4+6 : i.L4+8]
		if !CompleteChecksum(p, m) || binary.BigEndian.Uint16(field) != 0xffff {
			t.Errorf("v6 %v: the checksum is %x, want ffff", v6, field)
		}
		if !VerifyTransport(p, &i) {
			t.Errorf("v6 %v: 0xffff does not verify", v6)
		}
		field[0], field[1] = 0, 0
		if got := VerifyTransport(p, &i); got == v6 {
			t.Errorf("v6 %v: an absent checksum verifies: %v", v6, got)
		}
	}
}

func TestCompleteChecksumRefusesLies(t *testing.T) {
	p := naiveSpec{udp: true, payload: make([]byte, 10)}.build() // 38 bytes
	p6 := naiveSpec{v6: true, payload: make([]byte, 10)}.build() // 70 bytes
	options := naiveSpec{ipOptions: []byte{1, 1, 1, 0}}.build()
	for _, c := range []struct {
		name   string
		p      []byte
		offset uint16
		start  uint16
		want   bool
	}{
		{"right", p, 6, 20, true},
		{"last word", p, 16, 20, true},
		{"field half outside", p, 17, 20, false},
		{"field outside", p, 6, 100, false},
		{"overflow of 16 bits", p, 65535, 65535, false},
		{"inside the IP header", p, 6, 19, false},
		{"at the IP header", p, 10, 0, false},
		{"inside IP options", options, 16, 20, false},
		{"behind IP options", options, 16, 24, true},
		{"inside the IPv6 header", p6, 16, 39, false},
		{"IPv6", p6, 16, 40, true},
		{"a second transport header", p, 2, 28, true},
		{"nothing", nil, 0, 0, false},
		{"one byte", []byte{0x45}, 0, 0, false},
	} {
		before := string(c.p)
		m := Meta{NeedsChecksum: true, ChecksumStart: c.start, ChecksumOffset: c.offset}
		q := []byte(before)
		if got := CompleteChecksum(q, m); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		} else if !got && string(q) != before {
			t.Errorf("%s: the refused packet was changed", c.name)
		}
	}
	if !CompleteChecksum(nil, Meta{}) {
		t.Error("a packet that needs no checksum was refused")
	}
}

func TestVerifyTransportRefuses(t *testing.T) {
	udp := func(length uint16) []byte { // with a checksum over so many bytes
		p := naiveSpec{udp: true, payload: []byte("ten bytes!")}.build()
		binary.BigEndian.PutUint16(p[24:], length)
		p[26], p[27] = 0, 0
		pseudo := Sum(Sum(17, p[12:20]), []byte{byte(length >> 8), byte(length)})
		binary.BigEndian.PutUint16(p[26:], ^Sum(pseudo, p[20:min(38, 20+int(length))]))
		return p
	}
	fragment := naiveSpec{frag: 0x2000, payload: make([]byte, 8)}.build()
	// The sum of pseudo header and the first 4 bytes is right: nothing but the length itself speaks against it.
	four := udp(4)
	binary.BigEndian.PutUint16(four[20:], ^fold(uint32(Sum(17+4, four[12:20]))+uint32(Sum(0, four[22:24]))))
	four[26] = 1
	icmp := naiveSpec{udp: true, payload: make([]byte, 8)}.build()
	icmp[9] = 1
	for _, c := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"UDP", udp(18), true},
		{"UDP shorter than the packet", udp(11), true},
		{"UDP shorter than its header", udp(7), false},
		{"UDP of 4 bytes", four, false},
		{"UDP longer than the packet", udp(19), false},
		{"first fragment", fragment, false},
		{"ICMP", icmp, false},
	} {
		var i Info
		if err := Parse(c.p, &i); err != OK {
			t.Fatal(c.name, err)
		}
		if got := VerifyTransport(c.p, &i); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if i.Len--; VerifyTransport(c.p[:i.Len-1], &i) {
			t.Errorf("%s: verifies beyond its end", c.name)
		}
	}
}

func TestIPv4HeaderChecksum(t *testing.T) {
	h := []byte{0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7}
	if !VerifyIPv4(h) {
		t.Error("a right header does not verify")
	}
	h[10], h[11] = 0xde, 0xad
	if VerifyIPv4(h) {
		t.Error("a wrong header verifies")
	}
	if got := IPv4Checksum(h); got != 0xb861 {
		t.Errorf("checksum %#04x, want 0xb861", got)
	}
	if SetIPv4Checksum(h); !VerifyIPv4(h) {
		t.Error("the stored checksum does not verify")
	}
}

// RFC 1624 section 4 has this example: the result is 0, where RFC 1141 came to 0xFFFF.
func TestUpdate16OfRFC1624(t *testing.T) {
	if got := Update16(0xdd2f, 0x5555, 0x3285); got != 0 {
		t.Errorf("%#04x, want 0", got)
	}
}

func FuzzChecksum(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint16(0), uint16(0))
	f.Add([]byte{1}, uint16(0xffff), uint16(0), uint16(1))
	f.Add(naiveSpec{udp: true, payload: make([]byte, 31)}.build(), uint16(7), uint16(20), uint16(6))
	f.Add(naiveSpec{v6: true, payload: make([]byte, 100)}.build(), uint16(0xdd2f), uint16(40), uint16(16))
	f.Fuzz(func(t *testing.T, b []byte, initial, start, offset uint16) {
		want := naiveSum([]byte{byte(initial >> 8), byte(initial)}, b)
		if got := Sum(initial, b); got != want {
			t.Fatalf("Sum %#04x, want %#04x", got, want)
		}
		// Split at an even place, the sum is the same.
		if cut := min(int(start)&^1, len(b)&^1); Sum(Sum(initial, b[:cut]), b[cut:]) != want {
			t.Fatal("the sum of the parts is not the sum of the whole")
		}
		// A changed word, by the increment and by summing again.
		if at := int(offset) &^ 1; at+2 <= len(b) {
			check := ^Sum(0, b)
			old := binary.BigEndian.Uint16(b[at:])
			binary.BigEndian.PutUint16(b[at:], initial)
			if got, want := Update16(check, old, initial), ^Sum(0, b); got != want && !allZero(b) {
				t.Fatalf("Update16 %#04x, want %#04x", got, want)
			}
			binary.BigEndian.PutUint16(b[at:], old)
		}
		m := Meta{NeedsChecksum: true, ChecksumStart: start, ChecksumOffset: offset}
		before := string(b)
		if done := CompleteChecksum(b, m); !done {
			if string(b) != before {
				t.Fatal("a refused packet was changed")
			}
		} else if field := b[int(start)+int(offset):]; offset%2 == 0 {
			// The field's new word and the sum of the old ones are complements.
			if Sum(naiveSum([]byte(before)[start:]), field[:2]) != 0xffff {
				t.Fatal("the completed checksum is wrong")
			}
		}
		var i Info
		if Parse(b, &i) == OK {
			VerifyTransport(b, &i)
			PseudoHeader(&i, len(b))
		}
	})
}

// allZero reports whether b has no bit set: only its sum is 0, where an increment finds the other zero, 0xFFFF.
func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 1450, 65535} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			buf := randomBytes(n, 1)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			var sum uint16
			for b.Loop() {
				sum += Sum(sum, buf)
			}
		})
	}
}
