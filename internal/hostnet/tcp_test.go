package hostnet

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// serve listens in a namespace; whoever connects is told the address that the server saw it under.
func (w *world) serve(ns netns.NsHandle, host string, port int) int {
	w.Helper()
	var l net.Listener
	w.in(ns, func() {
		var err error
		l, err = net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
		w.must(err)
	})
	w.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if from, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
				_, _ = io.WriteString(c, from.Addr().Unmap().String())
			}
			_ = c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// ask connects from a namespace and returns what the server says. The socket is made by hand: the standard library
// may connect on another thread, which is in another namespace.
func (w *world) ask(ns netns.NsHandle, server netip.AddrPort) (answer string, err error) {
	w.in(ns, func() {
		var fd int
		var sa unix.Sockaddr
		if server.Addr().Is4() {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			sa = &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()}
		} else {
			fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
			sa = &unix.SockaddrInet6{Port: int(server.Port()), Addr: server.Addr().As16()}
		}
		if err != nil {
			return
		}
		f := os.NewFile(uintptr(fd), "tcp")
		defer f.Close()
		timeout := unix.NsecToTimeval(int64(3 * time.Second))
		for _, opt := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
			if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &timeout); err != nil {
				return
			}
		}
		if err = unix.Connect(fd, sa); err != nil {
			err = fmt.Errorf("connecting: %w", err)
			return
		}
		buf := make([]byte, 256)
		n := 0
		for {
			var m int
			m, err = syscall.Read(fd, buf[n:])
			if err != nil || m == 0 {
				break
			}
			n += m
		}
		answer = string(buf[:n])
	})
	return answer, err
}

// fetch runs a server outside and asks it from a pod: the address under which the pod was seen.
func (w *world) fetch(outside, pod netns.NsHandle, server string) string {
	w.Helper()
	port := w.serve(outside, server, 0)
	seen, err := w.ask(pod, netip.AddrPortFrom(addr(server), uint16(port)))
	if err != nil {
		w.Fatalf("%s: %v", server, err)
	}
	return seen
}
