package forwarder

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/gaissmai/bart"
)

// naiveLookup scans all routes.
func naiveLookup(routes map[netip.Prefix]target, a netip.Addr) target {
	best, found := -1, target(0)
	for p, t := range routes {
		if p.Contains(a) && p.Bits() > best {
			best, found = p.Bits(), t
		}
	}
	return found
}

func buildLPM(t *testing.T, routes map[netip.Prefix]target) lpm {
	t.Helper()
	var b lpmBuilder
	for p, target := range routes {
		if err := b.add(p, target); err != nil {
			t.Fatal(err)
		}
	}
	if clash := b.unique(); clash != nil {
		t.Fatalf("%+v", clash)
	}
	table, err := b.build()
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// checkLPM looks up the first and last address of each prefix, their neighbours outside, and one in the middle.
func checkLPM(t *testing.T, routes map[netip.Prefix]target) {
	t.Helper()
	table := buildLPM(t, routes)
	for p := range routes {
		first, last := p.Addr(), lastAddr(p)
		middle := first
		for range p.Bits() % 5 {
			middle = middle.Next()
		}
		for _, a := range []netip.Addr{first, last, first.Prev(), last.Next(), middle} {
			if !a.IsValid() {
				continue
			}
			if got, want := table.lookup(a), naiveLookup(routes, a); got != want {
				t.Fatalf("%v of %d routes: %#x, want %#x", a, len(routes), got, want)
			}
		}
	}
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for k := p.Bits(); k < len(b)*8; k++ {
		b[k/8] |= 0x80 >> (k % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// TestLPMAgainstNaive builds tables of every density, from few routes far apart to all that there can be.
func TestLPMAgainstNaive(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		routes := map[netip.Prefix]target{}
		count := 1 + rnd.IntN(200)
		// Few values for the bits that vary make neighbours and nested prefixes; masks say which bits vary.
		mask := [16]byte{}
		for range 1 + rnd.IntN(12) {
			mask[rnd.IntN(16)] |= 1 << rnd.IntN(8)
		}
		if rnd.IntN(4) == 0 {
			mask[rnd.IntN(8)] = 0xff
		}
		for n := range count {
			var b [16]byte
			binary.BigEndian.PutUint64(b[:], rnd.Uint64())
			binary.BigEndian.PutUint64(b[8:], rnd.Uint64())
			for k := range b {
				b[k] &= mask[k]
			}
			b[0] |= 0x20 // no mapped address
			a := netip.AddrFrom16(b)
			if n%2 == 0 {
				a = netip.AddrFrom4([4]byte(b[4:8]))
			}
			p, err := a.Prefix(rnd.IntN(a.BitLen() + 1))
			if err != nil {
				t.Fatal(err)
			}
			if !p.Addr().Is4In6() {
				routes[p] = newTarget(kindPeer, n)
			}
		}
		checkLPM(t, routes)
	}
}

// TestLPMAgainstBart compares large tables, for which a scan takes too long, with another implementation.
func TestLPMAgainstBart(t *testing.T) {
	const routes, lookups = 50_000, 100_000
	for name, plan := range plans {
		var other bart.Table[target]
		var b lpmBuilder
		add := func(p netip.Prefix, to target) {
			other.Insert(p, to)
			if err := b.add(p, to); err != nil {
				t.Fatal(err)
			}
		}
		for n := range routes {
			add(plan(n, routes), newTarget(kindPeer, n))
		}
		for n, p := range prefixes("0.0.0.0/0", "10.0.0.0/7", "11.0.0.0/13", "fd00::/8", "fd00:10::/32") {
			add(p, newTarget(kindHole, n))
		}
		if clash := b.unique(); clash != nil {
			t.Fatalf("%+v", clash)
		}
		table, err := b.build()
		if err != nil {
			t.Fatal(err)
		}
		rnd := rand.New(rand.NewPCG(9, 10))
		for range lookups {
			// An address in a prefix, or one that differs from it in one bit.
			raw := plan(rnd.IntN(routes), routes).Addr().AsSlice()
			for range rnd.IntN(3) {
				raw[rnd.IntN(len(raw))] ^= 1 << rnd.IntN(8)
			}
			a, _ := netip.AddrFromSlice(raw)
			want, _ := other.Lookup(a)
			if got := table.lookup(a); got != want {
				t.Fatalf("plan %s, %v: %#x, want %#x", name, a, got, want)
			}
		}
	}
}

func TestLPMAtTheSeamOfTheWords(t *testing.T) {
	for bits := 60; bits <= 68; bits++ {
		routes := map[netip.Prefix]target{}
		for k := range 16 {
			a := netip.AddrFrom16([16]byte{0xfd, 7: byte(k), 8: byte(k) << 4})
			for _, n := range []int{bits, 64, 128} {
				p, err := a.Prefix(n)
				if err != nil {
					t.Fatal(err)
				}
				routes[p] = newTarget(kindPeer, k*3+n)
			}
		}
		checkLPM(t, routes)
	}
}

func TestLPMOfNothingAndOfAll(t *testing.T) {
	checkLPM(t, map[netip.Prefix]target{})
	empty := buildLPM(t, nil)
	if got := empty.lookup(addr("10.0.0.1")); got != 0 {
		t.Errorf("found %#x in an empty table", got)
	}
	checkLPM(t, map[netip.Prefix]target{
		prefix("0.0.0.0/0"): newTarget(kindPeer, 1),
		prefix("::/0"):      newTarget(kindPeer, 2),
	})
	all := map[netip.Prefix]target{}
	for k := range 1 << 12 {
		all[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(k >> 4), byte(k << 4)}), 20)] = newTarget(kindPeer, k)
	}
	checkLPM(t, all)
}

func TestTargetsAreKept(t *testing.T) {
	for _, k := range []kind{kindOutside, kindHole, kindPod, kindSelf, kindPeer} {
		for _, peer := range []int{0, 1, maxTargets - 1} {
			routes := map[netip.Prefix]target{prefix("10.0.0.0/8"): newTarget(k, peer)}
			table := buildLPM(t, routes)
			if got := table.lookup(addr("10.1.2.3")); got.kind() != k || int(got.peer()) != peer {
				t.Errorf("kind %d, peer %d: got %d, %d", k, peer, got.kind(), got.peer())
			}
		}
	}
}

// FuzzLPM takes routes and addresses from the input: 17 bytes each, of which the last is the length.
func FuzzLPM(f *testing.F) {
	f.Add([]byte{0xfd, 16: 8}, []byte{0xfd, 1, 15: 2})
	f.Add(make([]byte, 17*3), make([]byte, 4))
	f.Fuzz(func(t *testing.T, raw, address []byte) {
		routes := map[netip.Prefix]target{}
		for n := 0; len(raw) >= 17 && n < 64; n++ {
			a := netip.AddrFrom16([16]byte(raw))
			if raw[16]&0x80 != 0 {
				a = netip.AddrFrom4([4]byte(raw))
			}
			if p, err := a.Prefix(int(raw[16]&0x7f) % (a.BitLen() + 1)); err == nil && !p.Addr().Is4In6() {
				routes[p] = newTarget(kindPeer, n)
			}
			raw = raw[17:]
		}
		checkLPM(t, routes)
		if a, ok := netip.AddrFromSlice(address); ok && !a.Is4In6() {
			table := buildLPM(t, routes)
			if got, want := table.lookup(a), naiveLookup(routes, a); got != want {
				t.Fatalf("%v: %#x, want %#x", a, got, want)
			}
		}
	})
}
