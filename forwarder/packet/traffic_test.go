package packet

import (
	"bytes"
	"encoding/binary"
)

// traffic makes packets of several flows, mostly well-behaved, in an order that its choices say.
type traffic struct {
	choose  func() byte // the next choice
	flows   [8]naiveSpec
	size    [8]int  // payload bytes of a flow's full segments
	fixed   [8]bool // the flow never changes its IPv4 ID
	packets [][]byte
	tags    []int32
}

// newTraffic makes flows of every kind. The last two are twins of two others, from another peer.
func newTraffic(choose func() byte) *traffic {
	f := &traffic{choose: choose}
	for k := range f.flows {
		s := naiveSpec{v6: k&1 != 0, udp: k&2 != 0, host: byte(k & 3), sport: uint16(1000 + k/4), seq: 0xfffff000,
			ack: 1, flags: tcpACK, window: 500, ttl: 63, id: 0xfff8}
		if k&4 != 0 {
			s.options = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
			s.frag = 0x4000
		}
		if k >= 6 {
			s.sport = 1000
		}
		f.flows[k], f.size[k] = s, 100+k
	}
	return f
}

// add appends a packet.
func (f *traffic) add(p []byte, flow int) {
	tag := int32(0)
	if flow >= 6 {
		tag = 1
	}
	f.packets, f.tags = append(f.packets, p), append(f.tags, tag)
}

// step adds the next packet of a flow. Half of them go on where the flow was, the others do something odd.
func (f *traffic) step() {
	k, kind := int(f.choose()&7), f.choose()
	if kind&1 == 0 {
		kind = 0
	}
	s := &f.flows[k]
	q := *s // changes of one packet only
	size := f.size[k]
	var change func(p []byte) []byte
	switch kind >> 1 & 31 {
	case 1:
		q.flags |= tcpPSH
	case 2:
		q.flags |= tcpFIN
	case 3:
		size = int(f.choose())
	case 4:
		f.size[k] = int(f.choose())*8 + 1
	case 5:
		size = 0
	case 6:
		s.seq += uint32(f.choose())
		q.seq = s.seq
	case 7: // a broken payload or transport header
		change = func(p []byte) []byte { p[len(p)-1-int(f.choose())%20] ^= 1; return p }
	case 8: // a broken header
		change = func(p []byte) []byte { p[int(f.choose())%min(40, len(p))] ^= 1 << (f.choose() & 7); return p }
	case 9: // another header with right checksums, as long as it is one that the naive code can read
		change = func(p []byte) []byte {
			at := 8
			if q.v6 {
				at = 7
			}
			p[at] ^= f.choose()
			naiveFinish(p)
			return p
		}
	case 10:
		s.tos = f.choose()
		q.tos = s.tos
	case 11:
		s.id += uint16(f.choose())
		q.id = s.id
	case 12:
		s.frag ^= 0x4000
		q.frag = s.frag
	case 13:
		f.fixed[k] = !f.fixed[k]
	case 14: // a fragment
		q.frag |= 0x2000 | uint16(f.choose())&3
		if q.v6 {
			change = fragment6(f.choose() & 3)
		}
	case 15:
		q.ipOptions, q.ext = []byte{0x94, 4, 0, 0}, true
	case 16, 17:
		q.flags = f.choose()
	case 18:
		s.ack++
		q.ack = s.ack
	case 19:
		q.window++
	case 20:
		q.urg = uint16(f.choose())
	case 21:
		q.res = f.choose() & 15
	case 22: // UDP without a checksum
		if q.udp {
			change = func(p []byte) []byte { l4, _, _ := naiveL4(p); p[l4+6], p[l4+7] = 0, 0; return p }
		}
	case 23: // the same again
		if n := len(f.packets); n > 0 {
			f.packets, f.tags = append(f.packets, bytes.Clone(f.packets[n-1])), append(f.tags, f.tags[n-1])
		}
	case 24: // the last two in the other order
		if n := len(f.packets); n > 1 {
			f.packets[n-1], f.packets[n-2] = f.packets[n-2], f.packets[n-1]
			f.tags[n-1], f.tags[n-2] = f.tags[n-2], f.tags[n-1]
		}
	case 25:
		q.label = uint32(f.choose())
	case 26: // bytes behind the packet
		change = func(p []byte) []byte { return append(p, 0, 0, 0) }
	case 27:
		change = func(p []byte) []byte { return p[:int(f.choose())%len(p)] }
	case 28:
		q.options = []byte{1, 1, 8, 10, 0, 0, 0, f.choose(), 0, 0, 0, 2}
	case 29: // the other zero in a checksum field
		change = func(p []byte) []byte {
			l4, _, proto := naiveL4(p)
			at := map[byte]int{6: l4 + 16, 17: l4 + 6}[proto]
			if f.choose()&1 == 0 && !q.v6 {
				at = 10
			}
			p[at], p[at+1] = 0xff, 0xff
			return p
		}
	case 30:
		s.flags ^= tcpECE
		q.flags = s.flags
	}
	q.payload = randomBytes(size, uint64(len(f.packets)))
	p := q.build()
	if change != nil {
		p = change(p)
	}
	f.add(p, k)
	s.seq += uint32(size)
	if !f.fixed[k] {
		s.id++
	}
}

// fragment6 puts a fragment header into a packet: the first fragment with 1, a later one with 2 and 3, an atomic one
// with 0.
func fragment6(kind byte) func(p []byte) []byte {
	return func(p []byte) []byte {
		h := []byte{p[6], 0, 0, kind, 0, 0, 0, 1}
		if kind > 1 {
			h[2] = 8
		}
		p[6] = 44
		p = append(p[:40:40], append(h, p[40:]...)...)
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		return p
	}
}
