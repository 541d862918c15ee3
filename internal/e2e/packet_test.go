package e2e_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Protocol numbers.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

const vxlanPort = 4789

// A pkt is what the tests look at in a captured packet.
type pkt struct {
	src, dst     netip.Addr
	proto        byte
	length       int // bytes, as the IP header says
	fragment     bool
	sport, dport uint16
	kind, code   byte // of ICMP and ICMPv6
	mtu          int  // of ICMP "fragmentation needed" and ICMPv6 "packet too big"
	payload      []byte
	inner        *pkt // in VXLAN, or quoted by an ICMP error
	neighbor     netip.Addr
}

func (p *pkt) String() string {
	s := fmt.Sprintf("%s > %s proto %d length %d", p.src, p.dst, p.proto, p.length)
	switch p.proto {
	case protoTCP, protoUDP:
		s += fmt.Sprintf(" ports %d > %d", p.sport, p.dport)
	case protoICMP, protoICMPv6:
		s += fmt.Sprintf(" type %d code %d", p.kind, p.code)
	}
	if p.neighbor.IsValid() {
		s += " about neighbour " + p.neighbor.String()
	}
	if p.inner != nil {
		s += " {" + p.inner.String() + "}"
	}
	return s
}

// vxlan reports whether the packet is VXLAN.
func (p *pkt) vxlan() bool { return p.proto == protoUDP && p.dport == vxlanPort }

// icmpError reports whether the packet is an ICMP or ICMPv6 error.
func (p *pkt) icmpError() bool {
	switch p.proto {
	case protoICMP:
		return p.kind == 3 || p.kind == 4 || p.kind == 5 || p.kind == 11 || p.kind == 12
	case protoICMPv6:
		return p.kind < 128 || p.kind == 137
	}
	return false
}

// addresses are all addresses that the packet names outside VXLAN.
func (p *pkt) addresses() []netip.Addr {
	a := []netip.Addr{p.src, p.dst, p.neighbor}
	if p.inner != nil && !p.vxlan() {
		a = append(a, p.inner.addresses()...)
	}
	return a
}

// parseARP reads the addresses of an ARP packet for IPv4 (RFC 826).
func parseARP(b []byte) *pkt {
	if len(b) < 28 {
		return nil
	}
	return &pkt{src: addr4(b[14:]), dst: addr4(b[24:]), neighbor: addr4(b[24:])}
}

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
func addr16(b []byte) netip.Addr {
	return netip.AddrFrom16([16]byte(b))
}

// parseIP reads an IP packet of which the end may be missing; nil: it is none.
func parseIP(b []byte) *pkt {
	if len(b) < 20 {
		return nil
	}
	var p pkt
	switch {
	case b[0]>>4 == 4:
		p = pkt{src: addr4(b[12:]), dst: addr4(b[16:]), proto: b[9], length: int(binary.BigEndian.Uint16(b[2:]))}
		offset := binary.BigEndian.Uint16(b[6:])
		p.fragment = offset&0x3fff != 0
		header := int(b[0]&15) * 4
		if header < 20 || header > len(b) || offset&0x1fff != 0 {
			return &p
		}
		b = b[header:]
	case b[0]>>4 == 6 && len(b) >= 40:
		p = pkt{src: addr16(b[8:]), dst: addr16(b[24:]), proto: b[6], length: 40 + int(binary.BigEndian.Uint16(b[4:]))}
		b = b[40:]
		if p.proto == 0 && len(b) >= 8 { // hop-by-hop options, as multicast listener reports have
			p.proto = b[0]
			b = b[min(len(b), 8+8*int(b[1])):]
		}
	default:
		return nil
	}
	p.transport(b)
	return &p
}

func (p *pkt) transport(b []byte) {
	if len(b) < 8 {
		return
	}
	switch p.proto {
	case protoTCP, protoUDP:
		p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		p.payload = b[8:]
		if p.vxlan() && len(p.payload) > 22 {
			p.inner = parseIP(p.payload[22:])
		}
	case protoICMP, protoICMPv6:
		p.kind, p.code, p.mtu = b[0], b[1], int(binary.BigEndian.Uint32(b[4:]))
		p.payload = b[8:]
		if p.icmpError() {
			p.inner = parseIP(p.payload)
		} else if p.proto == protoICMPv6 && (p.kind == 135 || p.kind == 136) && len(p.payload) >= 16 {
			p.neighbor = addr16(p.payload)
		}
	}
}

// udpPacket makes an IP packet with a UDP datagram in it.
func udpPacket(from, to netip.AddrPort, payload string) []byte {
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	udp = append(udp, payload...)
	return ipPacket(from.Addr(), to.Addr(), protoUDP, udp)
}

// ipPacket puts an IP header before a UDP or ICMPv6 message, whose checksum it fills in.
func ipPacket(from, to netip.Addr, proto byte, message []byte) []byte {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = append(pseudo, 0, proto)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(message)))
	at := map[byte]int{protoUDP: 6, protoICMPv6: 2}[proto]
	binary.BigEndian.PutUint16(message[at:], checksum(append(pseudo, message...)))
	var header []byte
	if from.Is4() {
		header = []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0}
		binary.BigEndian.PutUint16(header[2:], uint16(20+len(message)))
	} else {
		header = []byte{0x60, 0, 0, 0, 0, 0, proto, 64}
		binary.BigEndian.PutUint16(header[4:], uint16(len(message)))
	}
	header = append(append(header, from.AsSlice()...), to.AsSlice()...)
	if from.Is4() {
		binary.BigEndian.PutUint16(header[10:], checksum(header))
	}
	return append(header, message...)
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 > 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
