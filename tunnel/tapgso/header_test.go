package tapgso

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/vxlan"
)

var (
	own4  = netip.MustParseAddr("192.0.2.1")
	own6  = netip.MustParseAddr("2001:db8::1")
	peer4 = netip.MustParseAddrPort("192.0.2.2:4789")
	peer6 = netip.MustParseAddrPort("[2001:db8::2]:4789")
)

// tcpSuperpacket is a superpacket of so many bytes of payload in segments of 1,000, over IPv4 or IPv6.
func tcpSuperpacket(t *testing.T, version, payload int, flags byte) (p []byte, i *packet.Info, m packet.Meta) {
	t.Helper()
	l3 := 20
	if version == 6 {
		l3 = 40
	}
	p = make([]byte, l3+20+payload)
	m = packet.Meta{
		Type: packet.GSOTCP4, NeedsChecksum: true, SegmentSize: 1000, ChecksumStart: uint16(l3), ChecksumOffset: 16,
	}
	if version == 4 {
		copy(p, []byte{0x45, 0, byte(len(p) >> 8), byte(len(p)), 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 244, 1, 2, 10, 244, 2, 2})
	} else {
		m.Type = packet.GSOTCP6
		n := len(p) - l3
		copy(p, []byte{0x60, 0, 0, 0, byte(n >> 8), byte(n), 6, 64, 0xfd})
		p[24] = 0xfd
	}
	p[l3+12], p[l3+13] = 5<<4, flags
	i = new(packet.Info)
	if e := packet.Parse(p, i); e != packet.OK {
		t.Fatal(e)
	}
	return p, i, m
}

func encapsulation(version uint8) []byte {
	template := vxlan.NewTemplate(1, [6]byte{0x0e, 0x57, 192, 0, 2, 2}, [6]byte{0x0e, 0x57, 192, 0, 2, 1})
	return template.Header(version)
}

// TestPrefix compares every byte before the inner packet with one that was worked out by hand from VIRTIO 1.4, 5.1.6,
// RFC 791, RFC 8200, RFC 768 and RFC 7348.
func TestPrefix(t *testing.T) {
	// 3,000 bytes of payload: over IPv4 3,040 (0x0be0) of IP, with VXLAN and Ethernet 3,062 (0x0bf6), with UDP 3,070
	// (0x0bfe), with outer IPv4 3,090 (0x0c12). Over IPv6 each is 20 (0x14) more.
	const (
		ethernet = "0e57 6773 6f00  0e57 6773 6f01"
		vxlan4   = "0800 0000 0000 0100  0e57 c000 0202 0e57 c000 0201 0800"
		vxlan6   = "0800 0000 0000 0100  0e57 c000 0202 0e57 c000 0201 86dd"
	)
	for _, c := range []struct {
		name         string
		outer, inner int
		flags        byte
		want         string
	}{
		{"IPv4 in IPv4", 4, 4, 0x10,
			// 14 + 20 + 8 + 22 = 64 before the inner IP header, 84 before TCP, 104 (0x68) before its payload.
			"09 21 6800 e803 5400 1000 0000 00000000 0000 0000 2200 4000" + ethernet + "0800" +
				// 4500+0c12+0000+4000+4111+0000+c000+0201+c000+0202 = 25626: 5626+2 = 5628, not that: a9d7.
				"4500 0c12 0000 4000 4111 a9d7 c0000201 c0000202" +
				// c000+0201+c000+0202+0011+0bfe = 19012: 9013.
				"c001 12b5 0bfe 9013" + vxlan4},
		{"IPv4 with CWR in IPv4", 4, 4, 0x90,
			"09 a1 6800 e803 5400 1000 0000 00000000 0000 0000 2200 4000" + ethernet + "0800" +
				"4500 0c12 0000 4000 4111 a9d7 c0000201 c0000202" + "c001 12b5 0bfe 9013" + vxlan4},
		{"IPv6 in IPv4", 4, 6, 0x10,
			"09 24 7c00 e803 6800 1000 0000 00000000 0000 0000 2200 4000" + ethernet + "0800" +
				"4500 0c26 0000 4000 4111 a9c3 c0000201 c0000202" + "c001 12b5 0c12 9027" + vxlan6},
		{"IPv4 in IPv6", 6, 4, 0x10,
			// 14 + 40 + 8 + 22 = 84, 104, 124 (0x7c).
			"09 41 7c00 e803 6800 1000 0000 00000000 0000 0000 3600 5400" + ethernet + "86dd" +
				"60000000 0bfe 11 41 20010db8000000000000000000000001 20010db8000000000000000000000002" +
				// 2001+0db8+0001+2001+0db8+0002+0011+0bfe = 6784.
				"c001 12b5 0bfe 6784" + vxlan4},
		{"IPv6 in IPv6", 6, 6, 0x10,
			"09 44 9000 e803 7c00 1000 0000 00000000 0000 0000 3600 5400" + ethernet + "86dd" +
				"60000000 0c12 11 41 20010db8000000000000000000000001 20010db8000000000000000000000002" +
				"c001 12b5 0c12 6798" + vxlan6},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, i, m := tcpSuperpacket(t, c.inner, 3000, c.flags)
			from, to := own4, peer4
			if c.outer == 6 {
				from, to = own6, peer6
			}
			s := tunnel.Superpacket{
				To: to, SourcePort: 0xc001, Header: encapsulation(i.Version), Packet: p, Info: i, Meta: m,
			}
			var b [prefixMax]byte
			for k := range b {
				b[k] = 0xee // of the packet before
			}
			want, err := hex.DecodeString(strings.ReplaceAll(c.want, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			if got := b[:putPrefix(&b, &s, from, superpacketTTL)]; !bytes.Equal(got, want) {
				t.Errorf("got\n%x, want\n%x", got, want)
			}
		})
	}
}

