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

// FlowsOptions say how many TCP connections send at once.
type FlowsOptions struct {
	Flows int
	// Warm is how long they send before the measurement, Time how long that takes.
	Warm, Time time.Duration
}

// A FlowsResult is what arrived.
type FlowsResult struct {
	Bytes  int64         // during the measurement
	Took   time.Duration // the measurement
	Moving int           // flows of which something arrived during the measurement
	All    int64         // bytes, with what came before and after
}

const (
	// flowBuffer, in bytes, is the socket buffer of each end of a flow, before the kernel doubles it: fixed, so that a
	// thousand of them don't take the gigabytes that the kernel would let them grow to.
	flowBuffer = 128 << 10

	chunk = 64 << 10 // bytes per system call

	// connecting is how many connections are made at once: fewer than fit a queue of a listening socket.
	connecting = 64

	// establish bounds the time until all are there: two connection requests may be lost, which costs 1 s and 2 s.
	establish = 10 * time.Second
)

// ErrEstablish is the error of Flows when the connections did not all come about in time.
var ErrEstablish = errors.New("not all came about in time")

// Flows opens the connections, sends on all of them as fast as it can, and counts what arrives.
func Flows(ctx context.Context, r Route, o FlowsOptions) (FlowsResult, error) {
	listener, port, err := r.listen(flowSocket)
	if err != nil {
		return FlowsResult{}, fmt.Errorf("receiver of flows: %w", err)
	}
	defer unix.Close(listener)
	ctx, cancel := context.WithTimeoutCause(ctx, establish+o.Warm+o.Time, ErrEstablish)
	defer cancel()
	var over atomic.Bool
	s := &flowSender{over: &over, route: r, port: port, flows: o.Flows}
	sent := onThread(func() error { return r.From.Do(func() error { return s.run(ctx) }) })
	f := &flowReceiver{over: &over, listener: listener, options: o, bytes: make(map[int32]int64)}
	received := onThread(func() error { return f.run(ctx) })
	return f.result, errors.Join(<-received, <-sent)
}

func flowSocket(fd int) error {
	return errors.Join(setInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, flowBuffer),
		setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, flowBuffer))
}

// closeNow closes a connection without a farewell: nobody needs a thousand of them in TIME_WAIT.
func closeNow(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}

// flowReceiver is the far end of all flows, on one thread.
type flowReceiver struct {
	over     *atomic.Bool // what fails from now on is the end of the flows
	listener int
	options  FlowsOptions
	bytes    map[int32]int64 // of each connection during the measurement
	result   FlowsResult
}

func (f *flowReceiver) run(ctx context.Context) error {
	poll, err := newPoller()
	if err != nil {
		return err
	}
	defer poll.close()
	defer func() {
		f.over.Store(true)
		for fd := range f.bytes {
			closeNow(int(fd))
		}
	}()
	if err := poll.add(f.listener, unix.EPOLLIN); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	var begin time.Time // of the measurement; zero until all flows are there
	for {
		ready, err := poll.wait()
		if err != nil {
			return err
		}
		now := time.Now()
		if begin.IsZero() && len(f.bytes) == f.options.Flows {
			begin = now.Add(f.options.Warm)
		}
		measuring := !begin.IsZero() && now.After(begin)
		if measuring && now.Sub(begin) >= f.options.Time {
			f.result.Took = now.Sub(begin)
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%d of %d flows are there: %w", len(f.bytes), f.options.Flows, context.Cause(ctx))
		}
		for _, e := range ready {
			if int(e.Fd) == f.listener {
				err = f.accept(poll)
			} else {
				err = f.read(e.Fd, buf, measuring)
			}
			if err != nil && !again(err) {
				return fmt.Errorf("receiver of flows: %w", err)
			}
		}
	}
}

func (f *flowReceiver) accept(poll *poller) error {
	for {
		fd, _, err := unix.Accept4(f.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return err // EAGAIN: that was all
		}
		f.bytes[int32(fd)] = 0
		if err := poll.add(fd, unix.EPOLLIN); err != nil {
			return err
		}
	}
}

func (f *flowReceiver) read(fd int32, buf []byte, measuring bool) error {
	n, err := unix.Read(int(fd), buf)
	if n <= 0 {
		if err == nil {
			return errors.New("a flow was closed by its sender")
		}
		return err
	}
	f.result.All += int64(n)
	if measuring {
		f.result.Bytes += int64(n)
		if f.bytes[fd] == 0 {
			f.result.Moving++
		}
		f.bytes[fd] += int64(n)
	}
	return nil
}

// flowSender is the near end of all flows, on one thread inside its place.
type flowSender struct {
	over  *atomic.Bool
	route Route
	port  int
	flows int
	open  []int
	there map[int32]bool // connected
}

func (s *flowSender) run(ctx context.Context) error {
	poll, err := newPoller()
	if err != nil {
		return err
	}
	defer poll.close()
	defer func() {
		for _, fd := range s.open {
			closeNow(fd)
		}
	}()
	s.there = make(map[int32]bool, s.flows)
	if err := s.connectAll(ctx, poll); err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for !s.over.Load() && ctx.Err() == nil {
		ready, err := poll.wait()
		if err != nil {
			return err
		}
		for _, e := range ready {
			if _, err := unix.Write(int(e.Fd), buf); err != nil && !again(err) && !s.over.Load() {
				return fmt.Errorf("sender of flows: %w", os.NewSyscallError("write", err))
			}
		}
	}
	return nil
}

// connectAll makes all connections before anything is sent: what the first ones send would crowd out the requests of
// the others. Each is reported once (EPOLLET) until all are there.
func (s *flowSender) connectAll(ctx context.Context, poll *poller) error {
	for len(s.there) < s.flows && !s.over.Load() && ctx.Err() == nil {
		for len(s.open) < s.flows && len(s.open) < len(s.there)+connecting {
			if err := s.connect(poll); err != nil {
				return fmt.Errorf("sender of flows: %w", err)
			}
		}
		ready, err := poll.wait()
		if err != nil {
			return err
		}
		for _, e := range ready {
			code, err := unix.GetsockoptInt(int(e.Fd), unix.SOL_SOCKET, unix.SO_ERROR)
			if err != nil || code != 0 {
				return fmt.Errorf("connection %d of the flows: %w", len(s.there)+1, errors.Join(err, unix.Errno(code)))
			}
			s.there[e.Fd] = true
		}
	}
	for fd := range s.there {
		err := unix.EpollCtl(poll.fd, unix.EPOLL_CTL_MOD, int(fd), &unix.EpollEvent{Events: unix.EPOLLOUT, Fd: fd})
		if err != nil {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	return nil
}

func (s *flowSender) connect(poll *poller) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	s.open = append(s.open, fd)
	if err := errors.Join(flowSocket(fd), s.route.setCongestionControl(fd)); err != nil {
		return err
	}
	if err := unix.Connect(fd, s.route.sockaddr(s.port)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	return poll.add(fd, unix.EPOLLOUT|unix.EPOLLET)
}
