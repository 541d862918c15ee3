package node

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// drawNode is a node as a control plane may have it, of a few names, which others may be in the way of.
func drawNode(rnd *rand.Rand) control.Node {
	k := 2 + rnd.IntN(12)
	n := control.Node{
		Name: fmt.Sprint("n", k), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(k)})},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(k + rnd.IntN(2)*100), 0}), 24)},
	}
	switch rnd.IntN(4) {
	case 0:
		n.Addresses[0] = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(k)})
	case 1:
		n.WireGuardPort = 7777
	}
	switch rnd.IntN(3) {
	case 0:
		n.Encapsulation = control.VXLAN
	case 1:
		n.PublicKey = key.Public{byte(k), byte(rnd.IntN(2))}
	}
	return n
}

// seen is what a snapshot and its peers come to, but for what counts on.
func seen(s *forwarder.Snapshot, p *plan) map[string]string {
	out := map[string]string{"routes": fmt.Sprint(s.Routes()), "count": fmt.Sprint(s.PeerCount, s.RouteCount)}
	for q := range s.Peers() {
		out[q.Name] = fmt.Sprint(q.Endpoint, q.MTU, q.Encrypted, q.RefusesPlaintext, q.Tunnel > 0, q.Whole != nil, q.Header4)
	}
	out["warnings"] = strings.Join(p.allWarnings(), "\n")
	out["reached"], out["secured"] = fmt.Sprint(p.reached), fmt.Sprint(p.secured)
	return out
}

// TestPlanChangeAgainstBuild: after many changes a plan is what one is that is made at once, and so is the tunnel.
func TestPlanChangeAgainstBuild(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		p := newSecurePlan(t)
		p.cfg.Control, p.cfg.State.Nodes = config.Etcd, nil
		nodes := map[string]control.Node{}
		if _, err := p.build(1, nil); err != nil {
			t.Fatal(err)
		}
		for step := range 60 {
			var set []control.Node
			var gone []string
			for range 1 + rnd.IntN(3) {
				n := drawNode(rnd)
				named := func(o control.Node) bool { return o.Name == n.Name }
				if slices.ContainsFunc(set, named) || slices.Contains(gone, n.Name) {
					continue
				}
				if rnd.IntN(3) == 0 {
					gone = append(gone, n.Name)
					delete(nodes, n.Name)
				} else {
					set = append(set, n)
					nodes[n.Name] = n
				}
			}
			if rnd.IntN(5) == 0 {
				p.paths.note(addr("192.0.2.7"), 1300+rnd.IntN(50), time.Now())
			}
			out, err := p.change(uint64(step), set, gone)
			if err != nil {
				t.Fatal(err)
			}
			p.secure.tunnel.ChangePeers(out.tunnels, out.gone, 0)
		}
		out, err := p.change(99, p.outdated(), nil)
		if err != nil {
			t.Fatal(err)
		}
		fresh := newSecurePlan(t)
		fresh.cfg, fresh.paths = p.cfg, p.paths
		want, err := fresh.build(1, p.nodes())
		if err != nil {
			t.Fatal(err)
		}
		fresh.secure.tunnel.SetPeers(want.tunnels, 0)
		if a, b := seen(out.snapshot, p), seen(want.snapshot, fresh); !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d: after changes\n%v\nat once\n%v", seed, a, b)
		}
		for q := range out.snapshot.Peers() {
			s, known := p.secure.tunnel.Status(q.Tunnel)
			if known != (q.Tunnel > 0) || known && s.Public != p.peers[q.Name].node.PublicKey {
				t.Errorf("the tunnel knows %s: %v, with %v", q.Name, known, s.Public)
			}
		}
		live := 0
		for id := range p.numbers.last {
			if p.secure.tunnel.Peer(id+1) != nil {
				live++
			}
		}
		if want := len(want.tunnels); live != want {
			t.Errorf("the tunnel has %d peers, want %d", live, want)
		}
	}
}

