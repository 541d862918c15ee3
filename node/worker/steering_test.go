package worker

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	devmem "github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/forwarder/packet"
)

// A steeringTest is a worker that does not run and has lanes 0 and 1, beside an express worker that has the others for
// long enough.
type steeringTest struct {
	*testing.T
	w, express *Worker
	now        time.Time
	flows      map[uint32]*packet.Info // by bucket
}

func newSteeringTest(t *testing.T, lanes int) *steeringTest {
	t.Helper()
	s := &steeringTest{T: t, now: time.Now().Add(time.Hour), flows: map[uint32]*packet.Info{}}
	x := NewExchange(1, lanes)
	d := devmem.New(devmem.Config{Queues: lanes})
	t.Cleanup(func() { _ = d.Close() })
	var all []Lane
	for i, q := range d.Queues() {
		all = append(all, Lane{Number: i, Queue: q})
	}
	var both [2]*Worker
	for id := range both {
		both[id] = New(Config{ID: id, Lanes: all, Exchange: x, Waiter: newChanWaiter(0),
			Now: func() time.Time { return s.now }})
	}
	s.w, s.express = both[0], both[1]
	s.ok(s.express.takeLanes())
	s.give(s.express, 0, 1)
	s.ok(s.w.takeLanes())
	s.now = s.now.Add(roomAfter)
	s.window()
	return s
}

func (s *steeringTest) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// give has a worker give lanes to the other one.
func (s *steeringTest) give(from *Worker, lanes ...int) {
	s.Helper()
	to := s.w
	if from == s.w {
		to = s.express
	}
	for _, k := range lanes {
		s.ok(from.giveLane(k, to.ID))
	}
	s.ok(to.takeLanes())
}

// flow is one whose bucket is this one.
func (s *steeringTest) flow(bucket uint32) *packet.Info {
	s.Helper()
	if i := s.flows[bucket]; i != nil {
		return i
	}
	i := &packet.Info{Version: 4, Src: netip.MustParseAddr("10.244.1.2"), Dst: netip.MustParseAddr("10.244.2.2"),
		DstPort: 80, Flags: packet.HasPorts}
	for i.SrcPort = 1; i.FlowHash()%s.w.Exchange.steering.buckets != bucket; i.SrcPort++ {
		if i.SrcPort == 0 {
			s.Fatalf("no flow for bucket %d", bucket)
		}
	}
	s.flows[bucket] = i
	return i
}

// read has packets of a bucket come in a lane.
func (s *steeringTest) read(bucket uint32, lane, packets, bytes int) {
	s.Helper()
	s.w.lane = &s.w.all[lane]
	i := s.flow(bucket)
	for k := range packets {
		s.w.came(i, bytes*(k+1)/packets-bytes*k/packets)
	}
}

// window ends one; the worker's lanes are busy.
func (s *steeringTest) window() { s.longWindow(quietWindow) }

func (s *steeringTest) longWindow(d time.Duration) {
	s.Helper()
	for k := range s.w.all {
		s.w.all[k].moved.packets = quietPackets
	}
	s.now = s.now.Add(d)
	s.ok(s.w.takeLanes())
}

// lane is where a bucket's packets are written to.
func (s *steeringTest) lane(bucket uint32) int {
	q := s.express.queueOf(s.flow(bucket), 0)
	return slices.Index(s.express.Writers, q)
}

