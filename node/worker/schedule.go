package worker

import "math/bits"

// A side is one end of a lane, or several.
type side uint8

const (
	queueSide side = 1 << iota
	socketSide
	secureSide
)

// A schedule says whose turn it is, in the manner of the flow queues of FQ-CoDel (RFC 8290, 4.1 and 4.2). A lane that
// had nothing to do is fresh when it gets something, and comes before those that always have something: an echo
// request waits for the end of one turn, not for a turn of everybody. After a turn in which it moved anything a lane
// goes to the end of the line of the busy ones, also when it has nothing left, and is in no line only after a turn
// with nothing to do; so between two turns of any lane each busy one has had its own.
type schedule struct {
	ready       [MaxLanes]side // what there may be to do
	lined       uint32         // the lanes in one of the lines
	fresh, busy line
}

// A line is a queue of lanes, none of them twice.
type line struct {
	lanes    [MaxLanes]uint8
	first, n int
}

func (l *line) push(k int) {
	l.lanes[(l.first+l.n)%MaxLanes] = uint8(k)
	l.n++
}

func (l *line) pop() int {
	k := l.lanes[l.first]
	l.first = (l.first + 1) % MaxLanes
	l.n--
	return int(k)
}

// has reports whether lane k is in line.
func (s *schedule) has(k int) bool { return s.lined&(1<<k) != 0 }

// empty reports whether nobody is in line.
func (s *schedule) empty() bool { return s.lined == 0 }

// add puts what has become ready in line.
func (s *schedule) add(r Ready) {
	for set := r.Queues | r.Sockets | r.Secure; set != 0; set &= set - 1 {
		k := bits.TrailingZeros32(set)
		bit := uint32(1) << k
		if r.Queues&bit != 0 {
			s.ready[k] |= queueSide
		}
		if r.Sockets&bit != 0 {
			s.ready[k] |= socketSide
		}
		if r.Secure&bit != 0 {
			s.ready[k] |= secureSide
		}
		if s.lined&bit == 0 {
			s.lined |= bit
			s.fresh.push(k)
		}
	}
}

// next takes the lane whose turn it is out of its line, and says which of its sides may have something.
func (s *schedule) next() (k int, ready side, ok bool) {
	switch {
	case s.fresh.n > 0:
		k = s.fresh.pop()
	case s.busy.n > 0:
		k = s.busy.pop()
	default:
		return 0, 0, false
	}
	ready = s.ready[k]
	s.ready[k] = 0
	s.lined &^= 1 << k
	return k, ready, true
}

// done ends the turn of lane k, which moved so many bytes. left is what may have more.
func (s *schedule) done(k int, left side, moved int) {
	if left == 0 && (moved == 0 || s.lined == 0) { // nobody else in line: there is nothing to be fair about
		return
	}
	s.ready[k] |= left
	s.lined |= 1 << k
	s.busy.push(k)
}
