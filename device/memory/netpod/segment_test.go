package netpod

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warren-net/warren/forwarder/packet"
)

// superpacket makes a TCP or UDP superpacket with a partial checksum.
func superpacket(version int, t packet.GSOType, payload, size int) ([]byte, packet.Meta) {
	ip := map[int]int{4: 20, 6: 40}[version]
	l4, sumAt, proto := 32, tcpSumAt, byte(protoTCP)
	if t == packet.GSOUDP {
		l4, sumAt, proto = 8, udpSumAt, protoUDP
	}
	p := make([]byte, ip+l4+payload)
	if version == 4 {
		p[0], p[8], p[9] = 0x45, 9, proto
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], 0xfffe) // the identification wraps
		copy(p[12:], []byte{10, 244, 1, 2, 10, 244, 2, 3})
		setIPv4Checksum(p)
	} else {
		p[0], p[6], p[7] = 0x60, proto, 9
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		for i := 8; i < 40; i++ {
			p[i] = byte(i * 11)
		}
	}
	h := p[ip:]
	binary.BigEndian.PutUint32(h, 0x1234_0050)
	if t == packet.GSOUDP {
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
	} else {
		binary.BigEndian.PutUint32(h[4:], 0xffff_ff00) // the sequence number wraps
		h[12], h[13] = 8<<4, flagFIN|flagPSH|flagCWR|0x10
	}
	for i := l4; i < len(h); i++ {
		h[i] = byte(i * 3)
	}
	h[sumAt] = 1
	m := makePartial(p)
	m.Type, m.SegmentSize = t, uint16(size)
	return p, m
}

// goodChecksums asks gVisor whether a complete packet's checksums are right.
func goodChecksums(t *testing.T, p []byte) {
	t.Helper()
	if err := checkIP(p); err != nil {
		t.Error(err)
	}
	var src, dst tcpip.Address
	var l4 []byte
	var proto uint8
	if p[0]>>4 == 4 {
		ip := header.IPv4(p)
		if !ip.IsValid(len(p)) || !ip.IsChecksumValid() {
			t.Error("gVisor refuses the IPv4 header")
		}
		src, dst, l4, proto = ip.SourceAddress(), ip.DestinationAddress(), ip.Payload(), ip.Protocol()
	} else {
		ip := header.IPv6(p)
		if !ip.IsValid(len(p)) {
			t.Error("gVisor refuses the IPv6 header")
		}
		src, dst, l4, proto = ip.SourceAddress(), ip.DestinationAddress(), ip.Payload(), ip.NextHeader()
	}
	number := tcpip.TransportProtocolNumber(proto)
	s := header.PseudoHeaderChecksum(number, src, dst, uint16(len(l4)))
	if checksum.Checksum(l4, s) != 0xffff {
		t.Errorf("gVisor: bad transport checksum of a packet of %d bytes", len(p))
	}
}

func TestSegment(t *testing.T) {
	for _, version := range []int{4, 6} {
		for _, typ := range []packet.GSOType{packet.GSOTCP4, packet.GSOTCP6, packet.GSOUDP} {
			if typ == packet.GSOTCP4 && version == 6 || typ == packet.GSOTCP6 && version == 4 {
				continue
			}
			for _, payload := range []int{1, 99, 100, 101, 1000, 1001, 5555} {
				t.Run(fmt.Sprintf("IPv%d type %d, %d bytes", version, typ, payload), func(t *testing.T) {
					p, m := superpacket(version, typ, payload, 100)
					out, err := segment(p, m)
					if err != nil || len(out) != (payload+99)/100 {
						t.Fatalf("%d segments, %v", len(out), err)
					}
					headers := len(p) - payload
					var joined []byte
					for i, s := range out {
						goodChecksums(t, s)
						joined = append(joined, s[headers:]...)
						if version == 4 && binary.BigEndian.Uint16(s[4:]) != uint16(0xfffe+i) {
							t.Errorf("segment %d: identification %#x", i, binary.BigEndian.Uint16(s[4:]))
						}
						if typ != packet.GSOUDP {
							checkTCP(t, s[m.ChecksumStart:], i, i == len(out)-1)
						}
					}
					if !bytes.Equal(joined, p[headers:]) {
						t.Error("the payload changed")
					}
				})
			}
		}
	}
}

func checkTCP(t *testing.T, h []byte, i int, last bool) {
	t.Helper()
	if seq := binary.BigEndian.Uint32(h[4:]); seq != 0xffff_ff00+uint32(i)*100 {
		t.Errorf("segment %d: sequence number %#x", i, seq)
	}
	want := byte(0x10)
	if i == 0 {
		want |= flagCWR
	}
	if last {
		want |= flagFIN | flagPSH
	}
	if h[13] != want {
		t.Errorf("segment %d: flags %#x, want %#x", i, h[13], want)
	}
}

