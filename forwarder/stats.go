package forwarder

import "sync/atomic"

// PeerStats counts the traffic of one peer. Every worker has a cell of its own, on cache lines of its own, so that
// counting never makes two cores fight; whoever wants a total adds the cells up.
type PeerStats struct {
	cells []PeerCell
}

// A PeerCell is one worker's part. Written by that worker alone.
type PeerCell struct {
	TxPackets, TxBytes atomic.Uint64 // segments and inner IP bytes sent
	RxPackets, RxBytes atomic.Uint64 // segments and inner IP bytes accepted
	LastSeen           atomic.Int64  // Unix nanoseconds of the last accepted datagram; 0: never
	_                  [128 - 5*8]byte
}

// NewPeerStats makes counters for so many workers.
func NewPeerStats(workers int) *PeerStats { return &PeerStats{cells: make([]PeerCell, workers)} }

// Cell is worker n's part.
func (s *PeerStats) Cell(n int) *PeerCell { return &s.cells[n] }

// PeerTotals is the sum over the workers.
type PeerTotals struct {
	TxPackets, TxBytes, RxPackets, RxBytes uint64
	LastSeen                               int64 // Unix nanoseconds; 0: never
}

// Totals adds the cells up. Safe for concurrent use.
func (s *PeerStats) Totals() PeerTotals {
	var t PeerTotals
	for i := range s.cells {
		c := &s.cells[i]
		t.TxPackets += c.TxPackets.Load()
		t.TxBytes += c.TxBytes.Load()
		t.RxPackets += c.RxPackets.Load()
		t.RxBytes += c.RxBytes.Load()
		t.LastSeen = max(t.LastSeen, c.LastSeen.Load())
	}
	return t
}
