package packet

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// A seed is a good packet and what is to be read of it. Addresses and lengths come from the builder.
type seed struct {
	name string
	spec ipSpec
	want Info
}

func seeds() []seed {
	nops := bytes.Repeat([]byte{1}, 8)
	const hasOpts4, opts6 = HasOptions, HasOptions | DontFragment
	return []seed{
		{"tcp4", ipSpec{proto: 6, tos: 0xba, ttl: 3, data: tcpData(0x18, nil, 100)},
			Info{L4: 20, L4Len: 20, SrcPort: 40000, DstPort: 443, TTL: 3, TOS: 0xba, TCPFlags: 0x18, Flags: HasPorts}},
		{"tcp4 without payload, DF", ipSpec{proto: 6, frag: 0x4000, data: tcpData(0x02, nops, 0)},
			Info{L4: 20, L4Len: 28, SrcPort: 40000, DstPort: 443, TCPFlags: 0x02, Flags: HasPorts | DontFragment}},
		{"tcp4 with the longest headers", ipSpec{proto: 6, options: bytes.Repeat(nops, 5),
			data: tcpData(0xff, bytes.Repeat(nops, 5), 1)},
			Info{L4: 60, L4Len: 60, SrcPort: 40000, DstPort: 443, TCPFlags: 0xff, Flags: HasPorts | hasOpts4}},
		{"udp4", ipSpec{proto: 17, data: udpData(3)},
			Info{L4: 20, L4Len: 8, SrcPort: 40000, DstPort: 53, Flags: HasPorts}},
		{"icmp4", ipSpec{proto: 1, data: icmpData(8, 0, 9)}, Info{L4: 20, L4Len: 8}},
		{"icmp4, 7 bytes", ipSpec{proto: 1, data: icmpData(8, 0, 0)[:7]}, Info{L4: 20}},
		{"icmpv6 over ipv4", ipSpec{proto: 58, data: icmpData(128, 0, 0)}, Info{L4: 20}},
		{"gre4", ipSpec{proto: 47, data: filler(30)}, Info{L4: 20}},
		{"ipv4, header alone", ipSpec{proto: 59}, Info{L4: 20}},
		{"first fragment", ipSpec{proto: 17, frag: 0x2000, data: udpData(24)},
			Info{L4: 20, L4Len: 8, SrcPort: 40000, DstPort: 53, Flags: HasPorts | Fragment}},
		{"first fragment, udp header cut", ipSpec{proto: 17, frag: 0x2000, data: udpData(0)[:4]},
			Info{L4: 20, Flags: Fragment}},
		{"first fragment, tcp header cut", ipSpec{proto: 6, frag: 0x2000, data: tcpData(2, nil, 0)[:8]},
			Info{L4: 20, Flags: Fragment}},
		{"first fragment, tcp options cut", ipSpec{proto: 6, frag: 0x2000, data: tcpData(2, nops, 0)[:24]},
			Info{L4: 20, Flags: Fragment}},
		{"first fragment, empty", ipSpec{proto: 6, frag: 0x2000}, Info{L4: 20, Flags: Fragment}},
		{"middle fragment", ipSpec{proto: 6, frag: 0x2001, data: filler(64)},
			Info{L4: 20, Flags: Fragment | LaterFragment}},
		{"last fragment, DF and options", ipSpec{proto: 17, frag: 0x5ff8, options: nops, data: filler(7)[:0]},
			Info{L4: 28, Flags: Fragment | LaterFragment | DontFragment | hasOpts4}},

		{"tcp6", ipSpec{v6: true, proto: 6, tos: 0xba, ttl: 9, data: tcpData(0x10, nops, 7)},
			Info{L4: 40, L4Len: 28, SrcPort: 40000, DstPort: 443, TOS: 0xba, TTL: 9, TCPFlags: 0x10,
				Flags: HasPorts | DontFragment}},
		{"udp6", ipSpec{v6: true, proto: 17, data: udpData(0)},
			Info{L4: 40, L4Len: 8, SrcPort: 40000, DstPort: 53, Flags: HasPorts | DontFragment}},
		{"icmpv6", ipSpec{v6: true, proto: 58, data: icmpData(128, 0, 0)},
			Info{L4: 40, L4Len: 8, Flags: DontFragment}},
		{"icmp over ipv6", ipSpec{v6: true, proto: 1, data: icmpData(8, 0, 0)}, Info{L4: 40, Flags: DontFragment}},
		{"ipv6, header alone", ipSpec{v6: true, proto: 59}, Info{L4: 40, Flags: DontFragment}},
		{"esp6", ipSpec{v6: true, proto: 50, data: filler(40)}, Info{L4: 40, Flags: DontFragment}},
		{"udp6 behind every extension header",
			ipSpec{v6: true, proto: 17, data: udpData(5), ext: []extension{hopByHop(), destOptions(), routing(),
				fragmentHeader(0, false), authHeader(), destOptions()}},
			Info{L4: 40 + 8 + 16 + 8 + 8 + 24 + 16, L4Len: 8, SrcPort: 40000, DstPort: 53, Flags: HasPorts | opts6}},
		{"tcp6, atomic fragment", ipSpec{v6: true, proto: 6, data: tcpData(0x10, nil, 7),
			ext: []extension{fragmentHeader(0, false)}},
			Info{L4: 48, L4Len: 20, SrcPort: 40000, DstPort: 443, TCPFlags: 0x10, Flags: HasPorts | opts6}},
		{"tcp6, first fragment", ipSpec{v6: true, proto: 6, data: tcpData(0x10, nil, 4),
			ext: []extension{hopByHop(), fragmentHeader(0, true)}},
			Info{L4: 56, L4Len: 20, SrcPort: 40000, DstPort: 443, TCPFlags: 0x10, Flags: HasPorts | Fragment | opts6}},
		{"udp6, first fragment, header cut", ipSpec{v6: true, proto: 17, data: udpData(0)[:0],
			ext: []extension{fragmentHeader(0, true)}}, Info{L4: 48, Flags: Fragment | opts6}},
		{"tcp6, later fragment", ipSpec{v6: true, proto: 6, data: filler(33),
			ext: []extension{hopByHop(), fragmentHeader(8, false)}},
			Info{L4: 56, Flags: Fragment | LaterFragment | opts6}},
		{"later fragment of extension headers", ipSpec{v6: true, proto: 60, data: filler(8),
			ext: []extension{fragmentHeader(65520, true)}},
			Info{L4: 48, Flags: Fragment | LaterFragment | opts6}},
	}
}

