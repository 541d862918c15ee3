package tunnel

// Append adds one datagram, made of header and payload, to the batch. It joins the last send when that goes to the
// same peer with the same TOS and one segmentation can describe both: all datagrams of a send have the size of its
// first one, but the last, which may be shorter. So the segments of a superpacket, and a row of acknowledgements too,
// leave in one send. s gives To, TOS and Peer; the rest of it is ignored.
func (o *Outbound) Append(s Send, header, payload []byte) {
	size := len(header) + len(payload)
	if n := len(o.Sends); n > 0 {
		last := &o.Sends[n-1]
		if last.takes(&s, size) {
			last.Len += size
			last.Segments++
			last.N += o.add(header, payload)
			return
		}
	}
	s.First = len(o.Pieces)
	s.N = o.add(header, payload)
	s.Len, s.SegmentSize, s.Segments = size, size, 1
	o.Sends = append(o.Sends, s)
}

// takes reports whether one more datagram of so many bytes, described by s, can be part of l.
func (l *Send) takes(s *Send, size int) bool {
	return l.To == s.To && l.TOS == s.TOS &&
		size <= l.SegmentSize &&
		l.Len == l.Segments*l.SegmentSize && // none of them is the short last one
		l.Segments < MaxSendSegments &&
		l.Len+size <= maxSendBytes6
}

// maxSendBytes6 is the limit that holds for both families.
const maxSendBytes6 = 65487

func (o *Outbound) add(header, payload []byte) int {
	n := 0
	if len(header) > 0 {
		o.Pieces = append(o.Pieces, header)
		n++
	}
	if len(payload) > 0 {
		o.Pieces = append(o.Pieces, payload)
		n++
	}
	return n
}
