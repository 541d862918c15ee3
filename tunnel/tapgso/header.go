package tapgso

import (
	"encoding/binary"
	"net/netip"

	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
)

// Lengths in bytes.
const (
	// vnetLen is struct virtio_net_hdr_v1_hash_tunnel: struct virtio_net_hdr_v1 (12), the hash of received packets (8),
	// which the kernel does not look at here, and the two offsets of VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO.
	vnetLen     = 24
	ethernetLen = 14
	ipv4Len     = 20
	ipv6Len     = 40
	udpLen      = 8
	prefixMax   = vnetLen + ethernetLen + ipv6Len + udpLen + encapMax
	encapMax    = 32 // of the encapsulation; VXLAN and the inner Ethernet header have 22

	// frameMax is the largest frame. A device cuts nothing whose length with the Ethernet header reaches its
	// gso_max_size, 65,536 unless somebody lowered it (gso_features_check): the kernel does then, to the last byte.
	frameMax = 65535
)

// Of the virtio-net header (VIRTIO 1.4, 5.1.6). All fields of a packet with a tunnel are little endian, and
// TUNSETVNETLE makes those of others so.
const (
	vnetNeedsChecksum = 1
	vnetTunnelSum     = 8 // the outer UDP header has a checksum as well
	vnetTCP4          = 1
	vnetTCP6          = 4
	vnetTunnel4       = 0x20 // over IPv4
	vnetTunnel6       = 0x40
	vnetECN           = 0x80 // the first segment alone has CWR

	offFlags          = 0
	offType           = 1
	offHeaderLen      = 2
	offSegmentSize    = 4
	offChecksumStart  = 6
	offChecksumOffset = 8
	offOuterTransport = 20
	offInnerNetwork   = 22
)

const (
	tcpCWR         = 0x80 // RFC 3168
	tcpChecksum    = 16
	udpChecksum    = 6
	protoTCP       = 6
	protoUDP       = 17
	etherTypeIPv4  = 0x0800
	etherTypeIPv6  = 0x86dd
	ipv4FlagDF     = 0x4000
	superpacketTTL = 65 // one more than the kernel's sockets send, as forwarding takes one
	probeTTL       = 2  // 1 once forwarded, by which hostnet's chain knows probes
)

// deviceMAC is the TAP's own Ethernet address: locally administered, unicast, and never on any wire.
var deviceMAC = [6]byte{0x0e, 0x57, 'g', 's', 'o', 0}

// An outer is what the headers up to the outer UDP header are made from.
type outer struct {
	from, to  netip.AddrPort
	tos, ttl  uint8
	udpLength int // UDP header and everything behind it
}

// putOuter writes Ethernet, IP and UDP header to b and returns their length. The UDP checksum field holds the pseudo
// header's sum, folded and not complemented, as udp_set_csum leaves it to whoever cuts or completes the packet.
func putOuter(b []byte, o *outer) int {
	copy(b, deviceMAC[:])
	copy(b[6:], deviceMAC[:])
	b[11] ^= 1 // from somebody else
	ip := b[ethernetLen:]
	n := ipv6Len
	if o.to.Addr().Is4() {
		n = ipv4Len
		binary.BigEndian.PutUint16(b[12:], etherTypeIPv4)
		ip[0], ip[1] = 0x45, o.tos
		binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Len+o.udpLength))
		binary.BigEndian.PutUint16(ip[4:], 0)
		binary.BigEndian.PutUint16(ip[6:], ipv4FlagDF)
		ip[8], ip[9] = o.ttl, protoUDP
		from, to := o.from.Addr().As4(), o.to.Addr().As4()
		copy(ip[12:], from[:])
		copy(ip[16:], to[:])
		packet.SetIPv4Checksum(ip[:ipv4Len])
	} else {
		binary.BigEndian.PutUint16(b[12:], etherTypeIPv6)
		binary.BigEndian.PutUint32(ip, 6<<28|uint32(o.tos)<<20)
		binary.BigEndian.PutUint16(ip[4:], uint16(o.udpLength))
		ip[6], ip[7] = protoUDP, o.ttl
		from, to := o.from.Addr().As16(), o.to.Addr().As16()
		copy(ip[8:], from[:])
		copy(ip[24:], to[:])
	}
	udp := ip[n : n+udpLen]
	binary.BigEndian.PutUint16(udp, o.from.Port())
	binary.BigEndian.PutUint16(udp[2:], o.to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(o.udpLength))
	pseudo := packet.Info{Src: o.from.Addr(), Dst: o.to.Addr(), Proto: protoUDP}
	binary.BigEndian.PutUint16(udp[udpChecksum:], packet.PseudoHeader(&pseudo, o.udpLength))
	return ethernetLen + n + udpLen
}

