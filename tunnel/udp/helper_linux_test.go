package udp

import (
	"net/netip"

	"github.com/warren-net/warren/tunnel"
)

// A load is a send in the making: segment bytes each, in pieces of at most piece bytes.
type load struct {
	to      netip.AddrPort
	total   int
	segment int
	piece   int // 0: a header of 22 bytes and the rest for each datagram, as the worker does it
	tos     uint8
}

// add appends the load's send to o and returns the datagrams that the receiver must see. Bytes differ between
// datagrams and between calls, so that a swap shows.
func (l load) add(o *tunnel.Outbound) (want []string) {
	size := l.segment
	if size == 0 {
		size = l.total
	}
	s := tunnel.Send{To: l.to, Len: l.total, SegmentSize: l.segment, First: len(o.Pieces), TOS: l.tos}
	for rest, n := l.total, 0; rest > 0 || n == 0; n++ {
		b := make([]byte, min(size, rest))
		for i := range b {
			b[i] = byte(i + n*7 + len(o.Sends)*31)
		}
		if len(b) > 1 {
			b[0], b[1] = byte(n), byte(n>>8)
		}
		want = append(want, string(b))
		rest -= len(b)
		s.Segments++
		for len(b) > 0 {
			k := min(22, len(b))
			if l.piece > 0 {
				k = min(l.piece, len(b))
			} else if k == 22 && s.Segments > 0 {
				o.Pieces = append(o.Pieces, b[:k], nil) // an empty piece must not matter
				b = b[k:]
				k = len(b)
			}
			o.Pieces = append(o.Pieces, b[:k])
			b = b[k:]
		}
		if size == 0 {
			break
		}
	}
	s.N = len(o.Pieces) - s.First
	o.Sends = append(o.Sends, s)
	return want
}
