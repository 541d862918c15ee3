package tun

import (
	"encoding/binary"
	"testing"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
)

func header(flags, typ byte, hdrLen, size, start, offset uint16) [vnetLen]byte {
	h := [vnetLen]byte{flags, typ}
	for i, v := range []uint16{hdrLen, size, start, offset} {
		binary.NativeEndian.PutUint16(h[2+2*i:], v)
	}
	return h
}

func TestVnetHeader(t *testing.T) {
	for _, c := range []struct {
		name  string
		h     [vnetLen]byte
		m     packet.Meta
		shape device.Shape // for the way back
		again bool         // encode gives h again
	}{
		{"lone", header(0, 0, 0, 0, 0, 0), packet.Meta{}, device.Shape{}, true},
		{"lone, partial checksum", header(1, 0, 0, 0, 20, 6),
			packet.Meta{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6}, device.Shape{}, true},
		{"TCP4", header(1, 1, 52, 1448, 20, 16),
			packet.Meta{Type: packet.GSOTCP4, NeedsChecksum: true, SegmentSize: 1448, ChecksumStart: 20, ChecksumOffset: 16},
			device.Shape{Header: 52}, true},
		{"TCP4 with CWR", header(1, 0x81, 52, 1448, 20, 16),
			packet.Meta{Type: packet.GSOTCP4, NeedsChecksum: true, SegmentSize: 1448, ChecksumStart: 20, ChecksumOffset: 16},
			device.Shape{Header: 52, CWR: true}, true},
		{"TCP6", header(1, 4, 60, 1440, 40, 16),
			packet.Meta{Type: packet.GSOTCP6, NeedsChecksum: true, SegmentSize: 1440, ChecksumStart: 40, ChecksumOffset: 16},
			device.Shape{Header: 60}, true},
		{"USO", header(1, 5, 28, 1400, 20, 6),
			packet.Meta{Type: packet.GSOUDP, NeedsChecksum: true, SegmentSize: 1400, ChecksumStart: 20, ChecksumOffset: 6},
			device.Shape{Header: 28}, true},
		{"DATA_VALID", header(2, 0, 0, 0, 7, 7), packet.Meta{}, device.Shape{}, false},
		{"UFO", header(1, 3, 28, 1400, 20, 6),
			packet.Meta{Type: device.GSOUnknown, NeedsChecksum: true, SegmentSize: 1400, ChecksumStart: 20, ChecksumOffset: 6},
			device.Shape{}, false},
		{"a type of the future", header(0, 0x7f, 0, 9, 0, 0), packet.Meta{Type: device.GSOUnknown, SegmentSize: 9},
			device.Shape{}, false},
		{"a superpacket without partial checksum is the caller's to refuse", header(0, 1, 0, 9, 0, 0),
			packet.Meta{Type: packet.GSOTCP4, SegmentSize: 9}, device.Shape{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := decode(&c.h); got != c.m {
				t.Errorf("decode: %+v, want %+v", got, c.m)
			}
			h := header(255, 255, 1, 2, 3, 4) // encode writes every byte
			if encode(&h, c.m, c.shape); c.again && h != c.h {
				t.Errorf("encode: %x, want %x", h, c.h)
			}
		})
	}
}

// Any header decodes to something, and what Segment-like callers accept encodes to the same type again.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < vnetLen {
			return
		}
		m := decode((*[vnetLen]byte)(b))
		if m.Type == packet.GSONone && m.SegmentSize != 0 || !m.NeedsChecksum && m.ChecksumStart != 0 {
			t.Errorf("%x: %+v", b[:vnetLen], m)
		}
	})
}
