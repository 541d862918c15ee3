package memory

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// numbered sends n datagrams with their numbers and returns those that arrive, in the order of arrival.
func numbered(t *testing.T, c Config, n int) ([]uint32, Stats) {
	net := network(t, c)
	a, b := net.Socket(addrA), net.Socket(addrB)
	for i := range n {
		mustSend(t, a, outbound(addrB, string(binary.BigEndian.AppendUint32(nil, uint32(i)))))
	}
	b.queue.release()
	var got []uint32
	_, all := receiveAll(t, b)
	for _, d := range all {
		got = append(got, binary.BigEndian.Uint32([]byte(d)))
	}
	return got, net.Stats()
}

func TestImpairments(t *testing.T) {
	const n, hold = 20000, time.Hour
	c := Config{Seed: 1, Loss: 0.1, Duplicate: 0.05, Reorder: 0.2, ReorderDepth: 5, Queue: 2 * n, Hold: hold}
	got, stats := numbered(t, c, n)
	seen := map[uint32]int{}
	late, farthest := 0, 0
	newest := uint32(0)
	for _, v := range got {
		seen[v]++
		if v < newest {
			late++
			farthest = max(farthest, int(newest-v))
		}
		newest = max(newest, v)
	}
	near := func(what string, got int, want float64) {
		if float64(got) < want*0.9 || float64(got) > want*1.1 {
			t.Errorf("%s: %d, want about %.0f", what, got, want)
		}
	}
	near("lost", n-len(seen), n*0.1)
	near("received", len(got), n*0.9*1.05)
	near("reordered", int(stats.Reordered), n*0.9*0.2)
	if late < n/20 || farthest > 60 {
		t.Errorf("%d late, by up to %d", late, farthest)
	}
	if stats.Sent != stats.Lost+stats.Delivered-stats.Duplicated || int(stats.Delivered) != len(got) {
		t.Errorf("stats do not add up: %+v, %d received", stats, len(got))
	}

	again, _ := numbered(t, c, n)
	if !slices.Equal(got, again) {
		t.Error("the same seed gave another result")
	}
	c.Seed++
	if other, _ := numbered(t, c, n); slices.Equal(got, other) {
		t.Error("another seed gave the same result")
	}
	perfect, stats := numbered(t, Config{Queue: n}, n)
	if !slices.IsSorted(perfect) || len(perfect) != n || stats.Delivered != n {
		t.Errorf("a perfect network: %+v", stats)
	}
	if none, stats := numbered(t, Config{Loss: 1}, n); len(none) != 0 || stats.Lost != n {
		t.Errorf("a network that loses everything: %+v", stats)
	}
	if some, stats := numbered(t, Config{Queue: 100}, n); len(some) != 100 || stats.QueueFull != n-100 {
		t.Errorf("a queue of 100: %d received, %+v", len(some), stats)
	}
}

// TestDrop loses chosen datagrams, which the tap sees all the same.
func TestDrop(t *testing.T) {
	tapped := 0
	n := network(t, Config{
		Tap:  func(Datagram) { tapped++ },
		Drop: func(d Datagram) bool { return string(d.Data) == "bb" },
	})
	a, b := n.Socket(addrA), n.Socket(addrB)
	mustSend(t, a, outbound(addrB, "aa", "bb", "cc"))
	if _, got := receiveAll(t, b); !slices.Equal(got, []string{"aa", "cc"}) || tapped != 3 || n.Stats().Lost != 1 {
		t.Errorf("%q received, %d tapped, %+v", got, tapped, n.Stats())
	}
}

// TestHold expects a datagram that nothing overtakes to arrive all the same, and the receiver to be told.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := network(t, Config{Reorder: 1, Hold: time.Second})
		a, b := n.Socket(addrA), n.Socket(addrB)
		var told atomic.Int64
		b.SetNotify(func() { told.Add(1) })
		for i := range 3 {
			mustSend(t, a, outbound(addrB, "last"))
			time.Sleep(time.Second - 1)
			synctest.Wait()
			if _, got := receiveAll(t, b); len(got) != 0 || told.Load() != int64(i) {
				t.Errorf("arrived early: %q, told %d times", got, told.Load())
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if _, got := receiveAll(t, b); len(got) != 1 || told.Load() != int64(i+1) {
				t.Errorf("after the hold: %q, told %d times", got, told.Load())
			}
		}
	})
}
