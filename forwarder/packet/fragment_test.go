package packet

import (
	"bytes"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// fragmentsOf returns the fragments as whole packets, after checking the prefix.
func fragmentsOf(t testing.TB, f *Fragments) [][]byte {
	t.Helper()
	var out [][]byte
	for k := range f.N() {
		h, payload := f.Pieces(k)
		if !bytes.HasPrefix(h, f.Prefix) {
			t.Fatalf("fragment %d begins with %x, not with the prefix", k, h)
		}
		out = append(out, append(bytes.Clone(h[len(f.Prefix):]), payload...))
	}
	return out
}

// naiveReassemble puts fragments together, in any order, and returns the payload, where it begins in the datagram, and
// whether more follows behind it. It wants every byte exactly once.
func naiveReassemble(t testing.TB, fragments [][]byte) (payload []byte, offset int, more bool) {
	t.Helper()
	sorted := slices.SortedFunc(slices.Values(fragments), func(a, b []byte) int {
		return int(header.IPv4(a).FragmentOffset()) - int(header.IPv4(b).FragmentOffset())
	})
	offset = int(header.IPv4(sorted[0]).FragmentOffset())
	for k, b := range sorted {
		h := header.IPv4(b)
		if at := int(h.FragmentOffset()); at != offset+len(payload) {
			t.Fatalf("fragment %d begins at %d, the one before it ends at %d", k, at, offset+len(payload))
		}
		payload = append(payload, b[h.HeaderLength():]...)
		if more = h.More(); !more && k < len(sorted)-1 {
			t.Fatalf("fragment %d of %d has MF clear", k, len(sorted))
		}
	}
	return payload, offset, more
}

// naiveCopied returns the options that later fragments have.
func naiveCopied(options []byte) []byte {
	var out []byte
	for k := 0; k < len(options) && options[k] != 0; {
		size := 1
		if options[k] != 1 {
			size = int(options[k+1])
			if options[k] >= 0x80 {
				out = append(out, options[k:k+size]...)
			}
		}
		k += size
	}
	for len(out)%4 != 0 {
		out = append(out, 0)
	}
	return out
}

// checkFragments checks everything about fragments of p, made with mtu.
func checkFragments(t testing.TB, p []byte, fragments [][]byte, mtu int) {
	t.Helper()
	orig := header.IPv4(p)
	for k, b := range fragments {
		h := header.IPv4(b)
		if !h.IsValid(len(b)) || !h.IsChecksumValid() || int(h.TotalLength()) != len(b) {
			t.Fatalf("fragment %d has a bad header: %x", k, b[:min(60, len(b))])
		}
		if e := Parse(b, new(Info)); e != OK {
			t.Fatalf("fragment %d: Parse: %v", k, e)
		}
		if len(b) > mtu {
			t.Fatalf("fragment %d has %d bytes, the MTU is %d", k, len(b), mtu)
		}
		size := len(b) - int(h.HeaderLength())
		// A fragment that has room for 8 bytes more is a fragment too many.
		if k < len(fragments)-1 && (size%8 != 0 || len(b)+8 <= mtu) {
			t.Fatalf("fragment %d of %d has %d bytes of payload at MTU %d", k, len(fragments), size, mtu)
		}
		want := bytes.Clone(p[:20])
		want[0] = b[0]
		copy(want[2:4], b[2:4])     // total length
		copy(want[6:8], b[6:8])     // flags and offset
		want[6] |= p[6] & 0x80      // the reserved bit
		copy(want[10:12], b[10:12]) // checksum
		if !bytes.Equal(b[:20], want) {
			t.Fatalf("fragment %d: header %x of %x", k, b[:20], p[:20])
		}
		options := []byte(orig.Options())
		if k > 0 {
			options = naiveCopied(options)
		}
		if !bytes.Equal(h.Options(), options) {
			t.Fatalf("fragment %d: options %x, want %x", k, []byte(h.Options()), options)
		}
	}
	payload, offset, more := naiveReassemble(t, fragments)
	if !bytes.Equal(payload, p[orig.HeaderLength():orig.TotalLength()]) {
		t.Fatal("the reassembled payload differs")
	}
	if more != orig.More() || offset != int(orig.FragmentOffset()) {
		t.Fatalf("offset %d, more %v; want %d, %v", offset, more, orig.FragmentOffset(), orig.More())
	}
}

// Options: a copied one (router alert), one that is not (record route), padding between and behind.
var mixedOptions = []byte{1, 7, 7, 4, 1, 2, 3, 4, 0x94, 4, 0, 0, 1, 0, 0, 0}

func TestFragments(t *testing.T) {
	var f Fragments
	for _, options := range [][]byte{
		nil, {1, 1, 1, 0}, {0x94, 4, 0, 0}, {7, 4, 4, 0}, {0x83, 3, 4, 0}, mixedOptions,
		bytes.Repeat([]byte{0x94, 4, 0, 0}, 10),
	} {
		for _, frag := range []uint16{0, 0x2000, 0x2005, 0x0005, 0x8000, 0xa001} {
			for _, mtu := range []int{68, 69, 75, 76, 77, 83, 84, 100, 576, 1280, 1420, 1500, 9000} {
				for _, size := range []int{0, 1, 7, 8, 9, 40, 48, 556, 1400, 1480, 1488, 4000, 65535 - 60 - 40} {
					if frag&0x2000 != 0 {
						size &^= 7
					}
					p := ipSpec{proto: 99, id: 0xbeef, tos: 0x2, frag: frag, options: options, data: filler(size)}.build()
					before := bytes.Clone(p)
					if e := f.Split(append(p, 0xee), infoOf(p), mtu); e != OK {
						t.Fatalf("Split of %d bytes, options %x: %v", len(p), options, e)
					}
					checkFragments(t, p, fragmentsOf(t, &f), mtu)
					if !bytes.Equal(p, before) {
						t.Fatal("Split changed the packet")
					}
				}
			}
		}
	}
}

func TestFragmentsOfWhatFits(t *testing.T) {
	var f Fragments
	for _, frag := range []uint16{0, 0x4000, 0x2001} {
		p := ipSpec{proto: 17, frag: frag, options: mixedOptions, data: udpData(64)}.build()
		if e := f.Split(p, infoOf(p), len(p)); e != OK || f.N() != 1 {
			t.Fatalf("%v, %d fragments; want one", e, f.N())
		}
		if got := fragmentsOf(t, &f)[0]; !bytes.Equal(got, p) {
			t.Errorf("a packet that fits was changed:\n got %x\nwant %x", got, p)
		}
	}
}

func TestFragmentsRefuse(t *testing.T) {
	var f Fragments
	long := func(s ipSpec) []byte { s.proto, s.data = 17, udpData(2000); return s.build() }
	tests := []struct {
		name string
		p    []byte
		mtu  int
		want Error
	}{
		{"IPv6", long(ipSpec{v6: true}), 1280, ErrVersion},
		{"DF", long(ipSpec{frag: 0x4000}), 1280, ErrHeader},
		{"option of length 0", long(ipSpec{options: []byte{7, 0, 0, 0}}), 1280, ErrHeader},
		{"option of length 1", long(ipSpec{options: []byte{7, 1, 0, 0}}), 1280, ErrHeader},
		{"option beyond the header", long(ipSpec{options: []byte{1, 7, 4, 0}}), 1280, ErrHeader},
		{"option cut", long(ipSpec{options: []byte{1, 1, 1, 7}}), 1280, ErrHeader},
		{"MTU for 7 bytes", long(ipSpec{}), 27, ErrHeader},
		{"MTU 0", long(ipSpec{}), 0, ErrHeader},
		{"negative MTU", long(ipSpec{}), -5, ErrHeader},
	}
	for _, tt := range tests {
		if e := f.Split(tt.p, infoOf(tt.p), tt.mtu); e != tt.want || f.N() != 0 {
			t.Errorf("%s: %v with %d fragments, want %v", tt.name, e, f.N(), tt.want)
		}
	}
	p := long(ipSpec{})
	if e := f.Split(p[:100], infoOf(p), 1280); e != ErrTruncated {
		t.Errorf("packet shorter than its Info: %v", e)
	}
	if e := f.Split(p, &Info{Version: 4, Len: 100}, 60); e != ErrHeader {
		t.Errorf("Info of no packet: %v", e)
	}
}

// With an arena and a prefix the fragments of several packets are good until the arena is reset.
func TestFragmentsInArena(t *testing.T) {
	f := Fragments{Arena: new(Arena), Prefix: []byte("encapsulation")}
	a := ipSpec{proto: 17, options: mixedOptions, data: udpData(3000)}.build()
	b := ipSpec{proto: 99, id: 7, data: filler(5000)}.build()
	if e := f.Split(a, infoOf(a), 1400); e != OK {
		t.Fatal(e)
	}
	var headers, payloads [][]byte
	for k := range f.N() {
		h, p := f.Pieces(k)
		headers, payloads = append(headers, h), append(payloads, p)
	}
	checkFragments(t, a, fragmentsOf(t, &f), 1400)
	if e := f.Split(b, infoOf(b), 576); e != OK {
		t.Fatal(e)
	}
	checkFragments(t, b, fragmentsOf(t, &f), 576)
	var old [][]byte
	for k := range headers {
		old = append(old, append(bytes.Clone(headers[k][len(f.Prefix):]), payloads[k]...))
	}
	checkFragments(t, a, old, 1400)
}

func FuzzFragment(f *testing.F) {
	for _, options := range [][]byte{nil, {0x94, 4, 0, 0}, {7, 4, 4, 0}, mixedOptions, {7, 0, 0, 0}} {
		for _, frag := range []uint16{0, 0x2000, 0x0007, 0x2007, 0x9fff} {
			f.Add(options, frag, uint16(3000), uint16(1400), uint16(576))
			f.Add(options, frag, uint16(65000), uint16(9000), uint16(68))
			f.Add(options, frag, uint16(100), uint16(77), uint16(76))
		}
	}
	var outer, inner Fragments
	f.Fuzz(func(t *testing.T, options []byte, frag, size, mtu, smallerMTU uint16) {
		options = options[:min(len(options), 40)&^3]
		if frag&0x2000 != 0 {
			size &^= 7
		}
		size = min(size, 65535-60)
		p := ipSpec{proto: 99, frag: frag, options: options, data: filler(int(size))}.build()
		i := new(Info)
		if Parse(p, i) != OK {
			return // beyond 65,535
		}
		if e := outer.Split(p, i, int(mtu)); e != OK {
			if outer.N() != 0 {
				t.Fatalf("%d fragments after %v", outer.N(), e)
			}
			return
		}
		once := fragmentsOf(t, &outer)
		checkFragments(t, p, once, int(mtu))
		// Fragments of fragments, as they would come from a second router.
		var twice [][]byte
		for _, b := range once {
			if e := inner.Split(b, infoOf(b), int(smallerMTU)); e != OK {
				return
			}
			again := fragmentsOf(t, &inner)
			checkFragments(t, b, again, int(smallerMTU))
			twice = append(twice, again...)
		}
		payload, offset, more := naiveReassemble(t, twice)
		if !bytes.Equal(payload, p[i.L4:]) || more != header.IPv4(p).More() ||
			offset != int(header.IPv4(p).FragmentOffset()) {
			t.Fatal("fragments of fragments do not make the packet")
		}
	})
}

func TestFragmentsAllocate(t *testing.T) {
	p := ipSpec{proto: 17, options: mixedOptions, data: udpData(60000)}.build()
	i := infoOf(p)
	own, shared := new(Fragments), &Fragments{Arena: new(Arena), Prefix: make([]byte, 22)}
	total := 0
	split := func() {
		shared.Arena.Reset()
		for _, f := range []*Fragments{own, shared} {
			f.Split(p, i, 576)
			for k := range f.N() {
				h, payload := f.Pieces(k)
				total += len(h) + len(payload)
			}
		}
	}
	if n := testing.AllocsPerRun(100, split); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

func BenchmarkFragments(b *testing.B) {
	p := ipSpec{proto: 17, data: udpData(2000)}.build()
	i := infoOf(p)
	var f Fragments
	b.ReportAllocs()
	for b.Loop() {
		f.Split(p, i, 1420)
	}
}
