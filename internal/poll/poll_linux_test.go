package poll

import (
	"errors"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pipe returns the two ends of a non-blocking pipe.
func pipe(t testing.TB) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(p[0]); _ = unix.Close(p[1]) })
	return p[0], p[1]
}

func newPoller(t testing.TB, fds ...int) *Poller {
	t.Helper()
	var all []FD
	for i, fd := range fds {
		all = append(all, FD{FD: fd, Bit: i})
	}
	p, err := New(all...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func wantWait(t *testing.T, p *Poller, timeout time.Duration, ready uint64, woken bool) {
	t.Helper()
	gotReady, gotWoken, err := p.Wait(timeout)
	if err != nil || gotReady != ready || gotWoken != woken {
		t.Errorf("Wait = %b, %v, %v; want %b, %v, nil", gotReady, gotWoken, err, ready, woken)
	}
}

func TestReadyBitsAndLevelTriggered(t *testing.T) {
	r0, w0 := pipe(t)
	r1, w1 := pipe(t)
	p := newPoller(t, r0, r1)
	wantWait(t, p, 0, 0, false)
	write(t, w1)
	wantWait(t, p, time.Second, 0b10, false)
	wantWait(t, p, 0, 0b10, false) // still there: level-triggered
	write(t, w0)
	wantWait(t, p, -1, 0b11, false)
	var b [1]byte
	if _, err := unix.Read(r1, b[:]); err != nil {
		t.Fatal(err)
	}
	wantWait(t, p, 0, 0b01, false)
	p.Wake()
	p.Wake()
	wantWait(t, p, -1, 0b01, true)
	wantWait(t, p, 0, 0b01, false) // two calls were one wake-up
}

func write(t testing.TB, fd int) {
	t.Helper()
	if _, err := unix.Write(fd, []byte{1}); err != nil {
		t.Fatal(err)
	}
}

func TestHangUpIsReady(t *testing.T) {
	var s [2]int
	var err error
	if s, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(s[0]) }()
	p := newPoller(t, s[0])
	if err := unix.Close(s[1]); err != nil {
		t.Fatal(err)
	}
	wantWait(t, p, -1, 1, false)
}

func TestTimeout(t *testing.T) {
	p := newPoller(t)
	start := time.Now()
	wantWait(t, p, 30*time.Millisecond, 0, false)
	if d := time.Since(start); d < 30*time.Millisecond || d > 5*time.Second {
		t.Errorf("slept %v, want 30ms", d)
	}
}

func TestMilliseconds(t *testing.T) {
	for d, want := range map[time.Duration]int{
		-1: -1, 0: 0, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, 1 << 62: 1<<31 - 1,
	} {
		if got := milliseconds(d); got != want {
			t.Errorf("milliseconds(%v) = %d, want %d", d, got, want)
		}
	}
}

// A signal neither ends the sleep early nor makes it start over.
func TestSignalsDoNotChangeTheTimeout(t *testing.T) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGURG)
	defer signal.Stop(signals)
	p := newPoller(t)
	tid := make(chan int)
	done := make(chan time.Duration)
	go func() {
		tid <- unix.Gettid() // the goroutine stays on this thread while it is in the system call
		start := time.Now()
		if ready, woken, err := p.Wait(100 * time.Millisecond); ready != 0 || woken || err != nil {
			t.Errorf("Wait = %b, %v, %v", ready, woken, err)
		}
		done <- time.Since(start)
	}()
	thread := <-tid
	for {
		select {
		case d := <-done:
			if d < 100*time.Millisecond || d > 5*time.Second {
				t.Errorf("slept %v, want 100ms", d)
			}
			return
		case <-time.After(5 * time.Millisecond):
			_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
		}
	}
}

func TestWakeFromManyGoroutines(t *testing.T) {
	p := newPoller(t)
	const wakers, each = 8, 200
	var wg sync.WaitGroup
	for range wakers {
		wg.Go(func() {
			for range each {
				p.Wake()
			}
		})
	}
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	for {
		if _, _, err := p.Wait(time.Millisecond); err != nil {
			t.Fatal(err)
		}
		select {
		case <-finished:
			p.Wake()
			wantWait(t, p, -1, 0, true)
			wantWait(t, p, 0, 0, false)
			return
		default:
		}
	}
}

func TestClosed(t *testing.T) {
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Fatal(err)
	}
	p.Wake()
	if _, _, err := p.Wait(-1); !errors.Is(err, ErrClosed) {
		t.Errorf("Wait after Close: %v, want ErrClosed", err)
	}
}

