package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/yamldoc"
)

const base = `encapsulation: vxlan
cluster: [10.244.0.0/16, "fd00:10:244::/48"]
nodes:
  - {name: a, addresses: [192.0.2.1, "2001:db8::1"], podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}
  - {name: b, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24]}
`

func parse(text string) (*Config, error) {
	return Parse(Source{File: "w.yaml", Data: []byte(text), Hostname: "a"})
}

func TestDefaults(t *testing.T) {
	c, err := parse(base)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		File: "w.yaml", Control: Static, Node: "a", Self: c.State.Nodes[0], State: c.State,
		Cluster: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Device:  "warren0", VNI: 1, Port: 4789, WireGuardPort: 51820, Express: true, Moderation: true, Masquerade: true,
		Offloads: Offloads{Checksum: true, TSO: true, USO: true, UDPGSO: true, UDPGRO: true, TunnelGSO: true,
			Superframes: true},
		Table: 8787, RulePriority: 5200, RunDir: "/run/warren", StateDir: "/var/lib/warren", OnExit: Remove,
		LogLevel: slog.LevelInfo, LogFormat: "text",
	}
	if !reflect.DeepEqual(*c, want) {
		t.Errorf("got  %+v\nwant %+v", *c, want)
	}
	if c.Self.Name != "a" || c.SocketPath() != "/run/warren/warren.sock" || c.MinMTU() != MinMTU6 {
		t.Errorf("self %q, socket %q, least MTU %d", c.Self.Name, c.SocketPath(), c.MinMTU())
	}
	if g := fmt.Sprint(c.Gateways()); g != "[10.244.1.1 fd00:10:244:1::1]" {
		t.Errorf("gateways %s", g)
	}
	if p := c.Peers(c.State); len(p) != 1 || p[0].Name != "b" || c.PortOf(&p[0]) != 4789 {
		t.Errorf("peers %+v", p)
	}
}

func TestEverythingSet(t *testing.T) {
	c, err := parse(base + `node: b
device: pods.1
mtu: 576
wireguard: {persistentKeepalive: 25, port: 4789, presharedKeyFile: /etc/psk/}
vxlan: {vni: 16777215, port: 8472}
workers: 2
express: off
moderation: off
masquerade: false
offloads: {checksum: off, tso: off, uso: auto, udpGSO: off, udpGRO: "off", tunnelGSO: off, superframes: off}
routing: {table: 100, rulePriority: 7}
metrics: "[::1]:9187"
runDir: /tmp/run/
stateDir: /tmp/state
onExit: leave
log: {level: debug, format: json}
`)
	if err != nil {
		t.Fatal(err)
	}
	if c.Self.Name != "b" || c.MTU != 576 || c.MinMTU() != MinMTU4 || c.VNI != 16777215 || c.Port != 8472 ||
		c.WireGuardPort != 4789 || c.PersistentKeepalive != 25*time.Second ||
		c.State.Nodes[0].PresharedKeyFile != "/etc/psk" || c.PresharedKeyFile != "/etc/psk" ||
		c.Offloads != (Offloads{USO: true}) || c.RunDir != "/tmp/run" || c.OnExit != Leave || c.Masquerade ||
		c.LogLevel != slog.LevelDebug || c.Workers != 2 || c.Express || c.Moderation || c.Table != 100 ||
		c.RulePriority != 7 || c.Device != "pods.1" {
		t.Errorf("%+v", c)
	}
}

