package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// flows sorts packets by flow. A fragment counts for every flow between its addresses.
func flows(packets [][]byte, tags []int32) map[string][][]byte {
	out := map[string][][]byte{}
	between := map[string][]string{} // flows of addresses
	for pass := range 2 {
		for k, p := range packets {
			addresses, flow, whole := naiveFlow(p)
			addresses, flow = fmt.Sprint(tags[k], addresses), fmt.Sprint(tags[k], addresses, flow)
			switch {
			case pass == 0 && whole && !slices.Contains(between[addresses], flow):
				between[addresses] = append(between[addresses], flow)
			case pass == 1 && whole:
				out[flow] = append(out[flow], p)
			case pass == 1:
				out[addresses] = append(out[addresses], p)
				for _, flow := range between[addresses] {
					out[flow] = append(out[flow], p)
				}
			}
		}
	}
	return out
}

// withoutID returns p, or, if it is an IPv4 packet with DF, a copy without ID and header checksum.
func withoutID(p []byte) []byte {
	if p[0]>>4 != 4 || p[6]&0x40 == 0 {
		return p
	}
	p = bytes.Clone(p)
	clear(p[4:6])
	clear(p[10:12])
	return p
}

// checkCoalesce coalesces packets and checks what comes out: cut again it is what went in, flow by flow and in order,
// and it was joined wherever the naive coalescer joins.
func checkCoalesce(t testing.TB, c *Coalescer, packets [][]byte, tags []int32) {
	t.Helper()
	var kept [][]byte
	var keptTags []int32
	for k, p := range packets {
		var i Info
		want := Parse(p, &i)
		if err := c.Add(bytes.Clone(p), tags[k]); err != want {
			t.Fatalf("packet %d: %v, want %v", k, err, want)
		}
		if want == OK {
			kept, keptTags = append(kept, p[:i.Len]), append(keptTags, tags[k])
		}
	}

	var got [][]byte
	var gotTags []int32
	var supers [][]byte
	for k := range c.Len() {
		r := c.Run(k)
		m, pieces := c.Finish(k)
		p := slices.Concat(pieces...)
		supers = append(supers, p)
		if len(p) != r.Bytes || len(pieces) != r.Segments {
			t.Fatalf("run %d: %d bytes in %d pieces, want %d in %d", k, len(p), len(pieces), r.Bytes, r.Segments)
		}
		if i := parsed(t, p); *i != r.Info {
			t.Fatalf("run %d: the run's Info is %+v, the packet's %+v", k, r.Info, *i)
		}
		cut := [][]byte{p}
		if r.Segments == 1 {
			if m != (Meta{}) {
				t.Fatalf("run %d: a lone packet with %+v", k, m)
			}
		} else {
			if want := naiveMeta(bytes.Clone(p), int(m.SegmentSize)); m != want {
				t.Fatalf("run %d: %+v, want %+v", k, m, want)
			}
			var s Segments
			if err := s.Segment(p, &r.Info, m, nil); err != OK {
				t.Fatalf("run %d: %v", k, err)
			}
			cut = naiveSegment(p, int(m.SegmentSize), false)
			samePackets(t, segmentsOf(t, &s, nil), cut)
		}
		got = append(got, cut...)
		for range cut {
			gotTags = append(gotTags, r.Tag)
		}
	}
	gotFlows, wantFlows := flows(got, gotTags), flows(kept, keptTags)
	if len(gotFlows) != len(wantFlows) || len(got) != len(kept) {
		t.Fatalf("%d packets in %d flows, want %d in %d", len(got), len(gotFlows), len(kept), len(wantFlows))
	}
	for flow, want := range wantFlows {
		got := gotFlows[flow]
		for k := range want {
			want[k] = withoutID(want[k])
		}
		for k := range got {
			got[k] = withoutID(got[k])
		}
		samePackets(t, got, want)
	}
	if len(wantFlows) > maxOpen {
		return // the naive one has no limit
	}

	naive := naiveCoalesce(kept, keptTags, c.opts)
	if len(naive) != c.Len() {
		t.Fatalf("%d runs, want %d", c.Len(), len(naive))
	}
	for k, want := range naive {
		if r := c.Run(k); r.Tag != want.tag || r.Segments != len(want.packets) {
			t.Fatalf("run %d: %d segments of peer %d, want %d of %d", k, r.Segments, r.Tag, len(want.packets), want.tag)
		}
		super := want.packets[0]
		if len(want.packets) > 1 {
			var size int
			super, size = want.super()
			naiveMeta(super, size)
		}
		samePackets(t, [][]byte{supers[k]}, [][]byte{super})
	}
}

