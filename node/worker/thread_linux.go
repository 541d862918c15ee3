package worker

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OSThread is the Thread of a worker that keeps to one.
type OSThread struct {
	// Hold has the goroutine keep its P while it pauses; see PollWaiter.Hold.
	Hold bool

	opened bool
	fd     int // of /proc/thread-self/schedstat, which goes on to be the opener's; -1: there is none
}

// schedstat has three numbers: nanoseconds that the thread ran, that it waited for a processor, and how often it got
// one (Linux, Documentation/scheduler/sched-stats.rst).
const schedstat = "/proc/thread-self/schedstat"

// Delayed implements Thread. Kernels without CONFIG_SCHED_INFO don't say, or say 0. A control group that has used up
// its quota of processor time keeps its threads from running too.
func (t *OSThread) Delayed() (time.Duration, bool) {
	if !t.opened {
		t.opened = true
		var err error
		if t.fd, err = unix.Open(schedstat, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			t.fd = -1
		}
	}
	if t.fd < 0 {
		return 0, false
	}
	var text [64]byte
	n, err := unix.Pread(t.fd, text[:], 0)
	if err != nil {
		return 0, false
	}
	_, rest, _ := bytes.Cut(text[:n], []byte(" "))
	waited, _, _ := bytes.Cut(rest, []byte(" "))
	ns, err := strconv.ParseInt(string(waited), 10, 64)
	return time.Duration(ns), err == nil
}

// Pause implements Thread. The kernel adds up to 50 µs, a thread's timer slack.
func (t *OSThread) Pause(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	if !t.Hold {
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil) // not time.Sleep, whose least is a millisecond
		return
	}
	// So short that the runtime need not know, as in poll.WaitHolding, whose word on signals holds here too.
	_, _, _ = unix.RawSyscall6(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
}

// Priority of a preferred thread. A slice is how long it may run on before somebody else has a turn, in which the
// kernel (6.12 and newer; others go by the nice value) takes the nearest end of a slice first; 0.1 ms is the least.
const (
	preferredNice  = -20
	preferredSlice = 100 * time.Microsecond
)

// Used implements Thread.
func (t *OSThread) Used() time.Duration {
	var ts unix.Timespec // 0 if the kernel does not say, which every one does
	_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_THREAD_CPUTIME_ID, uintptr(unsafe.Pointer(&ts)), 0)
	return time.Duration(ts.Nano())
}

// Prefer implements Thread. A short slice everybody may have; a nice value below the process's asks for CAP_SYS_NICE,
// or for RLIMIT_NICE (getrlimit(2)). What the thread starts is as the others are. Nice values count among the threads
// of a control group; for the group as a whole the kernel (6.12 and newer) goes by the shortest slice in it.
func (t *OSThread) Prefer() error {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return fmt.Errorf("sched_getattr: %w", err)
	}
	if attr.Policy == unix.SCHED_FIFO || attr.Policy == unix.SCHED_RR {
		return nil // somebody has given it more already
	}
	own := attr.Nice
	attr.Policy, attr.Flags = unix.SCHED_NORMAL, unix.SCHED_FLAG_RESET_ON_FORK
	attr.Nice, attr.Runtime = preferredNice, uint64(preferredSlice)
	if err = unix.SchedSetAttr(0, attr, 0); err != nil {
		attr.Nice = own
		_ = unix.SchedSetAttr(0, attr, 0) // without, it is as the others
		return fmt.Errorf("sched_setattr, nice value %d: %w", preferredNice, err)
	}
	return nil
}

// Close gives back what Delayed opened, once the worker has ended.
func (t *OSThread) Close() error {
	if !t.opened || t.fd < 0 {
		return nil
	}
	t.opened = false
	return unix.Close(t.fd)
}