func TestErrors(t *testing.T) {
	with := func(line string) string { return base + line + "\n" }
	edit := func(from, to string) string { return strings.Replace(base, from, to, 1) }
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", "w.yaml: the file is empty"},
		{"two documents", base + "---\n" + base, "w.yaml:6: a second YAML document"},
		{"unknown key", with("devcie: x"), "w.yaml:6: devcie: unknown key; did you mean device?"},
		{"unknown nested key", with("vxlan: {vnid: 1}"), "w.yaml:6: vxlan.vnid: unknown key; did you mean vni?"},
		{"duplicate key", with("cluster: []"), "w.yaml:6: cluster: the key stands here a second time"},
		{"cluster's own check", edit("10.244.2.0/24", "10.244.2.0/99"), "w.yaml:5: nodes[1].podCIDRs[0]:"},
		{"own node missing", edit("name: a", "name: c"),
			`w.yaml:3: nodes: "a" (this host's name, as ` + "`node` is not set) is not in the list of nodes; add it to " +
				"`nodes` with its pod CIDR, or set `node` to one of c, b"},
		{"named node missing", with("node: z"), `w.yaml:6: node: "z" is not in the list of nodes`},
		{"own CIDR missing", edit(`[10.244.1.0/24, "fd00:10:244:1::/64"]`, "[]"), "node a has no pod CIDR"},
		{"underlay families", edit("[192.0.2.1, \"2001:db8::1\"]", "[\"2001:db8::1\"]"),
			`w.yaml:5: nodes[1].addresses: "192.0.2.2" of node b: no common address family with this node a (2001:db8::1)`},
		{"pod families", edit(`[10.244.1.0/24, "fd00:10:244:1::/64"]`, `["fd00:10:244:1::/64"]`),
			"w.yaml:5: nodes[1].podCIDRs: \"10.244.2.0/24\" of node b: no common address family with the pods of this node a"},
		{"MTU 6", with("mtu: 1279"), `w.yaml:6: mtu: "1279" is below 1280, the minimum of IPv6`},
		{"MTU 4", with("mtu: 575\nnode: b"), `w.yaml:6: mtu: "575" is below 576`},
		{"MTU negative", with("mtu: -1"), "is below 1280"},
		{"MTU long", with("mtu: 65536"), "is above 65535"},
		{"MTU text", with("mtu: jumbo"), `"jumbo" is not a whole number`},
		{"device long", with("device: warren0123456789"),
			`device: "warren0123456789" has 16 bytes, but an interface name has at most 15`},
		{"device slash", with("device: a/b"), "has a character that interface names cannot have"},
		{"device blank", with("device: a b"), "has a character"},
		{"device format", with(`device: "w%d"`), "has a character"},
		{"device empty", with(`device: ""`), "is not an interface name"},
		{"device dots", with("device: .."), "is not an interface name"},
		{"device of a pod", with("device: wrn0"), "begins with wrn, as the pods' interfaces"},
		{"device all", with("device: all"), "keeps for itself"},
		{"port 0", with("vxlan: {port: 0}"), `w.yaml:6: vxlan.port: "0" is not a UDP port`},
		{"port high", with("vxlan: {port: 65536}"), "is not a UDP port"},
		{"VNI high", with("vxlan: {vni: 16777216}"), `vxlan.vni: "16777216" does not fit the 24 bits`},
		{"VNI negative", with("vxlan: {vni: -1}"), "does not fit the 24 bits"},
		{"workers", with("workers: 257"), "is not a number of workers"},
		{"workers negative", with("workers: -1"), "is not a number of workers"},
		{"express", with("express: on"), `express: "on" is neither auto nor off`},
		{"moderation", with("moderation: on"), `moderation: "on" is neither auto nor off`},
		{"checksum offload", with("offloads: {checksum: on}"), `offloads.checksum: "on" is neither auto nor off`},
		{"offload", with("offloads: {tso: on}"), `offloads.tso: "on" is neither auto nor off`},
		{"tunnel offload", with("offloads: {tunnelGSO: yes}"), `offloads.tunnelGSO: "yes" is neither auto, on nor off`},
		{"table main", with("routing: {table: 254}"), "is one of the kernel's own tables"},
		{"table high", with("routing: {table: 2147483648}"), "is not a routing table"},
		{"table 0", with("routing: {table: 0}"), "is not a routing table"},
		{"priority 0", with("routing: {rulePriority: 0}"), "leaves no room for four rules"},
		{"priority high", with("routing: {rulePriority: 32764}"), "leaves no room for four rules"},
		{"metrics", with("metrics: 9187"), "is not an address with a port"},
		{"metrics port", with("metrics: 127.0.0.1:99999"), "has no valid TCP port"},
		{"metrics name", with("metrics: example.org:80"), "has no IP address"},
		{"runDir", with("runDir: run/warren"), "runDir: \"run/warren\" is not an absolute path"},
		{"runDir root", with("runDir: /"), "is not an absolute path to a directory"},
		{"runDir long", with("runDir: /" + strings.Repeat("x", 100)),
			"makes the socket's path 113 bytes long, but the kernel takes 107"},
		{"stateDir", with("stateDir: x"), "stateDir: \"x\" is not an absolute path"},
		{"onExit", with("onExit: keep"), "is neither remove nor leave"},
		{"log level", with("log: {level: loud}"), `log.level: "loud" is not a log level; use debug, info, warn or error`},
		{"log format", with("log: {format: xml}"), "is not a log format"},
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
}

func TestOwnPortIsNotTheClusters(t *testing.T) {
	c, err := parse(strings.Replace(base, "name: a,", "name: a, port: 5000,", 1))
	if err != nil {
		t.Fatal(err)
	}
	if c.PortOf(&c.Self) != 5000 || c.PortOf(&c.State.Nodes[1]) != 4789 {
		t.Errorf("own %d, peer's %d", c.PortOf(&c.Self), c.PortOf(&c.State.Nodes[1]))
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.yaml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "there is no such file") {
		t.Errorf("absent: %v", err)
	}
	if err := os.WriteFile(path, []byte(base+"node: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil || c.File != path {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestNeedsRestart(t *testing.T) {
	running, err := parse(base)
	if err != nil {
		t.Fatal(err)
	}
	next, err := parse(strings.Replace(base, "10.244.1.0/24", "10.244.9.0/24", 1) +
		"  - {name: c, addresses: [192.0.2.3], podCIDRs: [10.244.3.0/24]}\n" +
		"device: pods0\nmasquerade: false\nonExit: leave\nlog: {level: debug}\n")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(running.NeedsRestart(next), "; ")
	want := "podCIDRs of this node: 10.244.1.0/24, fd00:10:244:1::/64 → 10.244.9.0/24, fd00:10:244:1::/64; " +
		"device: warren0 → pods0"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	merged, err := running.Adopt(next)
	if err != nil {
		t.Fatal(err)
	}
	if merged.Device != "warren0" || merged.Masquerade || merged.OnExit != Leave || merged.LogLevel != slog.LevelDebug ||
		len(merged.State.Nodes) != 3 || merged.Self.PodCIDRs[0].String() != "10.244.1.0/24" {
		t.Errorf("%+v", merged)
	}
	if running.Device != "warren0" || len(running.State.Nodes) != 2 || !running.Masquerade {
		t.Error("the running configuration changed")
	}
	if same := running.NeedsRestart(running); same != nil {
		t.Errorf("nothing changed: %v", same)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(base))
	f.Add([]byte(encrypted))
	f.Add([]byte(base + "routing: {table: 9999999999}\nmetrics: ':'\nvxlan: {vni: 0x10}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(Source{File: "f", Data: data, Hostname: "a"})
		if (c == nil) == (err == nil) {
			t.Fatal("either a configuration or an error")
		}
		if c != nil && (c.Self.Name != c.Node || len(c.Gateways()) == 0) {
			t.Fatalf("accepted %+v", c)
		}
	})
}