func TestCoalesceRandomTraffic(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true})
	joined := 0
	for round := range 3000 {
		f := newTraffic(func() byte { return byte(r.Uint32()) })
		odd := r.IntN(4) != 0
		mask := byte(r.Uint32()) // which flows take part
		f.choose = func() byte { return byte(r.Uint32()) }
		for n := r.IntN(60); n > 0; n-- {
			choices, k := [2]byte{byte(r.Uint32()) & mask, byte(r.Uint32())}, 0
			if !odd {
				choices[1] = 0
			}
			f.choose = func() byte {
				if k++; k <= len(choices) {
					return choices[k-1]
				}
				return byte(r.Uint32())
			}
			f.step()
		}
		opts := CoalescerOptions{TCP: round%8 != 0, UDP: round%8 != 1}
		if round%16 == 2 {
			opts.MaxBytes, opts.MaxSegments = 100+r.IntN(1000), r.IntN(5)
			c = NewCoalescer(opts)
		}
		c.SetTCP(opts.TCP)
		c.SetUDP(opts.UDP)
		c.Reset()
		checkCoalesce(t, c, f.packets, f.tags)
		joined += len(f.packets) - c.Len()
		if round%16 == 2 {
			c = NewCoalescer(CoalescerOptions{})
		}
	}
	if joined < 10000 {
		t.Errorf("only %d packets were joined", joined)
	}
}

// More flows than runs can be open: joins are missed, order and bytes are kept.
func TestCoalesceManyFlows(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true})
	for range 20 {
		specs := make([]naiveSpec, 100)
		for k := range specs {
			specs[k] = naiveSpec{v6: k&1 != 0, udp: k&2 != 0, sport: uint16(k), flags: tcpACK, payload: randomBytes(50, 1)}
		}
		var packets [][]byte
		for range 1000 {
			s := &specs[r.IntN(len(specs))]
			packets = append(packets, s.build())
			s.seq += 50
			s.id++
		}
		c.Reset()
		checkCoalesce(t, c, packets, make([]int32, len(packets)))
	}
}

// roundTrip cuts a superpacket and joins the segments again.
func roundTrip(t *testing.T, spec naiveSpec, size int) {
	t.Helper()
	p := spec.build()
	m := naiveMeta(p, size)
	var s Segments
	if err := s.Segment(p, parsed(t, p), m, nil); err != OK {
		t.Fatal(err)
	}
	c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true})
	cut := segmentsOf(t, &s, nil)
	for _, q := range cut {
		if err := c.Add(bytes.Clone(q), 7); err != OK {
			t.Fatal(err)
		}
	}
	plain := (spec.udp || spec.flags&^(tcpPSH|tcpFIN|tcpECE) == tcpACK && spec.res == 0) && !spec.ext &&
		spec.ipOptions == nil
	if !plain || len(cut) == 1 {
		var got [][]byte
		for k := range c.Len() {
			m, pieces := c.Finish(k)
			q := slices.Concat(pieces...)
			if m.Type == GSONone {
				got = append(got, q)
			} else {
				got = append(got, naiveSegment(q, int(m.SegmentSize), false)...)
			}
		}
		samePackets(t, got, cut)
		return
	}
	if c.Len() != 1 || c.Run(0).Segments != len(cut) {
		t.Fatalf("%d runs, the first of %d segments, want one of %d", c.Len(), c.Run(0).Segments, len(cut))
	}
	got, pieces := c.Finish(0)
	if got != m {
		t.Fatalf("%+v, want %+v", got, m)
	}
	samePackets(t, [][]byte{slices.Concat(pieces...)}, [][]byte{p})
}

