package tapgso

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/tunnel"
)

// maxRefusals is how many superpackets the kernel refuses in a row before nothing is tried any more. One is not enough:
// whoever finds a packet that passes Warren's checks and not the kernel's could switch it off for all.
const maxRefusals = 4

// A Queue is one queue of a Device. It implements tunnel.WholeSender.
type Queue struct {
	device   *Device
	fd       int
	prefix   [prefixMax]byte
	iovecs   [2]unix.Iovec
	refusals int // in a row
}

var _ tunnel.WholeSender = (*Queue)(nil)

// Usable implements tunnel.WholeSender.
func (q *Queue) Usable() bool { return q.device.broken.Load() == nil }

// SendWhole implements tunnel.WholeSender.
func (q *Queue) SendWhole(s *tunnel.Superpacket) bool {
	if q.device.broken.Load() != nil || len(s.Packet) == 0 {
		return false
	}
	n := putPrefix(&q.prefix, s, q.device.From(s.To.Addr()), superpacketTTL)
	if n == 0 {
		return false
	}
	q.iovecs[0].Base = &q.prefix[0]
	q.iovecs[0].SetLen(n)
	q.iovecs[1].Base = &s.Packet[0]
	q.iovecs[1].SetLen(len(s.Packet))
	errno := unix.EINTR
	for errno == unix.EINTR {
		// Raw, as it does not block; see tunnel/udp.
		_, _, errno = unix.RawSyscall(unix.SYS_WRITEV, uintptr(q.fd), uintptr(unsafe.Pointer(&q.iovecs[0])),
			uintptr(len(q.iovecs)))
	}
	q.iovecs[1].Base = nil
	if errno == 0 {
		q.refusals = 0
		return true
	}
	q.refused(errno, s)
	return false
}

// refused notes what the kernel said to a superpacket. A link that is down (EIO) and a lack of memory pass.
func (q *Queue) refused(errno unix.Errno, s *tunnel.Superpacket) {
	if errno != unix.EINVAL {
		q.device.lost(errno)
		return
	}
	if q.refusals++; q.refusals >= maxRefusals {
		q.device.fail(fmt.Sprintf("the kernel refused %d superpackets in a row (segments of %d bytes): %v", maxRefusals,
			s.Meta.SegmentSize, errno))
	}
}

// Probe hands a superpacket of two segments to the kernel, from the UDP port to a peer, with a TTL that leaves 1 behind
// the forwarding. Somebody has to stop it there. An error concerns every peer of to's family, and does not name to.
func (d *Device) Probe(port uint16, to netip.AddrPort) error {
	from := d.From(to.Addr())
	if !from.IsValid() || len(d.queues) == 0 {
		return fmt.Errorf("a probe by %s: no own address of the peer's family, or the device is closed", d.name)
	}
	_, err := unix.Write(d.queues[0].fd, probe(4, netip.AddrPortFrom(from, port), to))
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EINVAL) {
		d.fail(fmt.Sprintf("the kernel refused a superpacket that was tried: %v", err))
	}
	d.lost(err)
	return fmt.Errorf("handing a probe to %s: %w", d.name, err)
}

// try writes a superpacket of each kind to the device while it is down. The kernel looks at the virtio-net header first
// (EINVAL), and at the link after that (EIO), so nothing goes anywhere. Anything but a refusal is not told.
func (d *Device) try(write func(frame []byte) error) error {
	for _, own := range []netip.Addr{d.from4, d.from6} {
		for _, version := range []uint8{4, 6} {
			if !own.IsValid() {
				continue
			}
			end := netip.AddrPortFrom(own, 1)
			if err := write(probe(version, end, end)); errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("%w: TCP over IPv%d to %s: %w", ErrRefused, version, own, err)
			}
		}
	}
	return nil
}
