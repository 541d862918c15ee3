package device

import (
	"errors"
	"testing"

	"github.com/warren-net/warren/forwarder/packet"
)

// tcp4 is an IPv4 TCP packet of n bytes with a 32-byte TCP header.
func tcp4(n int) []byte {
	p := make([]byte, n)
	p[0] = 0x45
	p[20+tcpDataOffset] = 8 << 4
	return p
}

func meta(t packet.GSOType, start, offset uint16) packet.Meta {
	return packet.Meta{Type: t, NeedsChecksum: true, SegmentSize: 1000, ChecksumStart: start, ChecksumOffset: offset}
}

func ipv6(n int) []byte {
	p := make([]byte, n)
	p[0] = 0x60
	p[40+tcpDataOffset] = 5 << 4
	return p
}

func TestInspect(t *testing.T) {
	tso4 := meta(packet.GSOTCP4, 20, 16)
	tso6 := meta(packet.GSOTCP6, 40, 16)
	uso := meta(packet.GSOUDP, 40, 6)
	with := func(m packet.Meta, f func(*packet.Meta)) packet.Meta { f(&m); return m }
	cwr := tcp4(3052)
	cwr[20+tcpFlags] = tcpCWR
	short := tcp4(2000)
	short[20+tcpDataOffset] = 4 << 4
	for _, c := range []struct {
		name string
		m    packet.Meta
		p    []byte
		want Shape
		bad  bool
	}{
		{"lone", packet.Meta{}, tcp4(100), Shape{Total: 100, Segments: 1}, false},
		{"lone, partial checksum", packet.Meta{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}, tcp4(100),
			Shape{Total: 100, Segments: 1}, false},
		{"TCP over IPv4", tso4, tcp4(52 + 3000), Shape{Total: 3052, Header: 52, Segments: 3}, false},
		{"one byte more", tso4, tcp4(52 + 3001), Shape{Total: 3053, Header: 52, Segments: 4}, false},
		{"CWR", tso4, cwr, Shape{Total: 3052, Header: 52, Segments: 3, CWR: true}, false},
		{"no payload", tso4, tcp4(52), Shape{Total: 52, Header: 52, Segments: 1}, false},
		{"TCP over IPv6", tso6, ipv6(60 + 2000), Shape{Total: 2060, Header: 60, Segments: 2}, false},
		{"UDP over IPv6", uso, ipv6(48 + 2000), Shape{Total: 2048, Header: 48, Segments: 2}, false},
		{"largest", packet.Meta{}, tcp4(packet.MaxPacket), Shape{Total: packet.MaxPacket, Segments: 1}, false},

		{"empty", packet.Meta{}, nil, Shape{}, true},
		{"too large", packet.Meta{}, tcp4(packet.MaxPacket + 1), Shape{}, true},
		{"version 5", packet.Meta{}, []byte{0x50}, Shape{}, true},
		{"checksum field beyond the end", packet.Meta{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}, tcp4(37),
			Shape{}, true},
		{"IPv4 as IPv6", tso6, tcp4(2000), Shape{}, true},
		{"IPv6 as IPv4", tso4, ipv6(2000), Shape{}, true},
		{"no partial checksum", with(tso4, func(m *packet.Meta) { m.NeedsChecksum = false }), tcp4(2000), Shape{}, true},
		{"segment size 0", with(tso4, func(m *packet.Meta) { m.SegmentSize = 0 }), tcp4(2000), Shape{}, true},
		{"GSO_BY_FRAGS", with(tso4, func(m *packet.Meta) { m.SegmentSize = 0xffff }), tcp4(2000), Shape{}, true},
		{"transport in the IP header", with(tso4, func(m *packet.Meta) { m.ChecksumStart = 8 }), tcp4(2000), Shape{}, true},
		{"UDP checksum offset for TCP", with(tso4, func(m *packet.Meta) { m.ChecksumOffset = 6 }), tcp4(2000), Shape{}, true},
		{"TCP checksum offset for UDP", with(uso, func(m *packet.Meta) { m.ChecksumOffset = 16 }), ipv6(2000), Shape{}, true},
		{"data offset 4", tso4, short, Shape{}, true},
		{"header beyond the end", tso4, tcp4(51), Shape{}, true},
		{"unknown type", with(tso4, func(m *packet.Meta) { m.Type = GSOUnknown }), tcp4(2000), Shape{}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for cut := range min(len(c.p), 100) { // the same in two pieces, wherever the border
				got, err := Inspect(c.m, [][]byte{c.p[:cut], nil, c.p[cut:]})
				if c.bad != errors.Is(err, ErrBadPacket) || !c.bad && (got != c.want || err != nil) {
					t.Fatalf("cut at %d: %+v, %v; want %+v, bad %v", cut, got, err, c.want, c.bad)
				}
			}
			if _, err := Inspect(c.m, [][]byte{c.p}); (err != nil) != c.bad {
				t.Errorf("in one piece: %v, want bad %v", err, c.bad)
			}
		})
	}
}

// Whatever the metadata says, Inspect neither panics nor accepts a header longer than the packet.
func FuzzInspect(f *testing.F) {
	f.Add(tcp4(2000), uint8(packet.GSOTCP4), true, uint16(1000), uint16(20), uint16(16), 40)
	f.Add(ipv6(2000), uint8(packet.GSOUDP), true, uint16(1000), uint16(40), uint16(6), 0)
	f.Fuzz(func(t *testing.T, p []byte, typ uint8, needs bool, size, start, offset uint16, cut int) {
		cut = max(0, min(cut, len(p)))
		m := packet.Meta{
			Type: packet.GSOType(typ), NeedsChecksum: needs, SegmentSize: size, ChecksumStart: start, ChecksumOffset: offset,
		}
		s, err := Inspect(m, [][]byte{p[:cut], p[cut:]})
		if err == nil && (s.Header > s.Total || s.Total != len(p) || s.Segments < 1) {
			t.Errorf("accepted %+v", s)
		}
	})
}
