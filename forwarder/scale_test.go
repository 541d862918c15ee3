package forwarder

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	"github.com/warren-net/warren/forwarder/packet"
)

// A plan is an addressing plan of a large cluster: its n-th pod CIDR of so many.
type plan func(n, of int) netip.Prefix

// plans are what clusters have: a /24 or, as Calico does, /26s from the private ranges and on; IPv6 /64s of one range;
// both; and /64s with nothing in common, which no cluster has and which is the worst for a trie.
var plans = map[string]plan{
	"24":    func(n, _ int) netip.Prefix { return block4(n, 24) },
	"26":    func(n, _ int) netip.Prefix { return block4(n, 26) },
	"64":    func(n, _ int) netip.Prefix { return block6(0xfd00001003<<24 + uint64(n)) },
	"mixed": mixedPlan,
	"scattered": func(n, _ int) netip.Prefix {
		return block6(0xfd<<56 | rand.New(rand.NewPCG(uint64(n), 7)).Uint64()>>8)
	},
}

// mixedPlan spreads half of the CIDRs over the IPv4 ranges, /24s and /26s by turns, and half over IPv6 ranges of 256
// networks, in no order: a node's CIDRs are not neighbours.
func mixedPlan(n, of int) netip.Prefix {
	const prime = 1_000_003
	k := n * prime % of // of is no multiple of the prime, so each comes once
	switch k % 4 {
	case 0:
		return block4(k/4, 24)
	case 2:
		return block4(1<<17+k, 26) // where the /24s do not reach
	}
	range48 := rand.New(rand.NewPCG(uint64(k/512), 7)).Uint64() >> 8 &^ 0xffff
	return block6(0xfd<<56 | range48 | uint64(k/2%256))
}

// block4 is the n-th block of so many bits behind 11.0.0.0.
func block4(n, bits int) netip.Prefix {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 11<<24+uint32(n)<<(32-bits))
	return netip.PrefixFrom(netip.AddrFrom4(b), bits)
}

func block6(network uint64) netip.Prefix {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], network)
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// clusterSpec is node a of testSpec among so many peers with so many pod CIDRs each. Everything in it is its own.
func clusterSpec(p plan, peers, perPeer int) Spec {
	spec := testSpec()
	stats := make([]PeerStats, peers)
	for k := range peers {
		peer := &Peer{Name: fmt.Sprintf("node-%d", k), MTU: 1450, Stats: &stats[k],
			Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, byte(64 + k>>16), byte(k >> 8), byte(k)}), 4789),
			Header4:  make([]byte, 22), Header6: make([]byte, 22)}
		peer.NodeAddrs = []netip.Addr{peer.Endpoint.Addr()}
		peer.PodCIDRs = make([]netip.Prefix, 0, perPeer)
		for n := range perPeer {
			peer.PodCIDRs = append(peer.PodCIDRs, p(k*perPeer+n, peers*perPeer))
		}
		spec.Peers = append(spec.Peers, peer)
	}
	return spec
}

// traffic is packets from a pod of this node to pods of many peers.
func traffic(spec *Spec, count int) []packet.Info {
	rnd := rand.New(rand.NewPCG(3, 4))
	out := make([]packet.Info, count)
	for k := range out {
		c := spec.Peers[rnd.IntN(len(spec.Peers))].PodCIDRs
		dst := c[rnd.IntN(len(c))].Addr().Next()
		src := "10.244.1.5"
		if dst.Is6() {
			src = "fd00:10:244:1::5"
		}
		out[k] = *info(src, dst.String(), 1420)
	}
	return out
}

