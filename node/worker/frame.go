package worker

import (
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// frameSegments returns the number of segments of a superpacket that is to leave as a superframe, and less than 2 for
// one that is not.
func (w *Worker) frameSegments(p []byte, m packet.Meta, d *forwarder.Decision, s *wireguard.Session) int {
	if m.Type == packet.GSONone || d.Edit&forwarder.Fragment != 0 || !s.TakesFrames() {
		return 0
	}
	return packet.CountSegments(p, &w.info, m)
}

// sealFrame puts a superpacket into the batch as a superframe. False: it is to leave in segments.
func (w *Worker) sealFrame(s *sealing, p []byte, m packet.Meta) (done bool, err error) {
	t := &w.seals
	f := wireguard.Frame{Packet: p, SegmentSize: m.SegmentSize, Piece: s.mtu + wireguard.Overhead}
	bytes, pieces, fits := f.Bounds()
	if !fits || bytes > cap(t.messages) {
		return false, nil
	}
	if cap(t.messages)-len(t.messages) < bytes {
		if err := w.flush(); err != nil {
			return false, err
		}
	}
	counter, ok := s.session.Reserve(1)
	if !ok {
		return false, nil // neither will there be one for the segments
	}
	at := len(t.messages)
	head := wireguard.Head{Receiver: s.receiver, Counter: counter}
	t.messages = s.session.SealFrame(t.messages, &t.nonce, head, &f)
	t.out.AppendCut(s.send, t.messages[at:], f.Piece)
	w.Counters.Sealed.Add(uint64(pieces))
	w.Counters.FramesSealed.Add(1)
	return true, nil
}

// fromPieces takes the first of the datagrams in b, of size bytes each, which is a piece of a superframe, and returns
// how many of them it has taken. The superpacket in what is complete goes to the coalescer.
func (w *Worker) fromPieces(b []byte, size int, s *tunnel.Datagrams, from *sender) int {
	if !w.comes(wireguard.Receiver(b), s, from) {
		return 1
	}
	t := w.frames.Take(b, size, s.TOS)
	if t.Lost != 0 {
		w.lostFrame(t.Lost)
	}
	if t.Sealed != nil {
		w.openFrame(&t, from)
	}
	return t.Pieces
}

// openFrame decrypts a superframe, and hands the superpacket in it to the coalescer.
func (w *Worker) openFrame(t *wireguard.Taken, from *sender) {
	inner, size, opened := from.session.OpenFrame(t.Head, t.Sealed, &w.nonce)
	if !w.authentic(opened, from) {
		return
	}
	from.session.Peer().TookFrame(w.ID, w.clock())
	w.Counters.FramesOpened.Add(1)
	if !w.mayPass(inner, t.TOS, from) {
		return
	}
	if e := w.join.AddUncut(inner, from.peer.Index, int(size)); e != packet.OK {
		w.drop(forwarder.FromError(e), 1)
	}
}

// lostFrame counts a superframe of which not all pieces came.
func (w *Worker) lostFrame(index uint32) {
	w.drop(forwarder.LostPieces, 1)
	if s := w.Crypt.Session(index); s != nil {
		s.Peer().LostFrame(w.ID)
	}
}
