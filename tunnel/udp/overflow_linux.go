package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// skMeminfoDrops is the place of the count of dropped datagrams in what SO_MEMINFO answers (linux/sock_diag.h).
const (
	skMeminfoDrops = 8
	skMeminfoVars  = 9
)

// Overflows is how many datagrams the kernel has dropped because they found the receive buffer full; 0 on kernels that
// do not say (before 4.12) and after Close. Safe for concurrent use.
func (s *Socket) Overflows() uint64 {
	if !s.enter() {
		return 0
	}
	defer s.leave()
	var sum uint64
	for _, fd := range s.receive {
		var info [skMeminfoVars]uint32
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno == 0 {
			sum += uint64(info[skMeminfoDrops])
		}
	}
	return sum
}
