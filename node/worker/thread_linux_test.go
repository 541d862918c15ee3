package worker

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOSThread: of two threads on one processor each waits for the other.
func TestOSThread(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2) // two goroutines have to want the processor at the same time
		defer runtime.GOMAXPROCS(1)
	}
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	one := 0
	for !allowed.IsSet(one) {
		one++
	}
	var stop atomic.Bool
	defer stop.Store(true)
	// A goroutine that ends with its thread locked ends the thread, and with it the affinity.
	busy := func() error {
		runtime.LockOSThread()
		var set unix.CPUSet
		set.Set(one)
		return unix.SchedSetaffinity(0, &set)
	}
	go func() {
		if err := busy(); err != nil {
			t.Error(err)
		}
		for !stop.Load() {
			continue
		}
	}()
	waited := make(chan time.Duration)
	go func() {
		defer close(waited)
		if err := busy(); err != nil {
			t.Error(err)
			return
		}
		thread := &OSThread{Hold: true}
		before, ok := thread.Delayed()
		if !ok {
			t.Error("this kernel does not say how long a thread waited")
			return
		}
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
			if now, _ := thread.Delayed(); now-before > 10*time.Millisecond {
				waited <- now - before
				break
			}
		}
		var longest time.Duration // a signal of the runtime's ends one early
		for range 20 {
			start := time.Now()
			thread.Pause(2 * time.Millisecond)
			longest = max(longest, time.Since(start))
		}
		if longest < 2*time.Millisecond {
			t.Errorf("the longest of 20 pauses of 2 ms took %v", longest)
		}
		if err := thread.Close(); err != nil {
			t.Error(err)
		}
	}()
	if d, ok := <-waited; !ok {
		t.Error("no time was spent waiting for a processor that another thread had")
	} else {
		t.Logf("waited %v", d)
	}
	<-waited
}

// TestPrefer: a thread is preferred where the process may have it so, and otherwise the error says what failed and the
// thread has its nice value. What it starts does not inherit anything.
func TestPrefer(t *testing.T) {
	for _, privileged := range []bool{true, false} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // to its end, as nobody else is to have the priority, or lack the right
			if !privileged {
				dropNice(t)
			}
			before := threadAttr(t)
			thread := &OSThread{}
			err := thread.Prefer()
			want := before.Nice
			if mayNice(t) {
				want = preferredNice
			}
			if (err == nil) != mayNice(t) {
				t.Errorf("may: %v, error %v", mayNice(t), err)
			}
			now := threadAttr(t)
			if now.Nice != want || now.Flags&unix.SCHED_FLAG_RESET_ON_FORK == 0 {
				t.Errorf("error %v, and now %+v", err, now)
			}
			if now.Runtime != 0 && now.Runtime != uint64(preferredSlice) { // older kernels have no slices
				t.Errorf("a slice of %d ns", now.Runtime)
			}
			if thread.Used() <= 0 {
				t.Error("the thread has used nothing")
			}
		}()
		<-done
	}
}

func threadAttr(t *testing.T) unix.SchedAttr {
	t.Helper()
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Error(err)
		return unix.SchedAttr{}
	}
	return *a
}

// threadCaps are the capabilities of the thread.
func threadCaps(t *testing.T) (unix.CapUserHeader, [2]unix.CapUserData) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Error(err)
	}
	return header, data
}

// dropNice takes from the thread the capability that a priority asks for.
func dropNice(t *testing.T) {
	t.Helper()
	header, data := threadCaps(t)
	data[0].Effective &^= 1 << unix.CAP_SYS_NICE
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Error(err)
	}
}

// mayNice reports whether the thread may have the least nice value.
func mayNice(t *testing.T) bool {
	t.Helper()
	_, data := threadCaps(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NICE, &limit); err != nil {
		t.Error(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_NICE) != 0 || limit.Cur >= 20-preferredNice
}