// TestPlanKeepsNobodyOut: nodes that want what others have, in any order and number, are left out, each for a true
// reason, and everybody else is in force; the tunnel has those in force, and no number is lost.
func TestPlanKeepsNobodyOut(t *testing.T) {
	refusals := 0
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		p := newSecurePlan(t)
		p.cfg.Control, p.cfg.State.Nodes = config.Etcd, nil
		if _, err := p.build(1, nil); err != nil {
			t.Fatal(err)
		}
		nodes := map[string]control.Node{}
		for step := range 60 {
			var set []control.Node
			var gone []string
			for _, k := range rnd.Perm(10)[:1+rnd.IntN(4)] {
				n := control.Node{
					Name: fmt.Sprint("n", k), PublicKey: key.Public{byte(k + 1), byte(rnd.IntN(2))},
					Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + rnd.IntN(12))})},
					PodCIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(2 + rnd.IntN(12)), 0}), 24)},
				}
				if rnd.IntN(4) == 0 {
					gone = append(gone, n.Name)
					delete(nodes, n.Name)
				}
				if rnd.IntN(4) > 0 {
					set = append(set, n)
					nodes[n.Name] = n
				}
			}
			var out *outcome
			var err error
			if rnd.IntN(8) == 0 {
				var all []control.Node
				for _, name := range slices.Sorted(maps.Keys(nodes)) {
					all = append(all, nodes[name])
				}
				if out, err = p.build(uint64(step), all); err == nil {
					p.secure.tunnel.SetPeers(out.tunnels, 0)
				}
			} else if out, err = p.change(uint64(step), set, gone); err == nil {
				p.secure.tunnel.ChangePeers(out.tunnels, out.gone, 0)
				if out, err = p.change(uint64(step), p.refusals(), nil); err == nil {
					p.secure.tunnel.ChangePeers(out.tunnels, out.gone, 0)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			refusals += len(p.refused)
			inForce := map[string]bool{}
			for q := range out.snapshot.Peers() {
				n := nodes[q.Name]
				inForce[q.Name] = true
				if s, _ := p.secure.tunnel.Status(q.Tunnel); s.Public != n.PublicKey || q.PodCIDRs[0] != n.PodCIDRs[0] {
					t.Fatalf("seed %d, step %d: %+v is in force, and %v in the tunnel, want %+v", seed, step, q, s.Public, n)
				}
			}
			for name, n := range nodes {
				blocked := slices.ContainsFunc(slices.Collect(maps.Values(nodes)), func(o control.Node) bool {
					return inForce[o.Name] && o.Name != name && (o.PodCIDRs[0] == n.PodCIDRs[0] || o.Addresses[0] == n.Addresses[0])
				})
				said := strings.Contains(strings.Join(p.warnings[name], ""), "left out")
				if inForce[name] == blocked || said != blocked || p.refused[name] != blocked {
					t.Fatalf("seed %d, step %d: %s in force %v, somebody has what it wants %v, %q", seed, step, name, inForce[name],
						blocked, p.warnings[name])
				}
			}
			live := 0
			for id := range p.numbers.last {
				if p.secure.tunnel.Peer(id+1) != nil {
					live++
				}
			}
			if live != len(inForce) || int(p.numbers.last) != live+len(p.numbers.spare) {
				t.Fatalf("seed %d, step %d: %d in force, the tunnel has %d, %d numbers of which %d are spare", seed, step,
					len(inForce), live, p.numbers.last, len(p.numbers.spare))
			}
		}
	}
	if refusals < 1000 {
		t.Errorf("%d were refused in all", refusals)
	}
}

// TestPlanLeavesOut: in a cluster that changes by itself what nothing can be sent to is left out, with a word, and
// comes in when it can.
func TestPlanLeavesOut(t *testing.T) {
	p := newSecurePlan(t)
	p.cfg.Control, p.cfg.State.Nodes = config.Kubernetes, nil
	if _, err := p.build(1, nil); err != nil {
		t.Fatal(err)
	}
	n := control.Node{Name: "n", Addresses: []netip.Addr{addr("192.0.2.9")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}}
	try := func(what string, peers int, warning string) *outcome {
		t.Helper()
		out, err := p.change(2, []control.Node{n}, nil)
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Join(p.allWarnings(), "; ")
		if out.snapshot.PeerCount != peers || (warning == "") != (said == "") || !strings.Contains(said, warning) {
			t.Errorf("%s: %d peers, %q", what, out.snapshot.PeerCount, said)
		}
		p.secure.tunnel.ChangePeers(out.tunnels, out.gone, 0)
		return out
	}
	try("without a key", 0, "n is left out: it has no public key")
	n.PublicKey = key.Public{1}
	if out := try("with one", 1, ""); p.secure.tunnel.Peer(out.tunnels[0].ID) == nil {
		t.Error("the tunnel does not know it")
	}
	n.Addresses = nil
	if out := try("without an address", 0, "no common address family"); len(out.gone) != 1 ||
		p.secure.tunnel.Peer(out.gone[0]) != nil {
		t.Error("the tunnel still knows it")
	}
	p.secure = &secure{tunnel: wireguard.New(wireguard.Config{})}
	p.noVXLAN = fmt.Errorf("the port is taken")
	n.Encapsulation, n.Addresses = control.VXLAN, []netip.Addr{addr("192.0.2.9")}
	try("by what this node has not", 0, "the port is taken")
}
