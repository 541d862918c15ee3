package worker

import (
	"testing"
	"time"
)

// A testThread is kept from running for a share of the time.
type testThread struct {
	clock  *time.Time
	start  time.Time
	share  float64
	unsaid bool // the kernel does not say
	asked  int
	pauses []time.Duration
}

func (t *testThread) Delayed() (time.Duration, bool) {
	t.asked++
	return time.Duration(t.share * float64(t.clock.Sub(t.start))), !t.unsaid
}

func (t *testThread) Pause(d time.Duration) {
	t.pauses = append(t.pauses, d)
	*t.clock = t.clock.Add(d)
}

// moderated has a worker wake up every 20 µs or after its pause, for so long. So many packets of one size come every 20
// µs. It returns the pauses.
func moderated(t *testing.T, thread *testThread, long time.Duration, packets, size int) []time.Duration {
	t.Helper()
	clock := time.Unix(1000, 0)
	thread.clock, thread.start = &clock, clock
	w := New(Config{Lanes: []Lane{{}}, Thread: thread, Now: func() time.Time { return clock }})
	for start := clock; clock.Sub(start) < long; {
		before := len(thread.pauses)
		if w.rest(); len(thread.pauses) == before {
			clock = clock.Add(20 * time.Microsecond)
		}
		come := uint64(clock.Sub(start)/(20*time.Microsecond)) * uint64(packets)
		w.Counters.QueueReads.Store(come)
		w.moved = come * uint64(size)
		w.rests.after(clock)
	}
	if got := w.Counters.Pauses.Load(); got != uint64(len(thread.pauses)) {
		t.Errorf("%d pauses are counted, there were %d", got, len(thread.pauses))
	}
	return thread.pauses
}

func TestModeration(t *testing.T) {
	const long = 200 * time.Millisecond
	for _, c := range []struct {
		name          string
		share         float64
		packets, size int
		longest       time.Duration // 0: no pause
	}{
		{"datagrams, processors short", 0.5, 2, 1400, longestPause},
		{"small datagrams, processors short", 0.5, 10, 64, queueBatch * 20 * time.Microsecond / 10},
		{"datagrams, a processor for each", 0.02, 2, 1400, 0},
		{"superpackets, processors short", 0.5, 1, 64 << 10, 0},
		{"few packets, processors short", 0.5, 1, 100, 0},
	} {
		pauses := moderated(t, &testThread{share: c.share}, long, c.packets, c.size)
		if c.longest == 0 {
			if len(pauses) > 0 {
				t.Errorf("%s: %d pauses, of %v and so on", c.name, len(pauses), pauses[0])
			}
			continue
		}
		if len(pauses) < int(long/longestPause)/2 {
			t.Errorf("%s: %d pauses", c.name, len(pauses))
		}
		for _, p := range pauses {
			if p <= 0 || p > c.longest*11/10 || p > longestPause {
				t.Errorf("%s: a pause of %v", c.name, p)
			}
		}
	}
}

// TestModerationEnds: pauses end with the shortage, and with the packets.
func TestModerationEnds(t *testing.T) {
	clock := time.Unix(1000, 0)
	thread := &testThread{clock: &clock, start: clock, share: 0.5}
	m := moderation{thread: thread}
	var packets uint64
	pause := func(perMs uint64, long time.Duration) time.Duration {
		for range long / time.Millisecond {
			clock = clock.Add(time.Millisecond)
			packets += perMs
			m.before(clock, packets, packets*1000)
			m.after(clock)
		}
		return m.each
	}
	if d := pause(100, 100*time.Millisecond); d == 0 {
		t.Error("no pause while processors are short")
	}
	if d := pause(2, 4*time.Millisecond); d != 0 {
		t.Errorf("%v for two packets a millisecond", d)
	}
	if d := pause(100, 4*time.Millisecond); d == 0 {
		t.Error("no pause when packets come again")
	}
	thread.start, thread.share = clock, 0 // and the total begins anew, which is less than before
	if d := pause(100, 200*time.Millisecond); d != 0 {
		t.Errorf("%v where the thread runs whenever it wants to", d)
	}
}

// TestModerationUnsaid: a kernel that does not say how long threads wait is not asked again and again.
func TestModerationUnsaid(t *testing.T) {
	thread := &testThread{share: 0.5, unsaid: true}
	if pauses := moderated(t, thread, 100*time.Millisecond, 2, 1400); len(pauses) > 0 || thread.asked != 1 {
		t.Errorf("%d pauses, asked %d times", len(pauses), thread.asked)
	}
}
