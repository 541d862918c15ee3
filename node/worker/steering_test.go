package worker

import (
	"net/netip"
	"testing"
	"time"

	devmem "github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/forwarder/packet"
)

// steeringLanes is how many lanes there are in these tests.
const steeringLanes = 4

// oneWorker is a worker that does not run and has lanes 0 and 1, beside an express worker that has lanes 2 and 3.
func oneWorker(t *testing.T) (w, express *Worker, pass func(time.Duration)) {
	t.Helper()
	now := time.Now()
	x := NewExchange(1, steeringLanes)
	d := devmem.New(devmem.Config{Queues: steeringLanes})
	t.Cleanup(func() { _ = d.Close() })
	var lanes []Lane
	for i, q := range d.Queues() {
		lanes = append(lanes, Lane{Number: i, Queue: q})
	}
	var both [2]*Worker
	for id := range both {
		both[id] = New(Config{ID: id, Lanes: lanes, Exchange: x, Waiter: newChanWaiter(0),
			Now: func() time.Time { return now }})
	}
	w, express = both[0], both[1]
	steps := []func() error{
		express.takeLanes,
		func() error { return express.giveLane(0, 0) }, func() error { return express.giveLane(1, 0) },
		w.takeLanes,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return w, express, func(d time.Duration) { now = now.Add(d) }
}

// flowIn is a flow whose bucket is this one.
func flowIn(t *testing.T, bucket uint32) *packet.Info {
	t.Helper()
	i := &packet.Info{Version: 4, Src: netip.MustParseAddr("10.244.1.2"), Dst: netip.MustParseAddr("10.244.2.2"),
		DstPort: 80, Flags: packet.HasPorts}
	for i.SrcPort = 1; i.FlowHash()%buckets != bucket; i.SrcPort++ {
		if i.SrcPort == 0 {
			t.Fatalf("no flow for bucket %d", bucket)
		}
	}
	return i
}

// TestSteering: a small flow leaves the lane of a large one for one of the express worker's, after it was small for a
// while, and nothing else does.
func TestSteering(t *testing.T) {
	const small, large, other = 8, 4, 5 // buckets: two in lane 0, one in lane 1
	for name, c := range map[string]struct {
		small, large int // bytes in a window
		packets      int // of the small one
		in           int // the lane of the large one
		windows      int
		noRoom       bool
		moves        bool
	}{
		"beside a large one":         {500, quietBytes, 4, 0, calmWindows, false, true},
		"not for long enough":        {500, quietBytes, 4, 0, calmWindows - 1, false, false},
		"beside a small one":         {500, smallBytes - 1, 4, 0, 10 * calmWindows, false, false},
		"beside one of middle size":  {500, quietBytes - 1, 4, 0, 10 * calmWindows, false, false},
		"beside one in another lane": {500, quietBytes, 4, 1, 10 * calmWindows, false, false},
		"with too many bytes":        {smallBytes, quietBytes, 4, 0, 10 * calmWindows, false, false},
		"with too many packets":      {500, quietBytes, smallPackets, 0, 10 * calmWindows, false, false},
		"where no lane is quiet":     {500, quietBytes, 4, 0, 10 * calmWindows, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, express, pass := oneWorker(t)
			if c.noRoom {
				for k := 2; k < steeringLanes; k++ {
					if err := express.giveLane(k, 0); err != nil {
						t.Fatal(err)
					}
				}
			}
			quiet, hog := flowIn(t, small), flowIn(t, large)
			if c.in == 1 {
				hog = flowIn(t, other)
			}
			for range c.windows {
				w.lane = &w.all[0]
				for k := range c.packets {
					if k%2 == 0 {
						w.came(quiet, c.small/c.packets)
					} else {
						w.queueOf(quiet, c.small-c.small/c.packets*(c.packets-1))
					}
				}
				w.lane = &w.all[c.in]
				w.came(hog, c.large)
				pass(quietWindow)
				if err := w.takeLanes(); err != nil {
					t.Fatal(err)
				}
			}
			moved := w.queueOf(quiet, 0) != w.Writers[0]
			if n := w.Counters.FlowsMoved.Load(); moved != c.moves || (n > 0) != moved {
				t.Errorf("moved: %v, %d times, want that: %v", moved, n, c.moves)
			}
			if q := w.queueOf(hog, 0); q != w.Writers[c.in] {
				t.Errorf("the large flow moved")
			}
			if q := w.queueOf(quiet, 0); moved && q != w.Writers[2] && q != w.Writers[3] {
				t.Errorf("it moved to a lane that is not the express worker's")
			}
		})
	}
}

