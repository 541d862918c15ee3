// Package poll waits for several file descriptors and for a wake-up from another goroutine at once. A worker that owns
// a TUN queue and UDP sockets sleeps here when all of them are empty.
//
// It is used in place of the runtime's netpoller, because a worker wants one wait for all its descriptors on its own
// thread: through the netpoller each descriptor needs a goroutine of its own, and every packet pays a hand-over
// between goroutines.
//
// # Ownership and concurrency
//
// A Poller belongs to one worker: Wait, Add, Remove and Close are called by one goroutine at a time. Wake may be called
// by any goroutine at any time, also after Close. The descriptors stay the caller's; one that is closed leaves the
// poller by itself, so close descriptors only while nobody waits for them, or their numbers may be reused unnoticed.
package poll

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An FD is a descriptor to wait for, and the bit, 0 to 63, that stands for it in the result of Wait. Several may have
// the same bit.
type FD struct{ FD, Bit int }

// ErrClosed is returned by Wait after Close.
var ErrClosed = errors.New("poll: closed")

const (
	bits    = 64
	wakeBit = bits // marks the eventfd among the events
)

// A Poller waits for descriptors to become readable. The zero value is not usable; New makes one.
type Poller struct {
	epfd   int
	events []unix.EpollEvent

	mu     sync.Mutex // guards wakefd against a Wake that comes after Close
	wakefd int        // -1 once closed
}

// New makes a poller. The descriptors should be non-blocking; New does not change them.
func New(fds ...FD) (*Poller, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("poll: epoll_create1: %w", err)
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("poll: eventfd: %w", err), unix.Close(epfd))
	}
	p := &Poller{epfd: epfd, wakefd: wakefd}
	for _, fd := range fds {
		if err := p.Add(fd); err != nil {
			return nil, errors.Join(err, p.Close())
		}
	}
	if err := p.add(wakefd, wakeBit); err != nil {
		return nil, errors.Join(fmt.Errorf("poll: add eventfd: %w", err), p.Close())
	}
	return p, nil
}

// add registers fd level-triggered, so that a worker may leave data behind and come back for it.
func (p *Poller) add(fd, bit int) error {
	err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(bit)})
	if err == nil {
		p.events = append(p.events, unix.EpollEvent{}) // room for all at once
	}
	return err
}

// Add has Wait wait for one more descriptor. What it has already, the next Wait says.
func (p *Poller) Add(fd FD) error {
	if fd.Bit < 0 || fd.Bit >= bits {
		return fmt.Errorf("poll: bit %d for descriptor %d: use 0 to %d", fd.Bit, fd.FD, bits-1)
	}
	if err := p.add(fd.FD, fd.Bit); err != nil {
		return fmt.Errorf("poll: add descriptor %d: %w", fd.FD, err)
	}
	return nil
}

// Remove has Wait wait for a descriptor no more.
func (p *Poller) Remove(fd FD) error {
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_DEL, fd.FD, nil); err != nil {
		return fmt.Errorf("poll: remove descriptor %d: %w", fd.FD, err)
	}
	p.events = p.events[:len(p.events)-1]
	return nil
}

// Wait sleeps until a descriptor is readable, Wake is called, or the timeout has passed; negative: no timeout, zero:
// only look. The timeout is rounded up to whole milliseconds. In ready are the bits of the descriptors that are; one
// with an error or a hang-up is, so that the next read on it says what is wrong. An error that stays must be dealt
// with, or Wait returns at once again and again.
func (p *Poller) Wait(timeout time.Duration) (ready uint64, woken bool, err error) {
	ms := milliseconds(timeout)
	var deadline time.Time // only looked at after a signal
	if ms > 0 {
		deadline = time.Now().Add(timeout)
	}
	for {
		// Syscall and not RawSyscall: this blocks, and the runtime must know to give the processor to others.
		n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epfd), uintptr(unsafe.Pointer(&p.events[0])),
			uintptr(len(p.events)), uintptr(ms), 0, 0)
		switch errno {
		case 0:
			return p.collect(int(n))
		case unix.EINTR: // the Go runtime preempts by signals
			if ms > 0 {
				ms = milliseconds(max(0, time.Until(deadline)))
			}
		case unix.EBADF:
			return 0, false, ErrClosed
		default:
			return 0, false, fmt.Errorf("poll: epoll_pwait: %w", errno)
		}
	}
}

// MaxHolding bounds WaitHolding: for so long the runtime may have to wait for a thread that it can't interrupt.
const MaxHolding = 10 * time.Millisecond

// WaitHolding is Wait for at most MaxHolding, without telling the Go runtime that the thread blocks: the goroutine
// keeps its P, so give the runtime one more than it needs by GOMAXPROCS. Woken up, it goes on at once. After Wait it
// first wakes the runtime's monitor thread and asks for a P, which on an idle machine takes as long as a packet's whole
// way.
//
// The runtime needs every P now and then, to stop the world. It then interrupts the thread by a signal, after which
// epoll_pwait is not restarted (signal(7)): WaitHolding returns early with nothing, and the caller calls it again. A
// signal that comes right before the system call is lost; the runtime repeats it every 100 µs. Without its signals
// (GODEBUG=asyncpreemptoff=1) it waits for MaxHolding.
func (p *Poller) WaitHolding(timeout time.Duration) (ready uint64, woken bool, err error) {
	if timeout < 0 || timeout > MaxHolding {
		timeout = MaxHolding
	}
	ms := milliseconds(timeout)
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epfd), uintptr(unsafe.Pointer(&p.events[0])),
		uintptr(len(p.events)), uintptr(ms), 0, 0)
	switch errno {
	case 0:
		return p.collect(int(n))
	case unix.EINTR:
		return 0, false, nil
	case unix.EBADF:
		return 0, false, ErrClosed
	}
	return 0, false, fmt.Errorf("poll: epoll_pwait: %w", errno)
}

// collect turns the first n events into Wait's result and empties the eventfd.
func (p *Poller) collect(n int) (ready uint64, woken bool, err error) {
	for i := range p.events[:n] {
		if bit := p.events[i].Fd; bit != wakeBit {
			ready |= 1 << bit
			continue
		}
		woken = true
		var count uint64
		// The eventfd does not block; should it be empty after all, there is nothing to do.
		_, _, _ = unix.Syscall(unix.SYS_READ, uintptr(p.wakefd), uintptr(unsafe.Pointer(&count)), 8)
	}
	return ready, woken, nil
}

// Wake makes the current or the next Wait return with woken set. Several calls before that Wait count as one. Whatever
// the waker wrote for the worker to see needs its own synchronisation. Safe for concurrent use.
func (p *Poller) Wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wakefd < 0 {
		return
	}
	one := uint64(1)
	// EAGAIN, the only possible error, means that the counter is full: the worker is being woken already.
	_, _, _ = unix.Syscall(unix.SYS_WRITE, uintptr(p.wakefd), uintptr(unsafe.Pointer(&one)), 8)
}

// Close frees the poller's own descriptors, not those given to New. It must not run beside Wait: Wake the worker and
// let it close its poller itself. A second Close does nothing.
func (p *Poller) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wakefd < 0 {
		return nil
	}
	err := errors.Join(unix.Close(p.wakefd), unix.Close(p.epfd))
	p.wakefd, p.epfd = -1, -1
	return err
}

// milliseconds rounds d up to what epoll takes; -1 is for ever.
func milliseconds(d time.Duration) int {
	if d < 0 {
		return -1
	}
	ms := d / time.Millisecond
	if d%time.Millisecond != 0 {
		ms++
	}
	return int(min(ms, math.MaxInt32))
}
