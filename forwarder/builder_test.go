package forwarder

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/warren-net/warren/forwarder/packet"
)

// A churn is a cluster that changes at random, and what it should be.
type churn struct {
	rnd   *rand.Rand
	spec  Spec
	peers map[string]*Peer
	plan  func(n, of int) netip.Prefix
}

// draw is a peer of one of few names, with prefixes of which few are nobody's.
func (c *churn) draw(names, blocks int) *Peer {
	p := &Peer{Name: fmt.Sprint("p", c.rnd.IntN(names)), MTU: 1450, Stats: NewPeerStats(1)}
	at := netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + c.rnd.IntN(names))})
	if c.rnd.IntN(4) == 0 {
		at = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(10 + c.rnd.IntN(names))})
	}
	p.Endpoint = netip.AddrPortFrom(at, 4789)
	if c.rnd.IntN(3) == 0 {
		p.Tunnel = int32(1 + c.rnd.IntN(names))
	}
	for range c.rnd.IntN(3) {
		q := c.plan(c.rnd.IntN(blocks), blocks)
		if c.rnd.IntN(4) == 0 { // wider, narrower, or the cluster's own
			q = netip.PrefixFrom(q.Addr(), min(q.Addr().BitLen(), max(9, q.Bits()+c.rnd.IntN(24)-12))).Masked()
		}
		p.PodCIDRs = append(p.PodCIDRs, q)
	}
	p.NodeAddrs = []netip.Addr{at}
	return p
}

// step draws a change.
func (c *churn) step(size, names, blocks int) (set []*Peer, gone []string) {
	for range 1 + c.rnd.IntN(size) {
		if c.rnd.IntN(3) == 0 {
			gone = append(gone, fmt.Sprint("p", c.rnd.IntN(names)))
		} else {
			set = append(set, c.draw(names, blocks))
		}
	}
	return set, gone
}

// after is what Build makes of the cluster after a change.
func (c *churn) after(set []*Peer, gone []string) (*Snapshot, map[string]*Peer, error) {
	next := map[string]*Peer{}
	for name, p := range c.peers {
		if !slices.Contains(gone, name) {
			next[name] = p
		}
	}
	for _, p := range set {
		next[p.Name] = p
	}
	spec := c.spec
	for _, p := range next {
		q := *p
		spec.Peers = append(spec.Peers, &q)
	}
	s, err := Build(spec)
	return s, next, err
}

// TestBuilderAgainstBuild changes clusters at random, step by step: each snapshot finds what one finds that is built
// anew, what Build refuses is refused and changes nothing, and earlier snapshots stay what they were.
func TestBuilderAgainstBuild(t *testing.T) {
	grown := 0
	for name, plan := range plans {
		for seed := range 7 {
			c := &churn{rnd: rand.New(rand.NewPCG(uint64(seed), 3)), plan: plan, peers: map[string]*Peer{}}
			c.spec = testSpec()
			c.spec.Peers = nil
			c.spec.ClusterCIDRs = prefixes("10.0.0.0/8", "fd00::/8", "10.244.2.0/24")
			b, s, err := NewBuilder(c.spec)
			if err != nil {
				t.Fatal(err)
			}
			refused := 0
			for step := range 150 {
				names, blocks := 4+10*seed, 8<<seed
				set, gone := c.step(1+seed/2, names, blocks)
				want, peers, wrong := c.after(set, gone)
				twice := map[string]bool{}
				for _, p := range set {
					if twice[p.Name] && wrong == nil {
						wrong = fmt.Errorf("%s twice", p.Name)
					}
					twice[p.Name] = true
				}
				before := lookups(s, c)
				next, err := b.Change(uint64(step), set, gone)
				if (err != nil) != (wrong != nil) {
					t.Fatalf("%s, seed %d, step %d: %v, Build says %v", name, seed, step, err, wrong)
				}
				if !reflect.DeepEqual(before, lookups(s, c)) {
					t.Fatalf("%s, seed %d, step %d: an earlier snapshot has changed", name, seed, step)
				}
				if err != nil {
					refused++
					var some *RefusedError
					if !errors.As(err, &some) || c.rnd.IntN(3) == 0 {
						continue
					}
					set = slices.DeleteFunc(set, func(p *Peer) bool { return some.Peers[p.Name] != nil })
					gone = slices.AppendSeq(gone, maps.Keys(some.Peers))
					if want, peers, wrong = c.after(set, gone); wrong != nil {
						t.Fatalf("%s, seed %d, step %d: without those of %v: %v", name, seed, step, err, wrong)
					}
					if next, err = b.Change(uint64(step), set, gone); err != nil {
						t.Fatalf("%s, seed %d, step %d: without the refused: %v", name, seed, step, err)
					}
				}
				c.peers, s = peers, next
				same(t, s, want, c)
				if t.Failed() {
					t.Fatalf("%s, seed %d, step %d: set %d, gone %v", name, seed, step, len(set), gone)
				}
			}
			if refused > 140 {
				t.Errorf("%s, seed %d: %d of 150 changes were refused", name, seed, refused)
			}
			grown = max(grown, s.RouteCount)
		}
	}
	if grown < 60 {
		t.Errorf("the largest cluster had %d routes", grown)
	}
}

