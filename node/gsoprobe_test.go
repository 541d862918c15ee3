package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-net/warren/forwarder"
)

// A fakeWay is a firewall that drops the probes to some peers, and a counter behind it.
type fakeWay struct {
	drops   func(netip.AddrPort) bool
	late    int // looks until what was sent is counted
	resetAt int // this look finds a counter that began anew; 0: none
	err     error

	count, waiting uint64
	looks, waits   int
	probed         map[netip.AddrPort]int
}

func (f *fakeWay) Probe(to netip.AddrPort) error {
	f.probed[to]++
	if f.drops == nil || !f.drops(to) {
		f.waiting++
	}
	return f.err
}

func (f *fakeWay) Arrived() (uint64, error) {
	if f.waits >= f.late {
		f.count, f.waiting = f.count+f.waiting, 0
	}
	if f.looks++; f.looks == f.resetAt {
		f.count = 0
	}
	return f.count, nil
}

// A proving is a prober with its fake, and the peers that it proves.
type proving struct {
	*testing.T
	prober
	way   *fakeWay
	peers []*forwarder.Peer
}

func newProving(t *testing.T, peers int) *proving {
	t.Helper()
	p := &proving{T: t, way: &fakeWay{count: 100}}
	p.prober = prober{way: p.way, rest: func(context.Context, time.Duration) { p.way.waits++ }}
	for k := range peers {
		p.peers = append(p.peers, &forwarder.Peer{
			Name: fmt.Sprint(k), Whole: new(atomic.Bool),
			Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(k >> 8), byte(k)}), 4789),
		})
	}
	return p
}

// prove does a round and has peers on or off by what is known then, as the node does. It returns the numbers of peers
// that are off.
func (p *proving) prove(all bool) (off []int) {
	p.Helper()
	p.way.probed, p.way.waits = map[netip.AddrPort]int{}, 0
	if err := p.round(p.Context(), p.peers, all); err != nil {
		p.Fatal(err)
	}
	if most := probeShort * int(probeWait/probeLook); p.way.waits > most {
		p.Errorf("%d waits in a round, want %d at most", p.way.waits, most)
	}
	for k, peer := range p.peers {
		if arrives := p.known[peer.Endpoint]; !arrives {
			off = append(off, k)
		} else {
			peer.Whole.Store(true)
		}
	}
	return off
}

// TestProberByDestination wants the peers alone off to which a firewall drops packets, without a pause for the others.
func TestProberByDestination(t *testing.T) {
	p := newProving(t, 7)
	p.way.drops = func(to netip.AddrPort) bool { return to == p.peers[2].Endpoint || to == p.peers[5].Endpoint }
	if off := p.prove(true); !slices.Equal(off, []int{2, 5}) {
		t.Fatalf("off: %v, want 2 and 5", off)
	}
	if p.peers[2].Whole.Load() || p.peers[5].Whole.Load() {
		t.Error("a peer is on whose probe never arrived")
	}
	for round := range 5 {
		if off := p.prove(round%2 == 0); !slices.Equal(off, []int{2, 5}) {
			t.Errorf("round %d: off: %v, want 2 and 5", round, off)
		}
		// One wait, for those that are off.
		if want := int(probeWait / probeLook); p.way.waits != want || len(p.way.probed) != 7 {
			t.Errorf("round %d: %d waits and %d peers probed, want %d and 7", round, p.way.waits, len(p.way.probed), want)
		}
	}
	first := p.peers[0].Endpoint
	p.way.drops = func(to netip.AddrPort) bool { return to == first }
	if off := p.prove(false); !slices.Equal(off, []int{0}) || p.peers[0].Whole.Load() {
		t.Errorf("off after the firewall changed: %v, want 0", off)
	}
	p.peers = p.peers[1:]
	if off := p.prove(false); len(off) > 0 || len(p.known) != 6 {
		t.Errorf("off: %v, want none; %d peers known, want 6", off, len(p.known))
	}
}

// TestProberPatience wants neither a lost probe, a late one nor a counter that began anew to be taken for a firewall.
func TestProberPatience(t *testing.T) {
	lost := func(p *proving) func(netip.AddrPort) bool {
		return func(to netip.AddrPort) bool { return to == p.peers[0].Endpoint && p.way.probed[to] == 1 }
	}
	for name, c := range map[string]struct {
		peers, late, resetAt int
		lost                 bool
	}{
		"one lost":              {peers: 1, lost: true},
		"one of several lost":   {peers: 9, lost: true},
		"late":                  {peers: 9, late: 3},
		"counter began anew":    {peers: 9, resetAt: 2},
		"anew for a lone probe": {peers: 1, resetAt: 2},
	} {
		p := newProving(t, c.peers)
		p.way.late, p.way.resetAt = c.late, c.resetAt
		if c.lost {
			p.way.drops = lost(p)
		}
		if off := p.prove(true); len(off) > 0 {
			t.Errorf("%s: off: %v", name, off)
		}
	}
}

