package packet

import (
	"bytes"
	"encoding/binary"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestClampMSS(t *testing.T) {
	mss := func(v int) []byte { return []byte{2, 4, byte(v >> 8), byte(v)} }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	linux := join(mss(1460), []byte{4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}) // what Linux sends
	tests := []struct {
		name    string
		flags   byte
		options []byte
		mtu     int // for IPv4; for IPv6 20 bytes more, which makes the limits equal
		want    []byte
	}{
		{"lowered", 0x02, linux, 1420, join(mss(1380), linux[4:])},
		{"SYN and ACK", 0x12, mss(1460), 1420, mss(1380)},
		{"SYN with ECN set-up", 0xc2, mss(1460), 1420, mss(1380)},
		{"low enough", 0x02, mss(1380), 1420, mss(1380)},
		{"lower", 0x02, mss(536), 1420, mss(536)},
		{"largest", 0x02, mss(65535), 1420, mss(1380)},
		{"no SYN", 0x10, mss(1460), 1420, mss(1460)},
		{"no options", 0x02, nil, 1420, nil},
		{"no MSS", 0x02, []byte{1, 3, 3, 7}, 1420, []byte{1, 3, 3, 7}},
		{"odd offset", 0x02, join([]byte{1}, mss(1460), []byte{1, 1, 1}), 1420, join([]byte{1}, mss(1380), []byte{1, 1, 1})},
		{"odd offset behind another option", 0x02, join([]byte{3, 3, 7}, mss(9000), []byte{0}), 1420,
			join([]byte{3, 3, 7}, mss(1380), []byte{0})},
		{"last option", 0x02, join([]byte{1, 1, 1, 1}, mss(1460)), 1420, join([]byte{1, 1, 1, 1}, mss(1380))},
		{"twice", 0x02, join(mss(1460), mss(9000)), 1420, join(mss(1380), mss(1380))},
		{"behind the end of the list", 0x02, join([]byte{0, 0, 0, 0}, mss(1460)), 1420, join([]byte{0, 0, 0, 0}, mss(1460))},
		{"wrong length", 0x02, []byte{2, 6, 5, 0xb4, 5, 0xb4, 0, 0}, 1420, []byte{2, 6, 5, 0xb4, 5, 0xb4, 0, 0}},
		{"length 0", 0x02, join([]byte{9, 0}, mss(1460), []byte{0, 0}), 1420, join([]byte{9, 0}, mss(1460), []byte{0, 0})},
		{"length 1", 0x02, join([]byte{9, 1}, mss(1460), []byte{0, 0}), 1420, join([]byte{9, 1}, mss(1460), []byte{0, 0})},
		{"cut", 0x02, []byte{1, 2, 4, 5}, 1420, []byte{1, 2, 4, 5}},
		{"kind alone", 0x02, []byte{1, 1, 1, 2}, 1420, []byte{1, 1, 1, 2}},
		{"longer than the list", 0x02, []byte{3, 40, 2, 4}, 1420, []byte{3, 40, 2, 4}},
		{"MTU for no payload", 0x02, mss(1460), 40, mss(1460)},
		{"negative MTU", 0x02, mss(1460), -1, mss(1460)},
		{"MTU of loopback", 0x02, mss(65495), 65536, mss(65495)},
		{"MTU beyond all", 0x02, mss(65535), 1 << 20, mss(65535)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, spec := range []ipSpec{
				{proto: 6}, {proto: 6, options: []byte{7, 4, 4, 0}},
				{v6: true, proto: 6}, {v6: true, proto: 6, ext: []extension{hopByHop()}},
			} {
				mtu := tt.mtu
				if spec.v6 {
					mtu += 20
				}
				for _, payload := range []int{0, 1, 8} {
					spec.data = tcpData(tt.flags, tt.want, payload)
					want := spec.build()
					spec.data = tcpData(tt.flags, tt.options, payload)
					p := spec.build()
					changed := ClampMSS(p, infoOf(p), Meta{}, mtu)
					if changed == bytes.Equal(tt.options, tt.want) {
						t.Errorf("changed: %v", changed)
					}
					if !bytes.Equal(p, want) {
						t.Errorf("\n got %x\nwant %x", p, want)
					}
				}
			}
		})
	}
}

func TestClampMSSLeavesAlone(t *testing.T) {
	options := []byte{2, 4, 0x05, 0xb4}
	syn := tcpData(0x02, options, 0)
	for name, p := range map[string][]byte{
		"UDP":             ipSpec{proto: 17, data: append(udpData(0), syn...)}.build(),
		"later fragment":  ipSpec{proto: 6, frag: 1, data: syn}.build(),
		"fragment's head": ipSpec{proto: 6, frag: 0x2000, data: syn[:16]}.build(),
	} {
		before := bytes.Clone(p)
		if ClampMSS(p, infoOf(p), Meta{}, 600) || !bytes.Equal(p, before) {
			t.Errorf("%s: changed", name)
		}
	}
	p := ipSpec{proto: 6, data: syn}.build()
	i := infoOf(p)
	for n := range p {
		if ClampMSS(bytes.Clone(p[:n]), i, Meta{}, 600) {
			t.Errorf("changed %d bytes of a packet", n)
		}
	}
}

