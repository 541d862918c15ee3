package node

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// A mix of nodes as one has it while a cluster moves from one encapsulation to the other.
const secureConfig = `node: a
cluster: [10.244.0.0/16]
wireguard: {port: 5555, persistentKeepalive: 25}
nodes:
  - {name: a, addresses: [192.0.2.1, "2001:db8::1"], podCIDRs: [10.244.1.0/24], publicKey: KEY-a}
  - {name: moved, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24], publicKey: KEY-b, wireguardPort: 777}
  - {name: to-move, addresses: [192.0.2.3], podCIDRs: [10.244.3.0/24], publicKey: KEY-c, encapsulation: vxlan}
  - {name: kernel, addresses: [192.0.2.4], podCIDRs: [10.244.4.0/24], encapsulation: vxlan}
  - {name: six, addresses: ["2001:db8::5"], podCIDRs: [10.244.5.0/24], publicKey: KEY-d}
peers:
  - {name: laptop, publicKey: KEY-e, addresses: [10.244.255.7]}
`

// withKeys puts keys in place of KEY-a and so on.
func withKeys(text string) (string, map[string]key.Private) {
	keys := map[string]key.Private{}
	for _, name := range strings.Split("abcde", "") {
		keys[name] = key.NewPrivate()
		text = strings.ReplaceAll(text, "KEY-"+name, `"`+keys[name].Public().String()+`"`)
	}
	return text, keys
}

func newSecurePlan(t *testing.T) *plan {
	t.Helper()
	text, keys := withKeys(secureConfig)
	p := newPlan(t, text)
	p.secure.tunnel = wireguard.New(wireguard.Config{Workers: 2})
	p.secure.tunnel.SetKeys([]key.Private{keys["a"]}, 0)
	p.grace = map[string]time.Time{}
	return p
}

func TestPlanOfEncryptedPeers(t *testing.T) {
	p := newSecurePlan(t)
	out, err := p.build(1, p.cfg.Peers(p.cfg.State))
	if err != nil {
		t.Fatal(err)
	}
	p.secure.tunnel.SetPeers(out.tunnels, 0)
	if out, err = p.build(2, p.cfg.Peers(p.cfg.State)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, endpoint            string
		encrypted, tunnel, refuse bool
		whole                     bool
		mtu                       int
	}{
		{name: "moved", endpoint: "192.0.2.2:777", encrypted: true, tunnel: true, refuse: true, mtu: 1420},
		{name: "to-move", endpoint: "192.0.2.3:4789", tunnel: true, whole: true, mtu: 1420},
		{name: "kernel", endpoint: "192.0.2.4:4789", whole: true, mtu: 1420},
		{name: "six", endpoint: "[2001:db8::5]:5555", encrypted: true, tunnel: true, refuse: true, mtu: 1420},
		{name: "laptop", endpoint: "invalid AddrPort", encrypted: true, tunnel: true, mtu: 1420},
	} {
		peer, _ := p.peer(t, c.name)
		if peer.Endpoint.String() != c.endpoint || peer.Encrypted != c.encrypted || (peer.Tunnel != 0) != c.tunnel ||
			peer.RefusesPlaintext != c.refuse || (peer.Whole != nil) != c.whole || peer.MTU != c.mtu {
			t.Errorf("%s: %+v", c.name, peer)
		}
		if c.tunnel && out.snapshot.PeerByTunnel(peer.Tunnel).Name != c.name {
			t.Errorf("%s is not found by its number %d", c.name, peer.Tunnel)
		}
	}
	greeted := map[string]bool{}
	for _, c := range out.tunnels {
		greeted[c.Name] = c.Greet
		if want := map[bool]time.Duration{true: 25 * time.Second}[c.Name != "to-move"]; c.Keepalive != want {
			t.Errorf("%s: keepalive %v, want %v", c.Name, c.Keepalive, want)
		}
	}
	if len(greeted) != 4 || !greeted["moved"] || !greeted["six"] || greeted["to-move"] || greeted["laptop"] {
		t.Errorf("to be greeted: %v", greeted)
	}
}

func TestPlanMTUOfEncryptedPeers(t *testing.T) {
	p := newSecurePlan(t)
	for i := range p.underlay {
		p.underlay[i].MTU = 1480
	}
	for name, want := range map[string]int{"moved": 1420, "to-move": 1420, "six": 1400, "laptop": 1400} {
		if peer, _ := p.peer(t, name); peer.MTU != want {
			t.Errorf("%s: MTU %d, want %d", name, peer.MTU, want)
		}
	}
	p.paths.note(addr("192.0.2.2"), 1300, time.Now())
	if peer, _ := p.peer(t, "moved"); peer.MTU != 1240 {
		t.Errorf("MTU %d over a path of 1300 bytes, want 1240", peer.MTU)
	}
	p.podMTU = 8920 // the underlay has jumbo frames, where the laptop is nobody knows
	for i := range p.underlay {
		p.underlay[i].MTU = 9000
	}
	if peer, _ := p.peer(t, "laptop"); peer.MTU != 1420 {
		t.Errorf("MTU %d towards a laptop, want 1420", peer.MTU)
	}
}