// TestPrefixTOS wants DSCP and ECN in the outer header, and its checksum to agree.
func TestPrefixTOS(t *testing.T) {
	const tos = 0xb9
	p, i, m := tcpSuperpacket(t, 4, 3000, 0x10)
	s := tunnel.Superpacket{TOS: tos, SourcePort: 1, Header: encapsulation(4), Packet: p, Info: i, Meta: m}
	for to, from := range map[netip.AddrPort]netip.Addr{peer4: own4, peer6: own6} {
		s.To = to
		var b [prefixMax]byte
		n := putPrefix(&b, &s, from, superpacketTTL)
		outer := b[vnetLen+ethernetLen : n]
		if to == peer4 && !packet.VerifyIPv4(outer[:ipv4Len]) {
			t.Errorf("outer IPv4 checksum wrong: %x", outer[:ipv4Len])
		}
		got := outer[1]
		if to == peer6 {
			got = outer[0]<<4 | outer[1]>>4
		}
		if got != tos {
			t.Errorf("to %s: TOS %#x, want %#x", to, got, tos)
		}
	}
}

// TestPrefixRefuses wants what does not fit to be left to the caller.
func TestPrefixRefuses(t *testing.T) {
	const before = ethernetLen + ipv4Len + udpLen + vxlan.HeaderLen
	for _, c := range []struct {
		name  string
		bytes int // of the inner packet
		from  netip.Addr
		taken bool
	}{
		{"largest frame", frameMax - before, own4, true},
		{"a byte more", frameMax - before + 1, own4, false},
		{"largest packet", packet.MaxPacket, own4, false},
		{"no own address of the family", 3000, netip.Addr{}, false},
	} {
		p, i, m := tcpSuperpacket(t, 4, c.bytes-40, 0x10)
		s := tunnel.Superpacket{To: peer4, SourcePort: 1, Header: encapsulation(4), Packet: p, Info: i, Meta: m}
		var b [prefixMax]byte
		if n := putPrefix(&b, &s, c.from, superpacketTTL); n > 0 != c.taken {
			t.Errorf("%s: %d bytes written, want it taken: %v", c.name, n, c.taken)
		}
	}
}

// TestProbe wants a probe to look like a superpacket to a firewall, with a TTL that forwarding makes 1, and to have two
// segments.
func TestProbe(t *testing.T) {
	for to, from := range map[netip.AddrPort]netip.Addr{peer4: own4, peer6: own6} {
		for version, kind := range map[uint8]byte{4: vnetTCP4, 6: vnetTCP6} {
			b := probe(version, netip.AddrPortFrom(from, 0xc001), to)
			ip := b[vnetLen+ethernetLen:]
			var i packet.Info
			if e := packet.Parse(ip, &i); e != packet.OK || int(i.Len) != len(ip) {
				t.Errorf("to %s: %v, length %d of %d", to, e, i.Len, len(ip))
			}
			m := packet.Meta{NeedsChecksum: true, ChecksumStart: i.L4, ChecksumOffset: udpChecksum}
			if !packet.CompleteChecksum(ip, m) || !packet.VerifyTransport(ip, &i) {
				t.Errorf("to %s: checksum does not come out", to)
			}
			if from.Is4() {
				kind |= vnetTunnel4
			} else {
				kind |= vnetTunnel6
			}
			got := fmt.Sprint(i.Src, i.SrcPort, i.Dst, i.DstPort, i.TTL, b[offType])
			if want := fmt.Sprint(from, 0xc001, to.Addr(), to.Port(), 2, kind); got != want {
				t.Errorf("probe is %s, want %s", got, want)
			}
			inner := vnetLen + int(binary.LittleEndian.Uint16(b[offInnerNetwork:]))
			if e := packet.Parse(b[inner:], &i); e != packet.OK || int(i.Len) != len(b)-inner || i.Version != version ||
				i.Proto != protoTCP || !i.Dst.IsLoopback() || !bytes.Equal(b[inner-22:inner], make([]byte, 22)) {
				t.Errorf("to %s: inner packet %+v: %v", to, i, e)
			}
			payload, segment := int(i.Len)-i.HeaderLen(), int(binary.LittleEndian.Uint16(b[offSegmentSize:]))
			if payload != 2*segment || segment == 0 {
				t.Errorf("to %s: %d bytes of payload in segments of %d, want two", to, payload, segment)
			}
		}
	}
}

func TestName(t *testing.T) {
	for device, want := range map[string]string{
		"warren0": "warren0-gso", "w": "w-gso", "elevenbytes": "elevenbytes-gso", "averylongdevice": "averylongde-gso",
		"warren0-gso": "warren0-gso-gso", "averylongde-gso": "averylongde-tap", "averylongde-tap": "averylongde-gso",
	} {
		if got := Name(device); got != want || len(got) > nameMax || got == device {
			t.Errorf("name for %s: %s, want %s", device, got, want)
		}
	}
}
