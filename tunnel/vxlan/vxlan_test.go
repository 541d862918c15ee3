package vxlan

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
)

var (
	ownMAC  = [6]byte{0x0e, 0x57, 192, 0, 2, 1}
	peerMAC = [6]byte{0x0e, 0x57, 192, 0, 2, 2}
)

func TestHeaderBytes(t *testing.T) {
	tpl := NewTemplate(0xabcdef, peerMAC, ownMAC)
	want4 := "08000000" + "abcdef00" + "0e57c0000202" + "0e57c0000201" + "0800"
	want6 := want4[:len(want4)-4] + "86dd"
	if got := hex.EncodeToString(tpl.Header(4)); got != want4 {
		t.Errorf("IPv4 header\n got %s\nwant %s", got, want4)
	}
	if got := hex.EncodeToString(tpl.Header(6)); got != want6 {
		t.Errorf("IPv6 header\n got %s\nwant %s", got, want6)
	}
	if Overhead4 != 50 || Overhead6 != 70 || HeaderLen != 22 {
		t.Errorf("overheads %d, %d and header %d, want 50, 70 and 22", Overhead4, Overhead6, HeaderLen)
	}
	// A VNI that does not fit must not reach into the flags.
	if h := NewHeader(0xff000001, peerMAC, ownMAC, EtherTypeIPv4); !bytes.Equal(h[:8], []byte{8, 0, 0, 0, 0, 0, 1, 0}) {
		t.Errorf("header of an oversized VNI begins % x", h[:8])
	}
}

func TestMAC(t *testing.T) {
	for _, tt := range []struct{ addr, want string }{
		{"192.0.2.1", "0e:57:c0:00:02:01"},
		{"::ffff:192.0.2.1", "0e:57:c0:00:02:01"},
		{"2001:db8::1", "0e:57:1e:03:d7:e1"},
	} {
		if got := MAC(netip.MustParseAddr(tt.addr)).String(); got != tt.want {
			t.Errorf("MAC(%s) = %s, want %s: nodes of two versions would not agree", tt.addr, got, tt.want)
		}
	}
	if got := MAC(netip.MustParseAddr("fe80::1%eth0")); got.String() != MAC(netip.MustParseAddr("fe80::1")).String() {
		t.Errorf("the zone changes the address: %s", got)
	}
	if got := MAC(netip.Addr{}); got != nil {
		t.Errorf("MAC of the zero Addr = %s, want nil", got)
	}
}

func TestAddress(t *testing.T) {
	if got, err := Address(MAC(netip.MustParseAddr("192.0.2.1"))); err != nil || got != ownMAC {
		t.Errorf("Address = %x, %v", got, err)
	}
	for _, bad := range []net.HardwareAddr{
		nil, {1, 2, 3}, make(net.HardwareAddr, 6), make(net.HardwareAddr, 8),
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {0x01, 0, 0x5e, 0, 0, 1},
	} {
		if _, err := Address(bad); err == nil {
			t.Errorf("Address(%s) accepted", bad)
		}
	}
}

// frame builds a datagram and lets edit spoil it.
func frame(etherType uint16, inner string, edit func(b []byte)) []byte {
	h := NewHeader(7, ownMAC, peerMAC, etherType)
	b := append(h[:], inner...)
	if edit != nil {
		edit(b)
	}
	return b
}

var decodeTable = []struct {
	name string
	data []byte
	want Drop
}{
	{"ipv4", frame(EtherTypeIPv4, "\x45 packet", nil), Accepted},
	{"ipv6", frame(EtherTypeIPv6, "\x60 packet", nil), Accepted},
	{"one inner byte", frame(EtherTypeIPv4, "\x45", nil), Accepted},
	{"reserved fields", frame(EtherTypeIPv4, "\x45", func(b []byte) { b[1], b[2], b[7] = 0x40, 2, 4 }), Accepted},
	{"reserved flags and GBP", frame(EtherTypeIPv4, "\x45", func(b []byte) { b[0] = 0xfb }), Accepted},
	{"empty", nil, TooShort},
	{"headers only", frame(EtherTypeIPv4, "", nil), TooShort},
	{"no I flag", frame(EtherTypeIPv4, "\x45", func(b []byte) { b[0] = 0 }), NoVNI},
	{"other VNI", frame(EtherTypeIPv4, "\x45", func(b []byte) { b[6] = 8 }), WrongVNI},
	{"other VNI, high byte", frame(EtherTypeIPv4, "\x45", func(b []byte) { b[4] = 1 }), WrongVNI},
	{"remote checksum offload", frame(EtherTypeIPv4, "\x45", func(b []byte) { b[1] = 0x20 }), RemoteChecksum},
	{"GPE", frame(EtherTypeIPv4, "\x45", func(b []byte) { b[0], b[3] = 0x0c, 1 }), NextProtocol},
	{"broadcast", frame(0x0806, "\x00", func(b []byte) { copy(b[8:], "\xff\xff\xff\xff\xff\xff") }), GroupMAC},
	{"multicast", frame(EtherTypeIPv6, "\x60", func(b []byte) { copy(b[8:], "\x33\x33\x00\x00\x00\x01") }), GroupMAC},
	{"other VTEP", frame(EtherTypeIPv4, "\x45", func(b []byte) { b[13] = 9 }), WrongMAC},
	{"ARP", frame(0x0806, "\x00\x01", nil), WrongEtherType},
	{"VLAN", frame(0x8100, "\x00\x01\x08\x00\x45", nil), WrongEtherType},
	{"IPv6 packet as IPv4", frame(EtherTypeIPv4, "\x60", nil), WrongEtherType},
	{"IPv4 packet as IPv6", frame(EtherTypeIPv6, "\x45", nil), WrongEtherType},
}