// What a node went without at its start must be an error once it is needed, not a silent other way.
func TestPlanWithoutATunnel(t *testing.T) {
	p := newSecurePlan(t)
	p.secure = &secure{why: errors.New("the port is taken")}
	if _, err := p.build(1, p.cfg.Peers(p.cfg.State)); err == nil || !strings.Contains(err.Error(), "the port is taken") {
		t.Errorf("encrypted peers without a tunnel: %v", err)
	}
	p = newSecurePlan(t)
	p.noVXLAN = errors.New("the port is taken")
	if _, err := p.build(1, p.cfg.Peers(p.cfg.State)); err == nil || !strings.Contains(err.Error(), "to-move") {
		t.Errorf("plaintext peers without a tunnel: %v", err)
	}
}

func TestTunnelNumbersAreNotUsedAgain(t *testing.T) {
	p := newSecurePlan(t)
	first, _ := p.peer(t, "moved")
	all := p.cfg.State.Nodes
	without := *p.cfg
	without.State.Nodes = append(all[:1:1], all[2:]...)
	p.cfg = &without
	if _, err := p.build(2, p.cfg.Peers(p.cfg.State)); err != nil {
		t.Fatal(err)
	}
	again := without
	again.State.Nodes = all
	p.cfg = &again
	second, _ := p.peer(t, "moved")
	numbers := map[int32]string{}
	for name, m := range p.peers {
		if m.tunnel == nil {
			continue
		}
		n := m.tunnel.ID
		if numbers[n] != "" {
			t.Errorf("%s and %s have number %d", name, numbers[n], n)
		}
		numbers[n] = name
	}
	if first.Tunnel == second.Tunnel {
		t.Errorf("number %d again, at once", first.Tunnel)
	}
}

// TestNumbersRest: the number of a peer that left is given to another one, but not before nobody can mean the one that
// left by it.
func TestNumbersRest(t *testing.T) {
	var n numbers
	now := time.Unix(0, 0)
	a, b := n.take(now), n.take(now)
	n.release(a, now)
	if c := n.take(now.Add(numberRest - 1)); c == a || c == b || a < 1 || a == b {
		t.Errorf("numbers %d, %d, then %d", a, b, c)
	}
	if d, e := n.take(now.Add(numberRest)), n.take(now.Add(numberRest)); d != a || e == a || n.last != 4 {
		t.Errorf("numbers %d and %d after the rest, %d in all", d, e, n.last)
	}
	n.release(b, now)
	f := n.take(now)
	n.giveBack(f)
	if g := n.take(now); g != f {
		t.Errorf("number %d was nobody's and is not given again, but %d", f, g)
	}
}

// changed is the plan's configuration with one of its nodes changed.
func (p *plan) changed(name string, change func(n *control.Node)) *config.Config {
	next := *p.cfg
	next.State.Nodes = slices.Clone(p.cfg.State.Nodes)
	i := slices.IndexFunc(next.State.Nodes, func(n control.Node) bool { return n.Name == name })
	change(&next.State.Nodes[i])
	return &next
}

// reload has the plan take a configuration.
func (p *plan) reload(t *testing.T, next *config.Config, now time.Time) {
	t.Helper()
	before := p.cfg
	p.cfg = next
	nodes := next.Peers(next.State)
	for k := range nodes {
		p.graceOf(&nodes[k], before, now)
	}
	if _, err := p.build(1, nodes); err != nil {
		t.Fatal(err)
	}
}

