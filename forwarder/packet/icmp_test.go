package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func gateway(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("fd00:10:244:1::1")
	}
	return netip.MustParseAddr("10.244.1.1")
}

// checkICMPError checks the headers and checksums of an ICMP error from the gateway to the source of orig, and returns
// its type, code, MTU word and quotation.
func checkICMPError(t testing.TB, p, orig []byte) (typ, code byte, mtu int, quote []byte) {
	t.Helper()
	i, oi := infoOf(p), infoOf(orig)
	v6 := oi.Version == 6
	if i.Version != oi.Version || i.Src != gateway(v6) || i.Dst != oi.Src || i.TTL != 64 || int(i.Len) != len(p) {
		t.Fatalf("bad IP header: %+v", i)
	}
	l4 := p[i.L4:]
	if v6 {
		h := header.IPv6(p)
		if !h.IsValid(len(p)) || i.Proto != 58 || i.L4 != 40 || len(p) > 1280 {
			t.Fatalf("bad IPv6 header of %d bytes: %x", len(p), p[:40])
		}
		sum := header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: header.ICMPv6(l4), Src: h.SourceAddress(),
			Dst: h.DestinationAddress()})
		if sum != header.ICMPv6(l4).Checksum() {
			t.Fatalf("ICMPv6 checksum %#x, want %#x", header.ICMPv6(l4).Checksum(), sum)
		}
	} else {
		h := header.IPv4(p)
		if !h.IsValid(len(p)) || !h.IsChecksumValid() || i.Proto != 1 || i.L4 != 20 || len(p) > 576 {
			t.Fatalf("bad IPv4 header of %d bytes: %x", len(p), p[:20])
		}
		if naiveSum(l4) != 0xffff {
			t.Fatalf("bad ICMP checksum: %x", l4)
		}
	}
	if mtu = be16(l4[6:]); v6 {
		mtu = int(binary.BigEndian.Uint32(l4[4:]))
	} else if be16(l4[4:]) != 0 {
		t.Fatalf("unused bytes are not 0: %x", l4[:8])
	}
	return l4[0], l4[1], mtu, l4[8:]
}

func TestICMPError(t *testing.T) {
	udp4 := ipSpec{proto: 17, tos: 3, data: udpData(10)}
	udp6 := ipSpec{v6: true, proto: 17, tos: 3, data: udpData(10)}
	big4 := ipSpec{proto: 17, frag: 0x4000, options: mixedOptions, data: udpData(1452)}
	big6 := ipSpec{v6: true, proto: 6, ext: []extension{hopByHop()}, data: tcpData(0x18, nil, 1412)}
	tests := []struct {
		name      string
		spec      ipSpec
		reject    Reject
		mtu       int
		typ, code byte
		wantMTU   int
		quote     int
	}{
		{"no route", udp4, RejectNoRoute, 1400, 3, 0, 0, 38},
		{"host unreachable", udp4, RejectHostUnreachable, 1400, 3, 1, 0, 38},
		{"prohibited", udp4, RejectProhibited, 1400, 3, 13, 0, 38},
		{"too big", big4, RejectTooBig, 1400, 3, 4, 1400, 548},
		{"too big, MTU beyond the field", big4, RejectTooBig, 70000, 3, 4, 65535, 548},
		{"too big, negative MTU", big4, RejectTooBig, -1, 3, 4, 0, 548},
		{"no route", udp6, RejectNoRoute, 1400, 1, 0, 0, 58},
		{"address unreachable", udp6, RejectHostUnreachable, 1400, 1, 3, 0, 58},
		{"prohibited", udp6, RejectProhibited, 1400, 1, 1, 0, 58},
		{"too big", big6, RejectTooBig, 1400, 2, 0, 1400, 1232},
		{"too big, negative MTU", big6, RejectTooBig, -1, 2, 0, 0, 1232},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			orig := tt.spec.build()
			before := bytes.Clone(orig)
			e := ICMPError{Reject: tt.reject, MTU: tt.mtu, From: gateway(tt.spec.v6)}
			p, ok := AppendICMPError([]byte("before"), e, append(orig, "behind"...), infoOf(orig))
			if !ok || !bytes.HasPrefix(p, []byte("before")) {
				t.Fatalf("ok: %v, got %x", ok, p)
			}
			typ, code, mtu, quote := checkICMPError(t, p[len("before"):], orig)
			if typ != tt.typ || code != tt.code || mtu != tt.wantMTU {
				t.Errorf("type %d, code %d, MTU %d; want %d, %d, %d", typ, code, mtu, tt.typ, tt.code, tt.wantMTU)
			}
			if !bytes.Equal(quote, orig[:tt.quote]) {
				t.Errorf("quotes %d bytes %x\nwant %d bytes of %x", len(quote), quote, tt.quote, orig)
			}
			if !bytes.Equal(orig, before) {
				t.Error("the packet was changed")
			}
		})
	}
}