func TestDecode(t *testing.T) {
	d := Decoder{VNI: 7, MAC: ownMAC}
	for _, tt := range decodeTable {
		inner, got := d.Decode(tt.data)
		if got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if got == Accepted && !bytes.Equal(inner, tt.data[HeaderLen:]) {
			t.Errorf("%s: inner packet % x, want % x", tt.name, inner, tt.data[HeaderLen:])
		}
		if got != Accepted && inner != nil {
			t.Errorf("%s: refused, but an inner packet was returned", tt.name)
		}
	}
	whole := frame(EtherTypeIPv4, "\x45 packet", nil)
	for n := range HeaderLen + 1 {
		if _, got := d.Decode(whole[:n]); got != TooShort {
			t.Errorf("truncated to %d bytes: %v, want %v", n, got, TooShort)
		}
	}
}

func TestDropNames(t *testing.T) {
	seen := map[string]bool{}
	for d := range NumDrops {
		if s := d.String(); seen[s] || strings.Contains(s, "unknown") {
			t.Errorf("drop %d has the name %q", d, s)
		} else {
			seen[s] = true
		}
	}
}

// naive reads the datagram bit by bit, as the figures of RFC 7348 section 5 draw it.
func naive(vni uint32, mac [6]byte, b []byte) Drop {
	bit := func(word, n int) bool { return b[word*4+n/8]>>(7-n%8)&1 == 1 } // n counts from the left, as in the RFC
	if len(b) < 8+14+1 {
		return TooShort
	}
	if !bit(0, 4) {
		return NoVNI
	}
	if uint32(b[4])*65536+uint32(b[5])*256+uint32(b[6]) != vni {
		return WrongVNI
	}
	if bit(0, 10) {
		return RemoteChecksum
	}
	if bit(0, 5) {
		return NextProtocol
	}
	if !bytes.Equal(b[8:14], mac[:]) {
		if b[8]%2 == 1 {
			return GroupMAC
		}
		return WrongMAC
	}
	if b[20] == 8 && b[21] == 0 && b[22] >= 0x40 && b[22] < 0x50 || b[20] == 0x86 && b[21] == 0xdd && b[22]/16 == 6 {
		return Accepted
	}
	return WrongEtherType
}

func FuzzDecode(f *testing.F) {
	for _, tt := range decodeTable {
		f.Add(uint32(7), ownMAC[:], tt.data)
	}
	f.Fuzz(func(t *testing.T, vni uint32, mac, data []byte) {
		d := Decoder{VNI: vni}
		copy(d.MAC[:], mac)
		inner, got := d.Decode(data)
		if want := naive(vni&MaxVNI, d.MAC, data); got != want {
			t.Fatalf("% x: %v, want %v", data, got, want)
		}
		if got == Accepted && !bytes.Equal(inner, data[HeaderLen:]) {
			t.Fatalf("% x: inner packet % x", data, inner)
		}
	})
}

// FuzzRoundTrip makes a header of anything and expects its own decoder to accept it, and every other to refuse it.
func FuzzRoundTrip(f *testing.F) {
	f.Add(uint32(1), []byte("abcdef"), []byte("ghijkl"), true, []byte("payload"))
	f.Fuzz(func(t *testing.T, vni uint32, dst, src []byte, six bool, payload []byte) {
		var to, from [6]byte
		copy(to[:], dst)
		copy(from[:], src)
		tpl := NewTemplate(vni, to, from)
		version := uint8(4)
		if six {
			version = 6
		}
		b := append(append([]byte{}, tpl.Header(version)...), version<<4)
		b = append(b, payload...)
		d := Decoder{VNI: vni, MAC: to}
		inner, got := d.Decode(b)
		if got != Accepted || !bytes.Equal(inner, b[HeaderLen:]) {
			t.Fatalf("own frame: %v, % x", got, inner)
		}
		d.VNI ^= 1
		if _, got := d.Decode(b); got != WrongVNI {
			t.Fatalf("other VNI: %v", got)
		}
	})
}

func TestAllocations(t *testing.T) {
	d := Decoder{VNI: 7, MAC: ownMAC}
	tpl := NewTemplate(7, ownMAC, peerMAC)
	b := frame(EtherTypeIPv4, "\x45", nil)
	sum := 0
	if n := testing.AllocsPerRun(100, func() {
		inner, drop := d.Decode(b)
		sum += len(inner) + int(drop) + len(tpl.Header(6))
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkDecode(b *testing.B) {
	d := Decoder{VNI: 7, MAC: ownMAC}
	data := frame(EtherTypeIPv4, "\x45"+strings.Repeat("x", 1449), nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, drop := d.Decode(data); drop != Accepted {
			b.Fatal(drop)
		}
	}
}
