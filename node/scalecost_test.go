//go:build !race

// The race detector allocates as well.

package node

import (
	"runtime"
	"testing"

	"github.com/warren-net/warren/control"
)

// bytesPer is how many bytes a call allocates.
func bytesPer(runs int, f func()) float64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc-before.TotalAlloc) / float64(runs)
}

// TestChangeAmongMany holds what a change costs to what it costs in a cluster of a tenth: the same number of
// allocations, and as many bytes but for copies of three slices that have a pointer for each peer.
func TestChangeAmongMany(t *testing.T) {
	type cost struct{ allocs, bytes float64 }
	costs := map[string][]cost{}
	for _, size := range []int{someNodes, manyNodes} {
		c := newBigCluster(t, size)
		i := 0
		for name, f := range map[string]func(){
			"rotate":    func() { i++; c.rotate(i * 7 % size) },
			"comeAndGo": func() { c.comeAndGo(size) },
		} {
			for range 50 {
				f() // the first changes fill what is there for the following ones
			}
			k := cost{testing.AllocsPerRun(400, f), bytesPer(400, f)}
			costs[name] = append(costs[name], k)
			t.Logf("%s among %d nodes: %.0f allocations, %.0f bytes", name, size, k.allocs, k.bytes)
		}
	}
	const perPeer = 3 * 8 // bytes: forwarder.Builder's two slices, and the tunnel's; twice where they grow
	for name, changes := range map[string]float64{"rotate": 1, "comeAndGo": 2} {
		some, many := costs[name][0], costs[name][1]
		if many.allocs > some.allocs*1.1 {
			t.Errorf("%s: %.0f allocations among %d nodes, %.0f among %d", name, some.allocs, someNodes, many.allocs, manyNodes)
		}
		if most := some.bytes*1.25 + 2*perPeer*changes*(manyNodes-someNodes); many.bytes > most {
			t.Errorf("%s: %.0f bytes among %d nodes, %.0f among %d, want at most %.0f", name, some.bytes, someNodes, many.bytes,
				manyNodes, most)
		}
	}
}

// heapBytes is what is reachable.
func heapBytes() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what the first one found to be finalized
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// bytesPerPeer is what a node keeps for each of so many peers: what the control plane says, what is in force, the plan,
// the forwarding table with its counters, and the tunnel without sessions.
func bytesPerPeer(tb testing.TB, peers int) float64 {
	c := emptyCluster(tb)
	before := heapBytes()
	c.take(control.Update{Whole: true, Nodes: c.nodes(peers)})
	c.rotate(0) // as what changes one by one needs more
	per := (heapBytes() - before) / float64(peers)
	runtime.KeepAlive(c)
	return per
}

// TestBytesPerPeer holds memory to 8 KiB a peer.
func TestBytesPerPeer(t *testing.T) {
	const most = 8 << 10
	per := bytesPerPeer(t, manyNodes)
	t.Logf("%.0f bytes per peer among %d, %.1f MiB", per, manyNodes, per*manyNodes/(1<<20))
	if per > most {
		t.Errorf("%.0f bytes per peer, want at most %d", per, most)
	}
}

// BenchmarkNodeJoins5000 is what a node does when it comes into a cluster of 5,000.
func BenchmarkNodeJoins5000(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		c := emptyCluster(b)
		c.take(control.Update{Whole: true, Nodes: c.nodes(manyNodes)})
	}
	b.ReportMetric(bytesPerPeer(b, manyNodes), "bytes/peer")
}

// BenchmarkChangeAmong5000 is what it does for each change then, and BenchmarkChangeAmong500 in a cluster of a tenth.
func BenchmarkChangeAmong5000(b *testing.B) { benchmarkChange(b, manyNodes) }

func BenchmarkChangeAmong500(b *testing.B) { benchmarkChange(b, someNodes) }

func benchmarkChange(b *testing.B, size int) {
	c := newBigCluster(b, size)
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		c.rotate(i * 7 % size)
	}
}
