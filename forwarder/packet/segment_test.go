package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// parsed parses a packet that has to be good.
func parsed(t testing.TB, p []byte) *Info {
	t.Helper()
	i := new(Info)
	if err := Parse(p, i); err != OK {
		t.Fatalf("Parse: %v: %x", err, p[:min(len(p), 100)])
	}
	return i
}

// segmentsOf returns the segments of s as packets, and checks their prefixes.
func segmentsOf(t testing.TB, s *Segments, prefix []byte) [][]byte {
	t.Helper()
	out := make([][]byte, s.N())
	for k := range out {
		h := s.Header(k)
		if len(h) != s.HeaderLen() || cap(h) != len(h) {
			t.Fatalf("segment %d: header of %d bytes with capacity %d, want %d", k, len(h), cap(h), s.HeaderLen())
		}
		if !bytes.HasPrefix(h, prefix) {
			t.Fatalf("segment %d: prefix %x, want %x", k, h[:len(prefix)], prefix)
		}
		out[k] = append(bytes.Clone(h[len(prefix):]), s.Payload(k)...)
	}
	return out
}

// samePackets fails the test at the first packet that differs.
func samePackets(t testing.TB, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for k := range got {
		if !bytes.Equal(got[k], want[k]) {
			n := min(len(got[k]), len(want[k]), 100)
			t.Fatalf("packet %d of %d (%d bytes, want %d):\n got %x\nwant %x", k, len(got), len(got[k]), len(want[k]),
				got[k][:n], want[k][:n])
		}
	}
}

// checkSegments compares Segment with the naive one.
func checkSegments(t testing.TB, spec naiveSpec, size int) {
	t.Helper()
	p := spec.build()
	want := naiveSegment(p, size, false)
	m := naiveMeta(p, size)
	prefix := []byte("twenty-two byte prefix")
	before := string(p)
	var s Segments
	if err := s.Segment(p, parsed(t, p), m, prefix); err != OK {
		t.Fatalf("%+v, %d bytes per segment: %v", m, size, err)
	}
	if string(p) != before {
		t.Fatal("the superpacket was changed")
	}
	samePackets(t, segmentsOf(t, &s, prefix), want)
	if err := s.Segment(p, parsed(t, p), m, nil); err != OK {
		t.Fatal(err)
	}
	together := make([][]byte, s.N())
	for k := range together {
		together[k] = bytes.Clone(s.Together(k)) // the next one overwrites its end
	}
	samePackets(t, together, want)
}

// kinds are the headers that superpackets come with.
func kinds(payload []byte) map[string]naiveSpec {
	tcp := naiveSpec{sport: 50000, seq: 0xfffffff0, ack: 7, flags: tcpACK, window: 502, tos: 2, ttl: 63, id: 0xfffe,
		frag: 0x4000, payload: payload}
	tcpOptions := tcp
	tcpOptions.options = []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	ipOptions := tcp
	ipOptions.ipOptions = []byte{0x94, 4, 0, 0} // router alert
	udp := naiveSpec{udp: true, sport: 1234, tos: 0xb8, ttl: 1, id: 1, payload: payload}
	tcp6, udp6, tcp6ext, udp6ext := tcpOptions, udp, tcp, udp
	tcp6.v6, tcp6.label = true, 0xabcde
	udp6.v6 = true
	tcp6ext.v6, tcp6ext.ext = true, true
	udp6ext.v6, udp6ext.ext = true, true
	return map[string]naiveSpec{"tcp4": tcp, "tcp4 with TCP options": tcpOptions, "tcp4 with IP options": ipOptions,
		"udp4": udp, "tcp6": tcp6, "udp6": udp6, "tcp6 with extension": tcp6ext, "udp6 with extension": udp6ext}
}

func TestSegmentAtEveryEdge(t *testing.T) {
	data := randomBytes(65535, 2)
	const most = 65535 - 20 - 32 // payload
	for _, size := range []int{1, 2, 7, 8, 536, 1000, 1398, 1448, 1449, 9000, 32768, most - 1, most, most + 1, 65535} {
		for _, n := range []int{1, 2, size - 1, size, size + 1, 2*size - 1, 2 * size, 2*size + 1, 7 * size, 7*size + 3,
			most, most - 1} {
			if n < 1 || n > 65535-48-20 || (n+size-1)/size > MaxSegments {
				continue
			}
			for name, spec := range kinds(data[:n]) {
				if testing.Short() && n > 20000 && name != "tcp4" {
					continue
				}
				t.Run(fmt.Sprintf("%s/%d in %d", name, n, size), func(t *testing.T) { checkSegments(t, spec, size) })
			}
		}
	}
}

