package worker

import (
	"errors"
	"fmt"
	"slices"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
)

// drainQueue reads at most one batch from the lane's queue, decides on each superpacket, and sends what is for peers.
// It returns the number of bytes read, and whether there may be more.
func (w *Worker) drainQueue() (bytes int, more bool, err error) {
	n := 0
	var closed error
	more = true
	for at := 0; n < w.size.packets && at < w.size.bytes; {
		p, m, err := w.lane.Queue.Read(w.reads[at:])
		if err != nil {
			more = false
			if errors.Is(err, device.ErrWouldBlock) {
				break
			}
			if errors.Is(err, device.ErrClosed) {
				closed = err
				break
			}
			more = true
			w.drop(forwarder.BadOffload, 1) // an answer of the kernel's that makes no sense, for this packet only
			break
		}
		n++
		bytes += len(p)
		at += roundUp(device.Headroom + len(p))
		if err := w.fromQueue(p, m); err != nil {
			closed = err
			break
		}
	}
	if n > 0 {
		w.Counters.QueueReads.Add(uint64(n))
		w.Counters.QueueBytes.Add(uint64(bytes))
	}
	if err := w.flush(); err != nil && closed == nil {
		closed = err
	}
	return bytes, more, closed
}

// roundUp makes a length a multiple of a cache line's.
func roundUp(n int) int {
	const line = 64
	return (n + line - 1) &^ (line - 1)
}

// fromQueue carries out the decision on one superpacket. What is for peers is put into the batch; the rest is done at
// once.
func (w *Worker) fromQueue(p []byte, m packet.Meta) error {
	i := &w.info
	if e := packet.Parse(p, i); e != packet.OK {
		w.drop(forwarder.FromError(e), 1)
		return nil
	}
	p = p[:i.Len]
	d := w.snap.FromTUN(i, m)
	if d.Verdict != forwarder.Drop {
		w.came(i, len(p))
	}
	switch d.Verdict {
	case forwarder.ToPeer:
		if d.Peer.Encrypted {
			return w.encrypt(p, m, &d)
		}
		w.toPeer(p, m, &d)
	case forwarder.Local:
		w.Counters.LocalPackets.Add(1)
		w.Counters.LocalBytes.Add(uint64(len(p)))
		return w.giveBack(p, m)
	case forwarder.Kernel:
		w.Counters.KernelOut.Add(1)
		w.Counters.KernelBytes.Add(uint64(len(p)))
		return w.giveBack(p, m)
	case forwarder.Drop:
		w.drop(d.Reason, 1)
		if d.Reject != packet.RejectNone {
			return w.reject(p, m, &d)
		}
	}
	return nil
}

// giveBack writes a superpacket of the device back to it.
func (w *Worker) giveBack(p []byte, m packet.Meta) error {
	w.iovecs = append(w.iovecs[:0], p)
	return w.deliver(w.backTo(&w.info), m, w.iovecs, 1)
}

// toPeer encapsulates a superpacket into w.out, for a peer whose traffic is not encrypted.
func (w *Worker) toPeer(p []byte, m packet.Meta, d *forwarder.Decision) {
	i := &w.info
	if w.lane.Socket == nil {
		w.drop(forwarder.SendFailed, 1)
		return
	}
	if d.Edit&forwarder.ClampMSS != 0 {
		packet.ClampMSS(p, i, m, d.MTU)
	}
	if w.sendWhole(p, m, d) {
		return
	}
	header := d.Peer.Header(i.Version)
	if e := w.segs.Segment(p, i, m, header); e != packet.OK {
		w.drop(forwarder.FromError(e), 1)
		return
	}
	send := tunnel.Send{To: d.Peer.Endpoint, TOS: packet.EncapTOS(i.TOS), Peer: d.Peer.Index}
	segments := w.segs.N()
	if d.Edit&forwarder.Fragment == 0 {
		for k := range segments {
			w.out.Append(send, w.segs.Header(k), w.segs.Payload(k))
		}
	} else {
		segments = w.fragment(send, header, d.MTU)
	}
	w.countToPeer(d.Peer, segments, len(p))
}

// fragment puts the segments in w.segs into w.out in IPv4 fragments of at most mtu bytes and returns their number. It
// is rare (IPv4 without DF over a path narrower than the pods' MTU), so a superpacket's segments are copied.
func (w *Worker) fragment(send tunnel.Send, header []byte, mtu int) int {
	w.frags.Arena, w.frags.Prefix = &w.arena, header
	n := 0
	for k := range w.segs.N() {
		p := w.segs.Payload(k)
		if h := w.segs.Header(k)[len(header):]; len(h) > 0 {
			p = slices.Concat(h, p)
		}
		var i packet.Info
		e := packet.Parse(p, &i)
		if e == packet.OK {
			e = w.frags.Split(p, &i, mtu)
		}
		if e != packet.OK {
			w.drop(forwarder.FromError(e), 1)
			continue
		}
		for f := range w.frags.N() {
			fh, fp := w.frags.Pieces(f)
			w.out.Append(send, fh, fp)
		}
		n += w.frags.N()
	}
	return n
}

// flush sends the batch: what each of the lane's sockets has of it.
func (w *Worker) flush() error {
	err := w.send(w.lane.Socket, &w.out)
	w.arena.Reset()
	if e := w.send(w.lane.Secure, &w.seals.out); err == nil {
		err = e
	}
	w.seals.messages = w.seals.messages[:0]
	return err
}

// send sends what is in o, and empties it.
func (w *Worker) send(s tunnel.Socket, o *tunnel.Outbound) error {
	if len(o.Sends) == 0 {
		return nil
	}
	datagrams := 0
	for k := range o.Sends {
		datagrams += o.Sends[k].Segments
	}
	r, err := s.Send(o)
	c := &w.Counters
	c.SegmentsOut.Add(uint64(datagrams))
	c.Sends.Add(uint64(len(o.Sends)))
	c.SendCalls.Add(uint64(r.Syscalls))
	if r.Dropped > 0 {
		w.drop(forwarder.SendFailed, r.DroppedDatagrams)
	}
	if r.TooBig > 0 {
		w.drop(forwarder.SendTooBig, r.TooBigDatagrams)
	}
	if r.TooBig > 0 || r.Dropped > 0 {
		w.pathEvents(s) // now, so that the pods hear of a narrower path with their next packet
	}
	o.Reset()
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}