// A wrong sum of the pseudo header is not repaired on the way: it must be noticed.
func TestSegmentKeepsWrongPseudoSum(t *testing.T) {
	p, m := superpacket(4, packet.GSOTCP4, 250, 100)
	p[20+tcpSumAt+1]++
	out, err := segment(p, m)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range out {
		l4 := s[20:]
		pseudo := header.PseudoHeaderChecksum(protoTCP, header.IPv4(s).SourceAddress(), header.IPv4(s).DestinationAddress(),
			uint16(len(l4)))
		if checksum.Checksum(l4, pseudo) == 0xffff {
			t.Errorf("segment %d has a good checksum", i)
		}
	}
}

func TestLonePackets(t *testing.T) {
	p, m := superpacket(6, packet.GSOUDP, 77, 100)
	m.Type, m.SegmentSize = packet.GSONone, 0
	out, err := segment(p, m)
	if err != nil || len(out) != 1 {
		t.Fatalf("%d packets, %v", len(out), err)
	}
	goodChecksums(t, out[0])
	again, err := segment(out[0], packet.Meta{})
	if err != nil || !bytes.Equal(again[0], out[0]) {
		t.Errorf("a complete packet changed: %v", err)
	}
	if back := append([]byte(nil), out[0]...); makePartial(back) != m || !bytes.Equal(back, p) {
		t.Error("makePartial does not undo what segment did")
	}
	none := append([]byte(nil), p...)
	none[40+udpSumAt], none[40+udpSumAt+1] = 0, 0
	if makePartial(none) != (packet.Meta{}) {
		t.Error("UDP without checksum got one")
	}
	fragment, _ := superpacket(4, packet.GSOUDP, 77, 100)
	fragment[6] = 0x20
	if makePartial(fragment) != (packet.Meta{}) {
		t.Error("a fragment got a partial checksum")
	}
}

// A sum of 0xffff becomes the checksum 0 in TCP and 0xffff in UDP.
func TestZeroChecksum(t *testing.T) {
	for at, want := range map[int]uint16{udpSumAt: 0xffff, tcpSumAt: 0} {
		p := make([]byte, 40)
		binary.BigEndian.PutUint16(p[at:], 0xffff)
		complete(p, 0, at)
		if got := binary.BigEndian.Uint16(p[at:]); got != want {
			t.Errorf("checksum at %d: %#x, want %#x", at, got, want)
		}
	}
}

func TestSegmentRefuses(t *testing.T) {
	for name, change := range map[string]func(p []byte, m *packet.Meta) []byte{
		"checksum beyond the end":  func(p []byte, m *packet.Meta) []byte { m.Type = 0; m.ChecksumOffset = 60000; return p },
		"no partial checksum":      func(p []byte, m *packet.Meta) []byte { m.NeedsChecksum = false; return p },
		"segment size 0":           func(p []byte, m *packet.Meta) []byte { m.SegmentSize = 0; return p },
		"wrong start":              func(p []byte, m *packet.Meta) []byte { m.ChecksumStart++; return p },
		"wrong offset":             func(p []byte, m *packet.Meta) []byte { m.ChecksumOffset = 6; return p },
		"UDP as TCP":               func(p []byte, m *packet.Meta) []byte { p[9] = protoUDP; return p },
		"TCP as UDP":               func(p []byte, m *packet.Meta) []byte { m.Type = packet.GSOUDP; return p },
		"IPv4 as IPv6":             func(p []byte, m *packet.Meta) []byte { m.Type = packet.GSOTCP6; return p },
		"unknown type":             func(p []byte, m *packet.Meta) []byte { m.Type = 77; return p },
		"transport header cut off": func(p []byte, m *packet.Meta) []byte { return p[:30] },
		"TCP options cut off":      func(p []byte, m *packet.Meta) []byte { return p[:45] },
	} {
		t.Run(name, func(t *testing.T) {
			p, m := superpacket(4, packet.GSOTCP4, 250, 100)
			p = change(p, &m)
			if out, err := segment(p, m); err == nil {
				t.Errorf("%d segments", len(out))
			}
		})
	}
}

func TestCheckIPAndHop(t *testing.T) {
	p, _ := superpacket(4, packet.GSOTCP4, 250, 100)
	for n := range p {
		if err := checkIP(p[:n]); !errors.Is(err, errHeader) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	for left := 9; left > 1; left-- {
		if !hop(p) || p[8] != byte(left-1) {
			t.Fatalf("hop at %d", left)
		}
		goodIPv4 := header.IPv4(p)
		if !goodIPv4.IsChecksumValid() {
			t.Fatalf("bad IPv4 checksum at %d", left)
		}
	}
	if hop(p) {
		t.Error("hop limit of 1 passed")
	}
	p[10]++
	if err := checkIP(p); !errors.Is(err, errHeader) {
		t.Errorf("wrong checksum: %v", err)
	}
	p6, _ := superpacket(6, packet.GSOTCP6, 250, 100)
	for n := range p6 {
		if err := checkIP(p6[:n]); !errors.Is(err, errHeader) {
			t.Fatalf("IPv6 cut at %d: %v", n, err)
		}
	}
	p6[7] = 1
	if hop(p6) {
		t.Error("IPv6: hop limit of 1 passed")
	}
}
