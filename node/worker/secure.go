package worker

import (
	"net/netip"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// sealedBytes is the room for a batch's messages: its packets, and what segments of 500 bytes add to them. A batch that
// needs more leaves in parts.
const sealedBytes = queueBytes + 128<<10

// A sealer is what a worker encrypts with.
type sealer struct {
	segs     packet.Segments // with headers of its own, for one superpacket at a time
	frags    packet.Fragments
	messages []byte // those of the batch, one behind the other; it never moves, as out refers to it
	out      tunnel.Outbound
	nonce    wireguard.Nonce
}

// tunnelTo is the peer as the encrypted tunnel has it; nil: it can't be sent anything, nor called.
func (w *Worker) tunnelTo(p *forwarder.Peer) *wireguard.Peer {
	if w.Crypt == nil || w.lane.Secure == nil {
		return nil
	}
	if t := w.Crypt.Peer(p.Tunnel); t != nil && t.Endpoint().IsValid() {
		return t
	}
	return nil
}

// encrypt puts a superpacket into the batch in messages of the peer's session, or has it wait for one.
func (w *Worker) encrypt(p []byte, m packet.Meta, d *forwarder.Decision) error {
	peer := w.tunnelTo(d.Peer)
	if peer == nil {
		w.drop(forwarder.NoSession, 1)
		return nil
	}
	session := peer.Current()
	if session == nil {
		w.wait(p, m, peer)
		return nil
	}
	i := &w.info
	if w.room.holds(peer.ID()) { // which leaves before
		if err := w.review(); err != nil {
			return err
		}
		_ = packet.Parse(p, i) // as before
	}
	if d.Edit&forwarder.ClampMSS != 0 {
		packet.ClampMSS(p, i, m, d.MTU)
	}
	// The message shows its ECN field, which the underlay may change (RFC 6040), and nothing of the DSCP.
	s := sealing{
		session: session, receiver: w.receiver(session, p, m), mtu: d.Peer.MTU,
		send: tunnel.Send{To: peer.Endpoint(), TOS: packet.EncapTOS(i.TOS) & packet.ECNMask, Peer: d.Peer.Index},
	}
	n, err := w.sealFrame(&s, p, m, d)
	if n == 0 && err == nil {
		n, err = w.sealCut(&s, p, m, d)
	}
	if n > 0 {
		peer.Sent(w.ID, w.clock(), true)
		w.countToPeer(d.Peer, n, len(p))
	}
	return err
}

// sealCut puts the segments of a superpacket into the batch, or their fragments, and returns their number.
func (w *Worker) sealCut(s *sealing, p []byte, m packet.Meta, d *forwarder.Decision) (n int, err error) {
	if e := w.seals.segs.Segment(p, &w.info, m, nil); e != packet.OK {
		w.drop(forwarder.FromError(e), 1)
		return 0, nil
	}
	if d.Edit&forwarder.Fragment == 0 {
		n, err = w.sealSegments(s)
	} else {
		n, err = w.sealFragments(s, d.MTU)
	}
	w.Counters.Sealed.Add(uint64(n))
	return n, err
}

// receiver is the index that the superpacket in w.info is sent to.
func (w *Worker) receiver(s *wireguard.Session, p []byte, m packet.Meta) uint32 {
	if i := &w.info; m.Type == packet.GSONone && i.Proto == protoTCP && i.HeaderLen() == len(p) {
		return s.Acknowledge(w.lane.Number, w.ID, w.clock())
	}
	return s.To(w.lane.Number)
}

// clock is the turn's time as the encrypted tunnel goes by it, which no change of the system's clock moves.
func (w *Worker) clock() int64 {
	if w.tunnelAt == 0 {
		w.tunnelAt = w.Crypt.Now()
	}
	return w.tunnelAt
}

// A sealing is a superpacket's way into a session.
type sealing struct {
	session  *wireguard.Session
	receiver uint32
	mtu      int
	send     tunnel.Send
}

// sealSegments puts the segments into the batch and returns their number.
func (w *Worker) sealSegments(s *sealing) (int, error) {
	n := w.seals.segs.N()
	first, ok := s.session.Reserve(n)
	if !ok {
		w.drop(forwarder.NoSession, 1)
		return 0, nil
	}
	for k := range n {
		if err := w.seal(s, first+uint64(k), nil, w.seals.segs.Together(k)); err != nil {
			return k, err
		}
	}
	return n, nil
}

// sealFragments does the same in IPv4 fragments of at most mtu bytes.
func (w *Worker) sealFragments(s *sealing, mtu int) (n int, err error) {
	t := &w.seals
	for k := range t.segs.N() {
		p := t.segs.Together(k)
		var i packet.Info
		e := packet.Parse(p, &i)
		if e == packet.OK {
			e = t.frags.Split(p, &i, mtu)
		}
		if e != packet.OK {
			w.drop(forwarder.FromError(e), 1)
			continue
		}
		first, ok := s.session.Reserve(t.frags.N())
		if !ok {
			w.drop(forwarder.NoSession, 1)
			continue
		}
		for f := range t.frags.N() {
			header, payload := t.frags.Pieces(f)
			if err := w.seal(s, first+uint64(f), header, payload); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

// makeRoom has the buffer of messages take so many bytes more: what is in it leaves where they don't fit.
func (w *Worker) makeRoom(bytes int) error {
	if cap(w.seals.messages)-len(w.seals.messages) >= bytes {
		return nil
	}
	return w.flush()
}

// seal puts a packet made of header and payload into the batch as one message. A packet in one piece that needs no
// padding is not copied.
func (w *Worker) seal(s *sealing, counter uint64, header, payload []byte) error {
	t := &w.seals
	n := len(header) + len(payload)
	padded := wireguard.PaddedLen(n, s.mtu)
	if err := w.makeRoom(padded + wireguard.Overhead); err != nil {
		return err
	}
	at := len(t.messages)
	p := payload
	if padded > n || len(header) > 0 {
		p = t.messages[at+wireguard.HeaderLen : at+wireguard.HeaderLen+padded]
		copy(p[copy(p, header):], payload)
		clear(p[n:])
	}
	t.messages = s.session.Seal(t.messages, &t.nonce, wireguard.Head{Receiver: s.receiver, Counter: counter}, p)
	t.out.Append(s.send, t.messages[at:], nil)
	return nil
}

// drainSecure does what drainSocket does, for the lane's socket of the encrypted tunnel.
func (w *Worker) drainSecure() (work int, more bool, err error) {
	if err := w.receive(w.lane.Secure, w.lane.secureSlots); err != nil || w.in.N == 0 {
		return 0, false, err
	}
	more = w.in.N == len(w.in.Slots)
	bytes, messages := 0, 0
	for k := range w.in.Slots[:w.in.N] {
		bytes += w.in.Slots[k].N
		messages += w.fromTunnel(&w.in.Slots[k])
	}
	w.resize(&w.lane.secureSlots, bytes)
	return bytes + w.in.N, more, w.deliverRuns(messages)
}

// A sender is whom messages of one session came from.
type sender struct {
	index   uint32
	session *wireguard.Session
	peer    *forwarder.Peer // nil: the snapshot has none of that number
	opened  int             // messages that are authentic and new
	data    bool            // one of them held a packet
}

// fromTunnel decrypts what one receive delivered, hands the packets to the coalescer, and returns the number of
// messages.
func (w *Worker) fromTunnel(s *tunnel.Datagrams) int {
	if s.N == 0 {
		w.drop(forwarder.NotWireGuard, 1)
		return 1
	}
	size := s.SegmentSize
	if size <= 0 {
		size = s.N
	}
	n := 0
	var from sender
	for rest := s.Buf[:s.N]; len(rest) > 0; n++ {
		msg := rest[:min(size, len(rest))]
		if wireguard.IsPiece(msg) {
			pieces := w.fromPieces(rest, size, s, &from)
			rest = rest[min(pieces*size, len(rest)):]
			n += pieces - 1
			continue
		}
		rest = rest[len(msg):]
		if !wireguard.IsData(msg) {
			w.notData(msg, s.From)
			continue
		}
		if w.comes(wireguard.Receiver(msg), s, &from) {
			w.open(msg, s.TOS, &from)
		}
	}
	w.heard(&from, s.From)
	return n
}

// comes makes from the sender of a message with this index, and reports whether there is its session.
func (w *Worker) comes(index uint32, s *tunnel.Datagrams, from *sender) bool {
	if from.session == nil || index != from.index {
		w.heard(from, s.From)
		*from = sender{index: index, session: w.Crypt.Session(index)}
		if from.session != nil {
			from.peer = w.snap.PeerByTunnel(from.session.Peer().ID())
		}
	}
	if from.session == nil {
		w.drop(forwarder.UnknownSession, 1)
	}
	return from.session != nil
}

// notData passes a message of a handshake on.
func (w *Worker) notData(msg []byte, from netip.AddrPort) {
	if !wireguard.IsHandshake(msg) {
		w.drop(forwarder.NotWireGuard, 1)
		return
	}
	w.Crypt.Deliver(msg, from)
}

// open decrypts a data message, whose outer header had this TOS, and hands the packet in it to the coalescer.
func (w *Worker) open(msg []byte, tos uint8, from *sender) {
	inner, opened := from.session.Open(msg, &w.nonce)
	if !w.authentic(opened, from) || len(inner) == 0 {
		return
	}
	if wireguard.IsOffer(inner) {
		from.session.Offered(inner)
		return
	}
	if !w.mayPass(inner, tos, from) {
		return
	}
	// Padding lies behind the length that the packet's header says.
	if e := w.join.Add(inner, from.peer.Index); e != packet.OK {
		w.drop(forwarder.FromError(e), 1)
	}
}

// authentic counts what became of a message, and reports whether the peer made it and it is new.
func (w *Worker) authentic(o wireguard.Opened, from *sender) bool {
	switch o {
	case wireguard.BadSeal:
		w.drop(forwarder.BadSeal, 1)
	case wireguard.Replayed:
		w.drop(forwarder.Replayed, 1)
	case wireguard.Fresh:
		from.opened++
	}
	return o == wireguard.Fresh
}

// mayPass reports whether a packet of an authentic message may go on, with the ECN mark of its outer header.
func (w *Worker) mayPass(inner []byte, tos uint8, from *sender) bool {
	from.data = true
	if from.peer == nil {
		w.drop(forwarder.UnknownPeer, 1)
		return false
	}
	return tos&packet.ECNMask == 0 || w.congestion(inner, tos)
}

// heard notes that authentic messages came from a sender, which is at this address now.
func (w *Worker) heard(from *sender, at netip.AddrPort) {
	if from.opened == 0 {
		return
	}
	w.Counters.Opened.Add(uint64(from.opened))
	from.session.Got(w.ID, w.clock(), from.data, at)
	if from.peer != nil {
		from.peer.Stats.Cell(w.ID).LastSeen.Store(w.now())
	}
}