// heapBytes is what is reachable.
func heapBytes() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what the first one found to be finalized
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestBytesPerRoute holds a snapshot of 10,000 peers and 1,000,000 routes, with all that it keeps alive, to 400 bytes
// per route, and the routes alone to what the worst of tries may take.
func TestBytesPerRoute(t *testing.T) {
	const peers, perPeer, workers = 10_000, 100, 8
	for _, name := range []string{"mixed", "scattered"} {
		t.Run(name, func(t *testing.T) {
			before := heapBytes()
			spec := clusterSpec(plans[name], peers, perPeer)
			for _, p := range spec.Peers {
				p.Stats = NewPeerStats(workers)
			}
			s, err := Build(spec)
			if err != nil {
				t.Fatal(err)
			}
			routes := float64(s.RouteCount)
			whole := float64(heapBytes()-before) / routes
			trie := float64(len(s.routes.slots)) * 4 / routes
			t.Logf("%d peers, %.0f routes: %.0f bytes per route, %.0f of them for the lookup; %.0f MiB", s.PeerCount, routes,
				whole, trie, whole*routes/(1<<20))
			if routes < peers*perPeer {
				t.Errorf("%.0f routes, want %d", routes, peers*perPeer)
			}
			if whole > 400 || trie > 150 {
				t.Errorf("%.0f bytes per route, want at most 400; %.0f for the lookup, want at most 150", whole, trie)
			}
			runtime.KeepAlive(s)
		})
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, size := range []struct {
		name           string
		peers, perPeer int
	}{{"1k", 10, 100}, {"100k", 1000, 100}, {"1M", 10_000, 100}} {
		for _, name := range []string{"24", "26", "64", "mixed", "scattered"} {
			b.Run(size.name+"/"+name, func(b *testing.B) {
				spec := clusterSpec(plans[name], size.peers, size.perPeer)
				s, err := Build(spec)
				if err != nil {
					b.Fatal(err)
				}
				// Many destinations, so that the table and not one cache line is measured.
				infos := traffic(&spec, 4096)
				runtime.GC()
				b.ReportAllocs()
				var d Decision
				k := 0
				for b.Loop() {
					d = s.FromTUN(&infos[k&4095], packet.Meta{})
					k++
				}
				if d.Verdict != ToPeer {
					b.Fatalf("%+v", d)
				}
			})
		}
	}
}

// TestChangeAmongMany: what a change adds to the slots of the lookup is not about how many peers there are, and several
// in one call share what is copied.
func TestChangeAmongMany(t *testing.T) {
	const some, many, batch = 500, 20_000, 32
	const most = 8192 // slots that one change may add: 32 KiB
	appended := map[string]int{}
	for _, size := range []int{some, many} {
		for name, p := range map[string]plan{"24": plans["24"], "64": plans["64"]} {
			b, _, err := NewBuilder(clusterSpec(p, size, 1))
			if err != nil {
				t.Fatal(err)
			}
			next := size
			join := func(count int) (slots int) {
				var set []*Peer
				for range count {
					at := netip.AddrFrom4([4]byte{100, 64, byte(next >> 8), byte(next)})
					set = append(set, &Peer{Name: fmt.Sprint("new", next), MTU: 1450, Stats: NewPeerStats(1),
						Endpoint: netip.AddrPortFrom(at, 4789), PodCIDRs: []netip.Prefix{p(next, 0)}})
					next++
				}
				before := 0
				if b.lpm != nil {
					before = len(b.lpm.build.slots)
				}
				if _, err := b.Change(2, set, nil); err != nil {
					t.Fatal(err)
				}
				return len(b.lpm.build.slots) - before
			}
			join(1) // which begins with a copy of all
			one, more := join(1), join(batch)
			t.Logf("%d peers with a /%s: %d slots for one that comes, %d for %d", size, name, one, more, batch)
			appended[fmt.Sprint(name, size)] = one
			if one > most || more > most {
				t.Errorf("%d peers with a /%s: %d slots for one that comes, %d for %d", size, name, one, more, batch)
			}
		}
	}
	for _, name := range []string{"24", "64"} {
		if a, b := appended[name+fmt.Sprint(some)], appended[name+fmt.Sprint(many)]; b > a+most/2 {
			t.Errorf("/%s: %d slots among %d peers, %d among %d", name, a, some, b, many)
		}
	}
}