// TestSteering: a small flow leaves the lane of a large one for one of the express worker's, after it was small for a
// while, and nothing else does.
func TestSteering(t *testing.T) {
	const small, large = 8, 4 // both at home in lane 0
	const long = 10 * calmWindows
	for name, c := range map[string]struct {
		bytes, packets           int // of the small one in a window
		largeBytes, largePackets int
		in                       int // the lane of the large one
		windows                  int
		length                   int // of a window, as a multiple of the usual
		moves                    bool
	}{
		"beside many bytes":          {500, 4, largeBytes, 1, 0, calmWindows, 1, true},
		"beside many packets":        {500, 4, 500, largePackets, 0, calmWindows, 1, true},
		"as large as may be":         {largeBytes/2 - 1, largePackets/2 - 1, largeBytes, 1, 0, calmWindows, 1, true},
		"not for long enough":        {500, 4, largeBytes, 1, 0, calmWindows - 1, 1, false},
		"beside a small one":         {500, 4, largeBytes / 2, 1, 0, long, 1, false},
		"beside one of middle size":  {500, 4, largeBytes - 1, largePackets - 1, 0, long, 1, false},
		"beside one in another lane": {500, 4, largeBytes, 1, 1, long, 1, false},
		"with too many bytes":        {largeBytes / 2, 4, largeBytes, 1, 0, long, 1, false},
		"with too many packets":      {500, largePackets / 2, largeBytes, 1, 0, long, 1, false},
		"in windows of 0.1 s":        {2 * largeBytes, 200, 5 * largeBytes, 1, 0, calmWindows, 5, true},
		"not so many in 0.1 s":       {500, 4, 5*largeBytes - 1, 1, 0, long, 5, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSteeringTest(t, 4)
			for range c.windows {
				s.read(small, 0, c.packets, c.bytes)
				s.read(large, c.in, c.largePackets, c.largeBytes)
				s.longWindow(time.Duration(c.length) * quietWindow)
			}
			lane := s.lane(small)
			if (lane >= 2) != c.moves || lane == 1 {
				t.Errorf("it is in lane %d, is to have moved: %v", lane, c.moves)
			}
			if n := s.w.Counters.FlowsMoved.Load(); n > 1 || (n > 0) != c.moves {
				t.Errorf("%d flows moved", n)
			}
			if lane := s.lane(large); lane != 0 {
				t.Errorf("the large flow is in lane %d", lane)
			}
		})
	}
}

// TestSteeringBesideReceived: a large flow may come from the wire alone.
func TestSteeringBesideReceived(t *testing.T) {
	s := newSteeringTest(t, 4)
	for range calmWindows {
		s.read(8, 0, 4, 500)
		s.w.lane = &s.w.all[0]
		s.w.queueOf(s.flow(4), largeBytes)
		s.window()
	}
	if lane := s.lane(8); lane < 2 {
		t.Errorf("the flow stays in lane %d", lane)
	}
}

