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
