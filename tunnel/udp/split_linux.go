package udp

import "github.com/warren-net/warren/tunnel"

// splitSlots is how many receives a splitter has room for.
const splitSlots = 16

// A splitter gives every datagram a slot of its own, although UDP_GRO is on. It copies, which is for a socket of few
// and short datagrams.
type splitter struct {
	in   *tunnel.Inbound // what was received, maybe joined
	slot int             // in.Slots[slot].Buf[at:] is where the next datagram begins
	at   int
}

func newSplitter() *splitter { return &splitter{in: tunnel.NewInbound(splitSlots)} }

// receiveSplit is receiveJoined for a Socket with a splitter. What there are no slots for is kept for the next call.
func (s *Socket) receiveSplit(in *tunnel.Inbound) error {
	d := s.splitter
	// Bounded, as datagrams that are too large for a slot may come in as fast as they are thrown away.
	for receives := 0; receives*splitSlots < len(in.Slots); receives++ {
		d.fill(in)
		if in.N == len(in.Slots) {
			return nil
		}
		d.in.N, d.slot, d.at = 0, 0, 0
		if err := s.receiveJoined(d.in); err != nil || d.in.N == 0 {
			return err
		}
	}
	d.fill(in)
	return nil
}

// fill moves datagrams to the free slots. One that is larger than its slot's buffer is thrown away.
func (d *splitter) fill(in *tunnel.Inbound) {
	for in.N < len(in.Slots) && d.slot < d.in.N {
		joined, slot := &d.in.Slots[d.slot], &in.Slots[in.N]
		end := min(d.at+joined.SegmentSize, joined.N)
		datagram := joined.Buf[d.at:end]
		d.at = end
		if end == joined.N {
			d.slot, d.at = d.slot+1, 0
		}
		if len(datagram) > len(slot.Buf) {
			continue
		}
		slot.N = copy(slot.Buf, datagram)
		slot.SegmentSize, slot.From, slot.TOS = slot.N, joined.From, joined.TOS
		in.N++
	}
}
