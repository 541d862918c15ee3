package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/yamldoc"
)

// testKey is a public key of 32 equal bytes.
func testKey(b byte) key.Public {
	return key.Public([]byte(strings.Repeat(string(rune(b)), key.Size)))
}

// encrypted is a file with keys: b asks for plaintext.
var encrypted = fmt.Sprintf(`cluster: [10.244.0.0/16, "fd00:10:244::/48"]
nodes:
  - {name: a, addresses: [192.0.2.1, "2001:db8::1"], podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"], publicKey: %q}
  - {name: b, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24], publicKey: %q, encapsulation: vxlan}
  - {name: c, addresses: [192.0.2.3], podCIDRs: [10.244.3.0/24], publicKey: %q, wireguardPort: 5000}
peers:
  - {name: laptop, publicKey: %q, addresses: ["fd00:10:244:ff::7"]}
`, testKey('a'), testKey('b'), testKey('c'), testKey('l'))

func TestEncrypted(t *testing.T) {
	for _, c := range []struct {
		node  string
		own   control.Encapsulation
		peers map[string]bool
	}{
		{"a", "wireguard", map[string]bool{"b": false, "c": true, "laptop": true}},
		{"b", "vxlan", map[string]bool{"a": false, "c": false, "laptop": true}},
		{"c", "wireguard", map[string]bool{"a": true, "b": false, "laptop": true}},
	} {
		cfg, err := parse(encrypted + "node: " + c.node + "\n")
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Encapsulation() != c.own {
			t.Errorf("%s: encapsulation %s", c.node, cfg.Encapsulation())
		}
		peers := cfg.Peers(cfg.State)
		if len(peers) != len(c.peers) {
			t.Errorf("%s: %d peers", c.node, len(peers))
		}
		for _, p := range peers {
			if got := cfg.Encrypted(&p); got != c.peers[p.Name] {
				t.Errorf("%s with %s: encrypted %v", c.node, p.Name, got)
			}
		}
		if c.node == "a" && (cfg.WireGuardPortOf(&cfg.Self) != 51820 || cfg.WireGuardPortOf(&cfg.State.Nodes[2]) != 5000) {
			t.Errorf("ports %d and %d", cfg.WireGuardPortOf(&cfg.Self), cfg.WireGuardPortOf(&cfg.State.Nodes[2]))
		}
	}
}

func TestTunnelErrors(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"a peer's name", encrypted + "node: laptop\n",
			`w.yaml:8: node: "laptop" is a peer, not a node: any WireGuard runs there, as ` + "`warren peer config` says; " +
				"move it from `peers` to `nodes` with a pod CIDR, or set `node` to one of a, b, c"},
		{"the host is a peer", strings.Replace(encrypted, "name: a,", "name: d,", 1) +
			fmt.Sprintf("  - {name: a, publicKey: %q, addresses: [10.244.9.9]}\n", testKey('m')),
			`w.yaml:6: peers: "a" (this host's name, as ` + "`node` is not set) is a peer, not a node"},
		{"one port", encrypted + "wireguard: {port: 4789}\n",
			`w.yaml:8: wireguard.port: "4789" is the port of this node's VXLAN tunnel too; use another`},
		{"one port of this node", strings.Replace(encrypted, "5000", "4789", 1) + "node: c\n",
			`w.yaml:5: nodes[2].wireguardPort: "4789" is the port of this node's VXLAN tunnel too`},
		{"no key", strings.Replace(encrypted, fmt.Sprintf("publicKey: %q, wire", testKey('c')), "wire", 1),
			"w.yaml:5: nodes[2].publicKey: node c has no publicKey, so traffic to it could not be encrypted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(c.in)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got  %v\nwant %q in it", err, c.want)
			}
			var e *yamldoc.Error
			if !errors.As(err, &e) || e.Fix == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line with a remedy: %v", err)
			}
		})
	}
	// Another node's port may be any.
	if _, err := parse(strings.Replace(encrypted, "5000", "4789", 1)); err != nil {
		t.Error(err)
	}
}

