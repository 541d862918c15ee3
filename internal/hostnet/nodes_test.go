package hostnet

import (
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// peerAddress is the underlay address of one of many nodes.
func peerAddress(i int) netip.Addr {
	b := [16]byte{0x20, 0x01, 0x0d, 0xb8, 4: 1}
	binary.BigEndian.PutUint32(b[12:], uint32(i))
	return netip.AddrFrom16(b)
}

func peerAddresses(count int) []netip.Addr {
	out := make([]netip.Addr, count)
	for i := range out {
		out[i] = peerAddress(i)
	}
	return out
}

// TestNodesAmongMany: what one of 5,000 nodes costs that changes its address is what one of ten does, and the others
// stay.
func TestNodesAmongMany(t *testing.T) {
	w := newLoneWorld(t) // as allocations are counted
	w.tun("warren0")
	costs := map[int]float64{}
	for _, size := range []int{10, 5000} {
		spec := testSpec()
		spec.PeerNodeAddrs = peerAddresses(size)
		w.apply(spec)
		var nodes Nodes
		i := 0
		change := func() { // the address of one node to another one, and back
			at, other := peerAddress(i%size), peerAddress(1<<20+i)
			w.must(nodes.Change([]netip.Addr{other}, []netip.Addr{at}))
			w.must(nodes.Change([]netip.Addr{at}, []netip.Addr{other}))
			i++
		}
		began := time.Now()
		const runs = 20
		costs[size] = testing.AllocsPerRun(runs, change)
		t.Logf("%d nodes: %.0f allocations, %v in the mean", size, costs[size]/2, time.Since(began)/(2*(runs+1)))
		w.must(nodes.Change([]netip.Addr{peerAddress(1 << 21)}, []netip.Addr{peerAddress(3)}))
		fw := newFirewall()
		have, err := fw.elements(nodeSets(inetTable())[1])
		fw.close()
		w.must(err)
		want := [][]byte{addr("2001:db8::1").AsSlice(), peerAddress(1 << 21).AsSlice()}
		for _, a := range peerAddresses(size) {
			if a != peerAddress(3) {
				want = append(want, a.AsSlice())
			}
		}
		if lost, extra := difference(want, have), difference(have, want); len(lost)+len(extra) > 0 {
			t.Errorf("of %d addresses %d are lost, and %d are too many", size, len(lost), len(extra))
		}
	}
	if costs[5000] > costs[10]*1.2+20 {
		t.Errorf("%.0f allocations among 5,000 nodes, %.0f among ten", costs[5000], costs[10])
	}
}

// TestWatchLeavesNodesAlone: a node that leaves is no reason to look at everything, and somebody who takes its address
// out in Warren's place is.
func TestWatchLeavesNodesAlone(t *testing.T) {
	w := newWorld(t)
	w.tun("warren0")
	var nodes Nodes
	var applied atomic.Int64
	spec := testSpec()
	spec.PeerNodeAddrs = peerAddresses(30)
	w.background(func(ctx context.Context) error {
		return Watch(ctx, func() Spec { return spec }, WatchOptions{
			Debounce: 10 * time.Millisecond, Interval: time.Hour, Nodes: &nodes,
			Applied: func(Changes, error) { applied.Add(1) },
		})
	})
	w.eventually("first Apply", func() bool { return strings.Contains(w.state(), "2001:db8:100::1d") })
	quiet := func() int64 {
		for {
			n := applied.Load()
			time.Sleep(200 * time.Millisecond)
			if applied.Load() == n {
				return n
			}
		}
	}
	before := quiet()
	for i := range 20 {
		w.must(nodes.Change(nil, []netip.Addr{peerAddress(i)}))
	}
	if n := quiet(); n != before {
		t.Errorf("%d Applies as nodes left", n-before)
	}
	w.run("nft delete element inet warren nodes6 '{ 2001:db8:100::1d }'")
	w.eventually("what somebody took out is back", func() bool {
		return applied.Load() > before && strings.Contains(w.state(), "2001:db8:100::1d")
	})
}
