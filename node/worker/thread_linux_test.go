package worker

import (
	"os"
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
	for _, allowed := range []bool{true, false} {
		may := make(chan bool, 1)
		go func() {
			runtime.LockOSThread() // to its end, as nobody else is to have the priority, or lack the right
			defer close(may)
			if !allowed {
				withoutNice(t)
			}
			before, err := unix.SchedGetAttr(0, 0)
			if err != nil {
				t.Error(err)
				return
			}
			thread := &OSThread{}
			refused := thread.Prefer()
			now, err := unix.SchedGetAttr(0, 0)
			if err != nil {
				t.Error(err)
				return
			}
			want := before.Nice
			if refused == nil {
				want = preferredNice
			}
			if now.Nice != want || now.Flags&unix.SCHED_FLAG_RESET_ON_FORK == 0 {
				t.Errorf("refused: %v, and now %+v", refused, *now)
			}
			if thread.Used() <= 0 {
				t.Error("the thread has used nothing")
			}
			may <- refused == nil
		}()
		if got, ok := <-may; ok && got != (allowed && os.Geteuid() == 0) {
			t.Errorf("preferred: %v, with root's rights: %v", got, allowed)
		}
	}
}

// withoutNice takes from the thread what a priority asks for.
func withoutNice(t *testing.T) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Error(err)
	}
	data[0].Effective &^= 1 << unix.CAP_SYS_NICE
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Error(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NICE, &limit); err != nil || limit.Cur > 20 {
		t.Errorf("limit of nice values: %+v, %v", limit, err)
	}
}
