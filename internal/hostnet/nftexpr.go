package hostnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Numbers of the protocols as nftables rules compare them.
const (
	icmpv6 = unix.IPPROTO_ICMPV6

	icmpv6MLDReport1  = 131 // RFC 2710
	icmpv6MLDDone     = 132 // RFC 2710
	icmpv6RouterSol   = 133 // RFC 4861, like the next four
	icmpv6RouterAdv   = 134
	icmpv6NeighborSol = 135
	icmpv6NeighborAdv = 136
	icmpv6Redirect    = 137
	icmpv6MLDReport2  = 143  // RFC 3810
	ctDirectionReply  = 1    // IP_CT_DIR_REPLY
	ctStatusDNAT      = 0x20 // IPS_DST_NAT
	objectCounter     = 1    // NFT_OBJECT_COUNTER
	ifnameBytes       = 16   // IFNAMSIZ; an interface name fills one 16-byte register
	etherTypeARP      = 0x0806
	neighborAdvTarget = 8  // offset of the target address in a neighbour advertisement (RFC 4861, section 4.4)
	arpSenderIPv4     = 14 // offset of the sender's IPv4 address in an Ethernet ARP packet (RFC 826)
	etherDestination  = 0  // offsets of the addresses in an Ethernet header
	etherSource       = 6
	etherTypeOffset   = 12
	ipv4Fragment      = 6 // flags and fragment offset
	ipv4Source        = 12
	ipv4Destination   = 16
	ipv6Source        = 8
	ipv6Destination   = 24
)

// A match is a part of a rule: the expressions of the kernel's rule machine (expr.Any) and anonymous sets (anonSet).
type match []any

// An anonSet is a lookup of register 1 in a set that belongs to the rule alone.
type anonSet struct {
	key    nftables.SetDatatype
	elems  [][]byte
	invert bool
}

func join(ms ...match) match { return slices.Concat(ms...) }

// ifname is a name as the kernel compares whole names: padded with zeros.
func ifname(name string) []byte {
	b := make([]byte, ifnameBytes)
	copy(b, name)
	return b
}

func cmp(op expr.CmpOp, data []byte) *expr.Cmp { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func eq(data ...byte) *expr.Cmp { return cmp(expr.CmpOpEq, data) }

func native32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// fromPods matches packets from interfaces of pods by the prefix of their names.
func fromPods() match { return match{meta(expr.MetaKeyIIFNAME), eq([]byte(PodPrefix)...)} }

func notFromPods() match {
	return match{meta(expr.MetaKeyIIFNAME), cmp(expr.CmpOpNeq, []byte(PodPrefix))}
}

// fromBridges matches packets from bridges of bridge mode.
func fromBridges() match {
	return match{meta(expr.MetaKeyIIFNAME), &expr.Lookup{SourceRegister: 1, SetName: setBridges}}
}

// notFromBridges goes on from the name of an interface in the register, as nameIsNot does.
func notFromBridges() match {
	return match{&expr.Lookup{SourceRegister: 1, SetName: setBridges, Invert: true}}
}

// nameIsNot goes on from the name of an interface in the register; an empty one is nobody's.
func nameIsNot(name string) match { return match{cmp(expr.CmpOpNeq, ifname(name))} }

func iifIs(name string) match { return match{meta(expr.MetaKeyIIFNAME), eq(ifname(name)...)} }

func oifIs(name string) match { return match{meta(expr.MetaKeyOIFNAME), eq(ifname(name)...)} }

func meta(key expr.MetaKey) *expr.Meta { return &expr.Meta{Key: key, Register: 1} }

func payload(base expr.PayloadBase, offset, length, register uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: length}
}

// isFamily matches by the packet's family in a table of family inet.
func isFamily(f family) match {
	return match{meta(expr.MetaKeyNFPROTO), eq(byte(f))}
}

// isEther matches by the EtherType that the bridge sees.
func isEther(f family) match {
	t := uint16(unix.ETH_P_IP)
	if f == v6 {
		t = unix.ETH_P_IPV6
	}
	return match{meta(expr.MetaKeyPROTOCOL), eq(binary.BigEndian.AppendUint16(nil, t)...)}
}

func sourceOffset(f family) uint32 {
	if f == v4 {
		return ipv4Source
	}
	return ipv6Source
}

