package load

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A Place is where sockets are opened, like a network namespace: Do runs f inside it, on one thread.
type Place interface{ Do(f func() error) error }

// A Route is the way from one place to an IPv4 address of another.
type Route struct {
	From, To Place
	Addr     netip.Addr // of To
	// CongestionControl of TCP at both ends; empty: each place's default.
	CongestionControl string
}

// open makes a socket in a place and sets it up there.
func open(p Place, kind int, setUp func(fd int) error) (fd int, err error) {
	err = p.Do(func() error {
		if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := setUp(fd); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		return nil
	})
	return fd, err
}

func (r Route) sockaddr(port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: r.Addr.As4(), Port: port}
}

// bind binds a socket to a port of the kernel's choice at the far end.
func (r Route) bind(fd int) error {
	return os.NewSyscallError("bind", unix.Bind(fd, r.sockaddr(0)))
}

func portOf(fd int) (int, error) {
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	return addr.(*unix.SockaddrInet4).Port, nil
}

func setInt(fd, level, option, value int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, value))
}

// listen opens a listening socket at the far end.
func (r Route) listen(setUp func(fd int) error) (fd, port int, err error) {
	fd, err = open(r.To, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, func(fd int) error {
		const backlog = 1024
		if err := errors.Join(setUp(fd), r.setCongestionControl(fd), r.bind(fd)); err != nil {
			return err
		}
		return os.NewSyscallError("listen", unix.Listen(fd, backlog))
	})
	if err != nil {
		return 0, 0, err
	}
	port, err = portOf(fd)
	return fd, port, err
}

// setCongestionControl sets what accepted sockets inherit from a listening one.
func (r Route) setCongestionControl(fd int) error {
	if r.CongestionControl == "" {
		return nil
	}
	err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, r.CongestionControl)
	if err != nil {
		return fmt.Errorf("congestion control %s: %w", r.CongestionControl, err)
	}
	return nil
}

// onThread runs f on a thread that ends with it and delivers its error.
func onThread(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: what f changes of its thread goes with it
		done <- f()
	}()
	return done
}

// A poller waits for many sockets.
type poller struct {
	fd     int
	events []unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return &poller{fd: fd, events: make([]unix.EpollEvent, 256)}, os.NewSyscallError("epoll_create", err)
}

func (p *poller) close() { _ = unix.Close(p.fd) }

func (p *poller) add(fd int, events uint32) error {
	return os.NewSyscallError("epoll_ctl",
		unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}))
}

// patience bounds how late a thread notices that its time is over.
const patience = 10 * time.Millisecond

// wait returns the sockets that are ready, none after patience.
func (p *poller) wait() ([]unix.EpollEvent, error) {
	n, err := unix.EpollWait(p.fd, p.events, int(patience/time.Millisecond))
	if errors.Is(err, unix.EINTR) {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	return p.events[:n], nil
}

// again says that a system call would have to wait.
func again(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) }
