package worker

import "math/bits"

// A side is one end of a lane, or both.
type side uint8

const (
	queueSide side = 1 << iota
	socketSide
)

// sparseBytes tells a sparse lane from a busy one: a turn that moved more than this makes it a busy one. A turn of
// echoes or acknowledgements alone stays below.
const sparseBytes = 8 << 10

// A schedule says whose turn it is, in the manner of the flow queues of FQ-CoDel (RFC 8290, 4.1 and 4.2). A lane that
// had nothing to do is fresh when it gets something, and comes before those that always have something: an echo request
// waits for the end of one turn, not for a turn of everybody. After its turn a lane that moved much, or has more, goes
// to the end of the line of the busy ones, and leaves that only after a turn that moved little; so nobody can be fresh
// all the time and have all the turns.
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

// empty reports whether nobody is in line.
func (s *schedule) empty() bool { return s.lined == 0 }

// add puts what has become ready in line.
func (s *schedule) add(r Ready) {
	for set := r.Queues | r.Sockets; set != 0; set &= set - 1 {
		k := bits.TrailingZeros32(set)
		bit := uint32(1) << k
		if r.Queues&bit != 0 {
			s.ready[k] |= queueSide
		}
		if r.Sockets&bit != 0 {
			s.ready[k] |= socketSide
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
	if left == 0 && (moved <= sparseBytes || s.lined == 0) {
		return
	}
	s.ready[k] |= left
	s.lined |= 1 << k
	s.busy.push(k)
}
