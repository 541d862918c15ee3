package worker

import (
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// drainSocket receives at most one batch from the lane's VXLAN socket, joins its packets into superpackets, decides on
// each of these, and writes what is for this node to the device. It returns how much it did, in bytes and receives
// together, and whether there may be more.
func (w *Worker) drainSocket() (work int, more bool, err error) {
	if err := w.receive(w.lane.Socket, w.lane.slots); err != nil || w.in.N == 0 {
		return 0, false, err
	}
	more = w.in.N == len(w.in.Slots)
	bytes, datagrams := 0, 0
	for k := range w.in.Slots[:w.in.N] {
		bytes += w.in.Slots[k].N
		datagrams += w.fromWire(&w.in.Slots[k], w.now())
	}
	w.resize(&w.lane.slots, bytes)
	return bytes + w.in.N, more, w.deliverRuns(datagrams)
}

// receive receives a batch from a socket, and makes the coalescer ready for it.
func (w *Worker) receive(s tunnel.Socket, slots int) error {
	w.in.Slots = w.slots[:slots]
	if err := s.Receive(w.in); err != nil || w.in.N == 0 {
		return err
	}
	q := w.lane.Queue
	w.join.SetTCP(q.Takes(packet.GSOTCP4) && q.Takes(packet.GSOTCP6))
	w.join.SetUDP(q.Takes(packet.GSOUDP))
	w.join.Reset()
	return nil
}

// resize chooses how many slots a socket's next receive has, from how many bytes this one brought.
func (w *Worker) resize(n *int, bytes int) {
	switch {
	case w.IsExpress(): // its turns are small
	case bytes > socketBytes && *n > fewestSlots:
		*n /= 2
	case bytes < socketBytes/2 && w.in.N == *n && *n < len(w.slots):
		*n *= 2
	}
}

// deliverRuns decides on what the coalescer made of a batch of so many datagrams.
func (w *Worker) deliverRuns(datagrams int) error {
	defer w.arena.Reset() // what was cut for the device has been written, and nothing waits to be sent
	defer w.release()
	w.Counters.Receives.Add(uint64(w.in.N))
	w.Counters.SegmentsIn.Add(uint64(datagrams))
	w.Counters.RunsIn.Add(uint64(w.join.Len()))
	for k := range w.join.Len() {
		if err := w.deliverRun(k); err != nil {
			return err
		}
	}
	return nil
}

// fromWire decapsulates what one receive delivered, hands the packets to the coalescer, and returns their number.
func (w *Worker) fromWire(s *tunnel.Datagrams, now int64) int {
	size := s.SegmentSize
	if size <= 0 {
		size = s.N
	}
	if s.N == 0 {
		w.drop(forwarder.EncapShort, 1)
		return 1
	}
	n := (s.N + size - 1) / size
	peer := w.snap.PeerByAddr(s.From.Addr())
	if peer == nil {
		w.drop(forwarder.UnknownPeer, n)
		return n
	}
	if peer.RefusesPlaintext {
		w.drop(forwarder.Plaintext, n)
		return n
	}
	if w.uncutDatagram(s, peer) {
		peer.Stats.Cell(w.ID).LastSeen.Store(now)
		return 1
	}
	accepted := false
	for rest := s.Buf[:s.N]; len(rest) > 0; {
		d := rest[:min(size, len(rest))]
		rest = rest[len(d):]
		inner, why := w.Decoder.Decode(d)
		if why != vxlan.Accepted {
			w.drop(encapReason(why), 1)
			continue
		}
		if s.TOS&packet.ECNMask != 0 && !w.congestion(inner, s.TOS) {
			continue
		}
		if e := w.join.Add(inner, peer.Index); e != packet.OK {
			w.drop(forwarder.FromError(e), 1)
			continue
		}
		accepted = true
	}
	if accepted {
		peer.Stats.Cell(w.ID).LastSeen.Store(now)
	}
	return n
}

// congestion carries the outer header's ECN mark over to the inner packet (RFC 6040, 4.2) and reports whether the
// packet may go on.
func (w *Worker) congestion(inner []byte, outer uint8) bool {
	i := &w.info
	if e := packet.Parse(inner, i); e != packet.OK {
		w.drop(forwarder.FromError(e), 1)
		return false
	}
	tos, drop := packet.DecapECN(i.TOS, outer)
	if drop {
		w.drop(forwarder.Congestion, 1)
		return false
	}
	if tos != i.TOS {
		packet.SetTOS(inner, i, tos)
	}
	return true
}

// deliverRun decides on one run of the coalescer and writes it to the device.
func (w *Worker) deliverRun(k int) error {
	run := w.join.Run(k)
	peer := w.snap.Peer(run.Tag)
	d := w.snap.FromWire(peer, &run.Info)
	if d.Verdict != forwarder.Local {
		w.drop(d.Reason, run.Segments)
		return nil
	}
	m, pieces := w.join.Finish(k)
	if d.Edit&forwarder.ClampMSS != 0 {
		packet.ClampMSS(pieces[0], &run.Info, m, d.MTU)
	}
	cell := peer.Stats.Cell(w.ID)
	cell.RxPackets.Add(uint64(run.Segments))
	cell.RxBytes.Add(uint64(run.Bytes))
	w.Counters.BytesIn.Add(uint64(run.Bytes))
	// By the flow, whoever received it: the kernel hands the flow's other direction to the queue that this one is written
	// to, so a flow that moved with each packet would make its answers move between workers, and be reordered.
	return w.deliver(w.queueOf(&run.Info, run.Bytes), m, pieces, run.Segments)
}

// encapReason translates why the encapsulation refused a datagram.
func encapReason(d vxlan.Drop) forwarder.Reason {
	switch d {
	case vxlan.TooShort:
		return forwarder.EncapShort
	case vxlan.NoVNI:
		return forwarder.EncapFlags
	case vxlan.WrongVNI:
		return forwarder.WrongVNI
	case vxlan.WrongMAC:
		return forwarder.WrongMAC
	case vxlan.GroupMAC:
		return forwarder.GroupMAC
	case vxlan.WrongEtherType:
		return forwarder.BadEtherType
	}
	return forwarder.UnofferedExtension
}
