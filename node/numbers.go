package node

import (
	"slices"
	"time"
)

// numberRest is how long the number of a peer that left is nobody's. A worker may still have a snapshot in hand in
// which it is that peer's, and packets for it wait for up to six seconds.
const numberRest = time.Minute

// numbers are those of peers in the encrypted tunnel. It is as large as the largest crowd of a minute.
type numbers struct {
	last  int32
	spare []spareNumber // the one that rests longest first
}

type spareNumber struct {
	number int32
	since  time.Time // zero: it needs no rest
}

// take is a number that nobody has.
func (n *numbers) take(now time.Time) int32 {
	if len(n.spare) > 0 && now.Sub(n.spare[0].since) >= numberRest {
		number := n.spare[0].number
		n.spare = n.spare[1:]
		return number
	}
	n.last++
	return n.last
}

// release takes the number of a peer that left back.
func (n *numbers) release(number int32, now time.Time) {
	n.spare = append(n.spare, spareNumber{number, now})
}

// giveBack takes a number back that nobody was known by.
func (n *numbers) giveBack(number int32) {
	n.spare = slices.Insert(n.spare, 0, spareNumber{number: number})
}
