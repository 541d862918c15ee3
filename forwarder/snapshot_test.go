package forwarder

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-net/warren/forwarder/packet"
)

func TestBuildRefuses(t *testing.T) {
	peer := func(name, at string, cidrs ...string) *Peer {
		return &Peer{Name: name, Endpoint: netip.MustParseAddrPort(at), PodCIDRs: prefixes(cidrs...), MTU: 1450,
			Stats: NewPeerStats(1)}
	}
	tests := []struct {
		name string
		edit func(*Spec)
		want string
	}{
		{"one CIDR of two peers", func(s *Spec) { s.Peers = append(s.Peers, peer("d", "192.0.2.9:1", "10.244.2.0/24")) },
			"two owners"},
		{"our CIDR at a peer", func(s *Spec) { s.Peers = append(s.Peers, peer("d", "192.0.2.9:1", "10.244.1.0/24")) },
			"two owners"},
		{"one underlay address of two peers", func(s *Spec) { s.Peers = append(s.Peers, peer("d", "192.0.2.2:1")) },
			"two owners"},
		{"our underlay address at a peer", func(s *Spec) { s.Peers = append(s.Peers, peer("d", "192.0.2.1:1")) },
			"two owners"},
		{"IPv4-mapped", func(s *Spec) { s.Peers = append(s.Peers, peer("d", "[::ffff:192.0.2.9]:1")) }, "IPv4-mapped"},
		{"host bits", func(s *Spec) { s.PodCIDRs = append(s.PodCIDRs, prefix("10.244.9.1/24")) }, "masked"},
		{"no port", func(s *Spec) { s.Peers[0].Endpoint = netip.AddrPortFrom(addr("192.0.2.2"), 0) }, "a port"},
		{"no stats", func(s *Spec) { s.Peers[0].Stats = nil }, "Stats"},
		{"encrypted without a number", func(s *Spec) { s.Peers[0].Encrypted = true }, "without a number"},
		{"a negative number", func(s *Spec) { s.Peers[0].Tunnel = -1 }, "number -1"},
		{"one number of two peers", func(s *Spec) { s.Peers[0].Tunnel, s.Peers[1].Tunnel = 7, 7 }, "already peer b's"},
		{"no address and in plaintext", func(s *Spec) { s.Peers[0].Tunnel, s.Peers[0].Endpoint = 7, netip.AddrPort{} },
			"underlay address"},
		{"two IPv4 gateways", func(s *Spec) { s.Gateways = append(s.Gateways, addr("10.244.1.3")) }, "gateway"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := testSpec()
			tt.edit(&spec)
			if _, err := Build(spec); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestEncryptedPeers: a peer that is encrypted to is found by its number in the tunnel, and needs no address.
func TestEncryptedPeers(t *testing.T) {
	spec := testSpec()
	b, c := spec.Peers[0], spec.Peers[1]
	b.Tunnel, b.Encrypted, b.RefusesPlaintext, b.Endpoint = 3, true, true, netip.AddrPort{}
	c.Tunnel = 1
	s, err := Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[int32]*Peer{-1: nil, 0: nil, 1: c, 2: nil, 3: b, 4: nil, 1 << 30: nil} {
		if got := s.PeerByTunnel(id); got != want {
			t.Errorf("number %d is %+v, want %+v", id, got, want)
		}
	}
	if d := s.FromTUN(info("10.244.1.5", "10.244.2.5", 100), packet.Meta{}); d.Verdict != ToPeer || d.Peer != b {
		t.Errorf("to a peer without an address: %+v", d)
	}
	if got := s.PeerByAddr(netip.Addr{}); got != nil {
		t.Errorf("no address is peer %s's", got.Name)
	}
	if s.PeerByAddr(addr("2001:db8::3")) != c || testSnapshot(t).PeerByTunnel(0) != nil {
		t.Error("a peer with an address is not found by it, or one without a number by none")
	}
	if n := len(s.Routes()); n != s.RouteCount {
		t.Errorf("%d routes are listed of %d", n, s.RouteCount)
	}
}

func TestClusterMayBeExactlyOneNodesCIDR(t *testing.T) {
	spec := testSpec()
	spec.ClusterCIDRs = append(spec.ClusterCIDRs, spec.PodCIDRs[0])
	s, err := Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	if d := s.FromTUN(info("10.244.1.5", "10.244.1.6", 100), packet.Meta{}); d.Verdict != Local {
		t.Errorf("got %+v", d)
	}
}

func TestRoutesListsEveryPrefixOnce(t *testing.T) {
	got := map[string]string{}
	for _, r := range testSnapshot(t).Routes() {
		if _, twice := got[r.Prefix.String()]; twice {
			t.Errorf("%v twice", r.Prefix)
		}
		got[r.Prefix.String()] = strings.TrimSpace(r.Kind + " " + r.Peer)
	}
	for p, want := range map[string]string{
		"10.244.0.0/16": "unreachable", "10.244.1.0/24": "pod", "10.244.1.1/32": "node", "10.244.2.0/24": "peer b",
		"192.0.2.1/32": "node", "192.0.2.2/32": "peer b", "192.0.2.3/32": "peer c", "2001:db8::3/128": "peer c",
		"fd00:10:244:2::/64": "peer b",
	} {
		if got[p] != want {
			t.Errorf("%s is %q, want %q", p, got[p], want)
		}
	}
}

// TestLookupAgainstNaive compares the longest-prefix match with a scan over all prefixes.
func TestLookupAgainstNaive(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		spec := Spec{ClusterCIDRs: prefixes("10.0.0.0/8", "fd00::/16")}
		owner := map[netip.Prefix]string{spec.ClusterCIDRs[0]: "hole", spec.ClusterCIDRs[1]: "hole"}
		for n := range 50 {
			p := &Peer{Name: fmt.Sprint(n), Stats: NewPeerStats(1),
				Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 4789)}
			owner[host(p.Endpoint.Addr())] = p.Name
			for range 5 {
				c := randomPrefix(rnd)
				if _, taken := owner[c]; taken {
					continue
				}
				owner[c] = p.Name
				p.PodCIDRs = append(p.PodCIDRs, c)
			}
			spec.Peers = append(spec.Peers, p)
		}
		s, err := Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(s.Routes()); s.RouteCount != len(owner) || n != len(owner) {
			t.Fatalf("%d routes counted and %d listed, want %d", s.RouteCount, n, len(owner))
		}
		for range 2000 {
			a := randomPrefix(rnd).Addr()
			best, want := -1, "outside"
			for c, name := range owner {
				if c.Contains(a) && c.Bits() > best {
					best, want = c.Bits(), name
				}
			}
			got := "outside"
			switch hit := s.routes.lookup(a); hit.kind() {
			case kindHole:
				got = "hole"
			case kindPeer:
				got = s.peers[hit.peer()].Name
			}
			if got != want {
				t.Fatalf("%v belongs to %s, want %s", a, got, want)
			}
		}
	}
}

func randomPrefix(rnd *rand.Rand) netip.Prefix {
	if rnd.IntN(2) == 0 {
		b := [4]byte{10, byte(rnd.IntN(4)), byte(rnd.IntN(4)), byte(rnd.IntN(256))}
		return netip.PrefixFrom(netip.AddrFrom4(b), 9+rnd.IntN(24)).Masked()
	}
	b := [16]byte{0xfd, 0, byte(rnd.IntN(4)), byte(rnd.IntN(4)), 15: byte(rnd.IntN(4))}
	return netip.PrefixFrom(netip.AddrFrom16(b), 17+rnd.IntN(112)).Masked()
}

// TestSwapWhileReading replaces the snapshot while readers decide: each must see one consistent cluster.
func TestSwapWhileReading(t *testing.T) {
	var table Table
	build := func(mtu int) *Snapshot {
		spec := testSpec()
		for _, p := range spec.Peers {
			p.MTU = mtu
		}
		s, err := Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	table.Store(build(1400))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := table.Load()
				b := s.FromTUN(info("10.244.1.5", "10.244.2.9", 100), packet.Meta{})
				c := s.FromTUN(info("10.244.1.5", "10.244.3.9", 100), packet.Meta{})
				if b.Verdict != ToPeer || c.Verdict != ToPeer || b.MTU != c.MTU {
					t.Errorf("torn snapshot: %+v and %+v", b, c)
					return
				}
			}
		})
	}
	for n := range 200 {
		table.Store(build(1400 + n))
		time.Sleep(time.Millisecond / 4)
	}
	close(stop)
	wg.Wait()
}

