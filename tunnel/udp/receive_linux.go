package udp

import (
	"encoding/binary"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

// skipIdle is how many times a receive socket that had nothing is passed over while another one delivers. With both
// families in use on a host, one of them is idle most of the time, and asking it costs a system call.
const skipIdle = 8

// receiver is the state of the receiving half.
type receiver struct {
	headers  []mmsghdr
	vectors  []unix.Iovec
	names    []sockaddr
	controls []control
	next     int    // receive socket to begin with, so that a busy one does not starve the others
	idle     []idle // per receive socket
	failed   bool   // a receive socket had an error pending in this call
}

// receiveTries bounds the tries to receive from a socket that returns errors.
const receiveTries = 3

// idle is what Receive knows of a receive socket that had nothing.
type idle struct {
	skip    uint8 // how many calls to pass it over
	skipped bool  // it was passed over in this call
}

// Receive implements tunnel.Socket. A datagram larger than its slot's buffer is thrown away.
func (s *Socket) Receive(in *tunnel.Inbound) error {
	in.N = 0
	if !s.enter() {
		return net.ErrClosed
	}
	defer s.leave()
	if s.splitter != nil {
		return s.receiveSplit(in)
	}
	return s.receiveJoined(in)
}

// receiveJoined receives into the slots of in, which is empty.
func (s *Socket) receiveJoined(in *tunnel.Inbound) error {
	r := &s.receiver
	r.grow(len(in.Slots))
	r.failed = false
	for k := range r.idle {
		i := &r.idle[k]
		i.skipped = i.skip > 0
		i.skip -= min(i.skip, 1)
	}
	err := s.receiveAll(in, false)
	if err == nil && in.N == 0 {
		err = s.receiveAll(in, true)
	}
	if s.onePort && (in.N == 0 || r.failed) {
		s.drainErrors()
	}
	return err
}

// receiveAll asks in turn the receive sockets that are passed over in this call, or those that are not.
func (s *Socket) receiveAll(in *tunnel.Inbound, skipped bool) error {
	r := &s.receiver
	first := r.next
	for i := range s.receive {
		k := (first + i) % len(s.receive)
		if r.idle[k].skipped != skipped {
			continue
		}
		if in.N == len(in.Slots) {
			r.next = k
			return nil
		}
		empty, err := s.receiveFrom(s.receive[k], in)
		if err != nil {
			return err
		}
		r.idle[k].skip = 0
		if empty {
			r.idle[k].skip = skipIdle
		}
	}
	return nil
}

// receiveFrom fills the free slots with what is queued in fd; empty: nothing was.
func (s *Socket) receiveFrom(fd int, in *tunnel.Inbound) (empty bool, err error) {
	r, free := &s.receiver, in.Slots[in.N:]
	for i := range free {
		r.vectors[i].Base = unsafe.SliceData(free[i].Buf)
		r.vectors[i].SetLen(len(free[i].Buf))
		h := &r.headers[i].hdr
		h.Namelen = uint32(unsafe.Sizeof(r.names[i]))
		h.SetControllen(controlSize)
	}
	// More than one try, as it may return an error that waited in the socket and says nothing of what is queued.
	for try := 0; try < receiveTries; {
		n, errno := recvmmsg(fd, r.headers[:len(free)])
		switch {
		case errno == 0:
			s.accept(in, n)
			return false, nil
		case errno == unix.EAGAIN:
			return true, nil
		case isFatal(errno):
			return false, errno
		case errno != unix.EINTR:
			r.failed = true
			try++
		}
	}
	return false, nil
}

// accept takes the first n headers over into the free slots.
func (s *Socket) accept(in *tunnel.Inbound, n int) {
	r, free := &s.receiver, in.Slots[in.N:]
	for i := range n {
		h := &r.headers[i]
		slot := &free[i]
		if h.hdr.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			continue
		}
		slot.N = int(h.n)
		slot.From = getSockaddr(&r.names[i])
		slot.SegmentSize, slot.TOS = slot.N, 0
		r.controls[i].read(int(h.hdr.Controllen), slot)
		if kept := &in.Slots[in.N]; kept != slot { // one before it was thrown away
			*kept, *slot = *slot, *kept
		}
		in.N++
	}
}

// read takes the segment size and the TOS out of n bytes of control messages.
func (c *control) read(n int, slot *tunnel.Datagrams) {
	for at := 0; ; {
		h, value, after, ok := c.next(at, n)
		if !ok {
			return
		}
		at = after
		switch {
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(value) >= 4:
			if size := int(binary.NativeEndian.Uint32(value)); size > 0 && size < slot.N {
				slot.SegmentSize = size
			}
		case h.Level == unix.SOL_IP && h.Type == unix.IP_TOS && len(value) >= 1: // one byte, unlike when sending
			slot.TOS = value[0]
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_TCLASS && len(value) >= 4:
			slot.TOS = uint8(binary.NativeEndian.Uint32(value))
		}
	}
}

// grow makes room for so many messages.
func (r *receiver) grow(n int) {
	if n <= len(r.headers) {
		return
	}
	r.headers = make([]mmsghdr, n)
	r.vectors = make([]unix.Iovec, n)
	r.names = make([]sockaddr, n)
	r.controls = make([]control, n)
	for i := range n {
		h := &r.headers[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.vectors[i]
		h.SetIovlen(1)
		h.Control = &r.controls[i].data[0]
	}
}
