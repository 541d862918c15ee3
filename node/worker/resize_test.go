package worker

import "testing"

// TestReceiveSlots: few slots for large datagrams, so that they stay in the cache; many for small ones, so that one
// system call brings many.
func TestReceiveSlots(t *testing.T) {
	w := New(Config{Lanes: make([]Lane, 1)})
	receive := func(n, size int) int {
		w.in.N = min(n, w.lane.slots)
		w.resize(&w.lane.slots, w.in.N*size)
		return w.lane.slots
	}
	if n := receive(socketSlots, 60000); n != fewestSlots {
		t.Errorf("large datagrams: %d slots after the first receive, want %d", n, fewestSlots)
	}
	for range 10 {
		receive(socketSlots, 100)
	}
	if n := w.lane.slots; n != socketSlots {
		t.Errorf("many small datagrams: %d slots, want %d", n, socketSlots)
	}
	if n := receive(3, 100); n != socketSlots {
		t.Errorf("few small datagrams: %d slots, want still %d", n, socketSlots)
	}
	for range 10 {
		receive(socketSlots, 60000)
	}
	if n := w.lane.slots; n != fewestSlots {
		t.Errorf("large datagrams again: %d slots, want %d", n, fewestSlots)
	}
}
