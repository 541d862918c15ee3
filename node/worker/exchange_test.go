package worker

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

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
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted, queues: 4, lanes: 2, express: true, late: true})
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

// TestExpressIsBounded: who has to do with it that the express worker has too much to do goes, whatever it is too much
// of; an echo beside it stays.
func TestExpressIsBounded(t *testing.T) {
	limit := traffic{bytes: expressBytes, packets: expressPackets, segments: expressSegments}
	for name, hog := range map[string]traffic{
		"bytes":         {bytes: expressBytes + 1, packets: 1},
		"packets":       {packets: expressPackets + 1},
		"small packets": {packets: 2, bytes: 4000, segments: 130},
		"a part of it":  {packets: expressPackets / expressPart, bytes: 100},
	} {
		window := limit
		echo := traffic{bytes: 84, packets: 1, segments: 1}
		window.add(echo)
		window.add(hog)
		if !window.tooMuch(&hog) {
			t.Errorf("%s: stays", name)
		}
		if window.tooMuch(&echo) {
			t.Errorf("%s: the echo beside it goes", name)
		}
		window.sub(hog)
		window.sub(limit)
		if window != echo {
			t.Errorf("%s: what is left is %+v", name, window)
		}
	}
	all, hog, echo := busy{took: expressTime + 1}, busy{took: expressTime / 4}, busy{took: expressTime / 20}
	if !all.tooMuch(&hog) || all.tooMuch(&echo) {
		t.Error("who takes a processor stays, or the echo beside it goes")
	}
}

// A fullWaiter is a Waiter for which the kernel has no room for a while.
type fullWaiter struct {
	Waiter
	refuses *atomic.Int32
}

func (f fullWaiter) Watch(lane int, on bool) error {
	if on && f.refuses.Add(-1) >= 0 {
		return fmt.Errorf("epoll_ctl: %w", syscall.ENOSPC)
	}
	return f.Waiter.Watch(lane, on)
}

// TestExchangeWithoutRoom: a worker that can't wait for its lanes serves them all the same.
func TestExchangeWithoutRoom(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, queues: 4, lanes: 2, express: true, late: true})
	a, b := c.nodes[0], c.nodes[1]
	refuses := new(atomic.Int32)
	refuses.Store(1 << 30)
	for _, w := range a.workers {
		w.Waiter = fullWaiter{w.Waiter, refuses}
	}
	c.start(a)
	c.start(b)
	packets := numbered(t, 2)
	a.dev.Inject(bytes.Clone(packets[0]), packet.Meta{})
	if got := b.next(t).Data; !bytes.Equal(got, packets[0]) {
		t.Errorf("arrived as %x", got)
	}
	refuses.Store(0)
	a.dev.Inject(bytes.Clone(packets[1]), packet.Meta{})
	if got := b.next(t).Data; !bytes.Equal(got, packets[1]) {
		t.Errorf("arrived as %x", got)
	}
}