func TestGrace(t *testing.T) {
	for _, toEncrypted := range []bool{true, false} {
		t.Run(fmt.Sprintf("to encrypted %v", toEncrypted), func(t *testing.T) {
			p := newSecurePlan(t)
			out, err := p.build(1, p.cfg.Peers(p.cfg.State))
			if err != nil {
				t.Fatal(err)
			}
			p.secure.tunnel.SetPeers(out.tunnels, 0)
			now := time.Now()
			is := func(what, name string, encrypted, refuses bool, warnings int) {
				t.Helper()
				peer, _ := p.peer(t, name)
				if peer.Encrypted != encrypted || peer.RefusesPlaintext != refuses || len(p.allWarnings()) != warnings {
					t.Errorf("%s, %s: encrypted %v, refuses plaintext %v, warnings %q", what, name, peer.Encrypted,
						peer.RefusesPlaintext, p.allWarnings())
				}
			}
			mover, other := "to-move", "moved"
			if !toEncrypted {
				mover, other = other, "six"
			}
			is("before", mover, !toEncrypted, !toEncrypted, 0)
			p.reload(t, p.changed(mover, func(n *control.Node) { n.Encapsulation = asks(toEncrypted) }), now)
			is("in its grace", mover, true, false, 1)
			is("beside", other, true, true, 1)
			p.reload(t, p.changed(mover, func(*control.Node) {}), now.Add(time.Minute))
			if len(p.endGraces(now.Add(graceTime-time.Second))) > 0 {
				t.Error("the grace ended early")
			}
			is("after another reload", mover, true, false, 1)
			if len(p.endGraces(now.Add(graceTime))) != 1 || len(p.endGraces(now.Add(graceTime))) > 0 {
				t.Error("the grace does not end once")
			}
			is("after it", mover, toEncrypted, toEncrypted, 0)

			// There and back again, without a key, and gone.
			p.reload(t, p.changed(mover, func(n *control.Node) { n.Encapsulation = asks(!toEncrypted) }), now)
			p.reload(t, p.changed(mover, func(n *control.Node) { n.Encapsulation = asks(toEncrypted) }), now)
			is("there and back", mover, true, false, 1)
			p.reload(t, p.changed(mover, func(n *control.Node) {
				n.Encapsulation, n.PublicKey = control.VXLAN, key.Public{}
			}), now)
			is("without a key", mover, false, false, 0)
			p.grace[other] = now.Add(graceTime)
			gone := *p.cfg
			gone.State.Nodes = gone.State.Nodes[:1]
			p.reload(t, &gone, now)
			if len(p.grace) > 0 {
				t.Errorf("graces of peers that are gone: %v", p.grace)
			}
		})
	}
}

func TestPreferredKey(t *testing.T) {
	a, b := key.NewPrivate(), key.NewPrivate()
	ring := key.Ring{Keys: []key.Private{a, b}}
	cfg := &config.Config{Control: config.Static, Node: "n", File: "w.yaml", StateDir: "/state"}
	for want, public := range []key.Public{a.Public(), b.Public()} {
		cfg.Self.PublicKey = public
		if i, err := preferred(ring, cfg); err != nil || i != want {
			t.Errorf("key %d: %d, %v", want, i, err)
		}
	}
	cfg.Self.PublicKey = key.NewPrivate().Public()
	_, err := preferred(ring, cfg)
	for _, part := range []string{cfg.Self.PublicKey.String(), a.Public().String(), "w.yaml", "/state/wireguard.key"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v: want %q in it", err, part)
		}
	}
}

// The tunnel's own packets must not be routed into the tunnel.
func TestNoEndpointInThePodNetwork(t *testing.T) {
	n := &Node{cfg: &config.Config{}}
	n.cfg.Self.Addresses = []netip.Addr{addr("192.0.2.1")}
	n.view.Store(&view{cfg: &config.Config{Cluster: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}})
	for a, want := range map[string]bool{
		"10.244.3.4": false, "192.0.2.9": true, "2001:db8::9": true, "192.0.2.1": false, "fe80::1": false, "127.0.0.1": false,
		"224.0.0.1": false, "0.0.0.0": false, "255.255.255.255": false, "::ffff:192.0.2.9": false,
	} {
		if n.mayBeEndpoint(addr(a)) != want {
			t.Errorf("%s may be a peer's endpoint: %v, want %v", a, !want, want)
		}
	}
}

func TestRoamingIsToldNowAndThen(t *testing.T) {
	var r roaming
	now, told := time.Now(), 0
	for range 1000 {
		if r.note(now) {
			told++
		}
		now = now.Add(10 * time.Millisecond)
	}
	if told < 9 || told > 11 || !r.news.Load() {
		t.Errorf("told %d times in ten seconds", told)
	}
}

func TestPresharedKeyThatChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "psk")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first, second := key.NewPreshared(), key.NewPreshared()
	p := newSecurePlan(t)
	for i := range p.cfg.State.Nodes {
		p.cfg.State.Nodes[i].PresharedKeyFile = file
	}
	if _, err := p.build(1, p.cfg.Peers(p.cfg.State)); err == nil {
		t.Error("no error without the file")
	}
	in := func() (key.Preshared, []string) {
		out, err := p.build(2, p.cfg.Peers(p.cfg.State))
		if err != nil {
			t.Fatal(err)
		}
		return out.tunnels[0].Preshared, p.allWarnings()
	}
	write(first.RevealText() + "\n")
	if k, warnings := in(); k != first || len(warnings) > 0 || p.files.changed() {
		t.Errorf("the key of the file is not used: %q", warnings)
	}
	write("spoilt")
	if !p.files.changed() {
		t.Error("a file that was spoilt is not noticed")
	}
	if k, warnings := in(); k != first || len(warnings) != 4 || p.files.changed() {
		t.Errorf("the last good key is not used: %q", warnings)
	}
	write(first.RevealText() + "\n")
	if !p.files.changed() {
		t.Error("a file that is back is not noticed")
	}
	if _, warnings := in(); len(warnings) > 0 || p.files.changed() {
		t.Errorf("warnings that no longer hold: %q", warnings)
	}
	write(second.RevealText() + "\n")
	if !p.files.changed() {
		t.Error("a change is not noticed")
	}
	if k, _ := in(); k != second {
		t.Error("the new key is not used")
	}
}

// asks is the encapsulation of a node that is encrypted, or else plaintext.
func asks(encrypted bool) control.Encapsulation {
	if encrypted {
		return control.WireGuard
	}
	return control.VXLAN
}

// TestPresharedKeyOfTheCluster: the file's key is for nodes of which a control plane tells too, and those are left out
// while it cannot be read.
func TestPresharedKeyOfTheCluster(t *testing.T) {
	file := filepath.Join(t.TempDir(), "psk")
	shared := key.NewPreshared()
	p := newSecurePlan(t)
	p.cfg.Control, p.cfg.PresharedKeyFile = config.Etcd, file
	nodes := p.cfg.Peers(p.cfg.State)
	out, err := p.build(1, nodes)
	if err != nil || len(out.tunnels) > 0 || !strings.Contains(strings.Join(p.allWarnings(), ""), file) {
		t.Fatalf("without the file: %+v, %q, %v", out.tunnels, p.allWarnings(), err)
	}
	if p.files.changed() {
		t.Error("a file that is still missing has changed")
	}
	if err := os.WriteFile(file, []byte(shared.RevealText()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !p.files.changed() {
		t.Error("a file that has come is not noticed")
	}
	if out, err = p.build(2, nodes); err != nil || len(out.tunnels) != 4 {
		t.Fatalf("with the file: %+v, %v", out, err)
	}
	for _, c := range out.tunnels {
		if c.Preshared != shared {
			t.Errorf("%s goes without the preshared key", c.Name)
		}
	}
	if p.files.changed() {
		t.Error("nothing has changed since")
	}
}

// TestPresharedKeyThatNobodyAsksFor: a file that is in the configuration no more is looked at no more.
func TestPresharedKeyThatNobodyAsksFor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "psk")
	if err := os.WriteFile(file, []byte(key.NewPreshared().RevealText()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newSecurePlan(t)
	p.cfg = p.changed("moved", func(n *control.Node) { n.PresharedKeyFile = file })
	build := func() {
		t.Helper()
		if _, err := p.build(1, p.cfg.Peers(p.cfg.State)); err != nil {
			t.Fatal(err)
		}
	}
	build()
	p.cfg = p.changed("moved", func(n *control.Node) { n.PresharedKeyFile = "" })
	build()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if p.files.changed() {
		t.Error("a file that nobody asks for has changed")
	}
}

// TestPresharedKeyOfALateComer: a peer that comes after its file changed has the key that the others have, until all
// get the new one; whoever read the file first must not hide that it has changed.
func TestPresharedKeyOfALateComer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "psk")
	write := func() key.Preshared {
		t.Helper()
		k := key.NewPreshared()
		if err := os.WriteFile(file, []byte(k.RevealText()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := write()
	p := newSecurePlan(t)
	p.cfg.Control, p.cfg.PresharedKeyFile = config.Etcd, file
	nodes := p.cfg.Peers(p.cfg.State)
	if _, err := p.build(1, nodes[1:]); err != nil {
		t.Fatal(err)
	}
	second := write()
	out, err := p.change(2, nodes[:1], nil)
	if err != nil || len(out.tunnels) != 1 || out.tunnels[0].Preshared != first {
		t.Fatalf("%+v, %v", out, err)
	}
	if !p.files.changed() {
		t.Fatal("the change is not noticed")
	}
	out, err = p.build(3, nodes)
	if err != nil || len(out.tunnels) != 4 || p.files.changed() {
		t.Fatalf("%+v, %v", out, err)
	}
	for _, c := range out.tunnels {
		if c.Preshared != second {
			t.Errorf("%s has another key", c.Name)
		}
	}
}