// putPrefix writes everything that stands before the inner packet of s, from the virtio-net header on, and returns its
// length; 0 when s cannot go this way. The outer packet has the TTL that is given.
func putPrefix(b *[prefixMax]byte, s *tunnel.Superpacket, from netip.Addr, ttl uint8) int {
	if !from.IsValid() || len(s.Header) > encapMax {
		return 0
	}
	frame := b[vnetLen:]
	n := putOuter(frame, &outer{
		from: netip.AddrPortFrom(from, s.SourcePort), to: s.To, tos: s.TOS, ttl: ttl,
		udpLength: udpLen + len(s.Header) + len(s.Packet),
	})
	outerTransport := n - udpLen
	n += copy(frame[n:], s.Header)
	if n+len(s.Packet) > frameMax {
		return 0
	}
	kind := byte(vnetTCP4 | vnetTunnel4)
	if s.Meta.Type == packet.GSOTCP6 {
		kind = vnetTCP6 | vnetTunnel4
	}
	if !from.Is4() {
		kind ^= vnetTunnel4 | vnetTunnel6
	}
	if s.Info.TCPFlags&tcpCWR != 0 {
		kind |= vnetECN
	}
	h := b[:vnetLen]
	clear(h)
	h[offFlags], h[offType] = vnetNeedsChecksum|vnetTunnelSum, kind
	put := func(offset, v int) { binary.LittleEndian.PutUint16(h[offset:], uint16(v)) }
	put(offHeaderLen, n+s.Info.HeaderLen())
	put(offSegmentSize, int(s.Meta.SegmentSize))
	put(offChecksumStart, n+int(s.Info.L4))
	put(offChecksumOffset, tcpChecksum)
	put(offOuterTransport, outerTransport)
	put(offInnerNetwork, n)
	return vnetLen + n
}

// probe makes a superpacket of two segments whose inner packet is TCP over IPv4 or IPv6, as version says. The
// encapsulation's header is all zeros, so that a receiver which got it after all would drop it, and the inner addresses
// are the loopback's.
func probe(version uint8, from, to netip.AddrPort) []byte {
	const encap, segment, tcp = 22, 8, 20
	p := make([]byte, ipv6Len+tcp+2*segment)
	m := packet.Meta{Type: packet.GSOTCP6, NeedsChecksum: true, SegmentSize: segment, ChecksumOffset: tcpChecksum}
	if version == 4 {
		m.Type, p = packet.GSOTCP4, p[ipv6Len-ipv4Len:]
		p[0], p[3], p[8], p[9] = 0x45, byte(len(p)), 1, protoTCP
		p[12], p[15], p[16], p[19] = 127, 1, 127, 1
	} else {
		p[0], p[5], p[6], p[7] = 0x60, byte(len(p)-ipv6Len), protoTCP, 1
		p[23], p[39] = 1, 1
	}
	m.ChecksumStart = uint16(len(p) - tcp - 2*segment)
	p[m.ChecksumStart+12] = tcp / 4 << 4
	var i packet.Info
	_ = packet.Parse(p, &i) // OK, as TestProbe wants
	s := tunnel.Superpacket{To: to, SourcePort: from.Port(), Header: make([]byte, encap), Packet: p, Info: &i, Meta: m}
	var b [prefixMax]byte
	n := putPrefix(&b, &s, from.Addr(), probeTTL)
	return append(b[:n:n], p...)
}