// TestSteeringRoom: flows come only to lanes that have been quiet for a while, and only so many to each.
func TestSteeringRoom(t *testing.T) {
	s := newSteeringTest(t, 16)
	s.give(s.express, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
	beside := func(buckets []uint32, windows int) {
		for range windows {
			for _, b := range buckets {
				s.read(b, 0, 2, 100)
				s.w.backTo(s.flow(b)) // so that it may be read elsewhere than at home
			}
			s.read(0, 0, 1, largeBytes)
			s.window()
		}
	}
	beside([]uint32{16}, 2*calmWindows)
	if n := s.w.Counters.FlowsMoved.Load(); n != 0 {
		t.Fatalf("%d flows moved where no lane is quiet", n)
	}
	s.give(s.w, 2)
	beside([]uint32{16}, int(roomAfter/quietWindow)-1)
	if n := s.w.Counters.FlowsMoved.Load(); n != 0 {
		t.Fatalf("%d flows moved to a lane that was busy a moment ago", n)
	}
	var many []uint32
	for b := range uint32(2 * mostGuests) { // as if the kernel had all of them read in lane 0
		many = append(many, 16+b)
	}
	many = slices.DeleteFunc(many, func(b uint32) bool { return b%16 == 2 })
	before := uint64(0)
	for range 3 * calmWindows {
		beside(many, 1)
		n := s.w.Counters.FlowsMoved.Load()
		if n-before > movesAtOnce {
			t.Fatalf("%d flows moved at once", n-before)
		}
		before = n
	}
	beside(many, 100)
	if n := s.w.Exchange.steering.guests[2].Load(); n != mostGuests {
		t.Errorf("%d flows came to the one quiet lane, want %d", n, mostGuests)
	}
}

// TestSteeringTurns: who comes first does not keep the others from moving, though it is told in vain again and again.
func TestSteeringTurns(t *testing.T) {
	s := newSteeringTest(t, 4)
	x := s.w.Exchange.steering
	var vain []uint32
	for k := range uint32(4 * movesAtOnce) { // nothing comes in of them: they stay in lane 0, whatever they are told
		vain = append(vain, 8+4*k)
	}
	const last = 800
	for k := 0; s.lane(last) == 0; k++ {
		if k == 3*calmWindows {
			t.Fatal("the last flow is never told to go")
		}
		for _, b := range vain {
			s.read(b, 0, 4, 500)
			x.left(told(x.to[b].Swap(0))) // and it is forgotten
		}
		s.read(last, 0, 4, 500)
		s.read(4, 0, 1, largeBytes)
		s.window()
	}
	if n := s.w.Counters.FlowsMoved.Load(); n <= movesAtOnce {
		t.Errorf("only %d were told to go: nobody stood in the way", n)
	}
}

// TestSteeringFull: where a lane is full, who has been there for long makes place.
func TestSteeringFull(t *testing.T) {
	s := newSteeringTest(t, 4)
	x := s.w.Exchange.steering
	for b := range uint32(mostGuests) {
		x.send(4*b, 2, s.now)
	}
	for _, step := range []struct {
		after time.Duration
		left  int32
	}{{fullAfter - time.Second, mostGuests}, {2 * time.Second, mostGuests - 1}, {time.Hour, mostGuests - 1}} {
		s.now = s.now.Add(step.after)
		s.express.tick()
		if n := x.guests[2].Load(); n != step.left || x.away.Load() != n {
			t.Errorf("%d are in the lane, want %d; %d away", n, step.left, x.away.Load())
		}
	}
}

// TestSteeringAge: what was told is as old as it is, also when the count begins anew.
func TestSteeringAge(t *testing.T) {
	for _, begin := range []int64{1, int64(time.Hour), 1<<(toldTick+32-toldBits) - 1, 1<<62 + 12345} {
		for _, age := range []time.Duration{0, homeAfter, time.Minute, 20 * 24 * time.Hour} {
			got := tell(15, begin)
			if got.lane() != 15 || got == 0 {
				t.Errorf("told at %d: lane %d", begin, got.lane())
			}
			if a := got.age(begin + int64(age)); a < age-1<<toldTick || a > age+1<<toldTick {
				t.Errorf("told at %d: %v old after %v", begin, a, age)
			}
		}
	}
}

// TestSteeringCalm: a connection that begins is not moved, whatever its bucket had before; nor what begins after some
// seconds with nothing, nor what has just moved.
func TestSteeringCalm(t *testing.T) {
	const bucket = 8
	s := newSteeringTest(t, 4)
	large := func(lane int) {
		s.read(4, lane, 1, largeBytes)
		s.window()
	}
	for range calmWindows {
		s.read(bucket, 0, 4, 500)
		s.window()
	}
	syn := *s.flow(bucket)
	syn.TCPFlags = tcpSYN
	s.w.lane = &s.w.all[0]
	s.w.came(&syn, 60)
	large(0)
	if lane := s.lane(bucket); lane != 0 {
		t.Fatalf("a connection that begins moves to lane %d", lane)
	}
	for range calmWindows {
		s.read(bucket, 0, 4, 500)
		s.window()
	}
	for range idleWindows {
		s.window()
	}
	s.read(bucket, 0, 4, 500)
	large(0)
	if lane := s.lane(bucket); lane != 0 {
		t.Fatalf("what begins after a long time moves to lane %d", lane)
	}
	for k := 0; s.lane(bucket) == 0; k++ {
		if k == calmWindows {
			t.Fatal("the flow stays where it is")
		}
		for range idleWindows / 2 { // as a ping that is sent once a second or two
			large(0)
		}
		s.read(bucket, 0, 4, 500)
		large(0)
	}
	first := s.lane(bucket)
	// A large flow comes there.
	s.give(s.express, first)
	for range calmWindows - 1 {
		s.read(bucket, first, 4, 500)
		large(first)
		if lane := s.lane(bucket); lane != first {
			t.Fatalf("the flow moves on to lane %d at once", lane)
		}
	}
	s.read(bucket, first, 4, 500)
	large(first)
	if lane := s.lane(bucket); lane == first || lane < 2 {
		t.Errorf("the flow is in lane %d beside a large one, %d is quiet", lane, 5-first)
	}
}

// TestSteeringHome: a flow that is away goes home when both lanes are the express worker's, and have been for a while,
// and it has been away for long enough.
func TestSteeringHome(t *testing.T) {
	const bucket = 8 // its home is lane 0
	for name, c := range map[string]struct {
		to   uint32
		back []int // the lanes that the express worker gets back
		wait time.Duration
		stay time.Duration
		home bool
	}{
		"both quiet":               {2, []int{0}, homeAfter, homeAfter, true},
		"not for long enough":      {2, []int{0}, homeAfter / 2, 2 * homeAfter, false},
		"it has just come":         {2, []int{0}, 2 * homeAfter, homeAfter / 2, false},
		"its home is busy":         {2, []int{1}, homeAfter, homeAfter, false},
		"where it is is busy":      {1, []int{0}, homeAfter, homeAfter, false},
		"both quiet, both had not": {1, []int{0, 1}, homeAfter, homeAfter, true},
	} {
		t.Run(name, func(t *testing.T) {
			const tick = 1 << toldTick
			s := newSteeringTest(t, 4)
			begin := s.now
			s.give(s.w, c.back...)
			x := s.w.Exchange.steering
			x.send(bucket, c.to, begin.Add(c.wait-c.stay-tick))
			s.now = begin.Add(c.wait)
			s.express.tick()
			if home := s.lane(bucket) == 0; home != c.home {
				t.Errorf("at home: %v, want that: %v", home, c.home)
			}
			left := int32(1)
			if c.home {
				left = 0
			}
			if n, guests := x.away.Load(), x.guests[c.to].Load(); n != left || guests != left {
				t.Errorf("%d are away, %d in lane %d", n, guests, c.to)
			}
		})
	}
}

// TestSteeringSameNode: what goes back to the device stays in the lane that the kernel chose, unless it was told to go;
// and what does not, and is not read in its home, can't be told.
func TestSteeringSameNode(t *testing.T) {
	const bucket = 8 // its home is lane 0
	s := newSteeringTest(t, 4)
	i := s.flow(bucket)
	s.w.lane = &s.w.all[1]
	move := func(from int, back bool, room uint32) bool {
		return s.w.move(bucket, &use{queue: uint8(from) + 1, back: back}, room, s.now)
	}
	if s.w.backTo(i) != s.w.all[1].Queue {
		t.Error("a flow that was told nothing leaves its lane")
	}
	if !s.w.uses[bucket].back {
		t.Error("it is not known that it goes back")
	}
	if move(1, false, 1<<3) {
		t.Error("a flow to a peer is told to go, though nothing comes in of it")
	}
	if move(1, true, 1<<0) {
		t.Error("it is told to go home, which nobody would notice")
	}
	if !move(1, true, 1<<0|1<<3) || s.w.backTo(i) != s.w.Writers[3] {
		t.Error("a flow that was told to go stays")
	}
	if move(1, true, 1<<2) {
		t.Error("it is told again, though it came from its old lane")
	}
	if !move(3, true, 1<<2) || s.w.backTo(i) != s.w.Writers[2] {
		t.Error("it can't leave the lane that it was told to go to")
	}
	if x := s.w.Exchange.steering; x.away.Load() != 1 || x.guests[3].Load() != 0 || x.guests[2].Load() != 1 {
		t.Errorf("%d are away, %d and %d in the lanes where it was and is", x.away.Load(), x.guests[3].Load(),
			x.guests[2].Load())
	}
}

// TestSteeringChoice: flows spread over the lanes that are quiet, and go home where theirs is. Buckets have the home
// that flows have without them, at a node without an express worker.
func TestSteeringChoice(t *testing.T) {
	for _, lanes := range []int{16, 15, 14, 12} {
		s := newSteering(lanes)
		const quiet = 0b10_0100_0100_0010
		set := uint32(quiet & (1<<lanes - 1))
		chosen := map[uint32]int{}
		for b := range s.buckets {
			lane, home := s.choose(b, set), s.home(b)
			if set&(1<<lane) == 0 {
				t.Fatalf("bucket %d goes to lane %d of %b", b, lane, set)
			}
			if set&(1<<home) != 0 && lane != home {
				t.Errorf("bucket %d goes to lane %d in place of %d", b, lane, home)
			}
			chosen[lane]++
		}
		for lane, n := range chosen {
			if least := mostBuckets / len(chosen) / 2; n < least || n > 3*least {
				t.Errorf("%d of %d buckets go to lane %d, which is one of %d", n, s.buckets, lane, len(chosen))
			}
		}
		for hash := range uint32(1 << 16) {
			if home := s.home(hash % s.buckets); home != hash%uint32(lanes) {
				t.Fatalf("of %d lanes hash %d has %d for its home", lanes, hash, home)
			}
		}
	}
}