func TestSegmentWithEveryTCPFlag(t *testing.T) {
	data := randomBytes(1000, 3)
	for flags := range 256 {
		if flags&(tcpSYN|tcpRST) != 0 {
			continue
		}
		for _, urgent := range []uint16{0, 1, 99, 100, 101, 550, 1000, 60000} {
			for _, size := range []int{100, 1000} {
				checkSegments(t, naiveSpec{flags: byte(flags), res: 1, urg: urgent, payload: data}, size)
			}
		}
	}
	checkSegments(t, naiveSpec{flags: tcpSYN, payload: data}, 1000)
	checkSegments(t, naiveSpec{flags: tcpRST | tcpACK, payload: data}, 1000)
}

func TestSegmentUDPChecksumZero(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		p := zeroSum(v6)
		one := naiveSpec{v6: v6, udp: true, payload: append(bytes.Clone(p[len(p)-4:]), p[len(p)-4:]...)}
		checkSegments(t, one, 4)
		super := one.build()
		m := naiveMeta(super, 4)
		var s Segments
		s.Segment(super, parsed(t, super), m, nil)
		for k := range s.N() {
			h := s.Header(k)
			if check := binary.BigEndian.Uint16(h[len(h)-2:]); check != 0xffff {
				t.Errorf("v6 %v, segment %d: checksum %#04x, want 0xffff", v6, k, check)
			}
		}
	}
}

// With ChecksumPartial somebody else completes the checksum; the result is the same.
func TestSegmentPartial(t *testing.T) {
	for name, spec := range kinds(randomBytes(5000, 4)) {
		p := spec.build()
		want := naiveSegment(p, 1400, false)
		m := naiveMeta(p, 1400)
		s := Segments{Checksum: ChecksumPartial}
		if err := s.Segment(p, parsed(t, p), m, nil); err != OK {
			t.Fatal(name, err)
		}
		got := segmentsOf(t, &s, nil)
		m.Type = GSONone
		for _, q := range got {
			if !CompleteChecksum(q, m) {
				t.Fatal(name, "refused")
			}
		}
		samePackets(t, got, want)
	}
}

func TestSegmentLonePacket(t *testing.T) {
	prefix := []byte("prefix")
	for name, spec := range kinds(randomBytes(777, 5)) {
		want := spec.build()
		var s Segments
		// Complete already, and followed by bytes that do not belong to the packet.
		p := append(bytes.Clone(want), "padding"...)
		if err := s.Segment(p, parsed(t, p), Meta{}, prefix); err != OK {
			t.Fatal(name, err)
		}
		samePackets(t, segmentsOf(t, &s, prefix), [][]byte{want})
		if s.HeaderLen() != len(prefix) || &s.Payload(0)[0] != &p[0] {
			t.Errorf("%s: header of %d bytes, want %d, and the packet as payload", name, s.HeaderLen(), len(prefix))
		}

		m := naiveMeta(p[:len(want)], 0)
		m.Type = GSONone
		partial := bytes.Clone(p)
		s.Checksum = ChecksumPartial
		if err := s.Segment(p, parsed(t, p), m, nil); err != OK || !bytes.Equal(p, partial) {
			t.Errorf("%s: with ChecksumPartial: %v, packet unchanged: %v", name, err, bytes.Equal(p, partial))
		}
		s.Checksum = ChecksumFull
		if err := s.Segment(p, parsed(t, p), m, nil); err != OK {
			t.Fatal(name, err)
		}
		samePackets(t, segmentsOf(t, &s, nil), [][]byte{want})
		if got := s.Together(0); !bytes.Equal(got, want) || &got[0] != &p[0] {
			t.Errorf("%s: together it is another packet, or elsewhere", name)
		}
	}
}

