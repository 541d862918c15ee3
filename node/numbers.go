package node

import "time"

// numberRest is how long the number of a peer that left is nobody's. A worker may still have a snapshot in hand in
// which it is that peer's, and packets for it wait for up to six seconds.
const numberRest = time.Minute

// numbers gives peers their numbers in the encrypted tunnel. It is as large as the largest crowd of a minute.
type numbers struct {
	byName map[string]int32
	last   int32
	spare  []spareNumber // the one that rests longest first
}

type spareNumber struct {
	number int32
	since  time.Time
}

// of is the peer's number.
func (n *numbers) of(name string, now time.Time) int32 {
	if number, ok := n.byName[name]; ok {
		return number
	}
	if n.byName == nil {
		n.byName = map[string]int32{}
	}
	var number int32
	if len(n.spare) > 0 && now.Sub(n.spare[0].since) >= numberRest {
		number = n.spare[0].number
		n.spare = n.spare[1:]
	} else {
		n.last++
		number = n.last
	}
	n.byName[name] = number
	return number
}

// release takes the number of a peer that left back.
func (n *numbers) release(name string, now time.Time) {
	if number, ok := n.byName[name]; ok {
		delete(n.byName, name)
		n.spare = append(n.spare, spareNumber{number, now})
	}
}