// Of a coalesced superpacket the worker has the headers in a piece of their own.
func TestClampMSSOfHeadersAlone(t *testing.T) {
	p := ipSpec{proto: 6, data: tcpData(0x02, []byte{2, 4, 0x05, 0xb4}, 11)}.build()
	i := infoOf(p)
	if !ClampMSS(p[:i.HeaderLen():i.HeaderLen()], i, Meta{}, 600) || !VerifyTransport(p, i) {
		t.Error("not clamped, or with a wrong checksum")
	}
}

// The partial checksum is the pseudo header's sum, which has no part of the options in it.
func TestClampMSSPartialChecksum(t *testing.T) {
	p := naiveSpec{flags: 0x02, options: []byte{1, 2, 4, 0x05, 0xb4, 0, 0, 0}, payload: filler(100)}.build()
	m := naiveMeta(p, 1000)
	m.Type, m.SegmentSize = GSONone, 0
	i := infoOf(p)
	if !ClampMSS(p, i, m, 600) {
		t.Fatal("not clamped")
	}
	if !CompleteChecksum(p, m) || !VerifyTransport(p, i) {
		t.Error("the completed checksum is wrong")
	}
	// The checksum that is to be completed is an inner one: the TCP header's own is complete.
	p = ipSpec{proto: 6, data: tcpData(0x02, []byte{2, 4, 0x05, 0xb4}, 60)}.build()
	m.ChecksumStart = 60
	if !ClampMSS(p, infoOf(p), m, 600) || !VerifyTransport(p, infoOf(p)) {
		t.Error("a complete checksum was not updated")
	}
}

// naiveClamp clamps options as RFC 9293, 3.2 reads them.
func naiveClamp(options []byte, limit int) {
	if len(options) == 0 || options[0] == 0 {
		return
	}
	if options[0] == 1 {
		naiveClamp(options[1:], limit)
		return
	}
	if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
		return
	}
	if options[0] == 2 && options[1] == 4 && be16(options[2:]) > limit {
		binary.BigEndian.PutUint16(options[2:], uint16(limit))
	}
	naiveClamp(options[options[1]:], limit)
}

func FuzzClampMSS(f *testing.F) {
	for _, options := range [][]byte{
		nil, {2, 4, 0x05, 0xb4}, {1, 2, 4, 0x05, 0xb4, 0, 0, 0}, {2, 4, 0xff, 0xff, 2, 4, 0xff, 0xfe}, {2, 0, 0, 0},
		{1, 1, 1, 2}, {3, 3, 7, 2, 4, 0x23, 0x28}, {2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7},
	} {
		f.Add(options, byte(0x02), uint16(1420), []byte("x"), false, false)
		f.Add(options, byte(0x12), uint16(1280), []byte{}, true, false)
		f.Add(options, byte(0x02), uint16(61), []byte{1, 2}, true, true)
	}
	f.Fuzz(func(t *testing.T, options []byte, flags byte, mtu uint16, payload []byte, v6, partial bool) {
		options = options[:min(len(options), 40)&^3]
		spec := ipSpec{v6: v6, proto: 6, data: append(tcpData(flags, options, 0), payload[:min(len(payload), 1400)]...)}
		p := spec.build()
		limit := int(mtu) - 40
		if v6 {
			limit -= 20
		}
		m := Meta{NeedsChecksum: partial, ChecksumStart: infoOf(p).L4, ChecksumOffset: 16}
		want := bytes.Clone(p)
		if flags&0x02 != 0 && limit > 0 {
			clamped := bytes.Clone(options)
			naiveClamp(clamped, limit)
			copy(spec.data[20:], clamped)
			if partial {
				copy(want[infoOf(p).L4+20:], clamped)
			} else {
				want = spec.build()
			}
		}
		before := bytes.Clone(p)
		changed := ClampMSS(p, infoOf(p), m, int(mtu))
		if changed == bytes.Equal(p, before) {
			t.Fatalf("changed: %v", changed)
		}
		// 0 and 0xffff are the same number in ones-complement arithmetic, and RFC 1624 may arrive at either.
		at := int(m.ChecksumStart) + 16
		if !partial && be16(p[at:])%0xffff == 0 && be16(want[at:])%0xffff == 0 {
			copy(want[at:], p[at:at+2])
		}
		if !bytes.Equal(p, want) {
			t.Fatalf("\n got %x\nwant %x", p, want)
		}
		if !partial && !VerifyTransport(p, infoOf(p)) {
			t.Fatalf("wrong checksum: %x", p)
		}
		if syn := header.ParseSynOptions(p[at+4:infoOf(p).HeaderLen()], true); flags&2 != 0 && limit > 536 &&
			int(syn.MSS) > limit {
			t.Fatalf("gVisor reads an MSS of %d, the limit is %d: %x", syn.MSS, limit, p)
		}
	})
}

func TestClampMSSAllocates(t *testing.T) {
	p := ipSpec{proto: 6, data: tcpData(0x02, []byte{1, 2, 4, 0x05, 0xb4, 0, 0, 0}, 0)}.build()
	i := infoOf(p)
	if n := testing.AllocsPerRun(100, func() { p[43] = 5; ClampMSS(p, i, Meta{}, 1000) }); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

func BenchmarkClampMSS(b *testing.B) {
	options := []byte{2, 4, 0x05, 0xb4, 4, 2, 8, 10, 15: 0, 16: 1, 17: 3, 18: 3, 19: 7} // what Linux sends
	p := ipSpec{proto: 6, data: tcpData(0x02, options, 0)}.build()
	i := infoOf(p)
	b.ReportAllocs()
	for b.Loop() {
		p[42] = 0x05
		ClampMSS(p, i, Meta{}, 1000)
	}
}