func TestSegmentRefusesLies(t *testing.T) {
	data := randomBytes(3000, 6)
	specs := kinds(data)
	tcp4, udp6 := specs["tcp4"], specs["udp6"]
	empty, syn, rst, fragment, fragmentUDP := tcp4, tcp4, tcp4, tcp4, specs["udp4"]
	empty.payload = nil
	syn.flags |= tcpSYN
	rst.flags |= tcpRST
	fragment.frag, fragmentUDP.frag = 0x2000, 0x2000
	icmp := func(p []byte, _ *Meta, i *Info) { p[9] = 1; Parse(p, i) }
	for _, c := range []struct {
		name string
		spec naiveSpec
		lie  func(p []byte, m *Meta, i *Info)
		want Error
	}{
		{"truth", tcp4, func([]byte, *Meta, *Info) {}, OK},
		{"truth about IPv6", udp6, func([]byte, *Meta, *Info) {}, OK},
		{"segment size 0", tcp4, func(_ []byte, m *Meta, _ *Info) { m.SegmentSize = 0 }, ErrGSO},
		{"unknown type", tcp4, func(_ []byte, m *Meta, _ *Info) { m.Type = 9 }, ErrGSO},
		{"type of IPv6", tcp4, func(_ []byte, m *Meta, _ *Info) { m.Type = GSOTCP6 }, ErrGSO},
		{"type of IPv4", specs["tcp6"], func(_ []byte, m *Meta, _ *Info) { m.Type = GSOTCP4 }, ErrGSO},
		{"type of UDP", tcp4, func(_ []byte, m *Meta, _ *Info) { m.Type = GSOUDP }, ErrGSO},
		{"type of TCP", udp6, func(_ []byte, m *Meta, _ *Info) { m.Type = GSOTCP6 }, ErrGSO},
		{"complete checksum", tcp4, func(_ []byte, m *Meta, _ *Info) { m.NeedsChecksum = false }, ErrGSO},
		{"checksum start", tcp4, func(_ []byte, m *Meta, _ *Info) { m.ChecksumStart++ }, ErrGSO},
		{"checksum offset", tcp4, func(_ []byte, m *Meta, _ *Info) { m.ChecksumOffset = 6 }, ErrGSO},
		{"checksum far away", tcp4, func(_ []byte, m *Meta, _ *Info) { m.ChecksumStart = 65535 }, ErrGSO},
		{"no payload", empty, func([]byte, *Meta, *Info) {}, ErrGSO},
		{"too many segments", specs["udp4"], func(p []byte, m *Meta, i *Info) {
			*m = naiveMeta(p, 1)
		}, OK},
		{"SYN", syn, func([]byte, *Meta, *Info) {}, ErrGSO},
		{"RST", rst, func([]byte, *Meta, *Info) {}, ErrGSO},
		{"fragment", fragment, func([]byte, *Meta, *Info) {}, ErrGSO},
		{"fragment of UDP", fragmentUDP, func([]byte, *Meta, *Info) {}, ErrGSO},
		{"ICMP", tcp4, icmp, ErrGSO},
		{"UDP length", udp6, func(p []byte, _ *Meta, _ *Info) { p[45]++ }, ErrGSO},
		{"longer than the buffer", tcp4, func(_ []byte, _ *Meta, i *Info) { i.Len += 9000 }, ErrTruncated},
		{"headers longer than the packet", tcp4, func(_ []byte, m *Meta, i *Info) { i.L4Len = 60000 }, ErrGSO},
		{"no IP header", tcp4, func(_ []byte, m *Meta, i *Info) { i.L4, m.ChecksumStart = 0, 0 }, ErrGSO},
		{"no transport header", tcp4, func(_ []byte, m *Meta, i *Info) { i.L4Len = 0 }, ErrGSO},
		{"IPv6 in 20 bytes", specs["tcp6"], func(_ []byte, m *Meta, i *Info) { i.L4, m.ChecksumStart = 20, 20 }, ErrGSO},
		{"lone, checksum in the IP header", tcp4, func(_ []byte, m *Meta, _ *Info) {
			*m = Meta{NeedsChecksum: true, ChecksumStart: 0, ChecksumOffset: 10}
		}, ErrGSO},
		{"lone, checksum outside", tcp4, func(_ []byte, m *Meta, _ *Info) {
			*m = Meta{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 60000}
		}, ErrGSO},
		{"lone TCP, checksum of UDP", tcp4, func(_ []byte, m *Meta, _ *Info) {
			*m = Meta{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6}
		}, ErrGSO},
		{"lone UDP, checksum of TCP", udp6, func(_ []byte, m *Meta, _ *Info) {
			*m = Meta{NeedsChecksum: true, ChecksumStart: 40, ChecksumOffset: 16}
		}, ErrGSO},
		{"lone, checksum in an extension header", specs["udp6 with extension"], func(_ []byte, m *Meta, _ *Info) {
			*m = Meta{NeedsChecksum: true, ChecksumStart: 40, ChecksumOffset: 6}
		}, ErrGSO},
		{"lone fragment", fragmentUDP, func(_ []byte, m *Meta, _ *Info) { m.Type = GSONone }, ErrGSO},
	} {
		p := c.spec.build()
		m := naiveMeta(p, 1000)
		i := parsed(t, p)
		c.lie(p, &m, i)
		before := string(p)
		var s Segments
		if err := s.Segment(p, i, m, nil); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		} else if err != OK && (s.N() != 0 || string(p) != before) {
			t.Errorf("%s: refused, but %d segments, packet unchanged: %v", c.name, s.N(), string(p) == before)
		}
	}
	big := specs["udp4"]
	big.payload = make([]byte, MaxSegments+1)
	p := big.build()
	m := naiveMeta(p, 1)
	if err := new(Segments).Segment(p, parsed(t, p), m, nil); err != ErrGSO {
		t.Errorf("%d segments: %v, want %v", MaxSegments+1, err, ErrGSO)
	}
}