// FuzzDecide looks for addresses on which the two directions disagree: what we send to a peer must be what we accept
// from that peer and from no other.
func FuzzDecide(f *testing.F) {
	for _, a := range []string{"10.244.1.5", "10.244.2.5", "192.0.2.3", "fd00:10:244:2::9", "ff02::1", "::", "0.0.0.0"} {
		f.Add(addr(a).AsSlice(), uint16(100), uint8(0))
	}
	s := testSnapshot(f)
	f.Fuzz(func(t *testing.T, raw []byte, size uint16, flags uint8) {
		a, ok := netip.AddrFromSlice(raw)
		if !ok || a.Is4In6() {
			return
		}
		local := "10.244.1.5"
		if a.Is6() {
			local = "fd00:10:244:1::5"
		}
		out := info(local, a.String(), int(size))
		out.Flags |= packet.Flags(flags)
		d := s.FromTUN(out, packet.Meta{})
		if d.Verdict == Drop && (d.Reason == NoReason || d.Reason >= NumReasons) {
			t.Fatalf("a drop without a reason: %+v", d)
		}
		if d.Verdict == ToPeer && out.SegmentLen(packet.Meta{}) > d.Peer.MTU && d.Edit&Fragment == 0 {
			t.Fatalf("%d bytes to a peer with MTU %d: %+v", size, d.Peer.MTU, d)
		}
		for p := range s.Peers() {
			in := s.FromWire(p, info(a.String(), local, int(size)))
			sameOwner := d.Peer == p
			if (in.Verdict == Local) != sameOwner {
				t.Fatalf("%v: we send it to %v, but from %s it is %+v", a, d.Peer, p.Name, in)
			}
		}
	})
}
