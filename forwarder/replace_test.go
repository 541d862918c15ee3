package forwarder

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-net/warren/forwarder/packet"
)

// A latencies counts how long batches took, in steps of latencyStep; the last one counts all that took longer.
type latencies [1 << 13]uint32

const latencyStep = 10 * time.Nanosecond

func (l *latencies) add(d time.Duration) {
	l[min(max(int(d/latencyStep), 0), len(l)-1)]++
}

// p99 is what 99 of 100 batches took no longer than.
func (l *latencies) p99() time.Duration {
	total := 0
	for _, n := range l {
		total += int(n)
	}
	seen := 0
	for k, n := range l {
		if seen += int(n); seen*100 >= total*99 {
			return time.Duration(k+1) * latencyStep
		}
	}
	return 0
}

// A reader decides on packets as a worker does, in batches with a snapshot each, and measures every batch.
type reader struct {
	quiet, busy latencies
	infos       []packet.Info
}

const batchSize = 64

// run reads until phase is 2; what is measured while phase is 1 counts as busy.
func (r *reader) run(table *Table, phase *atomic.Int32) error {
	for k := 0; ; k += batchSize {
		now := phase.Load()
		start := time.Now()
		s := table.Load()
		for n := range batchSize {
			if d := s.FromTUN(&r.infos[(k+n)%len(r.infos)], packet.Meta{}); d.Verdict != ToPeer {
				return fmt.Errorf("packet to %v: %+v", r.infos[(k+n)%len(r.infos)].Dst, d)
			}
		}
		switch took := time.Since(start); now {
		case 0:
			r.quiet.add(took)
		case 1:
			r.busy.add(took)
		default:
			return nil
		}
	}
}

// replacement is what a control plane would send: the same cluster with all routes at other peers each time.
func replacement(old Spec, generation int) Spec {
	next := old
	next.Generation = uint64(generation)
	next.Peers = make([]*Peer, len(old.Peers))
	for k, p := range old.Peers {
		q := *p
		q.PodCIDRs = slices.Clone(old.Peers[(k+generation)%len(old.Peers)].PodCIDRs)
		q.Header4, q.Header6 = slices.Clone(p.Header4), slices.Clone(p.Header6)
		next.Peers[k] = &q
	}
	return next
}

// BenchmarkReplace100k replaces 100,000 routes of 1,000 peers while readers decide as fast as they can. An operation is
// one replacement: new peers, building, publishing. p99-ns is the readers' p99 of a batch of 64 decisions meanwhile,
// p99-quiet-ns the same before, each of the worst reader then, and p99-ratio how often the one is the other: readers
// change cores, and with them what else disturbs them. With as many readers as cores the writer has none of its own.
//
// Replacements come one each 150 ms, the time that one is granted, or nonstop: then all that readers look at is new
// every 20 ms and in no cache of theirs, which more than one batch in a hundred feels.
func BenchmarkReplace100k(b *testing.B) {
	b.Run("alone", func(b *testing.B) { benchmarkReplace(b, 0, 0) })
	for _, readers := range []int{1, 2} {
		b.Run(fmt.Sprintf("paced/readers=%d", readers), func(b *testing.B) {
			benchmarkReplace(b, readers, 150*time.Millisecond)
		})
		b.Run(fmt.Sprintf("nonstop/readers=%d", readers), func(b *testing.B) { benchmarkReplace(b, readers, 0) })
	}
}

func benchmarkReplace(b *testing.B, count int, pace time.Duration) {
	spec := clusterSpec(mixedPlan, 1000, 100)
	s, err := Build(replacement(spec, 0))
	if err != nil {
		b.Fatal(err)
	}
	var table Table
	table.Store(s)
	readers := make([]reader, count)
	var phase atomic.Int32
	var wg sync.WaitGroup
	for k := range readers {
		readers[k].infos = traffic(&spec, 4096)
		wg.Go(func() {
			if err := readers[k].run(&table, &phase); err != nil {
				b.Error(err)
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	phase.Store(1)
	b.ReportAllocs()
	generation := 0
	for b.Loop() {
		start := time.Now()
		generation++
		s, err := Build(replacement(spec, generation))
		if err != nil {
			b.Fatal(err)
		}
		table.Store(s)
		if rest := pace - time.Since(start); rest > 0 {
			b.StopTimer()
			time.Sleep(rest)
			b.StartTimer()
		}
	}
	phase.Store(2)
	wg.Wait()
	b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "ms/replacement")
	var quiet, busy time.Duration
	for k := range readers {
		quiet, busy = max(quiet, readers[k].quiet.p99()), max(busy, readers[k].busy.p99())
	}
	if count > 0 {
		b.ReportMetric(float64(quiet.Nanoseconds()), "p99-quiet-ns")
		b.ReportMetric(float64(busy.Nanoseconds()), "p99-ns")
		b.ReportMetric(float64(busy)/float64(quiet), "p99-ratio")
	}
}
