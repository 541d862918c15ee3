package worker

import (
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// frameSegments returns the number of segments of a superpacket that is to leave as a superframe, and less than 2 for
// one that is not. Its transport checksum has to be one that the receiver knows as partial.
func (w *Worker) frameSegments(p []byte, m packet.Meta, d *forwarder.Decision, s *wireguard.Session) int {
	i := &w.info
	if m.Type == packet.GSONone || d.Edit&forwarder.Fragment != 0 || !s.TakesFrames() || i.Is(packet.HasOptions) ||
		!packet.IsPartial(p, i) {
		return 0
	}
	return packet.CountSegments(p, i, m)
}

// sealFrame puts a superpacket into the batch as a superframe, and returns how many segments it has. 0: it is to leave
// in segments.
func (w *Worker) sealFrame(s *sealing, p []byte, m packet.Meta, d *forwarder.Decision) (segments int, err error) {
	if segments = w.frameSegments(p, m, d, s.session); segments < 2 {
		return 0, nil
	}
	t := &w.seals
	f := wireguard.Frame{Packet: p, SegmentSize: m.SegmentSize, Piece: s.mtu + wireguard.Overhead}
	bytes, pieces, fits := f.Bounds()
	if !fits || bytes > cap(t.messages) {
		return 0, nil
	}
	if err := w.makeRoom(bytes); err != nil {
		return 0, err
	}
	counter, ok := s.session.Reserve(1)
	if !ok {
		return 0, nil // neither will there be one for the segments
	}
	at := len(t.messages)
	head := wireguard.Head{Receiver: s.receiver, Counter: counter}
	t.messages = s.session.SealFrame(t.messages, &t.nonce, head, &f)
	t.out.AppendCut(s.send, t.messages[at:], f.Piece)
	w.Counters.Sealed.Add(uint64(pieces))
	w.Counters.FramesSealed.Add(1)
	return segments, nil
}

// maxLent is how many superframes that had to be collected a worker takes in one turn.
const maxLent = 64

// A lent is a superframe in a buffer of an Assembler's.
type lent struct {
	of    *wireguard.Assembler
	taken wireguard.Taken
}

// fromPieces takes the first of the datagrams in b, of size bytes each, which is a piece of a superframe, and returns
// how many of them it has taken. The superpacket in what is complete goes to the coalescer.
func (w *Worker) fromPieces(b []byte, size int, s *tunnel.Datagrams, from *sender) int {
	index := wireguard.Receiver(b)
	if !w.comes(index, s, from) {
		return 1
	}
	if !from.session.OpensFrames() {
		w.drop(forwarder.NotWireGuard, 1)
		return 1
	}
	a := w.Crypt.Pieces(index)
	t := a.Take(b, size, wireguard.Arrival{TOS: s.TOS, Now: w.clock(), Collect: from.session.Collects(b, s.From)})
	if t.Useless {
		w.drop(forwarder.Replayed, 1)
	}
	if t.Lost != 0 {
		w.lostFrame(t.Lost)
	}
	if t.Sealed == nil {
		return t.Pieces
	}
	switch {
	case !t.Collected():
		w.openFrame(&t, from)
	case len(w.lent) == maxLent:
		w.lostFrame(index)
		a.Release(&t)
	case w.openFrame(&t, from):
		w.lent = append(w.lent, lent{a, t})
	default:
		a.Release(&t)
	}
	return t.Pieces
}

// openFrame decrypts a superframe, and hands the superpacket in it to the coalescer, which then refers to it.
func (w *Worker) openFrame(t *wireguard.Taken, from *sender) bool {
	inner, size, opened := from.session.OpenFrame(t.Head, t.Sealed, &w.nonce)
	if !w.authentic(opened, from) {
		return false
	}
	from.opened += t.Of - 1
	from.session.Peer().TookFrame(w.ID, w.clock())
	w.Counters.FramesOpened.Add(1)
	if !w.mayPass(inner, t.TOS, from) {
		return false
	}
	if e := w.join.AddUncut(inner, from.peer.Index, int(size)); e != packet.OK {
		w.drop(forwarder.FromError(e), 1)
		return false
	}
	return true
}

// release gives back what was lent for a batch that was delivered.
func (w *Worker) release() {
	for k := range w.lent {
		w.lent[k].of.Release(&w.lent[k].taken)
	}
	clear(w.lent)
	w.lent = w.lent[:0]
}

// lostFrame counts a superframe of which not all pieces came.
func (w *Worker) lostFrame(index uint32) {
	w.drop(forwarder.LostPieces, 1)
	if s := w.Crypt.Session(index); s != nil {
		s.Peer().LostFrame(w.ID)
	}
}