// Which packets are answered: RFC 1812, 4.3.2.7 and RFC 4443, 2.4 e.
func TestICMPErrorIsSentOrNot(t *testing.T) {
	udp := ipSpec{proto: 17, data: udpData(10)}
	udp6 := ipSpec{v6: true, proto: 17, data: udpData(10)}
	from := func(s ipSpec, src string) ipSpec { s.src = src; return s }
	to := func(s ipSpec, dst string) ipSpec { s.dst = dst; return s }
	type test struct {
		name   string
		spec   ipSpec
		reject Reject
		want   bool
	}
	tests := []test{
		{"udp4", udp, RejectNoRoute, true},
		{"no reject", udp, RejectNone, false},
		{"unknown reject", udp, 99, false},
		{"from 0.0.0.0", from(udp, "0.0.0.0"), RejectNoRoute, false},
		{"from 0.1.2.3", from(udp, "0.1.2.3"), RejectNoRoute, false},
		{"from loopback", from(udp, "127.3.2.1"), RejectNoRoute, false},
		{"from multicast", from(udp, "224.0.0.1"), RejectNoRoute, false},
		{"from reserved", from(udp, "240.0.0.1"), RejectNoRoute, false},
		{"from broadcast", from(udp, "255.255.255.255"), RejectNoRoute, false},
		{"from below multicast", from(udp, "223.255.255.255"), RejectNoRoute, true},
		{"to broadcast", to(udp, "255.255.255.255"), RejectNoRoute, false},
		{"to multicast", to(udp, "239.1.2.3"), RejectNoRoute, false},
		{"to multicast, too big", to(udp, "239.1.2.3"), RejectTooBig, false},
		{"first fragment", ipSpec{proto: 17, frag: 0x2000, data: udpData(16)}, RejectNoRoute, true},
		{"later fragment", ipSpec{proto: 17, frag: 0x2001, data: udpData(16)}, RejectNoRoute, false},
		{"first fragment of a ping", ipSpec{proto: 1, frag: 0x2000, data: icmpData(8, 0, 0)}, RejectNoRoute, true},
		{"ICMP without a type", ipSpec{proto: 1}, RejectNoRoute, false},
		{"ICMP type alone", ipSpec{proto: 1, data: []byte{8}}, RejectNoRoute, true},
		{"unknown protocol", ipSpec{proto: 253}, RejectNoRoute, true},
		{"ICMPv6 error over IPv4", ipSpec{proto: 58, data: icmpData(1, 0, 0)}, RejectNoRoute, true},

		{"udp6", udp6, RejectNoRoute, true},
		{"no reject, IPv6", udp6, RejectNone, false},
		{"unknown reject, IPv6", udp6, 99, false},
		{"from ::", from(udp6, "::"), RejectNoRoute, false},
		{"from ::1", from(udp6, "::1"), RejectNoRoute, false},
		{"from ff02::1", from(udp6, "ff02::1"), RejectTooBig, false},
		{"from IPv4-mapped", from(udp6, "::ffff:10.244.1.2"), RejectNoRoute, false},
		{"to ff05::1", to(udp6, "ff05::1"), RejectNoRoute, false},
		{"to ff05::1, too big", to(udp6, "ff05::1"), RejectTooBig, true},
		{"first fragment, IPv6", ipSpec{v6: true, proto: 17, data: udpData(8),
			ext: []extension{fragmentHeader(0, true)}}, RejectNoRoute, true},
		{"later fragment, IPv6", ipSpec{v6: true, proto: 17, data: udpData(8),
			ext: []extension{fragmentHeader(8, true)}}, RejectTooBig, false},
		{"ICMPv6 error behind extension headers", ipSpec{v6: true, proto: 58, data: icmpData(2, 0, 40),
			ext: []extension{hopByHop(), destOptions()}}, RejectTooBig, false},
		{"ICMPv6 without a type", ipSpec{v6: true, proto: 58}, RejectNoRoute, false},
	}
	queries := map[byte]bool{0: true, 8: true, 9: true, 10: true, 13: true, 14: true, 15: true, 16: true, 17: true,
		18: true, 42: true, 43: true}
	for typ := range 256 {
		tests = append(tests,
			test{"ICMP", ipSpec{proto: 1, data: icmpData(byte(typ), 0, 40)}, RejectNoRoute, queries[byte(typ)]},
			test{"ICMPv6", ipSpec{v6: true, proto: 58, data: icmpData(byte(typ), 0, 40)}, RejectNoRoute,
				typ >= 128 && typ != 137})
	}
	for _, tt := range tests {
		orig := tt.spec.build()
		p, ok := AppendICMPError(nil, ICMPError{Reject: tt.reject, From: gateway(tt.spec.v6)}, orig, infoOf(orig))
		if ok != tt.want || ok == (p == nil) {
			t.Errorf("%s: sent %v, want %v: %x", tt.name, ok, tt.want, orig)
		}
		if !ok {
			continue
		}
		checkICMPError(t, p, orig)
		if _, again := AppendICMPError(nil, ICMPError{Reject: tt.reject, From: gateway(tt.spec.v6)}, p, infoOf(p)); again {
			t.Errorf("%s: an ICMP error was answered with another", tt.name)
		}
	}

	orig := udp.build()
	for name, e := range map[string]ICMPError{
		"from an IPv6 address": {Reject: RejectNoRoute, From: gateway(true)},
		"from no address":      {Reject: RejectNoRoute},
	} {
		if _, ok := AppendICMPError(nil, e, orig, infoOf(orig)); ok {
			t.Errorf("%s: sent", name)
		}
	}
	if _, ok := AppendICMPError(nil, ICMPError{Reject: RejectNoRoute, From: gateway(false)}, orig[:30], infoOf(orig)); ok {
		t.Error("packet shorter than its Info: sent")
	}
}

