package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

// Sizes of a batch. A batch that is full is sent, and then filled again.
const (
	batchMessages = 64
	batchPieces   = 2048
	maxPieces     = 1024 // of one message: UIO_MAXIOV
)

// A cursor is a place in the pieces of an Outbound.
type cursor struct{ piece, offset int }

// A message says which part of which send an element of sendmmsg carries, so that it can be sent again in another way.
type message struct {
	send    int    // index in Outbound.Sends
	start   cursor // of the first byte
	length  int    // bytes
	segment int    // bytes of each datagram that the kernel cuts it into; 0: the message is one datagram
}

// segments is the number of datagrams of a message with a segment size.
func (m message) segments() int { return (m.length + m.segment - 1) / m.segment }

// A batch is what one sendmmsg takes: messages to peers of one address family.
type batch struct {
	family   int
	n        int // messages
	pieces   int // used elements of vectors
	headers  [batchMessages]mmsghdr
	messages [batchMessages]message
	names    [batchMessages]sockaddr
	controls [batchMessages]control
	vectors  [batchPieces]unix.Iovec
}

func (b *batch) reset(family int) { b.family, b.n, b.pieces = family, 0, 0 }

// add appends a message and returns the place behind its last byte. fits is false when the batch has no room for it.
// The pieces from m.start on have at least m.length bytes.
func (b *batch) add(o *tunnel.Outbound, m message) (end cursor, fits bool) {
	if b.n == batchMessages {
		return m.start, false
	}
	first, c := b.pieces, m.start
	for rest := m.length; rest > 0; {
		part := o.Pieces[c.piece][c.offset:]
		if len(part) <= rest {
			c = cursor{piece: c.piece + 1}
		} else {
			part = part[:rest]
			c.offset += rest
		}
		if len(part) == 0 {
			continue
		}
		if b.pieces == batchPieces || b.pieces-first == maxPieces {
			b.pieces = first
			return m.start, false
		}
		v := &b.vectors[b.pieces]
		v.Base = &part[0]
		v.SetLen(len(part))
		b.pieces++
		rest -= len(part)
	}
	b.messages[b.n] = m
	b.address(&o.Sends[m.send], b.vectors[first:b.pieces], m.segment)
	b.n++
	return c, true
}

// address fills in the header of message b.n.
func (b *batch) address(send *tunnel.Send, vectors []unix.Iovec, segment int) {
	h := &b.headers[b.n].hdr
	h.Name = (*byte)(unsafe.Pointer(&b.names[b.n]))
	h.Namelen = putSockaddr(&b.names[b.n], send.To)
	h.Iov = unsafe.SliceData(vectors)
	h.SetIovlen(len(vectors))
	h.Flags = 0
	c, n := &b.controls[b.n], 0
	if segment > 0 {
		size := uint16(segment)
		n = c.put(n, unix.SOL_UDP, unix.UDP_SEGMENT, unsafe.Pointer(&size), int(unsafe.Sizeof(size)))
	}
	if send.TOS != 0 {
		level, typ := int32(unix.SOL_IP), int32(unix.IP_TOS)
		if b.family == v6 {
			level, typ = unix.SOL_IPV6, unix.IPV6_TCLASS
		}
		tos := int32(send.TOS)
		n = c.put(n, level, typ, unsafe.Pointer(&tos), int(unsafe.Sizeof(tos)))
	}
	h.Control = nil
	if n > 0 {
		h.Control = &c.data[0]
	}
	h.SetControllen(n)
}
