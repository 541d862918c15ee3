// Package tunnel defines what an encapsulation and an underlay transport are to the rest of Warren: batches of
// datagrams going out, batches of datagrams coming in, and the Socket that moves both. Encapsulations live in
// sub-packages of their own (tunnel/vxlan); so do the transports: tunnel/udp is the kernel's UDP with UDP_SEGMENT
// and UDP_GRO, tunnel/memory its twin for tests, which loses, reorders and duplicates on demand.
//
// # Ownership and concurrency
//
// A Socket, an Outbound and an Inbound belong to one worker at a time; nothing here is safe for concurrent use but
// Socket.Offloads, Socket.LocalPort and Socket.Close. An Outbound refers to the pieces that were put into it (headers
// beside payload, never copied) until Reset: whoever adds a piece leaves the bytes alone until the batch was sent. An
// Inbound owns its buffers; what refers to them is valid until the next Receive.
package tunnel

import (
	"errors"
	"net/netip"
)

// Limits of one send on every kernel since 4.18: UDP_MAX_SEGMENTS was 64 until Linux 6.9 and is 128 since.
const (
	MaxSendBytes    = 65507 // UDP payload bytes of one send over IPv4; 65,487 are possible over IPv6 (65,535 - 40 - 8)
	MaxSendSegments = 64    // datagrams per send that every kernel takes
)

// ErrTooBig is the sentinel for a datagram larger than the path carries. How large it may be is in a PathEvent.
var ErrTooBig = errors.New("datagram larger than the path MTU")

// A Send is one datagram, or several of one size to one peer, that leave in one system call.
type Send struct {
	To          netip.AddrPort // the peer's underlay address; IPv4 addresses are never in IPv4-mapped form
	Len         int            // UDP payload bytes of all datagrams together
	SegmentSize int            // UDP payload bytes of each datagram; the last may be shorter. 0: one datagram of Len bytes
	Segments    int            // number of datagrams
	First, N    int            // Outbound.Pieces[First:First+N] are the bytes
	TOS         uint8          // DSCP and ECN of the outer header (RFC 6040, RFC 2983)
	Whole       bool           // its datagrams are of no use without each other
	Peer        int32          // the peer's index in the snapshot, for counters; the socket leaves it alone
}

// Outbound is a batch of sends, in the order in which they are to leave.
type Outbound struct {
	Sends  []Send
	Pieces [][]byte
}

// Reset empties the batch and forgets its pieces; the capacity stays.
func (o *Outbound) Reset() {
	clear(o.Pieces)
	o.Sends, o.Pieces = o.Sends[:0], o.Pieces[:0]
}

// A Datagrams is what one receive delivered: one datagram, or several equal ones that UDP_GRO joined.
type Datagrams struct {
	Buf         []byte // storage, owned by the Inbound
	N           int    // bytes received in Buf
	SegmentSize int    // bytes of each datagram; the last may be shorter. Equal to N for a lone datagram
	From        netip.AddrPort
	TOS         uint8 // DSCP and ECN of the outer header
}

// Inbound is a batch of received datagrams: Slots[:N] after Receive.
type Inbound struct {
	Slots []Datagrams
	N     int
}

// slotSize is the size in bytes of a slot's buffer, and slotStride the distance of two: were it a power of two, the
// beginnings of all buffers would compete for the same few sets of the processor's caches.
const (
	slotSize   = 1 << 16
	slotStride = slotSize + 4096 + 256
)

// NewInbound makes a batch of so many slots with buffers of 64 KiB each.
func NewInbound(slots int) *Inbound {
	in := &Inbound{Slots: make([]Datagrams, slots)}
	mem := make([]byte, slots*slotStride)
	for i := range in.Slots {
		buf := mem[i*slotStride:]
		in.Slots[i].Buf = buf[:slotSize:slotSize]
	}
	return in
}

// A PathEvent is what the underlay said about a path: the result of an ICMP error or of a refused send.
type PathEvent struct {
	To  netip.Addr // the peer's underlay address
	MTU int        // bytes of the largest outer IP packet that passes; 0 when unknown or when Err is something else
	Err error      // what the underlay said, for the log; ErrTooBig for a path MTU event
}

// OffloadState is the state of one offload, for status and metrics.
type OffloadState struct {
	Name    string `json:"name"`             // "udp-gso", "udp-gro", "tun-tso", "tun-uso", …
	Enabled bool   `json:"enabled"`          // in use now
	Reason  string `json:"reason,omitempty"` // why not: "configuration", or the error that showed it missing or broken
}

// A Socket moves datagrams for one worker. It never blocks.
type Socket interface {
	// Send sends o.Sends in order, as few system calls as it can. It always tries every send. A send that the kernel
	// refuses for a reason of its own is dropped and reported in the result; a full socket buffer is waited for a
	// bounded time, then the send counts as dropped too. A broken offload is noticed (EIO), switched off for good and
	// the send repeated without it. Only an error after which the socket is useless is returned.
	Send(o *Outbound) (SendResult, error)

	// Receive fills in.Slots with what is queued and sets in.N; 0 and no error when there is nothing.
	Receive(in *Inbound) error

	// PathEvents appends the events that came in since the last call (read from the socket's error queue) to dst.
	PathEvents(dst []PathEvent) []PathEvent

	// Offloads reports the state of the socket's offloads. Safe for concurrent use.
	Offloads() []OffloadState

	// LocalPort is the UDP port that datagrams leave from.
	LocalPort() uint16

	Close() error
}

// SendResult counts what one Send call did, in sends (not datagrams) unless a name says so.
type SendResult struct {
	Sent    int // handed to the kernel
	Dropped int // refused: no buffer space, no route on the underlay, …
	TooBig  int // refused with EMSGSIZE; a PathEvent says more

	// The datagrams of the sends that were refused. Where the kernel took a part of one, that part is counted as well.
	DroppedDatagrams, TooBigDatagrams int

	Syscalls  int
	LastError error // of the last refused send, for a rate-limited log line
}