func TestBadInput(t *testing.T) {
	for _, bit := range []int{-1, 64} {
		if _, err := New(FD{FD: 0, Bit: bit}); err == nil {
			t.Errorf("bit %d: no error", bit)
		}
	}
	if _, err := New(FD{FD: -1}); !errors.Is(err, unix.EBADF) {
		t.Errorf("descriptor -1: %v, want EBADF", err)
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := New(FD{FD: int(f.Fd())}); !errors.Is(err, unix.EPERM) { // a regular file can't be polled
		t.Errorf("regular file: %v, want EPERM", err)
	}
}

func TestNoAllocations(t *testing.T) {
	r, w := pipe(t)
	write(t, w)
	p := newPoller(t, r)
	if n := testing.AllocsPerRun(100, func() {
		p.Wake()
		_, _, _ = p.Wait(time.Second)
	}); n != 0 {
		t.Errorf("%v allocations per Wake and Wait, want 0", n)
	}
}

func BenchmarkWaitReady(b *testing.B) {
	r, w := pipe(b)
	write(b, w)
	p := newPoller(b, r)
	b.ReportAllocs()
	for b.Loop() {
		_, _, _ = p.Wait(0)
	}
}

// TestWaitHolding has a descriptor become readable, a Wake, and nothing happen during a wait.
func TestWaitHolding(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	p, err := New(FD{FD: pipe[0]})
	if err != nil {
		t.Fatal(err)
	}
	wait := func(timeout time.Duration) (ready uint64, woken bool) {
		t.Helper()
		ready, woken, err := p.WaitHolding(timeout)
		if err != nil {
			t.Fatal(err)
		}
		return ready, woken
	}
	if ready, woken := wait(0); ready != 0 || woken {
		t.Errorf("nothing there: ready %b, woken %v", ready, woken)
	}
	// Negative is no limit, as in Wait, and not zero: fifty in a row take their time, whatever signals cut short.
	begin := time.Now()
	for range 50 {
		wait(-1)
	}
	if took := time.Since(begin); took < MaxHolding {
		t.Errorf("50 waits without a limit took %v", took)
	}
	if ready, woken := wait(time.Hour); ready != 0 || woken { // and it returns
		t.Errorf("nothing there for MaxHolding: ready %b, woken %v", ready, woken)
	}
	p.Wake()
	if ready, woken := wait(0); ready != 0 || !woken {
		t.Errorf("after Wake: ready %b, woken %v", ready, woken)
	}
	if _, err := unix.Write(pipe[1], []byte{1}); err != nil {
		t.Fatal(err)
	}
	if ready, woken := wait(0); ready != 1 || woken {
		t.Errorf("one readable: ready %b, woken %v", ready, woken)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.WaitHolding(0); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v, want %v", err, ErrClosed)
	}
}

// TestHoldingLetsTheWorldStop: goroutines that hold every P in waits one after the other don't keep the garbage
// collector from ending, nor others from running.
func TestHoldingLetsTheWorldStop(t *testing.T) {
	var stop atomic.Bool
	var waiters sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		p, err := New()
		if err != nil {
			t.Fatal(err)
		}
		waiters.Go(func() {
			defer p.Close()
			for !stop.Load() {
				if _, _, err := p.WaitHolding(MaxHolding); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		runtime.GC()
	}
	stop.Store(true)
	waiters.Wait()
}

// TestSharedBit: descriptors with the same bit are told apart by nobody, and the highest bit is as good as any.
func TestSharedBit(t *testing.T) {
	r0, w0 := pipe(t)
	r1, w1 := pipe(t)
	p, err := New(FD{FD: r0, Bit: 63}, FD{FD: r1, Bit: 63})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	write(t, w1)
	wantWait(t, p, time.Second, 1<<63, false)
	write(t, w0)
	wantWait(t, p, time.Second, 1<<63, false)
}

// TestAddAndRemove: a poller waits for what it has at the moment, and says at once what that has already.
func TestAddAndRemove(t *testing.T) {
	r0, w0 := pipe(t)
	r1, w1 := pipe(t)
	p := newPoller(t, r0)
	write(t, w1)
	wantWait(t, p, 0, 0, false)
	one := FD{FD: r1, Bit: 5}
	if err := p.Add(one); err != nil {
		t.Fatal(err)
	}
	write(t, w0)
	wantWait(t, p, time.Second, 1<<5|1, false)
	if err := p.Add(one); !errors.Is(err, unix.EEXIST) {
		t.Errorf("added twice: %v", err)
	}
	if err := p.Remove(one); err != nil {
		t.Fatal(err)
	}
	wantWait(t, p, time.Second, 1, false)
	if err := p.Remove(one); !errors.Is(err, unix.ENOENT) {
		t.Errorf("removed twice: %v", err)
	}
	if err := p.Add(FD{FD: r1, Bit: bits}); err == nil {
		t.Error("added by a bit that there is not")
	}
}