func TestSegmentThenCoalesceIsTheOriginal(t *testing.T) {
	data := randomBytes(65535, 9)
	for flags := range 256 {
		if flags&(tcpSYN|tcpRST) == 0 {
			roundTrip(t, naiveSpec{flags: byte(flags), frag: 0x4000, payload: data[:5000]}, 1400)
			roundTrip(t, naiveSpec{v6: true, flags: byte(flags), urg: 2000, payload: data[:5000]}, 1400)
		}
	}
	r := rand.New(rand.NewPCG(7, 8))
	for range 500 {
		size := 1 + r.IntN(3000)
		payload := data[:1+r.IntN(min(65000, size*200))]
		for name, spec := range kinds(payload) {
			spec.seq, spec.id, spec.tos, spec.ttl = r.Uint32(), uint16(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())
			spec.flags = []byte{tcpACK, tcpACK | tcpPSH, tcpACK | tcpFIN, tcpACK | tcpECE, tcpACK | tcpCWR}[r.IntN(5)]
			spec.frag = uint16(r.IntN(2)) << 14
			if r.IntN(50) == 0 || name == "tcp6" && r.IntN(10) == 0 {
				roundTrip(t, spec, size)
			}
		}
	}
}

// The rules one by one: a second packet that differs from what would follow in one way.
func TestCoalesceRules(t *testing.T) {
	data := randomBytes(3000, 10)
	tcp := naiveSpec{sport: 1, seq: 1000, ack: 5, flags: tcpACK, window: 9, ttl: 64, tos: 1, id: 7, payload: data[:1000],
		options: []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}}
	udp := naiveSpec{udp: true, sport: 1, ttl: 64, id: 7, payload: data[:1000]}
	for _, c := range []struct {
		name   string
		first  naiveSpec
		second func(s *naiveSpec)
		want   int // runs
	}{
		{"what follows", tcp, func(*naiveSpec) {}, 1},
		{"what follows, UDP", udp, func(*naiveSpec) {}, 1},
		{"shorter", tcp, func(s *naiveSpec) { s.payload = data[:1] }, 1},
		{"longer", tcp, func(s *naiveSpec) { s.payload = data[:1001] }, 2},
		{"shorter, UDP", udp, func(s *naiveSpec) { s.payload = data[:1] }, 1},
		{"longer, UDP", udp, func(s *naiveSpec) { s.payload = data[:1001] }, 2},
		{"empty", tcp, func(s *naiveSpec) { s.payload = nil }, 2},
		{"empty, UDP", udp, func(s *naiveSpec) { s.payload = nil }, 2},
		{"PSH", tcp, func(s *naiveSpec) { s.flags |= tcpPSH }, 1},
		{"FIN", tcp, func(s *naiveSpec) { s.flags |= tcpFIN }, 1},
		{"ECE", tcp, func(s *naiveSpec) { s.flags |= tcpECE }, 2},
		{"CWR", tcp, func(s *naiveSpec) { s.flags |= tcpCWR }, 2},
		{"URG", tcp, func(s *naiveSpec) { s.flags |= tcpURG }, 2},
		{"SYN", tcp, func(s *naiveSpec) { s.flags |= tcpSYN }, 2},
		{"RST", tcp, func(s *naiveSpec) { s.flags |= tcpRST }, 2},
		{"no ACK", tcp, func(s *naiveSpec) { s.flags = 0 }, 2},
		{"AccECN", tcp, func(s *naiveSpec) { s.res = 1 }, 2},
		{"urgent pointer", tcp, func(s *naiveSpec) { s.urg = 1 }, 2},
		{"sequence gap", tcp, func(s *naiveSpec) { s.seq++ }, 2},
		{"sequence overlap", tcp, func(s *naiveSpec) { s.seq-- }, 2},
		{"acknowledgement", tcp, func(s *naiveSpec) { s.ack++ }, 2},
		{"window", tcp, func(s *naiveSpec) { s.window++ }, 2},
		{"timestamp", tcp, func(s *naiveSpec) { s.options = []byte{1, 1, 8, 10, 1, 2, 3, 5, 5, 6, 7, 8} }, 2},
		{"no options", tcp, func(s *naiveSpec) { s.options = nil }, 2},
		{"TTL", tcp, func(s *naiveSpec) { s.ttl-- }, 2},
		{"ECN mark", tcp, func(s *naiveSpec) { s.tos = 3 }, 2},
		{"DSCP, UDP", udp, func(s *naiveSpec) { s.tos = 0xb8 }, 2},
		{"ID", tcp, func(s *naiveSpec) { s.id++ }, 2},
		{"same ID", tcp, func(s *naiveSpec) { s.id-- }, 2},
		{"ID, UDP", udp, func(s *naiveSpec) { s.id-- }, 2},
		{"DF", tcp, func(s *naiveSpec) { s.frag = 0x4000 }, 2},
		{"fragment", tcp, func(s *naiveSpec) { s.frag = 0x2000 }, 2},
		{"later fragment", tcp, func(s *naiveSpec) { s.frag = 1 }, 2},
		{"reserved bit", tcp, func(s *naiveSpec) { s.frag = 0x8000 }, 2},
		{"port", tcp, func(s *naiveSpec) { s.sport++ }, 2},
		{"address", tcp, func(s *naiveSpec) { s.host++ }, 2},
		{"protocol", tcp, func(s *naiveSpec) { s.udp = true }, 2},
	} {
		for _, v6 := range []bool{false, true} {
			second := c.first
			second.seq += uint32(len(c.first.payload))
			second.id++
			c.second(&second)
			want := c.want
			if v6 && second.frag != c.first.frag || v6 && second.id != c.first.id+1 {
				want = 1 // what IPv6 does not have cannot differ
			}
			first := c.first
			first.v6, second.v6 = v6, v6
			co := NewCoalescer(CoalescerOptions{TCP: true, UDP: true})
			packets := [][]byte{first.build(), second.build()}
			for _, p := range packets {
				if err := co.Add(bytes.Clone(p), 0); err != OK {
					t.Fatal(c.name, err)
				}
			}
			if co.Len() != want {
				t.Errorf("%s, IPv6 %v: %d runs, want %d", c.name, v6, co.Len(), want)
			}
			co.Reset()
			checkCoalesce(t, co, packets, []int32{0, 0})
			co.Reset()
			checkCoalesce(t, co, packets, []int32{0, 1})
			if co.Len() != 2 {
				t.Errorf("%s, IPv6 %v: packets of two peers were joined", c.name, v6)
			}
		}
	}
}

