package worker

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warren-net/warren/forwarder/packet"
)

// build describes a packet for tests; bytes are made by gVisor's header package, not by the code under test.
type build struct {
	src, dst string
	proto    uint8 // TCP when 0
	flags    uint8 // TCP
	mss      uint16
	seq      uint32
	payload  int
	tos      uint8
	id       uint16
	df       bool
	noSum    bool   // UDP: checksum 0
	l4       []byte // the whole transport part, instead of TCP or UDP
	ipOpts   []byte // IPv4 options
	ext      []byte // IPv6 extension headers, the first of type extType
	extType  uint8
	fragment uint16 // IPv4 flags and fragment offset field
}

const (
	protoICMP, protoICMP6 = 1, 58
	srcPort, dstPort      = 40000, 80
)

func (b build) bytes(t testing.TB) []byte {
	t.Helper()
	src, dst := netip.MustParseAddr(b.src), netip.MustParseAddr(b.dst)
	if b.proto == 0 {
		b.proto = protoTCP
	}
	l4 := b.l4
	if l4 == nil {
		l4 = b.transport(t, src, dst)
	}
	if src.Is4() {
		hl := header.IPv4MinimumSize + len(b.ipOpts)
		p := make([]byte, hl, hl+len(l4))
		h := header.IPv4(p)
		var fl uint8
		if b.df {
			fl = header.IPv4FlagDontFragment
		}
		h.Encode(&header.IPv4Fields{TOS: b.tos, TotalLength: uint16(hl + len(l4)), ID: b.id, Flags: fl, TTL: 63,
			Protocol: b.proto, SrcAddr: tcpip.AddrFrom4(src.As4()), DstAddr: tcpip.AddrFrom4(dst.As4())})
		copy(p[20:], b.ipOpts)
		p[0] = 4<<4 | byte(hl/4)
		if b.fragment != 0 {
			p[6], p[7] = byte(b.fragment>>8), byte(b.fragment)
		}
		p[10], p[11] = 0, 0
		h.SetChecksum(^checksum.Checksum(p[:hl], 0))
		return append(p, l4...)
	}
	next := b.proto
	if b.ext != nil {
		next = b.extType
	}
	p := make([]byte, header.IPv6MinimumSize, header.IPv6MinimumSize+len(b.ext)+len(l4))
	header.IPv6(p).Encode(&header.IPv6Fields{TrafficClass: b.tos, PayloadLength: uint16(len(b.ext) + len(l4)),
		TransportProtocol: tcpip.TransportProtocolNumber(next), HopLimit: 63,
		SrcAddr: tcpip.AddrFrom16(src.As16()), DstAddr: tcpip.AddrFrom16(dst.As16())})
	return append(append(p, b.ext...), l4...)
}

func (b build) transport(t testing.TB, src, dst netip.Addr) []byte {
	t.Helper()
	data := make([]byte, b.payload)
	for k := range data {
		data[k] = byte(k * 7)
	}
	switch b.proto {
	case protoTCP:
		hl := header.TCPMinimumSize
		if b.mss != 0 {
			hl += 4
		}
		l4 := make([]byte, hl)
		flags := b.flags
		if flags == 0 {
			flags = uint8(header.TCPFlagAck)
		}
		header.TCP(l4).Encode(&header.TCPFields{SrcPort: srcPort, DstPort: dstPort, SeqNum: b.seq, AckNum: 1,
			DataOffset: uint8(hl), Flags: header.TCPFlags(flags), WindowSize: 4096})
		if b.mss != 0 {
			copy(l4[20:], []byte{2, 4, byte(b.mss >> 8), byte(b.mss)})
		}
		l4 = append(l4, data...)
		sum := pseudo(src, dst, protoTCP, len(l4))
		header.TCP(l4).SetChecksum(^checksum.Checksum(l4, sum))
		return l4
	case protoUDP:
		l4 := make([]byte, header.UDPMinimumSize)
		header.UDP(l4).Encode(&header.UDPFields{SrcPort: srcPort, DstPort: dstPort, Length: uint16(8 + len(data))})
		l4 = append(l4, data...)
		if !b.noSum {
			sum := pseudo(src, dst, protoUDP, len(l4))
			header.UDP(l4).SetChecksum(^checksum.Checksum(l4, sum))
		}
		return l4
	case protoICMP:
		l4 := append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, data...)
		c := ^checksum.Checksum(l4, 0)
		l4[2], l4[3] = byte(c>>8), byte(c)
		return l4
	}
	t.Fatalf("protocol %d: give l4", b.proto)
	return nil
}

func pseudo(src, dst netip.Addr, proto uint8, n int) uint16 {
	addr := func(a netip.Addr) tcpip.Address {
		if a.Is4() {
			return tcpip.AddrFrom4(a.As4())
		}
		return tcpip.AddrFrom16(a.As16())
	}
	return header.PseudoHeaderChecksum(tcpip.TransportProtocolNumber(proto), addr(src), addr(dst), uint16(n))
}

// super turns a TCP or UDP packet into a superpacket as the kernel hands it over: partial checksum, segment size.
func super(t testing.TB, p []byte, size int) ([]byte, packet.Meta) {
	t.Helper()
	var i packet.Info
	if e := packet.Parse(p, &i); e != packet.OK {
		t.Fatal(e)
	}
	m := packet.Meta{Type: packet.GSOTCP4, SegmentSize: uint16(size), NeedsChecksum: true, ChecksumStart: i.L4,
		ChecksumOffset: 16}
	if i.Version == 6 {
		m.Type = packet.GSOTCP6
	}
	if i.Proto == protoUDP {
		m.Type, m.ChecksumOffset = packet.GSOUDP, 6
	}
	sum := pseudo(i.Src, i.Dst, i.Proto, len(p)-int(i.L4))
	at := int(i.L4) + int(m.ChecksumOffset)
	p[at], p[at+1] = byte(sum>>8), byte(sum)
	return p, m
}
