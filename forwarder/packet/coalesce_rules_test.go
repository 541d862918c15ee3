package packet

import (
	"bytes"
	"encoding/binary"
	"testing"
)

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

// What a kernel left for a device to complete is completed, whether it joins or not.
func TestCoalescePartialChecksums(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			for _, flags := range []uint8{tcpACK, tcpSYN} {
				s := naiveSpec{v6: v6, udp: udp, flags: flags, ttl: 64, payload: randomBytes(500, 20)}
				var packets [][]byte
				for range 3 {
					p := s.build()
					naiveFinishWith(p, true)
					var i Info
					if Parse(p, &i); VerifyTransport(p, &i) {
						t.Fatal("a partial checksum is right")
					}
					packets = append(packets, p)
					s.seq, s.id = s.seq+500, s.id+1
				}
				c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true})
				checkCoalesce(t, c, packets, []int32{0, 0, 0})
				if joins := udp || flags == tcpACK; joins != (c.Len() == 1) {
					t.Errorf("UDP %v, IPv6 %v, flags %#x: %d runs", udp, v6, flags, c.Len())
				}
				var i Info
				for _, p := range packets {
					if p = bytes.Clone(p); Parse(p, &i) != OK || !CompletePartial(p, &i) || !VerifyTransport(p, &i) {
						t.Errorf("UDP %v, IPv6 %v: not completed", udp, v6)
					}
					if CompletePartial(p, &i) {
						t.Errorf("UDP %v, IPv6 %v: completed twice", udp, v6)
					}
				}
			}
		}
	}
}

// A superpacket that nobody cut is cut as its meta says.
func TestCoalesceUncut(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			s := naiveSpec{v6: v6, udp: udp, flags: tcpACK | tcpPSH, ttl: 64, seq: 7, id: 9, payload: randomBytes(2500, 30)}
			p := s.build()
			naiveFinishWith(p, true)
			next := s
			next.seq, next.id, next.payload = s.seq+2500, s.id+3, randomBytes(1000, 31)
			c := NewCoalescer(CoalescerOptions{TCP: true, UDP: true})
			if err := c.AddUncut(bytes.Clone(p), 3, 1000); err != OK {
				t.Fatal(err)
			}
			if err := c.Add(next.build(), 3); err != OK {
				t.Fatal(err)
			}
			if r := c.Run(0); c.Len() != 2 || r.Segments != 3 || r.Tag != 3 || r.Bytes != len(p) {
				t.Fatalf("%d runs, %+v", c.Len(), *r)
			}
			m, pieces := c.Finish(0)
			if want := naiveMeta(bytes.Clone(p), 1000); m != want {
				t.Fatalf("%+v, want %+v", m, want)
			}
			samePackets(t, naiveSegment(bytes.Join(pieces, nil), 1000, false), naiveSegment(p, 1000, false))

			c.Reset()
			whole := s.build() // its checksum is complete: nothing says that it was to be cut
			if err := c.AddUncut(bytes.Clone(whole), 3, 1000); err != OK {
				t.Fatal(err)
			}
			if m, pieces := c.Finish(0); m != (Meta{}) || !bytes.Equal(bytes.Join(pieces, nil), whole) {
				t.Errorf("a lone packet became %+v", m)
			}
			for _, size := range []int{-1, 0, 2500, 1 << 20} {
				c.Reset()
				if err := c.AddUncut(bytes.Clone(p), 3, size); err != OK || c.Run(0).Segments != 1 {
					t.Errorf("size %d: %v, %d segments", size, err, c.Run(0).Segments)
				}
			}
		}
	}
}

