package tunnel

// Append adds one datagram, made of header and payload, to the batch. It joins the last send when that goes to the
// same peer with the same TOS and one segmentation can describe both: all datagrams of a send have the size of its
// first one, but the last, which may be shorter. So the segments of a superpacket, and a row of acknowledgements too,
// leave in one send. Pieces that lie one behind the other in memory become one. s gives To, TOS and Peer; the rest of
// it is ignored.
func (o *Outbound) Append(s Send, header, payload []byte) {
	size := len(header) + len(payload)
	if n := len(o.Sends); n > 0 {
		last := &o.Sends[n-1]
		if last.takes(&s, size) {
			last.Len += size
			last.Segments++
			last.N += o.add(last.First, header)
			last.N += o.add(last.First, payload)
			return
		}
	}
	s.First = len(o.Pieces)
	s.N = o.add(s.First, header)
	s.N += o.add(s.First, payload)
	s.Len, s.SegmentSize, s.Segments = size, size, 1
	o.Sends = append(o.Sends, s)
}

// AppendCut adds a send of its own: datagrams of size bytes each, the last maybe shorter, that lie one behind the other
// in b, and are of no use without each other. s is as in Append.
func (o *Outbound) AppendCut(s Send, b []byte, size int) {
	s.First, s.N = len(o.Pieces), 1
	s.Len, s.SegmentSize, s.Segments, s.Whole = len(b), min(size, len(b)), (len(b)+size-1)/size, true
	o.Pieces = append(o.Pieces, b)
	o.Sends = append(o.Sends, s)
}

// takes reports whether one more datagram of so many bytes, described by s, can be part of l.
func (l *Send) takes(s *Send, size int) bool {
	return !l.Whole && l.To == s.To && l.TOS == s.TOS &&
		size <= l.SegmentSize &&
		l.Len == l.Segments*l.SegmentSize && // none of them is the short last one
		l.Segments < MaxSendSegments &&
		l.Len+size <= maxSendBytes6
}

// maxSendBytes6 is the limit that holds for both families.
const maxSendBytes6 = 65487

// add appends a piece to the last send, which begins at piece first, and returns by how many pieces that grew: by none
// when b lies right behind the last one in memory, so that what was written in one go leaves as one piece.
func (o *Outbound) add(first int, b []byte) int {
	if len(b) == 0 {
		return 0
	}
	if n := len(o.Pieces); n > first {
		last := o.Pieces[n-1]
		if size := len(last); cap(last)-size >= len(b) && &last[:size+1][size] == &b[0] {
			o.Pieces[n-1] = last[:size+len(b)]
			return 0
		}
	}
	o.Pieces = append(o.Pieces, b)
	return 1
}
