package vxlan

import "encoding/binary"

// Drop is a reason why a datagram is refused. Drops are comparable constants: refusing a datagram allocates nothing.
type Drop uint8

// Why Decode refuses a datagram. Accepted is the zero value; NumDrops is the number of values, for counter arrays.
const (
	Accepted       Drop = iota
	TooShort            // shorter than the headers and one byte of an inner packet
	NoVNI               // the I flag is missing
	WrongVNI            // of another overlay network
	RemoteChecksum      // the remote checksum offload flag, which Warren did not offer
	NextProtocol        // the P flag of VXLAN-GPE: what follows need not be an Ethernet frame
	GroupMAC            // broadcast or multicast frame: ARP requests of a kernel VTEP, for instance
	WrongMAC            // unicast to another VTEP
	WrongEtherType      // neither IPv4 nor IPv6 (ARP, VLAN, …), or an IP version other than the EtherType's
	NumDrops
)

// String returns the name under which the drop is counted.
func (d Drop) String() string {
	switch d {
	case Accepted:
		return "accepted"
	case TooShort:
		return "vxlan-too-short"
	case NoVNI:
		return "vxlan-no-vni"
	case WrongVNI:
		return "vxlan-wrong-vni"
	case RemoteChecksum:
		return "vxlan-remote-checksum"
	case NextProtocol:
		return "vxlan-next-protocol"
	case GroupMAC:
		return "vxlan-group-mac"
	case WrongMAC:
		return "vxlan-wrong-mac"
	case WrongEtherType:
		return "vxlan-wrong-ethertype"
	}
	return "vxlan-unknown-drop"
}

// A Decoder checks the datagrams that reach one VTEP.
type Decoder struct {
	VNI uint32  // of the own overlay network; the low 24 bits count
	MAC [6]byte // the own VTEP address
}

// Decode takes the headers off a datagram. It returns the inner IP packet, which is a part of the datagram and at least
// one byte long, and Accepted; or nil and why the datagram is refused. The inner packet may have trailing bytes that
// its own length does not cover (a kernel VTEP pads short frames), and its headers are not looked at beyond the
// version.
//
// Reserved bits are ignored on receipt (RFC 7348 section 5), the policy group of VXLAN-GBP among them, with two
// exceptions: extensions that use a reserved bit to say that what follows is to be read in another way. With remote
// checksum offload the inner TCP or UDP checksum is not filled in, and a receiver that ignores the flag forwards a
// packet that the pod throws away; with VXLAN-GPE the payload need not be an Ethernet frame. Both are to be agreed
// on beforehand, so a peer that uses them unasked is misconfigured, and a named drop tells its operator more than
// silent corruption. Linux refuses them too (it refuses every reserved bit unless told otherwise).
func (d *Decoder) Decode(datagram []byte) (inner []byte, reason Drop) {
	if len(datagram) <= HeaderLen {
		return nil, TooShort
	}
	flags := binary.BigEndian.Uint32(datagram)
	if flags&flagVNI == 0 {
		return nil, NoVNI
	}
	if binary.BigEndian.Uint32(datagram[offsetVNI:])>>8 != d.VNI&MaxVNI {
		return nil, WrongVNI
	}
	if flags&(flagRCO|flagGPE) != 0 {
		if flags&flagRCO != 0 {
			return nil, RemoteChecksum
		}
		return nil, NextProtocol
	}
	if [6]byte(datagram[offsetDst:]) != d.MAC {
		if datagram[offsetDst]&1 != 0 {
			return nil, GroupMAC
		}
		return nil, WrongMAC
	}
	inner = datagram[HeaderLen:]
	// The version decides how the packet is parsed, the EtherType how a kernel VTEP would: they must not disagree.
	switch version := inner[0] >> 4; binary.BigEndian.Uint16(datagram[offsetTyp:]) {
	case EtherTypeIPv4:
		if version == 4 {
			return inner, Accepted
		}
	case EtherTypeIPv6:
		if version == 6 {
			return inner, Accepted
		}
	}
	return nil, WrongEtherType
}