// The error about a superpacket quotes what the wire would have carried first.
func TestICMPErrorQuotesFirstSegment(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			for _, size := range []int{1, 8, 100, 525, 1200, 1400, 3000} {
				// The last payload is one segment; so its flags must stay.
				for _, payload := range []int{size * 7, size*3 + 1, size + 1, size} {
					spec := naiveSpec{v6: v6, udp: udp, host: 2, flags: 0xd9, seq: 5, ack: 6, id: 77, frag: 0x4000, tos: 2, ttl: 60,
						window: 8, payload: filler(payload)}
					if !udp {
						spec.options = []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
					}
					whole := spec.build()
					first := naiveSegment(whole, size, true)[0]
					m := naiveMeta(whole, size)
					before := bytes.Clone(whole)
					e := ICMPError{Reject: RejectTooBig, MTU: 1300, From: gateway(v6), Meta: m}
					p, ok := AppendICMPError(nil, e, whole, infoOf(whole))
					if !ok {
						t.Fatal("not sent")
					}
					_, _, _, quote := checkICMPError(t, p, whole)
					limit := 548
					if v6 {
						limit = 1232
					}
					if want := first[:min(limit, len(first))]; !bytes.Equal(quote, want) {
						t.Fatalf("v6 %v, udp %v, %d bytes in segments of %d:\n got %x\nwant %x", v6, udp, payload, size,
							quote[:min(80, len(quote))], want[:min(80, len(want))])
					}
					if !bytes.Equal(whole, before) {
						t.Fatal("the packet was changed")
					}
				}
			}
		}
	}
}

// The partial checksum of a lone packet is completed in the quotation, over the whole packet.
func TestICMPErrorCompletesChecksum(t *testing.T) {
	for _, size := range []int{0, 1, 520, 521, 1400} {
		for _, v6 := range []bool{false, true} {
			spec := naiveSpec{v6: v6, udp: true, host: 2, ttl: 64, ext: v6, payload: filler(size)}
			want := spec.build()
			p := bytes.Clone(want)
			m := naiveMeta(p, 1)
			m.Type, m.SegmentSize = GSONone, 0
			msg, ok := AppendICMPError(nil, ICMPError{Reject: RejectNoRoute, From: gateway(v6), Meta: m}, p, infoOf(p))
			if !ok {
				t.Fatal("not sent")
			}
			_, _, _, quote := checkICMPError(t, msg, p)
			if !bytes.Equal(quote, want[:len(quote)]) {
				t.Errorf("v6 %v, %d bytes:\n got %x\nwant %x", v6, size, quote[:60], want[:60])
			}
		}
	}
}

// A UDP checksum that comes out as 0 is quoted as 0xffff, as it is sent (RFC 768).
func TestICMPErrorUDPChecksumZero(t *testing.T) {
	spec := naiveSpec{udp: true, host: 2, ttl: 64, payload: []byte{0, 0, 1, 2}}
	sum := be16(spec.build()[26:])
	spec.payload[0], spec.payload[1] = byte(sum>>8), byte(sum)
	for _, typ := range []GSOType{GSONone, GSOUDP} {
		p := spec.build()
		if be16(p[26:]) != 0xffff {
			t.Fatalf("the test's packet has checksum %#x", be16(p[26:]))
		}
		m := naiveMeta(p, 4)
		if m.Type = typ; typ == GSONone {
			m.SegmentSize = 0
		}
		msg, _ := AppendICMPError(nil, ICMPError{Reject: RejectNoRoute, From: gateway(false), Meta: m}, p, infoOf(p))
		if got := be16(msg[28+26:]); got != 0xffff {
			t.Errorf("type %d: checksum %#x is quoted, want 0xffff", typ, got)
		}
	}
}

