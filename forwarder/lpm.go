package forwarder

import (
	"net/netip"

	"github.com/warren-net/warren/forwarder/packet"
)

// An lpm is an immutable longest-prefix match from addresses to targets: a level-compressed trie (Nilsson and Karlsson,
// 1999) for each IP version. A node branches by as many bits of the address at once as the routes below it fill the
// slots of, so that a million routes are two or three steps away from the root, not ten. All nodes lie in one slice
// without pointers, into which the garbage collector never looks.
//
// Every slot of a node holds the answer for what no longer prefix claims: a lookup ends where it ends and has nothing
// to go back for. A stretch of the address at which nothing branches is a node that compares it.
type lpm struct {
	slots        []entry
	root4, root6 entry
}

// An entry says what an address leads to:
//
//	bit 31        a target, below
//	bit 30        a comparison; bits 0 to 25: the place of its node
//	none of them  a branch by the number of address bits that is in bits 26 to 29; bits 0 to 25: the place of its node
//
// A place is an index into the slots, divided by slotUnit.
type entry uint32

const (
	entryTarget  entry = 1 << 31
	entryCompare entry = 1 << 30

	strideShift       = 26
	maxStride         = 11 // of the 15 that there is room for: whoever changes a route copies its node, 8 KiB at most
	placeMask   entry = 1<<strideShift - 1
	slotUnit          = 4
	maxSlots          = (int(placeMask) + 1) * slotUnit
)

// The slots of a comparison. It compares the next bits of the address, as many as the mask has.
const (
	compareElse  = iota // the entry for addresses that differ, a target
	compareThen         // the entry for the others
	compareBits         // how many bits are compared
	compareTurn         // 1: the first 64 bits of the address are done with, what follows is about the others
	compareWant         // two slots: the bits
	_                   //
	compareMask         // two slots
	_                   //
	compareSlots        // how many there are
)

// A target is what an address belongs to: a kind, and for kindPeer the peer's index below it.
type target uint32

const (
	kindShift  = 28
	maxTargets = 1 << kindShift // peers

	// nowhere is the entry for addresses that no prefix contains.
	nowhere = entryTarget | entry(kindOutside)<<kindShift
)

func newTarget(k kind, peer int) target { return target(k)<<kindShift | target(peer) }

func (t target) kind() kind  { return kind(t >> kindShift) }
func (t target) peer() int32 { return int32(t & (maxTargets - 1)) }

// lookup returns the target of the longest prefix that contains a.
func (t *lpm) lookup(a netip.Addr) target {
	hi, lo := packet.AddrWords(a)
	if a.Is4() {
		return t.walk(t.root4, hi, lo)
	}
	return t.walk(t.root6, hi, lo)
}

// walk follows e to a target. The bits of hi that are done with are shifted out.
func (t *lpm) walk(e entry, hi, lo uint64) target {
	for {
		switch {
		case e < entryCompare:
			stride := e >> strideShift
			e = t.slots[uint64(e&placeMask)*slotUnit+hi>>(-stride&63)]
			hi <<= stride & 63
		case e >= entryTarget:
			return target(e &^ entryTarget)
		default:
			at := int(e&placeMask) * slotUnit
			if (hi^t.pair(at+compareWant))&t.pair(at+compareMask) != 0 {
				return target(t.slots[at+compareElse] &^ entryTarget)
			}
			e = t.slots[at+compareThen]
			hi <<= t.slots[at+compareBits] & 63
			if t.slots[at+compareTurn] != 0 {
				hi = lo
			}
		}
	}
}

// pair is the number in two slots.
func (t *lpm) pair(at int) uint64 { return uint64(t.slots[at])<<32 | uint64(t.slots[at+1]) }