// One batch: the headers of all superpackets stay until the arena is reset, though it grows on the way.
func TestArenaKeepsHeadersOfABatch(t *testing.T) {
	var arena Arena
	for round := range 3 {
		chunks := len(arena.chunks)
		s := make([]Segments, 40)
		var want [][][]byte
		for k := range s {
			p := naiveSpec{seq: uint32(k), flags: tcpACK, payload: randomBytes(60000, uint64(k))}.build()
			size := 300 + k
			want = append(want, naiveSegment(p, size, false))
			m := naiveMeta(p, size)
			s[k].Arena = &arena
			if err := s[k].Segment(p, parsed(t, p), m, []byte{byte(k)}); err != OK {
				t.Fatal(err)
			}
		}
		for k := range s {
			samePackets(t, segmentsOf(t, &s[k], []byte{byte(k)}), want[k])
		}
		if len(arena.chunks) < 2 {
			t.Errorf("%d chunks; the test wants the arena to grow", len(arena.chunks))
		}
		if round > 0 && len(arena.chunks) > chunks {
			t.Errorf("the same batch again made %d chunks of %d", len(arena.chunks), chunks)
		}
		arena.Reset()
	}
	big := arena.take(arenaChunk * 3)
	if len(big) != arenaChunk*3 {
		t.Errorf("%d bytes", len(big))
	}
}

func FuzzSegment(f *testing.F) {
	for _, spec := range kinds(randomBytes(300, 7)) {
		p := spec.build()
		m := naiveMeta(p, 100)
		f.Add(p, uint8(m.Type), true, true, m.SegmentSize, m.ChecksumStart, m.ChecksumOffset)
		f.Add(p, uint8(m.Type), true, false, m.SegmentSize, m.ChecksumStart, m.ChecksumOffset)
		f.Add(p, uint8(0), true, false, uint16(0), m.ChecksumStart, m.ChecksumOffset)
		f.Add(p, uint8(0), false, false, uint16(0), uint16(0), uint16(0))
		f.Add(p, uint8(m.Type), true, true, uint16(1), m.ChecksumStart, m.ChecksumOffset)
	}
	prefix := []byte("prefix")
	f.Fuzz(func(t *testing.T, p []byte, kind uint8, needs, truth bool, size, start, offset uint16) {
		if len(p) > MaxPacket {
			return
		}
		var i Info
		if Parse(p, &i) != OK {
			return
		}
		p = p[:i.Len]
		m := Meta{Type: GSOType(kind), NeedsChecksum: needs, SegmentSize: size, ChecksumStart: start, ChecksumOffset: offset}
		// The naive one knows simple headers only.
		simple := truth && m.Type != GSONone && i.Is(HasPorts) && !i.Is(Fragment) &&
			(i.Version == 4 || !i.Is(HasOptions)) && size > 0
		if simple {
			m = naiveMeta(p, int(size))
		}
		before := string(p)
		s := Segments{Arena: new(Arena)}
		err := s.Segment(p, &i, m, prefix)
		if err != OK {
			if s.N() != 0 || string(p) != before {
				t.Fatal("refused, but not without traces")
			}
			n := (int(i.Len) - i.HeaderLen() + int(size) - 1) / max(int(size), 1)
			if simple && i.HeaderLen() < int(i.Len) && n <= MaxSegments &&
				(n == 1 || i.Proto == protoUDP || i.TCPFlags&(tcpSYN|tcpRST) == 0) {
				t.Fatalf("%v for a good superpacket", err)
			}
			return
		}
		got := segmentsOf(t, &s, prefix)
		switch {
		case simple:
			samePackets(t, got, naiveSegment(p, int(size), false))
		case m.Type == GSONone:
			if len(got) != 1 || !bytes.Equal(got[0], p) || !m.NeedsChecksum && string(p) != before {
				t.Fatal("a lone packet was cut or changed")
			}
		default:
			total := 0
			for _, q := range got {
				total += len(q) - i.HeaderLen()
				if len(q) > i.SegmentLen(m) {
					t.Fatalf("a segment of %d bytes, more than %d", len(q), i.SegmentLen(m))
				}
			}
			if total != int(i.Len)-i.HeaderLen() || string(p) != before {
				t.Fatalf("%d bytes of payload, want %d", total, int(i.Len)-i.HeaderLen())
			}
		}
	})
}