// A sender that never changes the ID is joined when DF says that it means nothing.
func TestCoalesceFixedID(t *testing.T) {
	for _, df := range []bool{false, true} {
		c := NewCoalescer(CoalescerOptions{TCP: true})
		s := naiveSpec{flags: tcpACK, id: 9, payload: make([]byte, 10)}
		if df {
			s.frag = 0x4000
		}
		for range 3 {
			c.Add(s.build(), 0)
			s.seq += 10
		}
		s.id++ // neither fixed nor counting up
		c.Add(s.build(), 0)
		if want := map[bool]int{false: 3, true: 2}[df]; c.Len() != want {
			t.Errorf("DF %v: %d runs, want %d", df, c.Len(), want)
		}
	}
}

// A broken packet travels alone and as it is, wherever it stands in a run.
func TestCoalesceBadChecksum(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			for bad := range 4 {
				for _, header := range []bool{false, true} {
					if v6 && header {
						continue
					}
					c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true, TrustChecksums: header})
					s := naiveSpec{v6: v6, udp: udp, flags: tcpACK, payload: make([]byte, 100)}
					var want string
					for k := range 4 {
						p := s.build()
						if k == bad {
							if header {
								p[10] ^= 1
							} else {
								p[len(p)-1] ^= 1
							}
							want = string(p)
						}
						c.Add(p, 0)
						s.seq += 100
						s.id++
					}
					found := false
					for k := range c.Len() {
						m, pieces := c.Finish(k)
						found = found || len(pieces) == 1 && string(pieces[0]) == want && m == Meta{}
					}
					if wantRuns := []int{2, 3, 3, 2}[bad]; c.Len() != wantRuns || !found {
						t.Errorf("v6 %v, udp %v, packet %d, header %v: %d runs, want %d; the bad one unchanged: %v", v6, udp,
							bad, header, c.Len(), wantRuns, found)
					}
				}
			}
		}
	}
}

