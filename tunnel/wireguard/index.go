package wireguard

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// An index is made of:
//
//	bits 0 to 7    a number that is the lane modulo the number of lanes: the kernel steers by it (tunnel/udp). A peer
//	               that has offered to may choose it by itself, for each message (see Session.To)
//	bits 8 to 27   a slot in the table
//	bits 28 to 31  random, and not 0: no index is
//
// It need be neither secret nor unpredictable, only not be used again soon.
const (
	laneBits  = 8
	laneMask  = 1<<laneBits - 1
	slotBits  = 20
	slotShift = laneBits
	maxSlots  = 1 << slotBits
	slotMask  = maxSlots - 1
	maxRandom = 1<<(32-slotBits-laneBits) - 1
)

// An indexTable finds the session of an index. Lookups take no lock.
type indexTable struct {
	lanes int
	slots atomic.Pointer[[]*slot]

	mu   sync.Mutex
	free []uint32 // slots, the one that was freed first first
}

// A slot belongs to one index at a time, from reserve to release.
type slot struct {
	session atomic.Pointer[Session]
}

// lookup returns the session of an index, whatever its lane; nil: there is none (any more).
func (t *indexTable) lookup(index uint32) *Session {
	slots := t.slots.Load()
	n := index >> slotShift & slotMask
	if slots == nil || int(n) >= len(*slots) {
		return nil
	}
	if s := (*slots)[n].session.Load(); s != nil && (s.local^index)&^laneMask == 0 {
		return s
	}
	return nil
}

// reserve takes an index for a lane, which leads nowhere until set. False: all are in use.
func (t *indexTable) reserve(lane int) (index uint32, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const spare = 64 // so many slots are free before one is used again
	if len(t.free) < spare && !t.grow() && len(t.free) == 0 {
		return 0, false
	}
	n := t.free[0]
	t.free = t.free[1:]
	rounds := (1 << laneBits) / t.lanes
	low := uint32(lane%t.lanes + t.lanes*rand.IntN(max(rounds, 1)))
	return low | n<<slotShift | (1+rand.Uint32N(maxRandom))<<(slotShift+slotBits), true
}

// grow doubles the table.
func (t *indexTable) grow() bool {
	var old []*slot
	if p := t.slots.Load(); p != nil {
		old = *p
	}
	size := max(256, 2*len(old))
	if size > maxSlots {
		return false
	}
	slots := make([]*slot, size)
	copy(slots, old)
	for n := len(old); n < size; n++ {
		slots[n] = new(slot)
		t.free = append(t.free, uint32(n))
	}
	t.slots.Store(&slots)
	return true
}

// set makes the session's index lead to it.
func (t *indexTable) set(s *Session) {
	(*t.slots.Load())[s.local>>slotShift&slotMask].session.Store(s)
}

// release ends an index.
func (t *indexTable) release(index uint32) {
	n := index >> slotShift & slotMask
	(*t.slots.Load())[n].session.Store(nil)
	t.mu.Lock()
	t.free = append(t.free, n)
	t.mu.Unlock()
}
