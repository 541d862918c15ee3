package checksum

import (
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"testing"
)

// naive adds up b as big-endian words, an odd last byte as a high byte.
func naive(initial uint16, b []byte) uint16 {
	sum := uint64(initial)
	for k, v := range b {
		if k%2 == 0 {
			sum += uint64(v) << 8
		} else {
			sum += uint64(v)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// implementations are all that Sum may choose from on this machine, and Sum itself.
func implementations(t testing.TB) map[string]func(uint16, []byte) uint16 {
	all := map[string]func(uint16, []byte) uint16{"Sum": Sum, "scalar": scalarSum}
	if hasVector() {
		all["vector"] = vectorSum
	} else {
		t.Log("no vector code for this machine")
	}
	return all
}

func randomBytes(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for k := range b {
		b[k] = byte(r.Uint32())
	}
	return b
}

// inputs are bytes of several kinds: any, and those at which lanes carry, stay or change their sign.
func inputs(n int) map[string][]byte {
	all := map[string][]byte{"random": randomBytes(n, 1)}
	for name, word := range map[string][2]byte{"zeros": {0, 0}, "ones": {0xff, 0xff}, "top bits": {0x80, 0x80},
		"below the top bit": {0x7f, 0xff}, "one": {0, 1}} {
		b := make([]byte, n)
		for k := range b {
			b[k] = word[k%2]
		}
		all[name] = b
	}
	return all
}

func TestEveryLength(t *testing.T) {
	const most = 9000
	for kind, b := range inputs(most) {
		// The naive sums of all prefixes, from one pass over the words.
		want := make([]uint16, most+1)
		var sum uint32
		for n := 0; n < most; n += 2 {
			want[n] = uint16(sum)
			want[n+1] = naive(uint16(sum), b[n:n+1])
			sum += uint32(binary.BigEndian.Uint16(b[n:]))
			sum = sum>>16 + sum&0xffff
		}
		want[most] = uint16(sum)
		for name, f := range implementations(t) {
			for n := range want {
				if got := f(0, b[:n]); got != want[n] {
					t.Fatalf("%s of %d bytes, %s: %#04x, want %#04x", name, n, kind, got, want[n])
				}
			}
		}
	}
}

// TestEveryAlignment puts every length below some vectors at every place in two cache lines, between bytes that must
// not count.
func TestEveryAlignment(t *testing.T) {
	for kind, mem := range inputs(1024) {
		for name, f := range implementations(t) {
			for at := range 128 {
				for n := range 400 {
					initial := uint16(n * 40503)
					if got, want := f(initial, mem[at:at+n]), naive(initial, mem[at:at+n]); got != want {
						t.Fatalf("%s of %d bytes at %d, %s: %#04x, want %#04x", name, n, at, kind, got, want)
					}
				}
			}
		}
	}
}

func TestEveryInitialSum(t *testing.T) {
	for _, n := range []int{0, 1, 2, 31, 32, 33, 127, 128, 129, 1398, 1399} {
		for kind, b := range inputs(n) {
			for name, f := range implementations(t) {
				for initial := range 1 << 16 {
					// Only what is 0 altogether has the sum 0.
					sum := uint32(initial) + uint32(naive(0, b))
					want := uint16(sum>>16 + sum)
					if got := f(uint16(initial), b); got != want {
						t.Fatalf("%s of %d bytes, %s, from %#04x: %#04x, want %#04x", name, n, kind, initial, got, want)
					}
				}
			}
		}
	}
}

// TestLongerThanABlock covers input beyond what a packet can be, where sums are taken by parts.
func TestLongerThanABlock(t *testing.T) {
	for kind, mem := range inputs(3<<16 + 64) {
		for name, f := range implementations(t) {
			for _, blocks := range []int{1, 2, 3} {
				for n := blocks<<16 - 40; n < blocks<<16+40; n++ {
					if got, want := f(0xfedc, mem[:n]), naive(0xfedc, mem[:n]); got != want {
						t.Fatalf("%s of %d bytes, %s: %#04x, want %#04x", name, n, kind, got, want)
					}
				}
			}
		}
	}
}

func TestSumDoesNotAllocate(t *testing.T) {
	b := randomBytes(1450, 1)
	var sum uint16
	if n := testing.AllocsPerRun(100, func() { sum = Sum(sum, b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint8(0))
	f.Add([]byte{1}, uint16(0xffff), uint8(0))
	f.Add(randomBytes(200, 1), uint16(7), uint8(3))
	f.Add(randomBytes(1450, 2), uint16(0x8000), uint8(31))
	f.Fuzz(func(t *testing.T, b []byte, initial uint16, skip uint8) {
		b = b[min(int(skip), len(b)):]
		want := naive(initial, b)
		for name, sum := range implementations(t) {
			if got := sum(initial, b); got != want {
				t.Fatalf("%s: %#04x, want %#04x", name, got, want)
			}
			// Cut at an even place, the sum is the same.
			if cut := len(b) / 2 &^ 1; sum(sum(initial, b[:cut]), b[cut:]) != want {
				t.Fatalf("%s: the sum of the parts is not the sum of the whole", name)
			}
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for name, f := range implementations(b) {
		for _, n := range []int{20, 64, 96, 128, 256, 1450, 9000, 65535} {
			b.Run(name+"/"+strconv.Itoa(n), func(b *testing.B) {
				buf := randomBytes(n, 1)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				var sum uint16
				for b.Loop() {
					sum += f(sum, buf)
				}
			})
		}
	}
}
