package worker

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	devmem "github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/device/memory/netpod"
	"github.com/warren-net/warren/forwarder/packet"
)

// TestExchange: quiet lanes are the express worker's, those with large transfers the others', and they come back. What
// crosses meanwhile arrives as it was sent.
func TestExchange(t *testing.T) { eachEncapsulation(t, testExchange) }

func testExchange(t *testing.T, over encapsulation) {
	// Time goes slowly, as packets do with the race detector beside other work.
	const slower = 10
	begin := time.Now()
	now := func() time.Time { return begin.Add(time.Since(begin) / slower) }
	c := newCluster(t, clusterConfig{nodes: 2, over: over, queues: 8, lanes: 4, express: true, now: now})
	pods := withPods(t, c, 1420, netpod.OffloadFull)
	given := func(n *testNode) (express, others uint64) {
		last := len(n.workers) - 1
		for id, w := range n.workers {
			if id == last {
				express = w.Counters.LanesGiven.Load()
			} else {
				others += w.Counters.LanesGiven.Load()
			}
		}
		return express, others
	}
	for range 10 { // a connection is some ten packets
		if err := transfer(pods[0], pods[2], pods[2].Addresses()[0], 1000); err != nil {
			t.Fatal(err)
		}
		time.Sleep(slower * expressWindow)
	}
	a := c.nodes[0]
	if express, _ := given(a); express > 0 {
		t.Errorf("%d quiet lanes were given away", express)
	}
	for range 2 {
		before, _ := given(a)
		if err := transfer(pods[0], pods[2], pods[2].Addresses()[1], 2<<20); err != nil {
			t.Fatal(err)
		}
		if after, _ := given(a); after == before {
			t.Error("the lane of a large transfer stays with the express worker")
		}
		deadline := time.Now().Add(10 * time.Second)
		for {
			express, others := given(a)
			if express == others {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("of %d lanes with nothing in them %d came back", express, others)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// TestExchangeTakesWhatWaits: a lane with too much for the express worker goes also while what came from it waits for a
// session, and takes that along.
func TestExchangeTakesWhatWaits(t *testing.T) {
	begin := time.Now()
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted, queues: 4, lanes: 2, express: true, late: true,
		now: func() time.Time { return begin }}) // so that all is in one window
	a, b := c.nodes[0], c.nodes[1]
	packets := numbered(t, 3*expressPackets)
	for _, p := range packets { // one flow, so all in one lane
		a.dev.Inject(bytes.Clone(p), packet.Meta{})
	}
	c.start(a)
	express := a.workers[2]
	for deadline := time.Now().Add(10 * time.Second); express.Counters.LanesGiven.Load() == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the lane stays with the express worker")
		}
		time.Sleep(time.Millisecond)
	}
	c.start(b)
	for k, want := range packets {
		if got := b.next(t).Data; !bytes.Equal(got, want) {
			t.Fatalf("packet %d arrived as one of %d bytes, want %d", k, len(got), len(want))
		}
	}
	if d := a.allDrops(); len(d) > 0 {
		t.Errorf("dropped: %v", d)
	}
	if n := express.Counters.Waited.Load(); n == 0 {
		t.Error("nothing waited at the express worker")
	}
}

// expressAlone is an express worker that has three lanes and does not run: account is told of turns.
func expressAlone(t *testing.T) (w *Worker, thread *usedThread, pass func(time.Duration)) {
	t.Helper()
	now := time.Now()
	thread = &usedThread{}
	x := NewExchange(2, 3)
	c := devmem.New(devmem.Config{Queues: 3})
	t.Cleanup(func() { _ = c.Close() })
	var lanes []Lane
	for i, q := range c.Queues() {
		lanes = append(lanes, Lane{Number: i, Queue: q})
	}
	for id := range 3 {
		w = New(Config{ID: id, Lanes: lanes, Exchange: x, Waiter: newChanWaiter(0), Thread: thread,
			Now: func() time.Time { return now }})
	}
	if err := w.takeLanes(); err != nil {
		t.Fatal(err)
	}
	return w, thread, func(d time.Duration) { now = now.Add(d) }
}

// A usedThread is a Thread that says what it is told to.
type usedThread struct{ used time.Duration }

func (u *usedThread) Delayed() (time.Duration, bool) { return 0, false }
func (u *usedThread) Pause(time.Duration)            {}
func (u *usedThread) Prefer() error                  { return nil }
func (u *usedThread) Used() time.Duration            { return u.used }

// TestExpressIsBounded: the lane goes that has most of what is too much, whatever that is, and an echo beside it stays
// whose turn it is when that shows.
func TestExpressIsBounded(t *testing.T) {
	const hog, echo = 0, 1
	ping := traffic{bytes: 84, packets: 2, segments: 3}
	const pinged = 10 * time.Microsecond
	for name, c := range map[string]struct { // all that there may be beside a ping
		turns int
		did   traffic
		took  time.Duration
	}{
		"bytes":         {2, traffic{bytes: expressBytes/2 - 42, packets: 1, segments: 20}, 0},
		"packets":       {expressPackets/2 - 1, traffic{bytes: 400, packets: 2, segments: 2}, 0},
		"small packets": {2, traffic{bytes: 4000, packets: 1, segments: expressSegments/2 - 2}, 0},
		"nothing":       {1, traffic{}, expressTime - pinged},
	} {
		w, thread, pass := expressAlone(t)
		turn := func(k int, did traffic, took time.Duration) {
			thread.used += took
			given, err := w.account(k, did)
			if err != nil {
				t.Fatal(err)
			}
			if given == (w.owned&(1<<k) != 0) {
				t.Errorf("%s: lane %d given: %v, left are %03b", name, k, given, w.owned)
			}
		}
		for range 3 { // in each term anew
			pass(expressTerm)
			turn(echo, ping, pinged)
			for range c.turns {
				turn(hog, c.did, c.took)
			}
			if w.owned != 0b111 {
				t.Fatalf("%s: the lanes left are %03b before it is too much", name, w.owned)
			}
		}
		turn(echo, ping, pinged)
		if w.owned != 0b110 {
			t.Errorf("%s: the lanes left are %03b", name, w.owned)
		}
		turn(echo, ping, pinged)
		if w.window.packets != 3*ping.packets || w.window.bytes != 3*ping.bytes || w.busy.took != 3*pinged {
			t.Errorf("%s: of the lane that went remain %+v, %v", name, w.window, w.busy.took)
		}
	}
}

// A fullWaiter is a Waiter for which the kernel has no room for a while.
type fullWaiter struct {
	Waiter
	full *atomic.Bool
}

func (f fullWaiter) Watch(lane int, on bool) error {
	if on && f.full.Load() {
		return fmt.Errorf("epoll_ctl: %w", syscall.ENOSPC)
	}
	return f.Waiter.Watch(lane, on)
}

// TestExchangeWithoutRoom: a worker that can't wait for its lanes serves them all the same, also those that have
// something beside those that have nothing.
func TestExchangeWithoutRoom(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, queues: 4, lanes: 2, express: true, late: true})
	a, b := c.nodes[0], c.nodes[1]
	full := new(atomic.Bool)
	full.Store(true)
	for _, w := range a.workers {
		w.Waiter = fullWaiter{w.Waiter, full}
	}
	c.start(a)
	c.start(b)
	for _, room := range []bool{false, true} {
		full.Store(!room)
		for k, p := range numbered(t, 20) {
			a.dev.Inject(bytes.Clone(p), packet.Meta{})
			if got := b.next(t).Data; !bytes.Equal(got, p) {
				t.Fatalf("packet %d, room %v: arrived as %x", k, room, got)
			}
		}
	}
}
