package worker

import (
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
)

// fewestWhole is how many segments a superpacket has at least that is sent whole: that costs a system call of its own,
// and what waits has to be sent before.
const fewestWhole = 3

// sendWhole sends a superpacket to a peer uncut, and reports whether it left. What cannot be sent so, or is refused, is
// for the caller to cut: nothing has been done with it yet.
func (w *Worker) sendWhole(p []byte, m packet.Meta, d *forwarder.Decision) bool {
	if w.Whole == nil || d.Peer.Encrypted || !d.Peer.TakesWhole() || d.Edit != 0 || !w.Whole.Usable() {
		return false
	}
	i := &w.info
	if m.Type != packet.GSOTCP4 && m.Type != packet.GSOTCP6 || i.Is(packet.HasOptions) {
		return false
	}
	segments := packet.CountSegments(p, i, m)
	if segments < fewestWhole {
		return false
	}
	// What was read before it leaves before it. When the socket is gone, the batch's end says so.
	if w.flush() != nil {
		return false
	}
	w.whole = tunnel.Superpacket{
		To: d.Peer.Endpoint, SourcePort: w.lane.Socket.LocalPort(), TOS: packet.EncapTOS(i.TOS),
		Header: d.Peer.Header(i.Version), Packet: p, Info: i, Meta: m,
	}
	c := &w.Counters
	if !w.Whole.SendWhole(&w.whole) {
		c.WholeRefused.Add(1)
		return false
	}
	c.Whole.Add(1)
	c.SegmentsOut.Add(uint64(segments))
	c.Sends.Add(1)
	c.SendCalls.Add(1)
	w.countToPeer(d.Peer, segments, len(p))
	return true
}

// countToPeer counts a superpacket of so many bytes that left to a peer in so many segments.
func (w *Worker) countToPeer(peer *forwarder.Peer, segments, bytes int) {
	w.Counters.ToPeers.Add(1)
	w.Counters.ToPeersBytes.Add(uint64(bytes))
	cell := peer.Stats.Cell(w.ID)
	cell.TxPackets.Add(uint64(segments))
	cell.TxBytes.Add(uint64(bytes))
}