// Superpackets end before they get too large to be one.
func TestCoalesceLimits(t *testing.T) {
	for _, c := range []struct {
		opts           CoalescerOptions
		payload, total int
		want           int // segments of the first run
	}{
		{CoalescerOptions{TCP: true}, 1000, 100, 65},                       // 40 + 65 * 1000
		{CoalescerOptions{TCP: true}, 13099, 5, 5},                         // 65,535 bytes in all
		{CoalescerOptions{TCP: true}, 13100, 5, 4},                         // 5 would be 65,540
		{CoalescerOptions{TCP: true, MaxBytes: 3040}, 1000, 5, 3},          //
		{CoalescerOptions{TCP: true, MaxBytes: 3039}, 1000, 5, 2},          //
		{CoalescerOptions{TCP: true, MaxBytes: 100}, 1000, 5, 1},           // smaller than a packet
		{CoalescerOptions{TCP: true, MaxSegments: 4}, 1000, 5, 4},          //
		{CoalescerOptions{TCP: true, MaxSegments: 1}, 1000, 5, 1},          //
		{CoalescerOptions{TCP: true, MaxBytes: 1 << 20}, 1000, 100, 65},    // more than can be
		{CoalescerOptions{TCP: true, MaxSegments: 1 << 20}, 4, 8200, 8192}, // more than Segment takes
	} {
		co := NewCoalescer(c.opts)
		s := naiveSpec{flags: tcpACK, payload: make([]byte, c.payload)}
		for range c.total {
			co.Add(s.build(), 0)
			s.seq += uint32(c.payload)
			s.id++
		}
		if got := co.Run(0).Segments; got != c.want {
			t.Errorf("%+v, %d bytes: %d segments, want %d", c.opts, c.payload, got, c.want)
		}
	}
}

func TestCoalesceOff(t *testing.T) {
	c := NewCoalescer(CoalescerOptions{})
	add := func(udp bool, seq int) {
		c.Add(naiveSpec{udp: udp, flags: tcpACK, seq: uint32(seq), id: uint16(seq), payload: []byte{1}}.build(), 0)
	}
	for _, on := range []bool{false, true, false} {
		c.Reset()
		c.SetTCP(on)
		c.SetUDP(!on)
		for seq := range 3 {
			add(false, seq)
			add(true, seq)
		}
		if c.Len() != 4 {
			t.Errorf("%d runs, want 4: one of three, three of one", c.Len())
		}
		if c.Run(0).Segments == 3 != on {
			t.Errorf("TCP %v: the first run has %d segments", on, c.Run(0).Segments)
		}
	}
	// Switched off in the middle of a batch: what is joined stays, and nothing passes it.
	add(true, 3)
	c.SetUDP(false)
	add(true, 4)
	c.SetUDP(true)
	add(true, 5)
	if n := c.Len(); c.Run(n-1).Segments != 1 || c.Run(n-2).Segments != 1 {
		t.Errorf("a datagram passed another one")
	}
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

func FuzzCoalesce(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 3, 0, 0})
	for k := range 32 { // each odd thing in the middle of a flow, of each kind of flow
		for flow := range byte(4) {
			f.Add([]byte{flow, 0, flow, 0, flow, byte(k<<1 | 1), 77, 5, flow, 0, flow, 0, flow, 0})
		}
	}
	f.Add(bytes.Repeat([]byte{0, 0, 1, 0, 2, 0, 3, 0, 6, 0, 7, 0}, 5))
	f.Add(binary.BigEndian.AppendUint64(nil, 0x0000001d30000000))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 300 {
			return
		}
		f := newTraffic(func() byte {
			if len(data) == 0 {
				return 0
			}
			b := data[0]
			data = data[1:]
			return b
		})
		for len(data) > 0 {
			f.step()
		}
		checkCoalesce(t, NewCoalescer(CoalescerOptions{TCP: true, UDP: true}), f.packets, f.tags)
	})
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