// fuzzMeta is metadata that may lie in every field.
func fuzzMeta(bits uint64) Meta {
	return Meta{Type: GSOType(bits & 7), NeedsChecksum: bits&8 != 0, SegmentSize: uint16(bits >> 16),
		ChecksumStart: uint16(bits >> 32), ChecksumOffset: uint16(bits >> 48)}
}

func FuzzICMPError(f *testing.F) {
	for k, s := range seeds() {
		p := s.spec.build()
		for reject := RejectNone; reject <= RejectTooBig+1; reject++ {
			f.Add(p, uint8(reject), int32(1400), uint64(0))
			f.Add(p, uint8(reject), int32(1280), uint64(infoOf(p).L4)<<32|uint64(k%4)|8|50<<16|16<<48)
			f.Add(p, uint8(reject), int32(-1), ^uint64(0))
		}
	}
	f.Fuzz(func(t *testing.T, orig []byte, reject uint8, mtu int32, bits uint64) {
		oi := new(Info)
		if Parse(orig, oi) != OK {
			return
		}
		before := bytes.Clone(orig)
		e := ICMPError{Reject: Reject(reject), MTU: int(mtu), From: gateway(oi.Version == 6), Meta: fuzzMeta(bits)}
		p, ok := AppendICMPError([]byte{0x99}, e, orig, oi)
		if !bytes.Equal(orig, before) || p[0] != 0x99 || !ok && len(p) != 1 {
			t.Fatal("the packet or what stood in dst was changed")
		}
		if !ok {
			return
		}
		p = p[1:]
		_, _, _, quote := checkICMPError(t, p, orig)
		if oi.Is(LaterFragment) || oi.Src.IsMulticast() || oi.Src.IsUnspecified() || oi.Src.IsLoopback() {
			t.Fatalf("sent although it must not: %+v", oi)
		}
		if e.Meta == (Meta{}) && !bytes.Equal(quote, orig[:len(quote)]) {
			t.Fatal("the quotation differs")
		}
		if len(quote) < min(oi.SegmentLen(e.Meta), 548) {
			t.Fatalf("quotes only %d bytes", len(quote))
		}
		if _, again := AppendICMPError(nil, e, p, infoOf(p)); again {
			t.Fatal("an ICMP error was answered with another")
		}
	})
}

func TestICMPErrorAllocates(t *testing.T) {
	dst := make([]byte, 0, 1280)
	for _, v6 := range []bool{false, true} {
		p := naiveSpec{v6: v6, host: 2, flags: 0x18, payload: filler(20000)}.build()
		e := ICMPError{Reject: RejectTooBig, MTU: 1300, From: gateway(v6), Meta: naiveMeta(p, 1400)}
		i := infoOf(p)
		if n := testing.AllocsPerRun(100, func() { AppendICMPError(dst, e, p, i) }); n != 0 {
			t.Errorf("v6 %v: %v allocations per error", v6, n)
		}
	}
}

func BenchmarkICMPError(b *testing.B) {
	dst := make([]byte, 0, 1280)
	for _, v6 := range []bool{false, true} {
		p := naiveSpec{v6: v6, host: 2, flags: 0x18, payload: filler(20000)}.build()
		e := ICMPError{Reject: RejectTooBig, MTU: 1300, From: gateway(v6), Meta: naiveMeta(p, 1400)}
		i := infoOf(p)
		b.Run(map[bool]string{false: "v4", true: "v6"}[v6], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				AppendICMPError(dst, e, p, i)
			}
		})
	}
}

// Extension headers may fill the quotation, so that the transport header is not in it.
func TestICMPErrorLongExtensionHeaders(t *testing.T) {
	long := make([]byte, 1399)
	long[0] = 1400/8 - 1
	orig := ipSpec{v6: true, proto: 6, ext: []extension{{60, long}}, data: tcpData(0x19, nil, 2000)}.build()
	i := infoOf(orig)
	m := Meta{Type: GSOTCP6, NeedsChecksum: true, SegmentSize: 500, ChecksumStart: i.L4, ChecksumOffset: 16}
	p, ok := AppendICMPError(nil, ICMPError{Reject: RejectTooBig, MTU: 1300, From: gateway(true), Meta: m}, orig, i)
	if !ok {
		t.Fatal("not sent")
	}
	_, _, _, quote := checkICMPError(t, p, orig)
	want := bytes.Clone(orig[:1232])
	binary.BigEndian.PutUint16(want[4:], 1400+20+500)
	if !bytes.Equal(quote, want) {
		t.Errorf("\n got %x\nwant %x", quote, want)
	}
}