func destinationOffset(f family) uint32 {
	if f == v4 {
		return ipv4Destination
	}
	return ipv6Destination
}

func addrBytes(f family) uint32 {
	if f == v4 {
		return 4
	}
	return 16
}

// inPrefix matches when the address at the offset of the network header is (or, with op CmpOpNeq, is not) in p.
func inPrefix(op expr.CmpOp, offset uint32, p netip.Prefix) match {
	f := familyOf(p.Addr())
	n := addrBytes(f)
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return match{
		payload(expr.PayloadBaseNetworkHeader, offset, n, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)},
		cmp(op, p.Masked().Addr().AsSlice()),
	}
}

func sourceIn(p netip.Prefix) match {
	return inPrefix(expr.CmpOpEq, sourceOffset(familyOf(p.Addr())), p)
}

func destinationIn(p netip.Prefix) match {
	return inPrefix(expr.CmpOpEq, destinationOffset(familyOf(p.Addr())), p)
}

func destinationNotIn(p netip.Prefix) match {
	return inPrefix(expr.CmpOpNeq, destinationOffset(familyOf(p.Addr())), p)
}

// destinationOneOf matches when the destination is in a set of addresses of the family.
func destinationOneOf(f family, set string) match {
	return match{
		payload(expr.PayloadBaseNetworkHeader, destinationOffset(f), addrBytes(f), 1),
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}
}

// destinationNotLocal matches when the destination is no address of the node itself.
func destinationNotLocal() match {
	return match{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		cmp(expr.CmpOpNeq, native32(unix.RTN_LOCAL)),
	}
}

// pair looks the incoming interface and n bytes at an offset up in a set; the name fills the first 16-byte register.
func pair(set string, base expr.PayloadBase, offset, n uint32, invert bool) match {
	return match{
		meta(expr.MetaKeyIIFNAME),
		payload(base, offset, n, 2),
		&expr.Lookup{SourceRegister: 1, SetName: set, Invert: invert},
	}
}

// isOwnSource matches when the packet's source is an address of the pod behind the interface.
func isOwnSource(f family) match {
	return pair(podSet(f), expr.PayloadBaseNetworkHeader, sourceOffset(f), addrBytes(f), false)
}

// icmp6Type matches ICMPv6 messages of the given types.
func icmp6Type(types ...byte) match {
	set := anonSet{key: nftables.TypeICMP6Type}
	for _, t := range types {
		set.elems = append(set.elems, []byte{t})
	}
	return match{
		meta(expr.MetaKeyL4PROTO), eq(icmpv6),
		payload(expr.PayloadBaseTransportHeader, 0, 1, 1), set,
	}
}

// dhcpRequest matches what a DHCP client sends to servers: UDP from port 68 to port 67 (RFC 2131, section 4.1), not cut
// to fragments, of which the later ones have any bytes in the place of the ports.
func dhcpRequest() match {
	return match{
		payload(expr.PayloadBaseNetworkHeader, ipv4Fragment, 2, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0x3f, 0xff}, Xor: []byte{0, 0}}, eq(0, 0),
		meta(expr.MetaKeyL4PROTO), eq(unix.IPPROTO_UDP),
		payload(expr.PayloadBaseTransportHeader, 0, 4, 1), eq(0, 68, 0, 67),
	}
}

func broadcastMAC() net.HardwareAddr { return net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

func verdict(kind expr.VerdictKind) match { return match{&expr.Verdict{Kind: kind}} }

func accept() match { return verdict(expr.VerdictAccept) }

func drop() match { return verdict(expr.VerdictDrop) }

func countedDrop() match {
	return join(match{&expr.Objref{Type: objectCounter, Name: counterSpoofed}}, drop())
}

func notrack() match { return match{&expr.Notrack{}} }

// setMark sets bits of the packet's mark and leaves the others alone.
func setMark(bits uint32) match {
	return match{
		meta(expr.MetaKeyMARK),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(^bits), Xor: native32(bits)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

// isTranslatedReply matches answers of connections whose destination was translated.
func isTranslatedReply() match {
	return match{
		&expr.Ct{Register: 1, Key: expr.CtKeyDIRECTION}, eq(ctDirectionReply),
		&expr.Ct{Register: 1, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(ctStatusDNAT), Xor: native32(0)},
		cmp(expr.CmpOpNeq, native32(0)),
	}
}
