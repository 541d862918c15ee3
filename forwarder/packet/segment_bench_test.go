package packet

import (
	"bytes"
	"fmt"
	"testing"
)

func TestSegmentDoesNotAllocate(t *testing.T) {
	for name, spec := range kinds(make([]byte, 65000)) {
		p := spec.build()
		m := naiveMeta(p, 1448)
		i := parsed(t, p)
		var arena Arena
		s := Segments{Arena: &arena}
		prefix := make([]byte, 22)
		if n := testing.AllocsPerRun(100, func() {
			arena.Reset()
			if s.Segment(p, i, m, prefix) != OK || s.Segment(p, i, Meta{}, prefix) != OK {
				t.Fatal("refused")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}

func BenchmarkSegment(b *testing.B) {
	const size, count = 1398, 45
	for _, mode := range []ChecksumMode{ChecksumFull, ChecksumPartial} {
		for _, name := range []string{"tcp4 with TCP options", "tcp6", "udp4"} {
			b.Run(fmt.Sprintf("checksum=%v/%s", mode == ChecksumFull, name), func(b *testing.B) {
				p := kinds(randomBytes(size*count, 8))[name].build()
				m := naiveMeta(p, size)
				i := parsed(b, p)
				var arena Arena
				s := Segments{Arena: &arena, Checksum: mode}
				prefix := make([]byte, 22)
				b.SetBytes(int64(len(p)))
				b.ReportAllocs()
				for b.Loop() {
					arena.Reset()
					if s.Segment(p, i, m, prefix) != OK || s.N() != count {
						b.Fatal("refused")
					}
				}
			})
		}
	}
	b.Run("lone", func(b *testing.B) {
		p := kinds(make([]byte, 64))["udp4"].build()
		i := parsed(b, p)
		var arena Arena
		s := Segments{Arena: &arena}
		prefix := make([]byte, 22)
		b.SetBytes(int64(len(p)))
		b.ReportAllocs()
		for b.Loop() {
			arena.Reset()
			if s.Segment(p, i, Meta{}, prefix) != OK {
				b.Fatal("refused")
			}
		}
	})
}

// batch is what a benchmark adds again and again; Finish changes the first packet's header, so it is put back.
type batch struct {
	packets [][]byte
	header  []byte
	bytes   int64
}

func newBatch(b testing.TB, name string, size, count int) *batch {
	p := kinds(randomBytes(size*count, 8))[name].build()
	var s Segments
	if err := s.Segment(p, parsed(b, p), naiveMeta(p, size), nil); err != OK {
		b.Fatal(err)
	}
	out := &batch{packets: segmentsOf(b, &s, nil), bytes: int64(len(p))}
	out.header = bytes.Clone(out.packets[0][:100])
	return out
}

func (b *batch) run(c *Coalescer) bool {
	c.Reset()
	copy(b.packets[0], b.header)
	for _, p := range b.packets {
		if c.Add(p, 1) != OK {
			return false
		}
	}
	m, pieces := c.Finish(0)
	return c.Len() == 1 && m.Type != GSONone && len(pieces) == len(b.packets)
}

func TestCoalesceDoesNotAllocate(t *testing.T) {
	for _, name := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
		b := newBatch(t, name, 1400, 40)
		c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true})
		if n := testing.AllocsPerRun(100, func() {
			if !b.run(c) {
				t.Fatal("not joined")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
	lone := naiveSpec{payload: make([]byte, 100)}.build()
	c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true})
	if n := testing.AllocsPerRun(100, func() {
		c.Reset()
		for range 100 {
			c.Add(lone, 0)
		}
		for k := range c.Len() {
			c.Finish(k)
		}
	}); n != 0 {
		t.Errorf("lone packets: %v allocations, want 0", n)
	}
}

func BenchmarkCoalesce(b *testing.B) {
	for _, trust := range []bool{false, true} {
		for _, name := range []string{"tcp4 with TCP options", "tcp6", "udp4"} {
			b.Run(fmt.Sprintf("verify=%v/%s", !trust, name), func(b *testing.B) {
				in := newBatch(b, name, 1398, 45)
				c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true, TrustChecksums: trust})
				b.SetBytes(in.bytes)
				b.ReportAllocs()
				for b.Loop() {
					if !in.run(c) {
						b.Fatal("not joined")
					}
				}
			})
		}
	}
	b.Run("lone", func(b *testing.B) {
		const count = 64
		c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true})
		var packets [][]byte
		for k := range count {
			packets = append(packets, naiveSpec{udp: true, sport: uint16(k), payload: make([]byte, 64)}.build())
		}
		b.ReportAllocs()
		for b.Loop() {
			c.Reset()
			for _, p := range packets {
				c.Add(p, 1)
			}
			for k := range c.Len() {
				c.Finish(k)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/count, "ns/packet")
	})
}
