package udp

import (
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

// maxStash bounds the events that wait for PathEvents. Further ones are left out: a path that is still bad says so
// again at the next send.
const maxStash = 64

// maxDrain bounds the error queue entries that one drain reads, as an attacker may add them as fast as they are read.
const maxDrain = 256

// errorReader reads the error queues of the send sockets (IP_RECVERR, IPV6_RECVERR) and keeps what it found.
type errorReader struct {
	stash   []tunnel.PathEvent
	msg     unix.Msghdr
	name    sockaddr
	control control
}

// PathEvents implements tunnel.Socket. Equal events appear once.
func (s *Socket) PathEvents(dst []tunnel.PathEvent) []tunnel.PathEvent {
	if !s.enter() {
		return dst
	}
	defer s.leave()
	s.drainErrors()
	s.drainSenders()
	dst = append(dst, s.errors.stash...)
	s.errors.stash = s.errors.stash[:0]
	return dst
}

// drainErrors reads the error queues into the stash. PathEvents does that. So does Receive where descriptors that are
// waited for are sent from: poll and epoll call one ready (EPOLLERR) as long as its error queue has something, and
// errors count in the receive buffer, where they take the room of data. Receive looks for them when it found nothing
// else, and when a descriptor returned an error in place of data, as it does after an ICMP error. Whoever knows our
// address and port can cause those, by forged ICMP messages, as cheaply as by sending datagrams, and at the same cost.
func (s *Socket) drainErrors() {
	if s.onePort {
		for _, fd := range s.receive { // the kernel reports to any socket of the port
			s.errors.drain(fd)
		}
	}
}

// drainSenders does it for descriptors that are only sent from, which nobody waits for.
func (s *Socket) drainSenders() {
	for _, fd := range s.send {
		if fd >= 0 && (!s.onePort || !slices.Contains(s.receive, fd)) {
			s.errors.drain(fd)
		}
	}
}

// note keeps an event unless an equal one is kept already. A path MTU event without a number and one with it, which
// the same send caused, become one.
func (r *errorReader) note(e tunnel.PathEvent) {
	for i := range r.stash {
		k := &r.stash[i]
		same := k.To == e.To && k.Err == e.Err //nolint:errorlint // an equal event is one with the very same error
		if !same || k.MTU != 0 && e.MTU != 0 && k.MTU != e.MTU {
			continue
		}
		if e.MTU != 0 {
			k.MTU = e.MTU
		}
		return
	}
	if len(r.stash) < maxStash {
		r.stash = append(r.stash, e)
	}
}

// drain reads the error queue of fd. That also takes back the pending error that the next send would return.
func (r *errorReader) drain(fd int) {
	for range maxDrain {
		r.msg = unix.Msghdr{
			Name:    (*byte)(unsafe.Pointer(&r.name)),
			Namelen: uint32(unsafe.Sizeof(r.name)),
			Control: &r.control.data[0],
		}
		r.msg.SetControllen(len(r.control.data))
		r.name.Family = unix.AF_UNSPEC
		// The datagram that caused the error comes along; without a buffer it is thrown away.
		if _, errno := recvmsg(fd, &r.msg, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); errno == unix.EINTR {
			continue
		} else if errno != 0 {
			return
		}
		if e, ok := r.event(); ok {
			r.note(e)
		}
	}
}

// event makes an event of what the last recvmsg returned.
func (r *errorReader) event() (tunnel.PathEvent, bool) {
	to := getSockaddr(&r.name).Addr() // the destination of the datagram that caused the error
	if !to.IsValid() {
		return tunnel.PathEvent{}, false
	}
	for at, n := 0, int(r.msg.Controllen); ; {
		h, value, after, ok := r.control.next(at, n)
		if !ok {
			return tunnel.PathEvent{}, false
		}
		at = after
		if !isExtendedError(h) || len(value) < int(unsafe.Sizeof(unix.SockExtendedErr{})) {
			continue
		}
		ee := (*unix.SockExtendedErr)(unsafe.Pointer(&value[0]))
		switch ee.Origin {
		case unix.SO_EE_ORIGIN_LOCAL, unix.SO_EE_ORIGIN_ICMP, unix.SO_EE_ORIGIN_ICMP6:
		default:
			continue
		}
		if errno := unix.Errno(ee.Errno); errno != unix.EMSGSIZE {
			return tunnel.PathEvent{To: to, Err: errno}, true
		}
		return tunnel.PathEvent{To: to, MTU: int(ee.Info), Err: tunnel.ErrTooBig}, true
	}
}

func isExtendedError(h *unix.Cmsghdr) bool {
	return h.Level == unix.SOL_IP && h.Type == unix.IP_RECVERR ||
		h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_RECVERR
}