func TestParse(t *testing.T) {
	for _, s := range seeds() {
		t.Run(s.name, func(t *testing.T) {
			p := s.spec.build()
			want := s.want
			want.Src, want.Dst = s.spec.addresses()
			want.Len, want.Proto, want.Version = uint16(len(p)), s.spec.proto, 4
			if s.spec.v6 {
				want.Version = 6
			}
			if want.TTL == 0 {
				want.TTL = 64
			}
			var got Info
			if e := Parse(p, &got); e != OK || got != want {
				t.Fatalf("Parse: %v\n got %+v\nwant %+v", e, got, want)
			}
			if e := Parse(append(slices.Clone(p), 1, 2, 3), &got); e != OK || got != want {
				t.Errorf("with bytes behind the packet: %v\n got %+v\nwant %+v", e, got, want)
			}
			for n := range p {
				if e := Parse(p[:n:n], &got); e != ErrTruncated {
					t.Errorf("truncated to %d of %d bytes: %v, want %v", n, len(p), e, ErrTruncated)
				}
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tcp4 := ipSpec{proto: 6, data: tcpData(0x10, nil, 8)}
	tcp6 := ipSpec{v6: true, proto: 6, data: tcpData(0x10, nil, 8)}
	chain := func(data []byte, ext ...extension) ipSpec {
		return ipSpec{v6: true, proto: 17, data: data, ext: ext}
	}
	udp := udpData(8)
	tests := []struct {
		name string
		spec ipSpec
		edit func(p []byte)
		want Error
	}{
		{"version 0", tcp4, func(p []byte) { p[0] = 0x05 }, ErrVersion},
		{"version 5", tcp4, func(p []byte) { p[0] = 0x55 }, ErrVersion},
		{"version 15", tcp6, func(p []byte) { p[0] = 0xff }, ErrVersion},
		{"IHL 0", tcp4, func(p []byte) { p[0] = 0x40 }, ErrHeader},
		{"IHL 4", tcp4, func(p []byte) { p[0] = 0x44 }, ErrHeader},
		{"IHL beyond the packet", tcp4, func(p []byte) { p[0] = 0x4f }, ErrHeader},
		{"total length 0", tcp4, func(p []byte) { p[2], p[3] = 0, 0 }, ErrHeader},
		{"total length 19", tcp4, func(p []byte) { p[2], p[3] = 0, 19 }, ErrHeader},
		{"total length inside the TCP header", tcp4, func(p []byte) { p[3] = 39 }, ErrTruncated},
		{"total length one too long", tcp4, func(p []byte) { p[3]++ }, ErrTruncated},
		{"total length far too long", tcp4, func(p []byte) { p[2], p[3] = 0xff, 0xff }, ErrTruncated},
		{"data offset 4", tcp4, func(p []byte) { p[32] = 0x40 }, ErrHeader},
		{"data offset beyond the packet", tcp4, func(p []byte) { p[32] = 0x80 }, ErrHeader},
		{"data offset 4 in a first fragment", tcp4, func(p []byte) { p[6], p[32] = 0x20, 0x40 }, ErrHeader},
		{"fragment that ends beyond 65,535", ipSpec{proto: 1, frag: 0x1fff, data: filler(8)}, nil, ErrHeader},
		{"UDP header cut", ipSpec{proto: 17, data: udp[:7]}, nil, ErrTruncated},
		{"TCP without anything", ipSpec{proto: 6}, nil, ErrTruncated},

		{"payload length inside the TCP header", tcp6, func(p []byte) { p[5] = 19 }, ErrTruncated},
		{"payload length one too long", tcp6, func(p []byte) { p[5]++ }, ErrTruncated},
		{"payload length that does not fit Len", tcp6, func(p []byte) { p[4], p[5] = 0xff, 0xd8 }, ErrHeader},
		{"data offset 15", tcp6, func(p []byte) { p[52] = 0xf0 }, ErrHeader},
		{"UDP header cut", ipSpec{v6: true, proto: 17, data: udp[:7]}, nil, ErrTruncated},
		{"jumbogram", chain(udp, extension{0, []byte{0, 0xc2, 4, 0, 1, 0, 0}}),
			func(p []byte) { p[4], p[5] = 0, 0 }, ErrTruncated},
		{"second hop-by-hop", chain(udp, hopByHop(), hopByHop()), nil, ErrHeader},
		{"hop-by-hop behind another", chain(udp, destOptions(), hopByHop()), nil, ErrHeader},
		{"nine extension headers", chain(udp, slices.Repeat([]extension{routing()}, 9)...), nil, ErrHeader},
		{"extension header beyond the packet", chain(udp, routing()), func(p []byte) { p[41] = 3 }, ErrHeader},
		{"extension header of 2,048 bytes", chain(udp, routing()), func(p []byte) { p[41] = 255 }, ErrHeader},
		{"the same in a first fragment", chain(udp, fragmentHeader(0, true), routing()),
			func(p []byte) { p[49] = 255 }, ErrHeader},
		{"extension header cut", ipSpec{v6: true, proto: 60, data: filler(7)}, nil, ErrTruncated},
		{"fragment header cut", ipSpec{v6: true, proto: 44, data: filler(7)}, nil, ErrTruncated},
		{"AH without its fixed part", chain(udp, extension{51, make([]byte, 7)}), nil, ErrHeader},
		{"fragment of a fragment", chain(udp, fragmentHeader(0, true), fragmentHeader(0, true)), nil, ErrHeader},
		{"fragment that ends beyond 65,535", chain(udp, fragmentHeader(65528, false)), nil, ErrHeader},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := tt.spec.build()
			if tt.edit != nil {
				tt.edit(p)
			}
			var i Info
			if e := Parse(p, &i); e != tt.want {
				t.Errorf("%v, want %v; read %+v", e, tt.want, i)
			}
		})
	}
	var i Info
	for _, p := range [][]byte{nil, {}} {
		if e := Parse(p, &i); e != ErrTruncated {
			t.Errorf("empty packet: %v, want %v", e, ErrTruncated)
		}
	}
}

// Eight extension headers are the most that are walked.
func TestParseLongestChain(t *testing.T) {
	s := ipSpec{v6: true, proto: 17, data: udpData(0), ext: slices.Repeat([]extension{routing()}, 8)}
	if i := infoOf(s.build()); i.L4 != 40+64 || i.DstPort != 53 {
		t.Errorf("L4 %d, destination port %d; want 104, 53", i.L4, i.DstPort)
	}
}

// What was read of one packet must not show up in the next.
func TestParseForgets(t *testing.T) {
	var i Info
	all := seeds()
	for _, a := range all {
		for _, b := range all {
			Parse(a.spec.build(), &i)
			Parse(b.spec.build(), &i)
			if want := *infoOf(b.spec.build()); i != want {
				t.Fatalf("%s after %s: %+v, want %+v", b.name, a.name, i, want)
			}
		}
	}
}

// naiveParse is Parse written with gVisor's headers and recursion.
func naiveParse(p []byte) (Info, Error) {
	var i Info
	if len(p) == 0 {
		return i, ErrTruncated
	}
	switch header.IPVersion(p) {
	case 4:
		h := header.IPv4(p)
		if len(p) < header.IPv4MinimumSize {
			return i, ErrTruncated
		}
		i.Version, i.Proto, i.TTL = 4, h.Protocol(), h.TTL()
		i.TOS, _ = h.TOS()
		i.Src, _ = netip.AddrFromSlice(h.SourceAddressSlice())
		i.Dst, _ = netip.AddrFromSlice(h.DestinationAddressSlice())
		if h.HeaderLength() < header.IPv4MinimumSize || h.TotalLength() < uint16(h.HeaderLength()) {
			return i, ErrHeader
		}
		if int(h.TotalLength()) > len(p) {
			return i, ErrTruncated
		}
		i.Len, i.L4 = h.TotalLength(), uint16(h.HeaderLength())
		if len(h.Options()) > 0 {
			i.Flags |= HasOptions
		}
		if h.Flags()&header.IPv4FlagDontFragment != 0 {
			i.Flags |= DontFragment
		}
		if h.More() || h.FragmentOffset() > 0 {
			i.Flags |= Fragment
		}
		if h.FragmentOffset() > 0 {
			i.Flags |= LaterFragment
			if int(h.FragmentOffset())+int(h.TotalLength()) > MaxPacket {
				return i, ErrHeader
			}
		}
	case 6:
		h := header.IPv6(p)
		if len(p) < header.IPv6MinimumSize {
			return i, ErrTruncated
		}
		i.Version, i.Proto, i.TTL, i.Flags = 6, h.NextHeader(), h.HopLimit(), DontFragment
		i.TOS, _ = h.TOS()
		i.Src, _ = netip.AddrFromSlice(h.SourceAddressSlice())
		i.Dst, _ = netip.AddrFromSlice(h.DestinationAddressSlice())
		if 40+int(h.PayloadLength()) > MaxPacket {
			return i, ErrHeader
		}
		if 40+int(h.PayloadLength()) > len(p) {
			return i, ErrTruncated
		}
		i.Len, i.L4 = 40+h.PayloadLength(), 40
		if e := naiveExtensions(p[40:i.Len], &i, 0); e != OK {
			return i, e
		}
	default:
		return i, ErrVersion
	}
	if i.Is(LaterFragment) {
		return i, OK
	}
	t := p[i.L4:i.Len]
	short := ErrTruncated
	if i.Is(Fragment) {
		short = OK
	}
	switch {
	case i.Proto == 17 && len(t) < header.UDPMinimumSize, i.Proto == 6 && len(t) < header.TCPMinimumSize:
		return i, short
	case i.Proto == 17:
		i.L4Len = header.UDPMinimumSize
		i.SrcPort, i.DstPort = header.UDP(t).SourcePort(), header.UDP(t).DestinationPort()
		i.Flags |= HasPorts
	case i.Proto == 6:
		h := header.TCP(t)
		if h.DataOffset() < header.TCPMinimumSize {
			return i, ErrHeader
		}
		if int(h.DataOffset()) > len(t) {
			if i.Is(Fragment) {
				return i, OK
			}
			return i, ErrHeader
		}
		i.L4Len, i.TCPFlags = uint16(h.DataOffset()), uint8(h.Flags())
		i.SrcPort, i.DstPort = h.SourcePort(), h.DestinationPort()
		i.Flags |= HasPorts
	case (i.Proto == 1 && i.Version == 4 || i.Proto == 58 && i.Version == 6) && len(t) >= 8:
		i.L4Len = 8
	}
	return i, OK
}

func naiveExtensions(rest []byte, i *Info, depth int) Error {
	if !slices.Contains([]uint8{0, 43, 44, 51, 60}, i.Proto) {
		return OK
	}
	if i.Proto == 0 && depth > 0 || depth == 8 {
		return ErrHeader
	}
	if len(rest) < 8 {
		return ErrTruncated
	}
	i.Flags |= HasOptions
	size := 8 + 8*int(rest[1])
	if i.Proto == 51 {
		if size = 4 * (int(rest[1]) + 2); size < 12 {
			return ErrHeader
		}
	}
	if i.Proto == 44 {
		size = 8
		h := header.IPv6Fragment(rest)
		if h.More() || h.FragmentOffset() > 0 {
			if i.Is(Fragment) || 8*int(h.FragmentOffset())+len(rest)-8 > MaxPacket {
				return ErrHeader
			}
			i.Flags |= Fragment
		}
		if h.FragmentOffset() > 0 {
			i.Flags |= LaterFragment
			i.Proto, i.L4 = rest[0], i.L4+8
			return OK
		}
	}
	if size > len(rest) {
		return ErrHeader
	}
	i.Proto, i.L4 = rest[0], i.L4+uint16(size)
	return naiveExtensions(rest[size:], i, depth+1)
}

func FuzzParse(f *testing.F) {
	for _, s := range seeds() {
		p := s.spec.build()
		for n := range len(p) + 1 {
			f.Add(p[:n])
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		before := bytes.Clone(p)
		var got Info
		e := Parse(p, &got)
		if !bytes.Equal(p, before) {
			t.Fatal("Parse changed the packet")
		}
		want, wantErr := naiveParse(p)
		if e != wantErr || e == OK && got != want {
			t.Fatalf("Parse: %v, want %v\n got %+v\nwant %+v\n%x", e, wantErr, got, want, p)
		}
		if e != OK {
			return
		}
		if int(got.Len) > len(p) || got.HeaderLen() > int(got.Len) || got.L4 < 20 {
			t.Fatalf("lengths out of the packet's %d bytes: %+v", len(p), got)
		}
		if got.Version == 4 && !header.IPv4(p).IsValid(len(p)) || got.Version == 6 && !header.IPv6(p).IsValid(len(p)) {
			t.Fatalf("gVisor refuses what Parse accepts: %x", p)
		}
		var i Info
		for n := range min(int(got.Len), 200) {
			if e := Parse(p[:n:n], &i); e != ErrTruncated {
				t.Fatalf("truncated to %d bytes: %v", n, e)
			}
		}
	})
}

func TestParseAllocates(t *testing.T) {
	i := new(Info)
	for _, s := range seeds() {
		p := s.spec.build()
		if n := testing.AllocsPerRun(100, func() { Parse(p, i) }); n != 0 {
			t.Errorf("%s: %v allocations per packet", s.name, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	i := new(Info)
	for _, s := range seeds() {
		switch s.name {
		case "tcp4", "udp4", "tcp6", "udp6", "udp6 behind every extension header", "middle fragment":
		default:
			continue
		}
		p := s.spec.build()
		b.Run(s.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Parse(p, i)
			}
		})
	}
}
