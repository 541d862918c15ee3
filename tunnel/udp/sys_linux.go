package udp

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr. x/sys has it for some architectures only.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes sent or received
}

// sendmmsg and recvmmsg don't block, so they go through RawSyscall: the runtime is not told. Told of it, its monitor
// takes the P from a thread that is in a system call for more than 20 µs, as with every full batch, and finds another
// thread for it. Without, and with poll.WaitHolding, a node needs 0.74 to 0.89 of the CPU time per bit. The runtime
// can't stop the world during the call, though; how long that is is bounded by the size of a batch (a send over veth
// runs the receiver's network stack in our context).

func sendmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])),
		uintptr(len(msgs)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

func recvmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])),
		uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

func recvmsg(fd int, msg *unix.Msghdr, flags int) (int, unix.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(msg)), uintptr(flags))
	return int(n), errno
}

// A sockaddr is room for an IPv4 or IPv6 socket address.
type sockaddr = unix.RawSockaddrInet6

// putSockaddr writes to to sa and returns the length in bytes. Ports are in network byte order in both structures.
func putSockaddr(sa *sockaddr, to netip.AddrPort) uint32 {
	if addr := to.Addr().Unmap(); addr.Is4() {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		sa4.Family = unix.AF_INET
		putPort(&sa4.Port, to.Port())
		sa4.Addr = addr.As4()
		return unix.SizeofSockaddrInet4
	}
	sa.Family = unix.AF_INET6
	putPort(&sa.Port, to.Port())
	sa.Flowinfo, sa.Scope_id = 0, 0
	sa.Addr = to.Addr().As16()
	return unix.SizeofSockaddrInet6
}

// getSockaddr reads what the kernel wrote to sa; the zero AddrPort for anything but IPv4 and IPv6. The scope of a
// link-local address is left out: underlay addresses have none.
func getSockaddr(sa *sockaddr) netip.AddrPort {
	switch sa.Family {
	case unix.AF_INET:
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(sa4.Addr), port(&sa4.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port(&sa.Port))
	}
	return netip.AddrPort{}
}

func putPort(p *uint16, port uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(p))[:], port)
}

func port(p *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:])
}

// controlSize is enough for every control message that is sent or received here: an int with its header takes 24
// bytes on 64-bit machines, struct sock_extended_err with an address takes 64.
const controlSize = 128

// A control is a buffer of control messages, aligned as the kernel wants them.
type control struct {
	_    [0]uint64
	data [controlSize]byte
}

// put appends a control message with n bytes of value at offset at, and returns the offset of the next one.
func (c *control) put(at int, level, typ int32, value unsafe.Pointer, n int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c.data[at]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(n))
	copy(c.data[at+unix.CmsgLen(0):][:n], unsafe.Slice((*byte)(value), n))
	return at + unix.CmsgSpace(n)
}

// next returns the control message at offset at of the first n bytes: its value and the offset of the one after it.
// ok is false at the end.
func (c *control) next(at, n int) (h *unix.Cmsghdr, value []byte, after int, ok bool) {
	if n > len(c.data) || at+unix.CmsgLen(0) > n {
		return nil, nil, 0, false
	}
	h = (*unix.Cmsghdr)(unsafe.Pointer(&c.data[at]))
	size := int(h.Len)
	if size < unix.CmsgLen(0) || size > n-at {
		return nil, nil, 0, false
	}
	return h, c.data[at+unix.CmsgLen(0) : at+size], at + unix.CmsgSpace(size-unix.CmsgLen(0)), true
}
