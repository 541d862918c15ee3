package tun

import (
	"encoding/binary"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
)

// vnetLen is the length of struct virtio_net_hdr without the fields of VIRTIO_NET_F_MRG_RXBUF, which a TUN device
// leaves empty: flags, gso_type, then hdr_len, gso_size, csum_start and csum_offset of 16 bits each.
const vnetLen = 10

// Values of struct virtio_net_hdr (VIRTIO 1.2, 5.1.6). Without TUNSETVNETLE the 16-bit fields are in native byte order.
const (
	vnetNeedsChecksum = 1

	vnetNone  = 0
	vnetTCP4  = 1
	vnetTCP6  = 4
	vnetUDPL4 = 5
	vnetECN   = 0x80
)

// decode reads a virtio-net header. The header length is not looked at; DATA_VALID needs no place, as a packet without
// NEEDS_CSUM carries a complete checksum either way.
func decode(h *[vnetLen]byte) packet.Meta {
	var m packet.Meta
	if h[0]&vnetNeedsChecksum != 0 {
		m.NeedsChecksum = true
		m.ChecksumStart = binary.NativeEndian.Uint16(h[6:])
		m.ChecksumOffset = binary.NativeEndian.Uint16(h[8:])
	}
	switch h[1] &^ vnetECN {
	case vnetNone:
		return m
	case vnetTCP4:
		m.Type = packet.GSOTCP4
	case vnetTCP6:
		m.Type = packet.GSOTCP6
	case vnetUDPL4:
		m.Type = packet.GSOUDP
	default:
		m.Type = device.GSOUnknown
	}
	m.SegmentSize = binary.NativeEndian.Uint16(h[4:])
	return m
}

// encode writes the virtio-net header for a packet that device.Inspect accepted.
func encode(h *[vnetLen]byte, m packet.Meta, s device.Shape) {
	*h = [vnetLen]byte{}
	if m.NeedsChecksum {
		h[0] = vnetNeedsChecksum
		binary.NativeEndian.PutUint16(h[6:], m.ChecksumStart)
		binary.NativeEndian.PutUint16(h[8:], m.ChecksumOffset)
	}
	switch m.Type {
	case packet.GSONone:
		return
	case packet.GSOTCP4:
		h[1] = vnetTCP4
	case packet.GSOTCP6:
		h[1] = vnetTCP6
	case packet.GSOUDP:
		h[1] = vnetUDPL4
	}
	if s.CWR {
		h[1] |= vnetECN
	}
	binary.NativeEndian.PutUint16(h[2:], uint16(s.Header))
	binary.NativeEndian.PutUint16(h[4:], m.SegmentSize)
}
