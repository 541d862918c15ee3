package tun

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
)

const (
	maxIovecs = 1024 // IOV_MAX: more pieces than that are EINVAL

	// UDP_MAX_SEGMENTS: no kernel takes more datagrams than the new limit, and kernels before 6.9 not more than the old.
	maxUDPSegments    = 128
	oldMaxUDPSegments = 64
)

var errShortBuffer = errors.New("tun: read buffer shorter than device.BufferSize")

// A Queue is one queue of a Device. It implements device.Queue without blocking.
type Queue struct {
	fd       *descriptor
	offloads *offloads

	header   [vnetLen]byte
	iovecs   [maxIovecs]unix.Iovec
	tail     []byte                   // what does not fit into iovecs
	refusals [packet.GSOUDP + 1]uint8 // superpackets refused in a row, by type
}

func newQueue(fd int, o *offloads) *Queue {
	return &Queue{fd: &descriptor{n: fd}, offloads: o}
}

// Share makes another handle of the same queue, for another worker to write to; it is closed with the first one. Which
// queue a packet is written to matters: the kernel then hands the flow's other direction to that queue.
func (q *Queue) Share() *Queue { return &Queue{fd: q.fd, offloads: q.offloads} }

// FD is the queue's file descriptor, to wait for: it is readable when there is a packet, and has an error once the
// device is gone. It is non-blocking, and valid until Close.
func (q *Queue) FD() int { return q.fd.n }

// Takes implements device.Queue. The answer is the same for all queues of a device.
func (q *Queue) Takes(t packet.GSOType) bool {
	return int(t) < len(q.offloads.takes) && q.offloads.takes[t].Load()
}

// Read and Write don't block, so they go through RawSyscall; see tunnel/udp.

// Read implements device.Queue. The packet begins at device.Headroom. What the kernel would have to cut to the buffer's
// size is delivered as it is, truncated.
func (q *Queue) Read(buf []byte) ([]byte, packet.Meta, error) {
	if len(buf) < device.BufferSize {
		return nil, packet.Meta{}, errShortBuffer
	}
	buf = buf[device.Headroom-vnetLen:]
	if !q.fd.use() {
		return nil, packet.Meta{}, device.ErrClosed
	}
	var n uintptr
	errno := unix.EINTR
	for errno == unix.EINTR {
		n, _, errno = unix.RawSyscall(unix.SYS_READ, uintptr(q.fd.n), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	}
	q.fd.done()
	if errno != 0 {
		return nil, packet.Meta{}, mapErrno(errno)
	}
	if n < vnetLen {
		return nil, packet.Meta{}, nil // an empty packet, which the caller drops as truncated
	}
	return buf[vnetLen:n], decode((*[vnetLen]byte)(buf)), nil
}

// Write implements device.Queue.
func (q *Queue) Write(m packet.Meta, pieces [][]byte) error {
	s, err := device.Inspect(m, pieces)
	if err != nil {
		return err
	}
	if !q.Takes(m.Type) || m.Type == packet.GSOUDP && s.Segments > maxUDPSegments {
		return device.ErrNotTaken
	}
	encode(&q.header, m, s)
	n := q.gather(pieces)
	if !q.fd.use() {
		clear(q.iovecs[:n])
		return device.ErrClosed
	}
	errno := unix.EINTR
	for errno == unix.EINTR {
		_, _, errno = unix.RawSyscall(unix.SYS_WRITEV, uintptr(q.fd.n), uintptr(unsafe.Pointer(&q.iovecs[0])), uintptr(n))
	}
	q.fd.done()
	clear(q.iovecs[:n]) // keep nothing of the caller's memory
	if m.Type == packet.GSONone {
		if errno != 0 {
			return mapErrno(errno)
		}
		return nil
	}
	switch errno {
	case 0:
		q.refusals[m.Type] = 0
		return nil
	case unix.EINVAL:
		q.refused(m, s)
		return device.ErrNotTaken
	}
	return mapErrno(errno)
}

// gather fills the I/O vectors with the header and the pieces and returns their number. What is beyond the last vector
// is copied into one.
func (q *Queue) gather(pieces [][]byte) int {
	set := func(i int, p []byte) {
		q.iovecs[i].Base = &p[0]
		q.iovecs[i].SetLen(len(p))
	}
	set(0, q.header[:])
	n := 1
	for i, p := range pieces {
		if len(p) == 0 {
			continue
		}
		if n == maxIovecs-1 && i < len(pieces)-1 {
			q.tail = q.tail[:0]
			for _, p := range pieces[i:] {
				q.tail = append(q.tail, p...)
			}
			p = q.tail
		}
		set(n, p)
		if n++; n == maxIovecs {
			break
		}
	}
	return n
}

// refused notes that the kernel did not take a superpacket that passed device.Inspect.
func (q *Queue) refused(m packet.Meta, s device.Shape) {
	if m.Type == packet.GSOUDP && s.Segments > oldMaxUDPSegments {
		return // too many for an older kernel, which says nothing about others
	}
	q.refusals[m.Type]++
	if q.refusals[m.Type] >= maxRefusals {
		q.offloads.switchOff(m.Type, fmt.Sprintf("the kernel refused %d superpackets in a row (segments of %d bytes): %v",
			maxRefusals, m.SegmentSize, unix.EINVAL))
	}
}

// Close implements device.Queue. The device stays, also without any queue; Device.Remove deletes it.
func (q *Queue) Close() error { return q.fd.close() }

// mapErrno translates what the kernel said. Small numbers become an error without an allocation.
func mapErrno(errno unix.Errno) error {
	switch errno {
	case unix.EAGAIN:
		return device.ErrWouldBlock
	case unix.EIO: // tun_get_user: the link is not up
		return device.ErrDown
	case unix.EBADFD, unix.EBADF, unix.ENODEV: // EBADFD: the device was deleted
		return device.ErrClosed
	}
	return errno
}