// TestSteeringHome: a flow that is away goes home when both lanes are the express worker's, and have been for a while.
func TestSteeringHome(t *testing.T) {
	const bucket = 8 // its home is lane 0
	for name, c := range map[string]struct {
		away int
		back []int // the lanes that the express worker gets back
		wait time.Duration
		home bool
	}{
		"both quiet":               {2, []int{0}, homeAfter, true},
		"not for long enough":      {2, []int{0}, homeAfter - time.Millisecond, false},
		"its home is busy":         {2, []int{1}, homeAfter, false},
		"where it is is busy":      {1, []int{0}, homeAfter, false},
		"both quiet, both had not": {1, []int{0, 1}, homeAfter, true},
	} {
		t.Run(name, func(t *testing.T) {
			w, express, pass := oneWorker(t)
			s := &w.Exchange.steering
			s.send(bucket, uint32(c.away))
			pass(homeAfter)
			for _, k := range c.back {
				if err := w.giveLane(k, express.ID); err != nil {
					t.Fatal(err)
				}
			}
			if err := express.takeLanes(); err != nil {
				t.Fatal(err)
			}
			pass(c.wait)
			express.tick()
			if home := express.queueOf(flowIn(t, bucket), 0) == express.Writers[0]; home != c.home {
				t.Errorf("at home: %v, want that: %v", home, c.home)
			}
			if n := s.away.Load(); (n == 0) != c.home {
				t.Errorf("%d are away", n)
			}
		})
	}
}

// TestSteeringSameNode: what goes back to the device stays in the lane that the kernel chose, unless it was told to go.
func TestSteeringSameNode(t *testing.T) {
	const bucket = 8
	w, _, _ := oneWorker(t)
	i := flowIn(t, bucket)
	w.lane = &w.all[1]
	if w.backTo(i) != w.all[1].Queue {
		t.Error("a flow that was told nothing leaves its lane")
	}
	if !w.move(bucket, 1<<1, 1<<3) || w.backTo(i) != w.Writers[3] {
		t.Error("a flow that was told to go stays")
	}
	if w.move(bucket, 1<<1, 1<<3) {
		t.Error("it is told again, though it came from its old lane")
	}
	if !w.move(bucket, 1<<3, 1<<2) || w.backTo(i) != w.Writers[2] {
		t.Error("it can't leave the lane that it was told to go to")
	}
}

// TestSteeringChoice: flows go home where that is quiet, and else spread over the lanes that are.
func TestSteeringChoice(t *testing.T) {
	const lanes = 16
	s := steering{lanes: lanes}
	const quiet = 0b1010_0000_0100_0010
	chosen := map[uint32]int{}
	for b := range uint32(buckets) {
		lane := s.choose(b, quiet)
		if quiet&(1<<lane) == 0 {
			t.Fatalf("bucket %d goes to lane %d", b, lane)
		}
		if home := b % lanes; quiet&(1<<home) != 0 && lane != home {
			t.Errorf("bucket %d goes to lane %d in place of %d", b, lane, home)
		}
		chosen[lane]++
	}
	for lane, n := range chosen {
		if n < buckets/8 || n > buckets/2 {
			t.Errorf("%d of %d go to lane %d, which is one of four", n, buckets, lane)
		}
	}
}
