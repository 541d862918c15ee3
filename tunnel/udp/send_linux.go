package udp

import (
	"errors"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

// Limits of one message. An IPv6 payload may be 65,535 bytes, so 65,487 keeps to what IPv4 allows with IPv6's larger
// header: the joined packet has to fit 65,535 bytes on the receiver's side as well.
const (
	maxBytes4      = tunnel.MaxSendBytes
	maxBytes6      = 65487
	maxSegmentsNew = 128 // UDP_MAX_SEGMENTS since Linux 6.9

	pendingTries = 3 // of a message that was refused for what may be news of earlier ones
)

// errBadSend is LastError of a send that was not even tried.
var errBadSend = errors.New("send refused: its length, segment size, pieces and address do not agree")

// outcome is what became of a tunnel.Send; it only ever gets worse.
type outcome uint8

const (
	sent outcome = iota
	dropped
	tooBig
)

// sender is the state of the sending half.
type sender struct {
	main     batch // as the sends were handed over
	plain    batch // one datagram per message: what main's messages become when the kernel refuses to cut them
	outcomes []outcome
	result   tunnel.SendResult
	deadline deadline
	poll     [1]unix.PollFd
	timeout  unix.Timespec
	fatal    unix.Errno
	sendmmsg func(fd int, msgs []mmsghdr) (int, unix.Errno) // the system call; tests put other kernels in its place

	// maxSegments is what one message may have. Open can't find out without sending, so the larger limit counts until
	// a message above the smaller one is refused.
	maxSegments int
}

// Send implements tunnel.Socket. A send above the limits of one message is cut into several messages; it counts as
// sent when all of them were.
func (s *Socket) Send(o *tunnel.Outbound) (tunnel.SendResult, error) {
	if !s.enter() {
		return tunnel.SendResult{}, net.ErrClosed
	}
	defer s.leave()
	d := &s.sender
	d.result, d.deadline.at, d.fatal = tunnel.SendResult{}, time.Time{}, 0
	d.outcomes = slices.Grow(d.outcomes[:0], len(o.Sends))[:len(o.Sends)]
	clear(d.outcomes)
	d.main.reset(v4)
	for i := range o.Sends {
		s.enqueue(o, i)
	}
	s.flush(o, &d.main)
	for i, out := range d.outcomes {
		switch out {
		case sent:
			d.result.Sent++
		case dropped:
			d.result.Dropped++
			d.result.DroppedDatagrams += o.Sends[i].Segments
		case tooBig:
			d.result.TooBig++
			d.result.TooBigDatagrams += o.Sends[i].Segments
		}
	}
	if d.fatal != 0 {
		return d.result, d.fatal
	}
	return d.result, nil
}

// enqueue puts the messages of send i into the main batch, which it sends whenever it is full.
func (s *Socket) enqueue(o *tunnel.Outbound, i int) {
	d, send := &s.sender, &o.Sends[i]
	if !valid(o, send) {
		d.refuse(i, dropped, errBadSend)
		return
	}
	family, limit := v4, maxBytes4
	if a := send.To.Addr(); a.Is6() && !a.Is4In6() {
		family, limit = v6, maxBytes6
	}
	if s.send[family] < 0 {
		d.refuse(i, dropped, unix.EAFNOSUPPORT)
		return
	}
	if family != d.main.family {
		s.flush(o, &d.main)
		d.main.reset(family)
	}
	m := message{send: i, start: cursor{piece: send.First}}
	chunk := send.Len
	if send.SegmentSize > 0 && send.SegmentSize < send.Len {
		chunk = send.SegmentSize
		n := min(d.maxSegments, limit/send.SegmentSize)
		if n > 1 && send.N <= maxPieces && s.gso.enabled() {
			chunk, m.segment = n*send.SegmentSize, send.SegmentSize
		}
	}
	s.cut(o, &d.main, m, cutting{total: send.Len, chunk: chunk})
}

// valid reports whether the send describes its pieces rightly.
func valid(o *tunnel.Outbound, send *tunnel.Send) bool {
	if !send.To.IsValid() || send.To.Port() == 0 || send.Len < 0 || send.SegmentSize < 0 ||
		send.First < 0 || send.N < 0 || send.N > len(o.Pieces)-send.First {
		return false
	}
	total := 0
	for _, p := range o.Pieces[send.First : send.First+send.N] {
		total += len(p)
	}
	return total == send.Len
}

// A cutting says how many bytes become messages of how many bytes.
type cutting struct{ total, chunk int }

// cut appends the bytes from m.start on to b as messages of c.chunk bytes, the last one maybe shorter.
func (s *Socket) cut(o *tunnel.Outbound, b *batch, m message, c cutting) {
	for {
		m.length = min(c.total, c.chunk)
		end, fits := b.add(o, m)
		if !fits {
			if b.n == 0 { // more pieces than a message can have
				s.sender.refuse(m.send, dropped, errBadSend)
				return
			}
			s.flush(o, b)
			continue
		}
		m.start = end
		c.total -= m.length
		if c.total == 0 {
			return
		}
	}
}

// flush sends what b holds and empties it. What was refused is in the outcomes.
func (s *Socket) flush(o *tunnel.Outbound, b *batch) {
	d, fd := &s.sender, s.send[b.family]
	retried, tries := -1, 0
	for k := 0; k < b.n && d.fatal == 0; {
		m := b.messages[k]
		if s := &o.Sends[m.send]; d.outcomes[m.send] == tooBig && (s.Whole || m.length >= s.SegmentSize) {
			// The others of that size are too big as well; a shorter last one, maybe of another flow, may pass.
			k++
			continue
		}
		n, errno := d.sendmmsg(fd, b.headers[k:b.n])
		d.result.Syscalls++
		switch {
		case errno == 0 && n > 0:
			k += n
			continue
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			if s.waitWritable(fd) {
				continue
			}
		case mayBePending(errno) && (retried != k || tries < pendingTries && errno != unix.EMSGSIZE):
			// Maybe not about this message at all: an ICMP error about an earlier one waits in the socket and is
			// returned, once, by the next send (udp(7)). The error queue has it too. Another one may come in meanwhile.
			if retried != k {
				retried, tries = k, 0
			}
			tries++
			continue
		case m.segment > 0 && s.uncut(o, m, errno):
			k++
			continue
		case isFatal(errno):
			d.fatal = errno
		}
		s.refused(o, m, errno)
		k++
	}
	if d.fatal != 0 {
		for _, m := range b.messages[:b.n] {
			d.refuse(m.send, dropped, d.fatal)
		}
	}
	b.reset(b.family)
}

// mayBePending reports whether errno can come from an ICMP error. It is easier to say which can't.
func mayBePending(errno unix.Errno) bool {
	switch errno {
	case 0, unix.EIO, unix.EINVAL, unix.ENOBUFS, unix.ENOMEM, unix.EBADF, unix.ENOTSOCK, unix.EPERM:
		return false // EPERM is what a firewall says
	}
	return true
}

// uncut repeats a message that the kernel refused with errno, one datagram per message, when errno can have to do with
// the cutting; otherwise it returns false. It tells apart what the kernel means:
//
//   - EIO: the device or an IPsec policy on the way can't do GSO. Off for good.
//   - EINVAL with more than 64 segments: a kernel before 6.9. That limit for good. With exactly 64: maybe one before
//     5.16, which counted the headers among the bytes of the segments, so that only 63 full ones fit.
//   - EMSGSIZE, or EINVAL on older kernels: a segment is larger than the device's MTU. The plain datagram then gets
//     EMSGSIZE, and with it the MTU appears in the error queue, which the refusal of a GSO message does not put there.
func (s *Socket) uncut(o *tunnel.Outbound, m message, errno unix.Errno) bool {
	d := &s.sender
	switch errno {
	case unix.EIO:
		s.gso.disable("the kernel refused a UDP_SEGMENT send: " + errno.Error())
	case unix.EINVAL:
		if n := m.segments(); n > tunnel.MaxSendSegments {
			d.maxSegments = tunnel.MaxSendSegments
		} else if n == tunnel.MaxSendSegments {
			d.maxSegments = n - 1
		}
	case unix.EMSGSIZE:
	default:
		return false
	}
	c := cutting{total: m.length, chunk: m.segment}
	m.segment = 0
	d.plain.reset(d.main.family)
	s.cut(o, &d.plain, m, c)
	s.flush(o, &d.plain)
	return true
}

// refused records that message m was refused for good.
func (s *Socket) refused(o *tunnel.Outbound, m message, errno unix.Errno) {
	to := o.Sends[m.send].To.Addr()
	switch errno {
	case unix.EMSGSIZE:
		s.errors.note(tunnel.PathEvent{To: to, Err: tunnel.ErrTooBig})
		s.sender.refuse(m.send, tooBig, tunnel.ErrTooBig)
		return
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EHOSTDOWN, unix.EPERM, unix.EACCES:
		s.errors.note(tunnel.PathEvent{To: to, Err: errno})
	}
	s.sender.refuse(m.send, dropped, errno)
}

func (d *sender) refuse(send int, out outcome, err error) {
	d.outcomes[send] = max(d.outcomes[send], out)
	d.result.LastError = err
}

// waitWritable waits until the send buffer has room; false: the time of this Send is up.
func (s *Socket) waitWritable(fd int) bool {
	d := &s.sender
	left := d.deadline.left()
	if left <= 0 {
		return false
	}
	d.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	d.timeout = unix.NsecToTimespec(int64(left))
	d.result.Syscalls++
	_, err := unix.Ppoll(d.poll[:], &d.timeout, nil)
	if err == nil && d.poll[0].Revents&unix.POLLOUT == 0 {
		s.errors.drain(fd) // POLLERR: poll would return at once until the error queue is empty
	}
	return err == nil || err == unix.EINTR
}
