package wireguard

import (
	"slices"
	"testing"
	"time"
)

// TestLoneStream: what answers the only stream of superframes is sent to another lane, for as long as it lasts.
func TestLoneStream(t *testing.T) {
	const begin = int64(1_700_000_000_000_000_000)
	const ms = int64(time.Millisecond)
	type frame struct {
		worker int
		at     int64 // after begin
	}
	for _, tt := range []struct {
		name   string
		frames []frame
		now    int64
		others []int // workers that find the index of the other lane
	}{
		{name: "none", now: 0},
		{name: "one", frames: []frame{{1, 0}}, now: 0, others: []int{1}},
		{name: "one, some time later", frames: []frame{{1, 0}}, now: 9 * ms, others: []int{1}},
		{name: "one, too long ago", frames: []frame{{1, 0}}, now: 10 * ms},
		{name: "one that goes on", frames: []frame{{2, 0}, {2, 9 * ms}}, now: 18 * ms, others: []int{2}},
		{name: "one by a clock that is a little behind", frames: []frame{{1, ms}}, now: 0, others: []int{1}},
		{name: "two", frames: []frame{{0, 0}, {1, 5 * ms}}, now: 9 * ms},
		{name: "two, one of which has ended", frames: []frame{{0, 0}, {1, 5 * ms}}, now: 12 * ms, others: []int{1}},
		{name: "one in turns", frames: []frame{{0, 0}, {1, 9 * ms}, {2, 19 * ms}}, now: 20 * ms, others: []int{2}},
	} {
		s := &Session{peer: &Peer{marks: make([]marks, 4)}, remote: 0x12345607}
		for _, f := range tt.frames {
			s.peer.TookFrame(f.worker, begin+f.at)
		}
		for worker := range 3 {
			for _, lane := range []int{0, 1, 6, 255} {
				if got := s.Acknowledge(lane, worker, begin+tt.now); got != s.remote {
					t.Errorf("%s: %x for a peer that has not offered lanes", tt.name, got)
				}
				s.takes.Store(takesLanes)
				want := s.remote&^laneMask | uint32(lane)
				if slices.Contains(tt.others, worker) {
					want ^= 1
				}
				if got := s.Acknowledge(lane, worker, begin+tt.now); got != want {
					t.Errorf("%s: worker %d in lane %d sends to %x, want %x", tt.name, worker, lane, got, want)
				}
				s.takes.Store(0)
			}
		}
	}
}

// TestNoMoreFrames: whom superframes fail to reach asks for data messages, says it again while they still come, and
// asks for superframes again after a while.
func TestNoMoreFrames(t *testing.T) {
	s := newSim(t, 2)
	a, b := s.nodes[0], s.nodes[1]
	s.peers(nil)
	s.connect(a, b)
	s.pass(time.Second)
	from := b.of(a)
	some := func(got, lost int) {
		for range got {
			from.TookFrame(0, s.now)
		}
		for range lost {
			from.LostFrame(0)
		}
		s.pass(2 * time.Second)
	}
	n := s.offersSent()
	some(10, lostLeast-1)
	if !a.toward(b).TakesFrames() || s.offersSent() != n {
		t.Fatal("a few lost ones are too many")
	}
	lost := true
	s.offersFrom(b, &lost)
	some(0, 1)
	if !a.toward(b).TakesFrames() || s.offersSent() != n+1 {
		t.Fatalf("%d offers, want one, which is lost", s.offersSent()-n)
	}
	s.pass(5 * time.Second)
	if s.offersSent() != n+1 {
		t.Error("said again though none came")
	}
	some(1, 0)
	if s.offersSent() != n+2 {
		t.Errorf("one came, and it was said %d times, want 2", s.offersSent()-n)
	}
	lost = false
	some(1, 0)
	if a.toward(b).TakesFrames() || s.offersSent() != n+3 {
		t.Errorf("said %d times, and the peer takes superframes: %v", s.offersSent()-n, a.toward(b).TakesFrames())
	}
	if b.toward(a).TakesFrames() == false || byte(a.toward(b).To(77)) != 77 {
		t.Error("the other direction has ended as well, or the lanes have")
	}
	if st, _ := b.Status(b.of(a).ID()); !st.Paused || st.Frames == false {
		t.Errorf("status %+v", st)
	}
	s.exchange(a, b)
	some(1, 0) // that was on its way
	lost = true
	for n = s.offersSent(); s.offersSent() == n; {
		s.pass(tickTime)
	}
	lost = false
	s.pass(2 * time.Second) // it is said again
	if !a.toward(b).TakesFrames() || a.toward(b).takes.Load()&takesAES == 0 {
		t.Error("not asked for again")
	}
	// A session that begins meanwhile begins with that.
	some(0, lostLeast)
	first := a.toward(b)
	first.counter.Store(RekeyAfterMessages)
	a.send(b, "one more")
	s.settle()
	if a.toward(b) == first || a.toward(b).TakesFrames() || !b.toward(a).TakesFrames() {
		t.Errorf("another session %v: %v and %v", a.toward(b) != first, a.toward(b).TakesFrames(), b.toward(a).TakesFrames())
	}
}

