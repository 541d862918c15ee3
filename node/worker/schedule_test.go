package worker

import (
	"slices"
	"testing"
)

// turns gives n turns. Each lane moves what bytes says, and has always more on the side that it was given the turn for.
func turns(s *schedule, n int, ready Ready, bytes map[int]int) []int {
	var order []int
	for range n {
		s.add(ready)
		k, side, ok := s.next()
		if !ok {
			break
		}
		order = append(order, k)
		s.done(k, side, bytes[k])
	}
	return order
}

// TestBusyLanesTakeTurns: nobody is served twice before everybody else was once.
func TestBusyLanesTakeTurns(t *testing.T) {
	var s schedule
	got := turns(&s, 9, Ready{Queues: 0b111}, map[int]int{0: 1 << 17, 1: 1 << 17, 2: 1 << 17})
	if want := []int{0, 1, 2, 0, 1, 2, 0, 1, 2}; !slices.Equal(got, want) {
		t.Errorf("turns %v, want %v", got, want)
	}
}

// TestSparseLaneComesFirst: an echo waits for the end of the turn that is under way, not for all busy lanes.
func TestSparseLaneComesFirst(t *testing.T) {
	var s schedule
	bytes := map[int]int{0: 1 << 17, 1: 1 << 17, 2: 1 << 17, 3: 1 << 17}
	turns(&s, 4, Ready{Queues: 0b1111}, bytes)
	for range 3 {
		s.add(Ready{Sockets: 1 << 7})
		k, ready, _ := s.next()
		if k != 7 || ready != socketSide {
			t.Fatalf("lane %d (sides %b) has the turn, want the socket of lane 7", k, ready)
		}
		s.done(7, 0, 84)
		order := turns(&s, 5, Ready{}, bytes) // until it is found with nothing
		if want := []int{0, 1, 2, 3, 7}; !slices.Equal(order, want) {
			t.Fatalf("turns %v after the echo, want %v", order, want)
		}
	}
}

// TestNobodyIsAlwaysFresh: a lane that each turn drains, and that is ready again at once, does not have all the turns,
// however little it moves in each.
func TestNobodyIsAlwaysFresh(t *testing.T) {
	for _, bytes := range []int{60, 1 << 17} {
		var s schedule
		count := map[int]int{}
		for range 30 {
			s.add(Ready{Queues: 0b11}) // lane 0 is drained by each turn, lane 1 is never drained
			k, side, ok := s.next()
			if !ok {
				t.Fatal("nobody has the turn")
			}
			count[k]++
			if k == 0 {
				s.done(0, 0, bytes)
			} else {
				s.done(1, side, 1<<17)
			}
		}
		if count[0] != 15 || count[1] != 15 {
			t.Errorf("%d bytes a turn: turns by lane: %v, want 15 each", bytes, count)
		}
	}
}

// TestScheduleEmpties: who had nothing in its turn is in no line, and the sides of several additions come together.
func TestScheduleEmpties(t *testing.T) {
	var s schedule
	if _, _, ok := s.next(); ok || !s.empty() {
		t.Fatal("the zero value has somebody in line")
	}
	const last = MaxLanes - 1
	s.add(Ready{Queues: 1 << last})
	s.add(Ready{Sockets: 1 << last})
	s.add(Ready{Secure: 1 << last})
	s.add(Ready{Sockets: 1 << last})
	k, ready, ok := s.next()
	if !ok || k != last || ready != queueSide|socketSide|secureSide {
		t.Fatalf("next = %d, %b, %v; want all sides of lane %d", k, ready, ok, last)
	}
	s.done(last, 0, 0)
	if _, _, ok := s.next(); ok || !s.empty() {
		t.Error("the last lane is still in line after a turn with nothing")
	}
	s.add(Ready{Queues: 1})
	k, _, _ = s.next()
	s.done(k, 0, 1<<20)
	if !s.empty() {
		t.Error("a lane alone and drained is still in line: the worker would not sleep")
	}
}

// TestAllLanesInLine: the lines hold every lane at once.
func TestAllLanesInLine(t *testing.T) {
	var s schedule
	bytes := map[int]int{}
	for k := range MaxLanes {
		bytes[k] = 1 << 17
	}
	got := turns(&s, 2*MaxLanes, Ready{Queues: 1<<MaxLanes - 1}, bytes)
	for i, k := range got {
		if k != i%MaxLanes {
			t.Fatalf("turn %d is lane %d's, want %d", i, k, i%MaxLanes)
		}
	}
}