// TestProberReset wants a counter that began anew not to be taken for arrivals either.
func TestProberReset(t *testing.T) {
	p := newProving(t, 3)
	p.way.resetAt, p.way.drops = 2, func(netip.AddrPort) bool { return true }
	if off := p.prove(true); len(off) != len(p.peers) {
		t.Errorf("off: %v, want all of %d", off, len(p.peers))
	}
}

// TestProberError wants nothing to be taken for known that was known before an error.
func TestProberError(t *testing.T) {
	p := newProving(t, 3)
	p.prove(true)
	p.way.err = errors.New("gone")
	if err := p.round(t.Context(), p.peers, false); !errors.Is(err, p.way.err) || len(p.known) > 0 {
		t.Errorf("%v, and %d peers known", err, len(p.known))
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	p.way.err = nil
	if err := p.round(ctx, p.peers, true); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// TestProberOneBatch wants the peers of a batch to be found out without a pause for those of the other batches.
func TestProberOneBatch(t *testing.T) {
	p := newProving(t, 5000)
	p.way.drops = func(to netip.AddrPort) bool {
		b := to.Addr().As4()
		k := int(b[2])<<8 | int(b[3])
		return k < probeBatch && k%2 == 0
	}
	for round := range 20 {
		for _, k := range p.prove(round == 0) {
			if k >= 2*probeBatch && k < 5000-probeBatch { // a batch with one of them may begin before, or end behind
				t.Fatalf("round %d: peer %d is off, which no firewall is before", round, k)
			}
		}
	}
	if off := p.prove(false); len(off) > probeBatch {
		t.Errorf("%d peers are off after 20 rounds, want some half of %d", len(off), probeBatch)
	}
}

// TestProberManyPeers wants the cost of a round to be bounded with very many peers, and all to be found out in time.
func TestProberManyPeers(t *testing.T) {
	const peers = 10_000
	p := newProving(t, peers)
	if off := p.prove(true); len(off) > 0 || len(p.way.probed) != peers || p.way.waits > 0 {
		t.Fatalf("%d off, %d probed, %d waits", len(off), len(p.way.probed), p.way.waits)
	}
	seen := map[netip.AddrPort]int{}
	for range peers/(probeBatch*probeBatches) + 1 {
		if p.prove(false); len(p.way.probed) > probeBatch*probeBatches || p.way.waits > 0 {
			t.Fatalf("%d probed and %d waits in a round without an event", len(p.way.probed), p.way.waits)
		}
		maps.Copy(seen, p.way.probed)
	}
	if len(seen) != peers {
		t.Errorf("%d peers probed in turns, want all %d", len(seen), peers)
	}

	// A firewall that drops what goes to one in a hundred, and no event tells.
	var want []int
	for k := range peers {
		if k%100 == 7 {
			want = append(want, k)
		}
	}
	p.way.drops = func(to netip.AddrPort) bool {
		b := to.Addr().As4()
		return (int(b[2])<<8|int(b[3]))%100 == 7
	}
	rounds := 0
	for ; !slices.Equal(p.prove(false), want); rounds++ {
		if rounds == 100 {
			t.Fatal("not found out within a hundred rounds")
		}
		for _, k := range want {
			if p.peers[k].Whole.Load() && p.known[p.peers[k].Endpoint] && p.way.probed[p.peers[k].Endpoint] > 0 {
				t.Fatalf("peer %d is on, and its probe did not arrive", k)
			}
		}
	}
	t.Logf("one peer in a hundred found out in %d rounds", rounds+1)
	p.way.drops = nil
	for rounds = 0; len(p.prove(false)) > 0; rounds++ {
		if rounds == 10 {
			t.Fatal("not on again within ten rounds")
		}
	}
	p.way.drops = func(netip.AddrPort) bool { return true }
	if off := p.prove(true); len(off) != peers {
		t.Errorf("%d peers off after everything was dropped, want all", len(off))
	}
	for _, peer := range p.peers {
		if peer.Whole.Load() {
			t.Fatalf("peer %s is on", peer.Name)
		}
	}
	p.way.drops = nil
	if off := p.prove(true); len(off) > 0 {
		t.Errorf("%d peers off after all was well again", len(off))
	}
}
