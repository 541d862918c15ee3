package etcd_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

// How large the simulation is. Each node that sees all holds all records, and decodes each change of them, half a
// second of a processor's time and 10 MB: 5,000 would take most of an hour. So a few do, and the others see the records
// of a crowd of 20; what a node does for a record that it sees is the same for both. The race detector's runtime takes
// at most 8,128 goroutines, of which a node has five.
const (
	simNodes      = 5000
	simNodesRace  = 600
	simNodesShort = 500
	simFull       = 20
	simCrowd      = 20
)

// simSize is how many nodes the simulation has.
func simSize() int {
	switch {
	case testing.Short():
		return simNodesShort
	case raceDetector:
		return simNodesRace
	}
	return simNodes
}

// fastDir is a directory in memory, where there is one: the nodes' state files are flushed to disk each time. What runs
// left there that were killed is removed.
func fastDir(t *testing.T) string {
	const pattern = "/dev/shm/warren-sim-%d-"
	old, err := filepath.Glob("/dev/shm/warren-sim-*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range old {
		var pid int
		if _, err := fmt.Sscanf(dir, pattern, &pid); err != nil {
			continue
		}
		if _, err := os.Stat(fmt.Sprint("/proc/", pid)); errors.Is(err, os.ErrNotExist) {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		}
	}
	memory, name := filepath.Split(fmt.Sprintf(pattern, os.Getpid()))
	dir, err := os.MkdirTemp(memory, name)
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestThousandsOfNodes: they join within a minute, 50 a second leave, join and change for another one, the etcd is gone
// for five minutes and is compacted meanwhile, and all daemons restart at once. At no time does a pod CIDR have two
// owners, nothing is removed as the etcd cannot be reached, and in the end everybody knows what is true. What a node
// asks for and what it is told depends on what changes, not on how many there are.
func TestThousandsOfNodes(t *testing.T) {
	size, dir := simSize(), fastDir(t)
	defer debug.SetGCPercent(debug.SetGCPercent(300)) // a gigabyte, and a fifth less of time
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, dir, size/simCrowd)
		for i := range size {
			s.add(i%(size/simFull) == 0)
		}
		s.joins(size)
		s.churns()
		s.outlasts()
		s.restarts()
	})
}

// A tally is what there was of something, over all nodes.
type tally struct{ sum, most int64 }

func (a *tally) add(n int64) { a.sum, a.most = a.sum+n, max(a.most, n) }

// counted is how many requests each node made since, and what it was told. It begins anew.
func (s *sim) counted(what string) (requests, entries tally) {
	var keys, updates tally
	wholes := 0
	there := s.there()
	for _, n := range there {
		requests.add(n.traffic.Requests.Swap(0))
		keys.add(n.traffic.Keys.Swap(0))
		n.mu.Lock()
		if n.full {
			entries.add(int64(n.entries))
			updates.add(int64(n.partial))
		}
		wholes += n.wholes
		n.wholes, n.partial, n.entries = 0, 0, 0
		n.mu.Unlock()
	}
	s.t.Logf("%s: %d nodes; requests %.1f a node, at most %d; keys read %.0f a node, at most %d; %d times read whole; "+
		"who sees all got at most %d entries in %d updates, of %d events", what, len(there),
		float64(requests.sum)/float64(len(there)), requests.most, float64(keys.sum)/float64(len(there)), keys.most, wholes,
		entries.most, updates.most, s.observer.events.Load())
	return requests, entries
}

// joins has all nodes join within a minute.
func (s *sim) joins(size int) {
	s.atOnce(s.nodes, time.Minute, (*simNode).start)
	time.Sleep(20 * time.Second)
	s.check("joined")
	requests, _ := s.counted("join")
	// A lease each for the node and for being alive, three looks, one at who has which CIDRs, the record, the list; more
	// by whoever lost a CIDR to another one, or was there early and renewed its leases since.
	if mean, most := requests.sum/int64(size), requests.most; mean > 25 || most > 100 {
		s.t.Errorf("a node needs %d requests to join, at most %d", mean, most)
	}
}

// churns has 50 changes a second for a minute: of keys, of addresses, of nodes that leave and of ones that join.
func (s *sim) churns() {
	const rate, seconds = 50, 60
	before := s.observer.events.Load()
	for i := range rate * seconds {
		there := s.there()
		n := there[s.rnd.IntN(len(there))]
		switch k := s.rnd.IntN(10); {
		case k == 0 && !n.full:
			n.leave()
		case k == 1:
			s.add(false).start()
		default:
			n.change(i + 1)
		}
		time.Sleep(time.Second / rate)
	}
	time.Sleep(20 * time.Second)
	s.check("churned")
	requests, entries := s.counted("churn")
	events := s.observer.events.Load() - before
	if entries.most > events || entries.most < events-rate {
		s.t.Errorf("who sees all got %d entries of %d events", entries.most, events)
	}
	// What each does in a minute and a half by itself, and what it does for a change of its own.
	if most := int64(20*len(s.there()) + 8*rate*seconds); requests.sum > most {
		s.t.Errorf("the nodes made %d requests, want at most %d", requests.sum, most)
	}
}

// outlasts has the etcd gone for five minutes, in which it is compacted, and nodes change.
func (s *sim) outlasts() {
	s.store.Stop()
	there := s.there()
	for i, n := range there[:len(there)/50] {
		n.change(1_000_000 + i)
	}
	time.Sleep(5 * time.Minute)
	for _, n := range there {
		n.mu.Lock()
		if n.wholes+n.partial > 0 {
			s.t.Errorf("%s was told something by an etcd that is gone", n.name)
		}
		if n.problem == nil {
			s.t.Errorf("%s does not say that the etcd is gone", n.name)
		}
		n.mu.Unlock()
	}
	if err := s.store.Compact(s.store.Revision()); err != nil {
		s.t.Fatal(err)
	}
	s.store.Start()
	time.Sleep(time.Minute)
	s.check("the etcd came back")
	requests, _ := s.counted("outage")
	if mean, most := requests.sum/int64(len(there)), requests.most; mean > 25 || most > 100 {
		s.t.Errorf("a node made %d requests when the etcd came back, at most %d", mean, most)
	}
}

// restarts has all daemons end at once, and begin again within ten seconds.
func (s *sim) restarts() {
	cidrs := func() map[string]netip.Prefix {
		listed, err := s.client.Nodes(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		out := map[string]netip.Prefix{}
		for _, l := range listed {
			for i, p := range l.PodCIDRs {
				out[l.Name+[]string{" 4", " 6"}[i]] = p
			}
		}
		return out
	}
	before, there := cidrs(), s.there()
	s.atOnce(there, time.Millisecond, (*simNode).stop)
	s.rnd.Shuffle(len(there), func(i, j int) { there[i], there[j] = there[j], there[i] })
	s.atOnce(there, 10*time.Second, (*simNode).start)
	time.Sleep(time.Minute)
	s.check("restarted")
	if !maps.Equal(before, cidrs()) {
		s.t.Error("nodes have other pod CIDRs than before")
	}
	requests, _ := s.counted("restart")
	if mean, most := requests.sum/int64(len(there)), requests.most; mean > 30 || most > 100 {
		s.t.Errorf("a node made %d requests to start again, at most %d", mean, most)
	}
}
