// Package vxlan is the VXLAN encapsulation of RFC 7348: the 22 bytes of VXLAN and inner Ethernet header that stand
// between the outer UDP header and the inner IP packet, stamped from templates on the way out and checked on the way
// in. It has no file descriptor and no state, and nothing in it allocates but MAC and Address, which belong to the
// control path.
//
// # Terms
//
//   - A VTEP is a tunnel end point: here a node, known by its underlay address and by the Ethernet address that inner
//     frames to it carry.
//   - A VNI is the number of the overlay network, 24 bits; a node has one.
//
// # Ownership and concurrency
//
// Templates and Decoders are plain values that are never written after they were made: any number of workers may share
// one. A Header that was put into a batch is referred to, not copied, until the batch was sent. Decode returns a part
// of the datagram that it was given.
package vxlan

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Sizes, in bytes.
const (
	HeaderLen = 8 + 14             // VXLAN header and inner Ethernet header
	Overhead4 = 20 + 8 + HeaderLen // what an outer IPv4 packet adds to the inner IP packet
	Overhead6 = 40 + 8 + HeaderLen // what an outer IPv6 packet adds to the inner IP packet
	MaxVNI    = 1<<24 - 1          // the largest VXLAN network identifier
	Port      = 4789               // the UDP port that IANA assigned to VXLAN
	macPrefix = 0x0e57             // first two bytes of derived addresses: locally administered (bit 1), unicast
	offsetVNI = 4                  // of the 24-bit VNI, from the first byte of the VXLAN header
	offsetDst = 8                  // of the inner destination address
	offsetSrc = 14                 // of the inner source address
	offsetTyp = 20                 // of the inner EtherType
)

// EtherTypes of the inner frames that Warren carries.
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeIPv6 = 0x86DD
)

// Bits of the first 32-bit word of the VXLAN header. RFC 7348 defines one flag, I; all others are reserved there.
const (
	flagVNI = 1 << 27 // I: the VNI is valid
	flagGPE = 1 << 26 // P of VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe): the last byte names the payload
	flagRCO = 1 << 21 // remote checksum offload (draft-herbert-vxlan-rco); VXLAN_HF_RCO in Linux
)

// A Header is what stands between the outer UDP header and the inner IP packet.
type Header [HeaderLen]byte

// NewHeader makes the header of frames from the VTEP src to the VTEP dst. Of vni the low 24 bits count; whoever reads
// a configuration compares it with MaxVNI.
func NewHeader(vni uint32, dst, src [6]byte, etherType uint16) Header {
	var h Header
	binary.BigEndian.PutUint32(h[0:], flagVNI)
	binary.BigEndian.PutUint32(h[offsetVNI:], vni<<8)
	copy(h[offsetDst:], dst[:])
	copy(h[offsetSrc:], src[:])
	binary.BigEndian.PutUint16(h[offsetTyp:], etherType)
	return h
}

// A Template holds the two headers that frames to one peer begin with.
type Template struct {
	V4, V6 Header // for inner IPv4 and inner IPv6 packets
}

// NewTemplate makes the headers for frames to the peer's VTEP address dst from the own one src; see NewHeader.
func NewTemplate(vni uint32, dst, src [6]byte) Template {
	return Template{
		V4: NewHeader(vni, dst, src, EtherTypeIPv4),
		V6: NewHeader(vni, dst, src, EtherTypeIPv6),
	}
}

// Header returns the header for an inner packet of the given IP version, 4 or 6. It refers to the template's own
// bytes: they are for sending, not for writing.
func (t *Template) Header(version uint8) []byte {
	if version == 6 {
		return t.V6[:]
	}
	return t.V4[:]
}

// Destination is the VTEP address that a header of NewHeader is addressed to; nil: it is none.
func Destination(header []byte) net.HardwareAddr {
	if len(header) != HeaderLen {
		return nil
	}
	return slices.Clone(net.HardwareAddr(header[8:14]))
}

// MAC derives the VTEP address of a node that has none configured from its underlay address: 0e:57:a:b:c:d for IPv4
// a.b.c.d, and 0e:57 with the first four bytes of the SHA-256 of the sixteen for IPv6, as their own last four bytes
// are often equal (…::1 in each of several subnets). IPv4-mapped addresses count as IPv4; a zone is left out. The
// result is nil for the zero Addr. Nodes of different versions must agree, so this never changes.
func MAC(addr netip.Addr) net.HardwareAddr {
	addr = addr.Unmap()
	mac := binary.BigEndian.AppendUint16(nil, macPrefix)
	switch {
	case addr.Is4():
		b := addr.As4()
		return append(mac, b[:]...)
	case addr.Is6():
		b := addr.As16()
		sum := sha256.Sum256(b[:])
		return append(mac, sum[:4]...)
	}
	return nil
}

// Address converts a VTEP address to the form that templates and decoders take. The error says what is wrong with an
// address that is not a unicast Ethernet address.
func Address(mac net.HardwareAddr) ([6]byte, error) {
	var a [6]byte
	if len(mac) != len(a) {
		return a, fmt.Errorf("VTEP address %q has %d bytes; an Ethernet address has 6", mac, len(mac))
	}
	copy(a[:], mac)
	if a == ([6]byte{}) || a[0]&1 != 0 {
		return a, fmt.Errorf("VTEP address %s is zero or a group address; use a unicast one such as 0e:57:c0:00:02:01", mac)
	}
	return a, nil
}
