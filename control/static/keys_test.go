package static

import (
	"errors"
	"fmt"
	"net/netip"
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

// encrypted is a file with two nodes that have keys, one of which asks for plaintext, one that has none, and two peers.
var encrypted = fmt.Sprintf(`cluster: [10.244.0.0/16, "fd00:10:244::/48"]
wireguard: {presharedKeyFile: /etc/warren/all.psk}
nodes:
  - {name: a, addresses: [192.0.2.1], podCIDRs: [10.244.1.0/24], publicKey: %q, wireguardPort: 5000}
  - {name: b, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24], publicKey: %q, encapsulation: vxlan}
  - {name: c, addresses: [192.0.2.3], podCIDRs: [10.244.3.0/24], encapsulation: vxlan, presharedKeyFile: /etc/c.psk}
peers:
  - {name: laptop, publicKey: %q, addresses: [10.244.255.7, "fd00:10:244:ff::7"], presharedKeyFile: /etc/l.psk}
  - {name: phone, publicKey: %q, addresses: [10.244.255.8]}
`, testKey('a'), testKey('b'), testKey('l'), testKey('p'))

func TestBuildKeys(t *testing.T) {
	c, err := build(encrypted)
	if err != nil {
		t.Fatal(err)
	}
	type said struct {
		publicKey        key.Public
		port             uint16
		plaintext, roams bool
		pskFile          string
	}
	want := map[string]said{
		"a":      {testKey('a'), 5000, false, false, "/etc/warren/all.psk"},
		"b":      {testKey('b'), 0, true, false, "/etc/warren/all.psk"},
		"c":      {key.Public{}, 0, true, false, "/etc/c.psk"},
		"laptop": {testKey('l'), 0, false, true, "/etc/l.psk"},
		"phone":  {testKey('p'), 0, false, true, "/etc/warren/all.psk"},
	}
	if len(c.State.Nodes) != len(want) {
		t.Fatalf("%d nodes and peers, want %d", len(c.State.Nodes), len(want))
	}
	for _, n := range c.State.Nodes {
		got := said{n.PublicKey, n.WireGuardPort, n.Plaintext(), n.Roams, n.PresharedKeyFile}
		if got != want[n.Name] {
			t.Errorf("%s: got  %+v\nwant %+v", n.Name, got, want[n.Name])
		}
	}
	laptop := c.State.Nodes[3]
	if len(laptop.Addresses) != 0 || len(laptop.PodCIDRs) != 2 ||
		laptop.PodCIDRs[0] != netip.MustParsePrefix("10.244.255.7/32") ||
		laptop.PodCIDRs[1] != netip.MustParsePrefix("fd00:10:244:ff::7/128") {
		t.Errorf("%+v", laptop)
	}
}

// TestEncapsulationOfANode goes through what the entry and the file can say together: which tunnel a node has, and
// whether it goes without.
func TestEncapsulationOfANode(t *testing.T) {
	const (
		none      = "refused"
		wireguard = "wireguard"
		vxlan     = "vxlan"
		direct    = "direct, else "
		auto      = "auto, else "
	)
	for _, c := range []struct {
		top, entry     control.Encapsulation
		keyed, keyless string
	}{
		{"", "", wireguard, none},
		{"", control.VXLAN, vxlan, vxlan},
		{"", control.WireGuard, wireguard, none},
		{"", control.Direct, direct + wireguard, direct + vxlan},
		{"", control.Auto, auto + wireguard, auto + vxlan},
		{control.WireGuard, "", wireguard, none},
		{control.WireGuard, control.VXLAN, vxlan, vxlan},
		{control.WireGuard, control.WireGuard, wireguard, none},
		{control.WireGuard, control.Auto, auto + wireguard, auto + vxlan},
		{control.VXLAN, "", wireguard, vxlan},
		{control.VXLAN, control.VXLAN, vxlan, vxlan},
		{control.VXLAN, control.WireGuard, wireguard, none},
		{control.VXLAN, control.Direct, direct + wireguard, direct + vxlan},
		{control.Direct, "", direct + wireguard, direct + vxlan},
		{control.Direct, control.Auto, auto + wireguard, auto + vxlan},
		{control.Direct, control.VXLAN, vxlan, vxlan},
		{control.Direct, control.WireGuard, wireguard, none},
		{control.Auto, "", auto + wireguard, auto + vxlan},
		{control.Auto, control.Direct, direct + wireguard, direct + vxlan},
		{control.Auto, control.WireGuard, wireguard, none},
	} {
		for publicKey, want := range map[string]string{testKey('a').String(): c.keyed, "": c.keyless} {
			cluster, err := build(fmt.Sprintf("cluster: [10.244.0.0/16]\nencapsulation: %q\nnodes: [{name: a, "+
				"addresses: [192.0.2.1], podCIDRs: [10.244.1.0/24], encapsulation: %q, publicKey: %q}]\n", c.top, c.entry,
				publicKey))
			got := none
			if err == nil {
				n := cluster.State.Nodes[0]
				if got = wireguard; n.Plaintext() {
					got = vxlan
				}
				switch n.Encapsulation {
				case control.Auto:
					got = auto + got
				case control.Direct:
					got = direct + got
				}
			}
			if got != want {
				t.Errorf("file %q, entry %q, key %q: %s (%v), want %s", c.top, c.entry, publicKey, got, err, want)
			}
		}
	}
}

func TestBuildKeyErrors(t *testing.T) {
	edit := func(from, to string) string {
		if !strings.Contains(encrypted, from) {
			t.Fatalf("%q is not in the file", from)
		}
		return strings.Replace(encrypted, from, to, 1)
	}
	quoted := func(b byte) string { return fmt.Sprintf("%q", testKey(b)) }
	const noKey = "add its publicKey (`warren key public` on that node prints it), or ask for plaintext with " +
		"`encapsulation: vxlan`"
	for _, c := range []struct{ name, in, want string }{
		{"no key", edit("publicKey: "+quoted('a')+", ", ""),
			"f:4: nodes[0].publicKey: node a has no publicKey, so traffic to it could not be encrypted; " + noKey},
		{"wireguard without a key", edit("encapsulation: vxlan, pre", "encapsulation: wireguard, pre"),
			`f:6: nodes[2].encapsulation: "wireguard" node c has no publicKey, so traffic to it could not be encrypted; ` +
				noKey},
		{"encapsulation", edit("encapsulation: vxlan}", "encapsulation: gre}"),
			`f:5: nodes[1].encapsulation: "gre" is not an encapsulation; use wireguard, or for plaintext on an underlay ` +
				`that can be trusted vxlan, direct or auto`},
		{"encapsulation of all", "encapsulation: host-gw\n" + encrypted, `f:1: encapsulation: "host-gw" is not an`},
		{"key", edit(quoted('a'), "secret"),
			`f:4: nodes[0].publicKey: "secret" is not a public key; write the 44 characters, with the = at the end, that ` +
				"`warren key public` or `wg pubkey` prints"},
		{"torn key", edit(testKey('a').String(), testKey('a').String()[:43]),
			`f:4: nodes[0].publicKey: "YWFhYWFh…" is not a public key`},
		{"zero key", edit(testKey('a').String(), key.Public{}.String()), `f:4: nodes[0].publicKey: "AAAAAAAA…" is not a`},
		{"key twice", edit(testKey('b').String(), testKey('a').String()),
			fmt.Sprintf("f:5: nodes[1].publicKey: %q is the publicKey of node a already; two of them cannot share one",
				testKey('a'))},
		{"key of a node", edit(testKey('p').String(), testKey('b').String()), "is the publicKey of node b already"},
		{"port of all", edit("wireguard: {", "wireguard: {port: 65536, "), `f:2: wireguard.port: "65536" is not a UDP port`},
		{"port 0 of all", edit("wireguard: {", "wireguard: {port: 0, "), `f:2: wireguard.port: "0" is not a UDP port`},
		{"keepalive", edit("wireguard: {", "wireguard: {persistentKeepalive: -1, "),
			`f:2: wireguard.persistentKeepalive: "-1" is not a number of seconds between 0 and 65535`},
		{"port", edit("5000", "-1"), `f:4: nodes[0].wireguardPort: "-1" is not a UDP port`},
		{"port high", edit("5000", "65536"), `f:4: nodes[0].wireguardPort: "65536" is not a UDP port`},
		{"file of all", edit("/etc/warren/all.psk", "all.psk"),
			`f:2: wireguard.presharedKeyFile: "all.psk" is not an absolute path; name the file as /etc/warren/psk`},
		{"file of a node", edit("/etc/c.psk", "c.psk"), `f:6: nodes[2].presharedKeyFile: "c.psk" is not an absolute path`},
		{"file of a peer", edit("/etc/l.psk", "l.psk"), `f:8: peers[0].presharedKeyFile: "l.psk" is not an absolute path`},
		{"key for a file", edit("/etc/l.psk", quoted('s')),
			"f:8: peers[0].presharedKeyFile: the key itself stands here, where everybody who reads this file finds it; write"},
		{"torn key for a file", edit("/etc/l.psk", testKey('s').String()[1:]), `"3Nzc3Nzc…" is not an absolute path`},
		{"peer without a name", edit("name: phone, ", ""), "f:9: peers[1].name: the peer has no name; name the machine"},
		{"peer's name", edit("name: phone", "name: my phone"), `"my phone" is not a peer name`},
		{"peer twice", edit("name: phone", "name: laptop"),
			`f:9: peers[1].name: "laptop" is in the list a second time; each peer`},
		{"peer named as a node", edit("name: phone", "name: b"), `f:9: peers[1].name: "b" is the name of node b already`},
		{"peer without a key", edit("publicKey: "+quoted('p')+", ", ""),
			"f:9: peers[1].publicKey: peer phone has no publicKey, which is what it is known by; add the one that its " +
				"WireGuard shows; `warren peer config phone --address ADDRESS` makes a key pair and prints the entry"},
		{"peer without an address", edit("[10.244.255.8]", "[]"),
			"f:9: peers[1].addresses: peer phone has no address in the pod network"},
		{"peer's address", edit("10.244.255.8", "10.244.255"),
			`f:9: peers[1].addresses[0]: "10.244.255" is not an IP address`},
		{"peer's range", edit("10.244.255.8", "10.244.255.8/32"), "leave the prefix length out: 10.244.255.8"},
		{"peer outside", edit("10.244.255.8", "10.245.0.8"),
			"of peer phone is outside the cluster's ranges [10.244.0.0/16 fd00:10:244::/48]; use one inside"},
		{"peer in pods", edit("10.244.255.8", "10.244.2.8"),
			"of peer phone is inside 10.244.2.0/24 of node b, which gives it to its pods"},
		{"peer's loopback", edit("10.244.255.8", "127.0.0.1"), "is not an address that a machine can have"},
		{"peers share", edit("10.244.255.8", "10.244.255.7"),
			`f:9: peers[1].addresses[0]: "10.244.255.7" is the address of peer laptop already`},
		{"peer's address twice", edit("10.244.255.8", "10.244.255.8, 10.244.255.8"),
			"is in the list a second time; each peer"},
		{"unknown key", edit("addresses: [10.244.255.8", "address: [10.244.255.8"), "did you mean addresses?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := build(c.in)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got  %v\nwant %q in it", err, c.want)
			}
			var e *yamldoc.Error
			if !errors.As(err, &e) || e.Line == 0 || e.Fix == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line with a place and a remedy: %v", err)
			}
		})
	}
}