// interesting are addresses at the edges of everything that the cluster ever had.
func (c *churn) interesting() []netip.Addr {
	out := []netip.Addr{addr("0.0.0.0"), addr("255.255.255.255"), addr("::"), addr("10.244.1.5"), addr("10.244.1.1"),
		addr("192.0.2.1"), addr("fd00:10:244:1::5"), addr("2001:db8::1")}
	for _, p := range c.peers {
		for q := range p.prefixes() {
			out = append(out, q.Addr(), lastAddr(q), q.Addr().Prev(), lastAddr(q).Next())
		}
	}
	return slices.DeleteFunc(out, func(a netip.Addr) bool { return !a.IsValid() })
}

// A found is what a snapshot says of an address, by names, as indexes differ.
type found struct {
	kind     kind
	peer, at string
	local    bool
}

func lookups(s *Snapshot, c *churn) map[netip.Addr]found {
	out := map[netip.Addr]found{}
	for _, a := range c.interesting() {
		t := s.routes.lookup(a)
		f := found{kind: t.kind(), local: s.isLocal(a)}
		if t.kind() == kindPeer {
			f.peer = s.peers[t.peer()].Name
		}
		if p := s.PeerByAddr(a); p != nil {
			f.at = p.Name
		}
		out[a] = f
	}
	return out
}

func same(t *testing.T, got, want *Snapshot, c *churn) {
	t.Helper()
	is, should := lookups(got, c), lookups(want, c)
	for a, f := range should {
		if is[a] != f {
			t.Errorf("%v is %+v, want %+v", a, is[a], f)
		}
	}
	if !reflect.DeepEqual(got.Routes(), want.Routes()) || got.RouteCount != want.RouteCount ||
		got.PeerCount != want.PeerCount {
		t.Errorf("%d routes of %d peers, want %d of %d", got.RouteCount, got.PeerCount, want.RouteCount, want.PeerCount)
	}
	if got.local4 != want.local4 || got.local6 != want.local6 {
		t.Errorf("spans %+v %+v, want %+v %+v", got.local4, got.local6, want.local4, want.local6)
	}
	for id := range int32(200) {
		a, b := got.PeerByTunnel(id), want.PeerByTunnel(id)
		if (a == nil) != (b == nil) || a != nil && a.Name != b.Name {
			t.Errorf("number %d is %v, want %v", id, a, b)
		}
	}
	for p := range got.Peers() {
		if got.Peer(p.Index) != p || p != c.peers[p.Name] {
			t.Errorf("peer %s is not at its index %d", p.Name, p.Index)
		}
	}
}

