package udp

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reusePort is a net.ListenConfig.Control.
func reusePort(_, _ string, c syscall.RawConn) (err error) {
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); e != nil {
		return e
	}
	return err
}

func ptr[T any](v *T) unsafe.Pointer { return unsafe.Pointer(v) }
