package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ConnectOptions say how many clients connect, and for how long.
type ConnectOptions struct {
	Clients int // each has one connection at a time
	Time    time.Duration
}

// A ConnectResult is how many connections were made, spoke and were closed.
type ConnectResult struct {
	Connections int
	Reset       int // those that were reset before they were answered, not counted above
	Took        time.Duration
}

// Connect makes one TCP connection after the other with each client: connect, a byte there, a byte back, close.
func Connect(ctx context.Context, r Route, o ConnectOptions) (ConnectResult, error) {
	s, err := newConnectServer(r)
	if err != nil {
		return ConnectResult{}, err
	}
	defer s.close()
	served := onThread(s.serve)
	c := &connectClient{route: r, ports: s.ports, open: make(map[int32]bool)}
	var took time.Duration
	clients := onThread(func() error {
		// The client's sockets are all opened inside its place, so the whole thread goes there.
		return r.From.Do(func() (err error) {
			took, err = c.run(ctx, o)
			return err
		})
	})
	err = <-clients
	s.stop.Store(true)
	return ConnectResult{Connections: c.done, Reset: c.reset, Took: took}, errors.Join(err, <-served)
}

// listeners is the number of ports that are connected to, in turn: a closed connection keeps its pair of ports busy for
// a minute (TIME_WAIT), and one port alone would run out of pairs.
const listeners = 16

// connectServer answers a byte with a byte and closes when the client has.
type connectServer struct {
	stop  atomic.Bool
	ports []int
	heard map[int32]bool // the listening sockets
	poll  *poller
}

func newConnectServer(r Route) (*connectServer, error) {
	poll, err := newPoller()
	if err != nil {
		return nil, err
	}
	s := &connectServer{poll: poll, heard: make(map[int32]bool)}
	for range listeners {
		fd, port, err := r.listen(func(int) error { return nil })
		if err == nil {
			s.heard[int32(fd)] = true
			err = poll.add(fd, unix.EPOLLIN)
		}
		if err != nil {
			s.close()
			return nil, fmt.Errorf("server of connections: %w", err)
		}
		s.ports = append(s.ports, port)
	}
	return s, nil
}

func (s *connectServer) close() {
	for fd := range s.heard {
		_ = unix.Close(int(fd))
	}
	s.poll.close()
}

func (s *connectServer) serve() error {
	open := make(map[int]bool)
	defer func() {
		for fd := range open {
			_ = unix.Close(fd)
		}
	}()
	b := make([]byte, 1)
	for !s.stop.Load() {
		ready, err := s.poll.wait()
		if err != nil {
			return err
		}
		for _, e := range ready {
			fd := int(e.Fd)
			if s.heard[e.Fd] {
				err = s.accept(fd, open)
			} else if n, readErr := unix.Read(fd, b); n == 1 {
				_, err = unix.Write(fd, b)
			} else if !again(readErr) {
				// Its client closed it, or went away.
				delete(open, fd)
				err = unix.Close(fd)
			}
			if err != nil && !again(err) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
				return fmt.Errorf("server of connections: %w", err)
			}
		}
	}
	return nil
}

func (s *connectServer) accept(listener int, open map[int]bool) error {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return err // EAGAIN: that was all
		}
		open[fd] = true
		if err := s.poll.add(fd, unix.EPOLLIN); err != nil {
			return err
		}
	}
}

// connectClient is all clients, on one thread.
type connectClient struct {
	route Route
	ports []int
	next  int // index of the port for the next connection
	poll  *poller
	open  map[int32]bool // connections: whether their byte has been sent
	done  int
	reset int
}

func (c *connectClient) run(ctx context.Context, o ConnectOptions) (took time.Duration, err error) {
	if c.poll, err = newPoller(); err != nil {
		return 0, err
	}
	defer c.poll.close()
	defer func() {
		for fd := range c.open {
			_ = unix.Close(int(fd))
		}
	}()
	begin := time.Now()
	for range o.Clients {
		if err := c.connect(); err != nil {
			return 0, err
		}
	}
	for {
		if took = time.Since(begin); took >= o.Time || ctx.Err() != nil {
			return took, ctx.Err()
		}
		ready, err := c.poll.wait()
		if err != nil {
			return took, err
		}
		for _, e := range ready {
			err := c.advance(e)
			if errors.Is(err, unix.ECONNRESET) {
				c.reset++
				err = c.another(e.Fd)
			}
			if err != nil {
				return took, fmt.Errorf("connection %d: %w", c.done+1, err)
			}
		}
	}
}

// connect begins a connection. Its events are reported once each (EPOLLET): that it is there, and that it was answered.
func (c *connectClient) connect() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	c.open[int32(fd)] = false
	port := c.ports[c.next]
	c.next = (c.next + 1) % len(c.ports)
	if err := unix.Connect(fd, c.route.sockaddr(port)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	return c.poll.add(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLET)
}

func (c *connectClient) advance(e unix.EpollEvent) error {
	fd := int(e.Fd)
	if code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
		return errors.Join(os.NewSyscallError("getsockopt", err), unix.Errno(code))
	}
	b := []byte{'?'}
	if !c.open[e.Fd] && e.Events&unix.EPOLLOUT != 0 {
		if _, err := unix.Write(fd, b); err != nil {
			return os.NewSyscallError("write", err)
		}
		c.open[e.Fd] = true
	}
	if e.Events&unix.EPOLLIN == 0 {
		return nil
	}
	n, err := unix.Read(fd, b)
	if again(err) {
		return nil
	}
	if n != 1 {
		return fmt.Errorf("it was closed before it was answered: %w", err)
	}
	c.done++
	return c.another(e.Fd)
}

// another replaces a connection by the next one.
func (c *connectClient) another(fd int32) error {
	delete(c.open, fd)
	if err := unix.Close(int(fd)); err != nil {
		return os.NewSyscallError("close", err)
	}
	return c.connect()
}