// TestAdoptKeys changes what a cluster changes on its way from VXLAN to WireGuard, and in a rotation of keys.
func TestAdoptKeys(t *testing.T) {
	running, err := parse(encrypted)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(from, to string) *Config {
		t.Helper()
		next, err := parse(strings.Replace(encrypted, from, to, 1))
		if err != nil {
			t.Fatal(err)
		}
		if restart := running.NeedsRestart(next); restart != nil {
			t.Errorf("%s for %s needs a restart: %v", to, from, restart)
		}
		merged, err := running.Adopt(next)
		if err != nil {
			t.Fatal(err)
		}
		own := slices.IndexFunc(merged.State.Nodes, func(n control.Node) bool { return n.Name == "a" })
		if merged.State.Nodes[own].PublicKey != merged.Self.PublicKey ||
			merged.State.Nodes[own].Encapsulation != merged.Self.Encapsulation {
			t.Errorf("the state says %+v, Self %+v", merged.State.Nodes[own], merged.Self)
		}
		return merged
	}
	named := func(c *Config, name string) control.Node {
		i := slices.IndexFunc(c.State.Nodes, func(n control.Node) bool { return n.Name == name })
		return c.State.Nodes[i]
	}
	if c := edit(testKey('a').String(), testKey('A').String()); c.Self.PublicKey != testKey('A') {
		t.Errorf("own key %s", c.Self.PublicKey)
	}
	if c := edit(fmt.Sprintf("publicKey: %q}\n", testKey('a')), "encapsulation: vxlan}\n"); !c.Self.Plaintext() ||
		!c.Self.PublicKey.IsZero() {
		t.Errorf("%+v", c.Self)
	}
	if c := edit(", encapsulation: vxlan", ""); named(c, "b").Encapsulation != "" {
		t.Error("peer b did not become encrypted")
	}
	if c := edit(testKey('c').String(), testKey('C').String()); named(c, "c").PublicKey != testKey('C') {
		t.Errorf("%+v", named(c, "c"))
	}
	if c := edit("5000", "5001"); named(c, "c").WireGuardPort != 5001 {
		t.Errorf("%+v", named(c, "c"))
	}
	const file = "wireguard: {presharedKeyFile: /etc/psk}\ncluster:"
	if c := edit("cluster:", file); named(c, "c").PresharedKeyFile != "/etc/psk" {
		t.Errorf("%+v", named(c, "c"))
	}
	if c := edit("name: laptop", "name: phone"); !named(c, "phone").Roams || len(c.State.Nodes) != 4 {
		t.Errorf("%+v", c.State.Nodes)
	}
	if running.Self.PublicKey != testKey('a') || running.Self.Plaintext() || len(running.State.Nodes) != 4 {
		t.Error("the running configuration changed")
	}
}

func TestKeysThatNeedARestart(t *testing.T) {
	running, err := parse(encrypted)
	if err != nil {
		t.Fatal(err)
	}
	for edit, want := range map[[2]string]string{
		{"cluster:", "wireguard: {port: 51821}\ncluster:"}: "wireguard.port: 51820 → 51821; " +
			"wireguardPort of this node: 51820 → 51821",
		{"name: a,", "name: a, wireguardPort: 7,"}: "wireguardPort of this node: 51820 → 7",
	} {
		next, err := parse(strings.Replace(encrypted, edit[0], edit[1], 1))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(running.NeedsRestart(next), "; "); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		merged, err := running.Adopt(next)
		if err != nil {
			t.Fatal(err)
		}
		if p := merged.WireGuardPortOf(&merged.Self); p != 51820 {
			t.Errorf("own port %d before the restart", p)
		}
	}
}

// TestAdoptRefusesStrangersKeys has a file that calls this host by another name, so that a peer may contradict it.
func TestAdoptRefusesStrangersKeys(t *testing.T) {
	running, err := parse(encrypted)
	if err != nil {
		t.Fatal(err)
	}
	moved := []string{"name: a,", "name: z,", "192.0.2.1,", "192.0.2.7,", "2001:db8::1", "2001:db8::7",
		"10.244.1.0", "10.244.7.0", ":1::/64", ":7::/64"}
	for want, edit := range map[string][]string{
		fmt.Sprintf("publicKey %s of node z is the one that this node has until a restart", testKey('a')): moved,
		"pod CIDR 10.244.1.9/32 of peer laptop overlaps 10.244.1.0/24": append(slices.Clone(moved),
			testKey('a').String(), testKey('z').String(), `"fd00:10:244:ff::7"`, "10.244.1.9"),
	} {
		next, err := parse(strings.NewReplacer(edit...).Replace(encrypted) + "node: z\n")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := running.Adopt(next); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got  %v\nwant %q in it", err, want)
		}
	}
}