// TestBuilderBesideReaders: the race detector watches readers of earlier snapshots.
func TestBuilderBesideReaders(t *testing.T) {
	spec := testSpec()
	b, first, err := NewBuilder(spec)
	if err != nil {
		t.Fatal(err)
	}
	var table Table
	table.Store(first)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := table.Load()
				d := s.FromTUN(info("10.244.1.5", "10.244.7.5", 100), packet.Meta{})
				if d.Verdict == ToPeer && !strings.HasPrefix(d.Peer.Name, "x") {
					t.Error("to", d.Peer.Name)
					return
				}
			}
		})
	}
	for n := range 3000 {
		p := &Peer{Name: "x" + fmt.Sprint(n%3), Endpoint: netip.AddrPortFrom(addr("192.0.2.77"), 4789), MTU: 1450,
			Stats: NewPeerStats(1), PodCIDRs: prefixes("10.244.7.0/24", fmt.Sprintf("fd00:10:244:%x::/64", 0x100+n))}
		next, err := b.Change(uint64(n), []*Peer{p}, []string{"x0", "x1", "x2"})
		if err != nil {
			t.Fatal(err)
		}
		table.Store(next)
	}
	close(stop)
	wg.Wait()
	if slots := len(table.Load().routes.slots); slots > 2*renewRoom {
		t.Errorf("the table has grown to %d slots", slots)
	}
}

func TestBuilderRefusesTwoOfOneName(t *testing.T) {
	spec := testSpec()
	spec.Peers[1].Name = spec.Peers[0].Name
	if _, _, err := NewBuilder(spec); err == nil {
		t.Error("two peers of one name are taken")
	}
}

// TestBuilderNamesWhomItRefuses: all of them at once, each for its own reason, and nobody for what a refused one wants.
func TestBuilderNamesWhomItRefuses(t *testing.T) {
	spec := testSpec()
	first := *spec.Peers[0]
	b, _, err := NewBuilder(spec)
	if err != nil {
		t.Fatal(err)
	}
	peer := func(name, at string, cidrs ...string) *Peer {
		return &Peer{Name: name, Endpoint: netip.AddrPortFrom(addr(at), 4789), PodCIDRs: prefixes(cidrs...),
			Stats: NewPeerStats(1)}
	}
	unmasked := peer("unmasked", "192.0.2.201", "10.250.1.0/24")
	unmasked.PodCIDRs = append(unmasked.PodCIDRs, netip.MustParsePrefix("10.250.2.7/24"))
	set := []*Peer{
		peer("thief", "192.0.2.200", first.PodCIDRs[0].String()), unmasked, peer("same", "192.0.2.202", "10.250.1.0/24"),
		peer("second", "192.0.2.203", "10.250.1.0/24"), {Name: "nowhere"}, peer("good", "192.0.2.204"),
	}
	_, err = b.Change(2, set, nil)
	var refused *RefusedError
	if !errors.As(err, &refused) || len(refused.Peers) != 4 {
		t.Fatal(err)
	}
	for name, part := range map[string]string{
		"thief": "peer " + first.Name, "unmasked": "masked", "second": "peer same", "nowhere": "underlay address",
	} {
		if why := refused.Peers[name]; why == nil || !strings.Contains(why.Error(), part) ||
			!strings.Contains(err.Error(), "peer "+name+": "+why.Error()) {
			t.Errorf("%s: %v, want %q in it; %v", name, why, part, err)
		}
	}
}

// BenchmarkBuilderChange replaces one peer of many: what it costs does not depend on how many there are.
func BenchmarkBuilderChange(b *testing.B) {
	for _, peers := range []int{100, 1000, 5000, 20_000} {
		b.Run(fmt.Sprint(peers), func(b *testing.B) {
			spec := clusterSpec(plans["24"], peers, 2)
			builder, _, err := NewBuilder(spec)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				p := *spec.Peers[n%peers]
				p.PodCIDRs = p.PodCIDRs[:max(1, len(p.PodCIDRs)-n/peers%2)]
				if _, err := builder.Change(uint64(n), []*Peer{&p}, nil); err != nil {
					b.Fatal(err)
				}
				n++
			}
		})
	}
}
