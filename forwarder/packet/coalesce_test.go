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
			p = bytes.Clone(p[:i.Len])
			naiveComplete(p, &i)
			kept, keptTags = append(kept, p), append(keptTags, tags[k])
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
	c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true, MaxDatagrams: MaxSegments})
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