// TestHealth is the rule for when superframes are not wanted any more.
func TestHealth(t *testing.T) {
	type step struct {
		at        time.Duration
		got, lost uint64 // in all
		want      bool
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"few", []step{{0, 0, 0, false}, {time.Second, 0, lostLeast - 1, false}, {2 * time.Second, 0, lostLeast, true}}},
		{"what was before does not count", []step{{0, 0, 1000, false}, {time.Second, 0, 1007, false}}},
		{"share", []step{{0, 5, 0, false}, {1, 6 + lostLeast*lostShare, lostLeast, false},
			{2, 5 + (lostLeast+1)*lostShare, lostLeast + 1, true}}},
		{"window", []step{{0, 0, 0, false}, {healthWindow - 1, 0, 7, false}, {healthWindow, 0, 9, false},
			{healthWindow + 1, 0, 16, false}, {healthWindow + 2, 0, 17, true}}},
		{"wait", []step{{0, 0, 0, false}, {1, 0, 8, true}, {2, 0, 90, true}, {firstWait, 0, 90, true},
			{firstWait + 1, 0, 90, false}, {firstWait + 2, 0, 97, false}, {firstWait + 3, 0, 98, true}}},
		{"what is lost while they are not wanted", []step{{0, 0, 0, false}, {1, 0, 8, true}, {firstWait, 0, 500, true},
			{firstWait + 1, 0, 507, false}, {firstWait + 2, 0, 507, false}}},
	} {
		h := health{}
		const begin = int64(1_700_000_000_000_000_000)
		for k, s := range tt.steps {
			if bad := h.bad(begin+int64(s.at), s.got, s.lost); bad != s.want {
				t.Errorf("%s: step %d, %+v: %v", tt.name, k, s, bad)
			}
		}
	}
}

// TestHealthBackOff: each time they are not wanted for longer, up to a limit, and as at first after a good hour.
func TestHealthBackOff(t *testing.T) {
	h := health{}
	now, lost := int64(time.Hour), uint64(0)
	spoil := func() time.Duration {
		t.Helper()
		if h.bad(now, 0, lost) {
			t.Fatal("not wanted at the beginning")
		}
		now++
		lost += lostLeast
		if !h.bad(now, 0, lost) {
			t.Fatal("wanted though so many were lost")
		}
		begin := now
		for h.bad(now, 0, lost) {
			now += int64(time.Second)
		}
		return time.Duration(now - begin)
	}
	for _, want := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute,
		16 * time.Minute, 16 * time.Minute} {
		if got := spoil(); got != want {
			t.Errorf("not wanted for %v, want %v", got, want)
		}
	}
	now += int64(goodTime - time.Minute)
	if got := spoil(); got != longestWait {
		t.Errorf("after less than an hour for %v, want %v", got, longestWait)
	}
	now += int64(goodTime + time.Minute)
	if got := spoil(); got != firstWait {
		t.Errorf("after a good hour for %v, want %v", got, firstWait)
	}
}