// Packets that never join, though the second has what follows on the first.
func TestCoalesceNeverJoined(t *testing.T) {
	tcp := naiveSpec{flags: tcpACK, payload: make([]byte, 100)}
	udp := naiveSpec{udp: true, payload: make([]byte, 100)}
	for _, c := range []struct {
		name   string
		spec   naiveSpec
		change func(s *naiveSpec)
		after  func(p []byte)
	}{
		{"CWR", tcp, func(s *naiveSpec) { s.flags |= tcpCWR }, nil},
		{"URG", tcp, func(s *naiveSpec) { s.flags |= tcpURG }, nil},
		{"SYN", tcp, func(s *naiveSpec) { s.flags |= tcpSYN }, nil},
		{"RST", tcp, func(s *naiveSpec) { s.flags |= tcpRST }, nil},
		{"no ACK", tcp, func(s *naiveSpec) { s.flags = 0 }, nil},
		{"PSH", tcp, func(s *naiveSpec) { s.flags |= tcpPSH }, nil},
		{"FIN", tcp, func(s *naiveSpec) { s.flags |= tcpFIN }, nil},
		{"AccECN", tcp, func(s *naiveSpec) { s.res = 1 }, nil},
		{"pure ACK", tcp, func(s *naiveSpec) { s.payload = nil }, nil},
		{"no payload", udp, func(s *naiveSpec) { s.payload = nil }, nil},
		{"IP options, extension header", tcp, func(s *naiveSpec) { s.ipOptions, s.ext = make([]byte, 4), true }, nil},
		{"no checksum", udp, func(*naiveSpec) {}, func(p []byte) { l4, _, _ := naiveL4(p); clear(p[l4+6 : l4+8]) }},
		{"bytes behind the datagram", udp, func(*naiveSpec) {}, func(p []byte) {
			var i Info
			Parse(p, &i)
			l4 := p[i.L4:]
			l4[5]--
			clear(l4[6:8])
			binary.BigEndian.PutUint16(l4[6:], ^Sum(PseudoHeader(&i, len(l4)-1), l4[:len(l4)-1]))
			if !VerifyTransport(p, &i) {
				t.Error("the test's packet is wrong")
			}
		}},
	} {
		for _, v6 := range []bool{false, true} {
			co := NewCoalescer(CoalescerOptions{TCP: true, UDP: true})
			s := c.spec
			s.v6 = v6
			c.change(&s)
			for range 2 {
				p := s.build()
				if c.after != nil {
					c.after(p)
				}
				if err := co.Add(p, 0); err != OK {
					t.Fatal(c.name, err)
				}
				s.seq += uint32(len(s.payload))
				s.id++
			}
			if co.Len() != 2 {
				t.Errorf("%s, IPv6 %v: %d runs, want 2", c.name, v6, co.Len())
			}
		}
	}
}

// A checksum of 0xFFFF where everybody else writes 0 is right, but joining would not give it back.
func TestCoalesceTheOtherZero(t *testing.T) {
	make0 := func(s naiveSpec, change func(s *naiveSpec, n int), at int) []byte {
		for n := range 1 << 16 {
			change(&s, n)
			p := s.build()
			if p[at] == 0 && p[at+1] == 0 {
				p[at], p[at+1] = 0xff, 0xff
				return p
			}
		}
		t.Fatal("no such packet")
		return nil
	}
	s := naiveSpec{flags: tcpACK, payload: make([]byte, 100)}
	for name, p := range map[string][]byte{
		"IPv4": make0(s, func(s *naiveSpec, n int) { s.id = uint16(n) }, 10),
		"TCP":  make0(s, func(s *naiveSpec, n int) { s.window = uint16(n) }, 36),
	} {
		if i := parsed(t, p); !VerifyTransport(p, i) || !VerifyIPv4(p[:20]) {
			t.Errorf("%s: not right", name)
		}
		next := bytes.Clone(p)
		binary.BigEndian.PutUint16(next[4:], binary.BigEndian.Uint16(p[4:])+1)
		next[27] += 100
		naiveFinish(next)
		c := NewCoalescer(CoalescerOptions{TCP: true})
		checkCoalesce(t, c, [][]byte{p, next}, []int32{0, 0})
		if c.Len() != 2 {
			t.Errorf("%s: %d runs, want 2", name, c.Len())
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
		// A kernel takes no more datagrams than UDP_MAX_SEGMENTS.
		{CoalescerOptions{UDP: true}, 32, 1000, 64},
		{CoalescerOptions{UDP: true, MaxSegments: 30}, 32, 1000, 30},
		{CoalescerOptions{UDP: true, MaxSegments: 30, MaxDatagrams: 100}, 32, 1000, 30},
		{CoalescerOptions{UDP: true, MaxDatagrams: 100}, 32, 1000, 100},
		{CoalescerOptions{TCP: true, MaxDatagrams: 10}, 32, 1000, 1000},
	} {
		co := NewCoalescer(c.opts)
		s := naiveSpec{udp: c.opts.UDP, flags: tcpACK, payload: make([]byte, c.payload)}
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
