package udp

import (
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

// Indexes of the two address families.
const (
	v4 = iota
	v6
	families
)

// A Socket is a tunnel.Socket over the kernel's UDP.
type Socket struct {
	receive   []int         // descriptors of the receive sockets
	send      [families]int // descriptors of the send sockets; -1: the family is missing
	port      uint16        // of the receive sockets
	localPort uint16        // of the send sockets
	onePort   bool          // send refers to descriptors of receive, or to others of the same port
	rcvBuf    int
	sndBuf    int
	gso, gro  offload
	steering  *offload // nil: a socket of its own, or no program
	guard     guard

	sender   sender
	receiver receiver
	splitter *splitter // nil: datagrams are handed out joined, as they were received
	errors   errorReader
}

var _ tunnel.Socket = (*Socket)(nil)

// FDs returns the descriptors that become ready when datagrams arrive, or errors where they are sent from. They stay
// the Socket's: for polling only, and until Close.
func (s *Socket) FDs() []int { return slices.Clone(s.receive) }

// Port is the UDP port that the socket receives on.
func (s *Socket) Port() uint16 { return s.port }

// LocalPort is the UDP port that datagrams leave from, in both families.
func (s *Socket) LocalPort() uint16 { return s.localPort }

// Buffers returns how many bytes the kernel granted to what waits in each receive and in each send socket. Its own
// overhead counts in them, which is why the kernel doubles what was asked for.
func (s *Socket) Buffers() (receive, send int) { return s.rcvBuf, s.sndBuf }

// Offloads reports the states of "udp-gso" and "udp-gro".
func (s *Socket) Offloads() []tunnel.OffloadState {
	states := []tunnel.OffloadState{s.gso.state("udp-gso"), s.gro.state("udp-gro")}
	if s.steering != nil {
		states = append(states, s.steering.state("udp-steering"))
	}
	return states
}

// Close closes the descriptors, after a Send or Receive that is under way in another goroutine. Later calls return
// net.ErrClosed.
func (s *Socket) Close() error {
	if s.guard.close() {
		return s.closeAll()
	}
	return nil
}

// enter begins an operation on the descriptors; false: the socket is closed. leave ends it.
func (s *Socket) enter() bool {
	if s.guard.enter() {
		return true
	}
	s.leave()
	return false
}

func (s *Socket) leave() {
	if s.guard.leave() {
		_ = s.closeAll()
	}
}

func (s *Socket) closeAll() error {
	var first error
	fds := slices.Clone(s.receive)
	for _, fd := range s.send {
		if fd >= 0 && !slices.Contains(fds, fd) {
			fds = append(fds, fd)
		}
	}
	for _, fd := range fds {
		if err := unix.Close(fd); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// A guard keeps descriptors open as long as an operation uses them: a number that was closed may belong to another
// file a moment later. One atomic addition per batch that no other processor touches costs a few nanoseconds.
type guard struct {
	state atomic.Int64 // operations under way, plus guardClosed once closed
}

const guardClosed = 1 << 32

func (g *guard) enter() bool { return g.state.Add(1) < guardClosed }

// leave reports whether the caller has to close the descriptors.
func (g *guard) leave() bool {
	return g.state.Add(-1) == guardClosed && g.state.CompareAndSwap(guardClosed, 2*guardClosed)
}

// close reports whether the caller has to close the descriptors: not if an operation is under way, which then does it
// at its end, nor if that was done.
func (g *guard) close() bool {
	for {
		n := g.state.Load()
		if n >= guardClosed {
			return false
		}
		if g.state.CompareAndSwap(n, n+guardClosed) {
			return n == 0 && g.state.CompareAndSwap(guardClosed, 2*guardClosed)
		}
	}
}

// An offload is on as long as no reason against it is known.
type offload struct {
	reason atomic.Pointer[string]
}

func (o *offload) enabled() bool { return o.reason.Load() == nil }

// disable switches the offload off for good. The first reason stays.
func (o *offload) disable(reason string) { o.reason.CompareAndSwap(nil, &reason) }

func (o *offload) state(name string) tunnel.OffloadState {
	if reason := o.reason.Load(); reason != nil {
		return tunnel.OffloadState{Name: name, Reason: *reason}
	}
	return tunnel.OffloadState{Name: name, Enabled: true}
}

// isFatal reports whether a socket that returned errno is of no use any more.
func isFatal(errno unix.Errno) bool {
	return errno == unix.EBADF || errno == unix.ENOTSOCK
}

// A deadline bounds the waiting in one Send call. The clock is asked only once there is something to wait for.
type deadline struct {
	at   time.Time
	wait time.Duration
}

func (d *deadline) left() time.Duration {
	if d.at.IsZero() {
		d.at = time.Now().Add(d.wait)
		return d.wait
	}
	return time.Until(d.at)
}