// TestDirectoriesIn finds the directories in files that Load refuses.
func TestDirectoriesIn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.yaml")
	if _, err := StateDirIn(path); err == nil || !strings.Contains(err.Error(), "there is no such file") {
		t.Errorf("no file: %v", err)
	}
	for _, c := range []struct{ text, dir, want string }{
		{"", DefaultStateDir, ""},
		{"nodes: [{name: a}]\nstateDir: /var/lib/w/\n", "/var/lib/w/", ""},
		{"cluster: 7\nunknown: [1]\n", DefaultStateDir, ""},
		{"stateDir: w\n", "", "w.yaml: stateDir: \"w\" is not an absolute path; write it as /var/lib/warren"},
		{"stateDir: [w]\n", "", "name the state directory with --state-dir"},
		{"a: [\n", "", "name the state directory with --state-dir"},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		dir, err := StateDirIn(path)
		got := ""
		if err != nil {
			dir, got = "", err.Error()
		}
		if dir != c.dir || !strings.Contains(got, c.want) || c.want == "" && err != nil {
			t.Errorf("%q: %q, %v", c.text, dir, err)
		}
	}
}

// TestControl: with a control plane of its own the file says what this node is and which machines are no nodes; the
// rest is the control plane's.
func TestControl(t *testing.T) {
	const text = `node: a
control: kubernetes
cluster: [10.244.0.0/16]
addresses: [192.0.2.1]
encapsulation: vxlan
peers: [{name: laptop, addresses: [10.244.9.9], publicKey: "%s"}]
`
	cfg, err := parse(fmt.Sprintf(text, testKey('l')))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Own.Name != "a" || cfg.Own.Addresses[0].String() != "192.0.2.1" || !cfg.Own.Plaintext() ||
		len(cfg.State.Nodes) != 1 || cfg.State.Nodes[0].Name != "laptop" {
		t.Errorf("%+v", cfg)
	}
	self := control.Node{Name: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}
	known, err := cfg.With(self, cfg.Cluster)
	if err != nil || known.Gateways()[0].String() != "10.244.1.1" || len(cfg.Self.PodCIDRs) > 0 {
		t.Errorf("%+v, %v", known, err)
	}
	next, err := parse(strings.ReplaceAll(fmt.Sprintf(text, testKey('m')), "vxlan", "wireguard"))
	if err != nil {
		t.Fatal(err)
	}
	adopted, err := known.Adopt(next)
	if err != nil || adopted.Own.Plaintext() || adopted.State.Nodes[0].PublicKey != testKey('m') ||
		len(adopted.Self.PodCIDRs) != 1 || len(known.NeedsRestart(next)) > 0 {
		t.Errorf("%+v, %v, restart for %v", adopted, err, known.NeedsRestart(next))
	}
	// A node is direct once the others know that it asks for it, and no longer once it does not ask.
	peer := control.Node{Name: "b", Encapsulation: control.Auto}
	for _, d := range []struct {
		file, known control.Encapsulation
		want        control.Directness
	}{
		{control.Auto, control.Auto, control.OnLink}, {control.Auto, control.VXLAN, control.Never},
		{control.VXLAN, control.Auto, control.Never}, {control.VXLAN, "", control.Never},
	} {
		both := *known
		both.Own.Encapsulation, both.Self.Encapsulation = d.file, d.known
		if got := both.Direct(&peer); got != d.want {
			t.Errorf("asks for %s, known to ask for %s: %d, want %d", d.file, d.known, got, d.want)
		}
	}
	named, err := Parse(Source{File: "w.yaml", Data: []byte("cluster: [10.244.0.0/16]\n"), Hostname: "host", Node: "said",
		Control: Kubernetes})
	if err != nil || named.Node != "said" || named.Own.Name != "said" || named.Control != Kubernetes {
		t.Errorf("what the command line says: %+v, %v", named, err)
	}
	small := self
	small.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("fd00::/64")}
	narrow := *cfg
	narrow.MTU = 1000
	if _, err := narrow.With(small, nil); err == nil || !strings.Contains(err.Error(), "mtu") {
		t.Errorf("an MTU that the pods' family does not allow: %v", err)
	}
	for edit, want := range map[string]string{
		"control: kubernetes→control: cubernetes":     "is not a control plane",
		"cluster: [10.244.0.0/16]→nodes: [{name: a}]": "the cluster's address ranges are missing",
		"peers: →nodes: ":                             "is what `control: static` reads",
		"10.244.9.9→10.99.9.9":                        "is outside the cluster's ranges",
		"192.0.2.1→10.244.3.3":                        "lies inside the cluster's range",
		"control: kubernetes\n→":                      "nodes",
	} {
		from, to, _ := strings.Cut(edit, "→")
		_, err := parse(strings.Replace(fmt.Sprintf(text, testKey('l')), from, to, 1))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", edit, err, want)
		}
	}
}