// TestNoKeyInErrors puts a private key, whole or short of a character, wherever a value can stand.
func TestNoKeyInErrors(t *testing.T) {
	secret := key.NewPrivate().RevealText()
	places := []string{testKey('a').String(), testKey('l').String(), "/etc/c.psk", "/etc/l.psk", "/etc/warren/all.psk"}
	for _, value := range []string{secret, secret[:43], secret[1:], "x" + secret} {
		for _, where := range places {
			text := strings.Replace(encrypted, where, value, 1)
			if _, err := build(text); err != nil && strings.Contains(err.Error(), secret[9:40]) {
				t.Errorf("%q for %q: %v", value, where, err)
			}
		}
	}
}

// TestAdmit checks an entry by itself as Build checks it in the file.
func TestAdmit(t *testing.T) {
	c, err := build(encrypted)
	if err != nil {
		t.Fatal(err)
	}
	fresh := PeerSpec{Name: "new", PublicKey: testKey('n').String(),
		Addresses: []string{"10.244.255.9", "fd00:10:244:ff::9"}}
	n, err := c.Admit(fresh)
	if err != nil || n.Name != "new" || !n.Roams || n.PublicKey != testKey('n') || len(n.PodCIDRs) != 2 ||
		n.PresharedKeyFile != "/etc/warren/all.psk" {
		t.Errorf("%+v, %v", n, err)
	}
	for want, edit := range map[string]func(*PeerSpec){
		"is the name of node a already":           func(s *PeerSpec) { s.Name = "a" },
		"is in the list a second time; each peer": func(s *PeerSpec) { s.Name = "phone" },
		"is the publicKey of node b already":      func(s *PeerSpec) { s.PublicKey = testKey('b').String() },
		"is the address of peer laptop already":   func(s *PeerSpec) { s.Addresses = []string{"10.244.255.7"} },
		"is inside 10.244.3.0/24 of node c":       func(s *PeerSpec) { s.Addresses = []string{"10.244.3.7"} },
		"is outside the cluster's ranges":         func(s *PeerSpec) { s.Addresses = []string{"192.0.2.3"} },
	} {
		s := fresh
		edit(&s)
		if n, err := c.Admit(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got  %v\nwant %q in it", n, err, want)
		}
	}
	if len(c.State.Nodes) != 5 {
		t.Error("the cluster changed")
	}
}
