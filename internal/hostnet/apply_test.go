package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// foreign makes routes, rules and tables that look much like Warren's and are somebody else's.
const foreign = `
ip link add br-other type bridge && ip link set br-other addrgenmode none up && ip addr add 172.31.0.1/24 dev br-other
ip link add wrnother0 type bridge && ip link set wrnother0 addrgenmode none up
ip route add 10.244.9.0/24 dev br-other
ip route add unreachable 10.244.8.0/24 metric 2147483647
ip route add 10.244.1.77/32 dev wrnother0 proto 87
ip route add 10.99.0.0/16 dev br-other table 8787
ip -6 route add fd00:99::/64 dev br-other
ip rule add from 10.244.1.0/24 lookup 77 priority 6000
ip rule add iif br-other lookup main priority 5200
ip -6 rule add from fd00:99::/64 lookup 99 priority 5203
nft add table inet other
nft 'add chain inet other post { type nat hook postrouting priority 100; }'
nft add rule inet other post ip saddr 10.99.0.0/16 masquerade
nft add table ip warren
`

// A node whose pods have no IPv6 must not speak it into its TUN either: that would count as dropped.
func TestNothingSaidWithoutIPv6(t *testing.T) {
	w := newWorld(t)
	w.run("sysctl -qw net.ipv6.conf.all.forwarding=1") // as on a host that somebody else made a router
	w.tun("warren0")
	spec := testSpec()
	spec.Gateways, spec.PodCIDRs, spec.ClusterCIDRs = spec.Gateways[:1], spec.PodCIDRs[:1], spec.ClusterCIDRs[:1]
	for _, change := range w.apply(spec).Made {
		if strings.Contains(change, "fe80:") {
			t.Error(change)
		}
	}
	if out := w.run("ip -d link show warren0"); !strings.Contains(out, "addrgenmode none") {
		t.Errorf("the kernel makes a link-local address when it likes:\n%s", out)
	}
	if out := w.run("ip -6 maddr show dev warren0"); strings.Contains(out, "ff02::2") {
		t.Errorf("the device is in the group of all routers, and reports that:\n%s", out)
	}
	if second := w.apply(spec); len(second.Made) != 0 {
		t.Errorf("the second Apply changed: %s", strings.Join(second.Made, "\n"))
	}
}

func TestApplyIsIdempotentAndRemoveLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.run("set -e" + foreign)
	before := w.state()
	w.tun("warren0")

	first := w.apply(testSpec())
	if len(first.Made) == 0 {
		t.Fatal("the first Apply reports no change")
	}
	after := w.state() + w.run("ip -d link show warren0")
	for _, want := range []string{
		"5200:	from all iif warren0 lookup main proto 87",
		"5200:	from 10.244.1.0/24 fwmark 0x1000/0x1000 lookup main proto 87",
		"5201:	from all iif warren0 unreachable proto 87",
		"5201:	from 10.244.1.1 lookup main proto 87",
		"5203:	from 10.244.1.0/24 lookup 8787 proto 87",
		"5203:	from fd00:10:244:1::/64 lookup 8787 proto 87",
		"10.244.0.0/16 dev warren0 proto 87 scope link src 10.244.1.1",
		"unreachable 10.244.1.0/24 proto 87 metric 2147483647",
		"unreachable 10.244.0.0/16 proto 87 metric 2147483647",
		"default dev warren0 table 8787 proto 87 scope link",
		"unreachable default table 8787 proto 87 metric 2147483647",
		"fd00:10:244::/48 dev warren0 proto 87 src fd00:10:244:1::1 metric 1024",
		"unreachable fd00:10:244::/48 dev lo proto 87 metric 2147483647",
		"alias warren pod network", "mtu 1420", "qlen 1000", "addrgenmode none",
	} {
		if !strings.Contains(after, want) {
			t.Errorf("missing after Apply: %s", want)
		}
	}
	if strings.Contains(w.run("ip addr show dev warren0"), "fe80::") {
		t.Error("the device has a link-local address")
	}
	if t.Failed() {
		t.Log(after)
	}
	if second := w.apply(testSpec()); len(second.Made) != 0 {
		t.Errorf("the second Apply changed: %s", strings.Join(second.Made, "\n"))
	}
	for key, want := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/warren0/rp_filter": "2",
		"ipv4/conf/warren0/accept_local": "1", "ipv4/conf/warren0/send_redirects": "0", "ipv4/conf/all/send_redirects": "0",
	} {
		if got, err := sysctl(key); err != nil || got != want {
			t.Errorf("net/%s is %q (%v), want %q", key, got, err, want)
		}
	}

	w.must(Remove(testSpec(), false))
	if now := w.state(); now != before {
		t.Errorf("Remove did not leave what was there before:\n%s", diff(before, now))
	}
	w.must(Remove(testSpec(), false))
}

// TestApplyChangesOnlyTheDifference also renames, moves and shrinks everything that a reload may change.
func TestApplyChangesOnlyTheDifference(t *testing.T) {
	w := newWorld(t)
	w.run("ip link add wrn00000000001 type bridge")
	before := w.state()
	w.tun("warren0")
	w.apply(testSpec())
	w.must(EnsurePod(Pod{Interface: "wrn00000000001", Addrs: []netip.Addr{addr("10.244.1.2")}}))

	s := testSpec()
	s.PeerNodeAddrs = append(s.PeerNodeAddrs, addr("192.0.2.3"))
	c := w.apply(s)
	if len(c.Made) != 1 || !strings.Contains(c.Made[0], "nodes: 1 added") {
		t.Errorf("a new peer changed: %q", c.Made)
	}
	s.Table, s.RulePriority = 100, 3000
	s.Gateways, s.PodCIDRs = []netip.Addr{addr("10.244.7.1")}, []netip.Prefix{prefix("10.244.7.0/24")}
	s.ClusterCIDRs = []netip.Prefix{prefix("10.244.0.0/16")}
	s.Masquerade = false
	w.apply(s)
	now := w.state()
	for _, gone := range []string{"10.244.1.0", "8787", "fd00:10:244", "masquerade", "10.244.1.1", "520"} {
		if i := strings.Index(strings.ReplaceAll(now, "10.244.1.2", ""), gone); i >= 0 {
			t.Errorf("%q is still there:\n%s", gone, now)
		}
	}
	if !strings.Contains(now, `"wrn00000000001" . 10.244.1.2`) {
		t.Error("the pod's element is gone from the source check")
	}
	if c := w.apply(s); len(c.Made) != 0 {
		t.Errorf("the second Apply changed: %q", c.Made)
	}
	w.must(Remove(s, false))
	if now := w.state(); now != before {
		t.Errorf("Remove did not leave what was there before:\n%s", diff(before, now))
	}
}

// TestForeignRouteInTheWay: a route of somebody else with our destination and metric is named, and left alone.
func TestForeignRouteInTheWay(t *testing.T) {
	w := newWorld(t)
	w.tun("warren0")
	w.run("ip route add 10.244.0.0/16 dev lo")
	_, err := Apply(testSpec(), discard())
	if err == nil || !strings.Contains(err.Error(), "somebody else's route to 10.244.0.0/16") {
		t.Errorf("Apply: %v", err)
	}
	if s := w.state(); !strings.Contains(s, "10.244.0.0/16 dev lo") || !strings.Contains(s, "chain replies") ||
		!strings.Contains(s, "fd00:10:244::/48 dev warren0") {
		t.Errorf("the route was touched, or the rest is missing:\n%s", s)
	}
	w.run("ip route del 10.244.0.0/16 dev lo")
	w.apply(testSpec())
}

func TestApplyWithoutTheDevice(t *testing.T) {
	w := newWorld(t)
	_, err := Apply(testSpec(), discard())
	if !errors.Is(err, ErrNoDevice) {
		t.Fatalf("Apply without the device: %v", err)
	}
	if s := w.state(); !strings.Contains(s, "unreachable 10.244.0.0/16") || !strings.Contains(s, "lookup 8787") {
		t.Errorf("no guards without the device:\n%s", s)
	}
	w.run("ip link add warren0 type bridge")
	before := w.run("ip -d link show warren0; ip addr show warren0")
	if _, err = Apply(testSpec(), discard()); !errors.Is(err, ErrDeviceTaken) {
		t.Errorf("Apply with somebody else's device: %v", err)
	}
	w.must(Remove(testSpec(), false))
	if now := w.run("ip -d link show warren0; ip addr show warren0"); now != before {
		t.Errorf("somebody else's device was touched:\n%s", diff(before, now))
	}
}

// TestDeviceIsQuiet: the kernel has nothing to say on the TUN by itself, which the forwarder would have to drop.
func TestDeviceIsQuiet(t *testing.T) {
	w := newWorld(t)
	seen := make(chan string, 100)
	for _, when := range []string{"first", "with forwarding on"} {
		tun := w.tunSeeing("warren0", func(p []byte) { seen <- fmt.Sprintf("%x", p) })
		w.apply(testSpec())
		time.Sleep(3 * time.Second)
		const leave = "8f00" // an MLDv2 report (RFC 3810), of which one that it left is sent twice
		for n := 0; len(seen) > 0; n++ {
			if p := <-seen; when == "first" || n >= 2 || !strings.Contains(p, leave) {
				t.Errorf("%s: the kernel sent into the TUN: %s", when, p)
			}
		}
		if v, _ := sysctl("ipv6/conf/warren0/forwarding"); v != "1" {
			t.Errorf("%s: forwarding of the device is %s", when, v)
		}
		w.must(tun.Close())
	}
}

func TestDumpsAreRepeated(t *testing.T) {
	for _, interrupted := range []error{netlink.ErrDumpInterrupted, unix.EINTR, fmt.Errorf("dump: %w", unix.EINTR)} {
		n := 0
		got, err := dump(func() ([]int, error) {
			if n++; n < 3 {
				return []int{0}, interrupted
			}
			return []int{n}, nil
		})
		if err != nil || len(got) != 1 || got[0] != 3 {
			t.Errorf("%v: got %v, %v", interrupted, got, err)
		}
	}
	if _, err := dump(func() ([]int, error) { return nil, unix.EINTR }); !errors.Is(err, unix.EINTR) {
		t.Errorf("a dump that never ends well: %v", err)
	}
	n := 0
	_, err := dump(func() ([]int, error) { n++; return nil, unix.EPERM })
	if !errors.Is(err, unix.EPERM) || n != 1 {
		t.Errorf("%v after %d attempts", err, n)
	}
}

func TestApplyIPv4OnlyLeavesIPv6Alone(t *testing.T) {
	w := newWorld(t)
	s := testSpec()
	s.Gateways, s.PodCIDRs, s.ClusterCIDRs = s.Gateways[:1], s.PodCIDRs[:1], s.ClusterCIDRs[:1]
	w.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
	before := w.run("ip -6 rule; ip -6 route show table all")
	w.tun("warren0")
	w.apply(s)
	if now := w.run("ip -6 rule; ip -6 route show table all"); now != before {
		t.Errorf("IPv6 changed:\n%s", diff(before, now))
	}
	if v, _ := sysctl("ipv6/conf/all/forwarding"); v != "0" {
		t.Error("IPv6 forwarding was turned on")
	}
}

func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	w := newWorld(t)
	w.run("ip link add up0 type veth peer name up1; ip link add up2 type veth peer name up3")
	w.run("sysctl -qw net.ipv6.conf.up0.accept_ra=1 net.ipv6.conf.up2.accept_ra=0")
	w.tun("warren0")
	w.apply(testSpec())
	for key, want := range map[string]string{"up0": "2", "up2": "0", "default": "1"} {
		if v, _ := sysctl("ipv6/conf/" + key + "/accept_ra"); v != want {
			t.Errorf("accept_ra of %s is %s, want %s", key, v, want)
		}
	}
}

func TestSpecValidation(t *testing.T) {
	tests := []struct {
		name string
		edit func(*Spec)
		want string
	}{
		{"no device", func(s *Spec) { s.Device = "" }, "device name"},
		{"long device", func(s *Spec) { s.Device = "abcdefghijklmnop" }, "15 bytes"},
		{"path as device", func(s *Spec) { s.Device = "../all" }, "slash"},
		{"pod's name", func(s *Spec) { s.Device = "wrn0" }, "those of pods"},
		{"main table", func(s *Spec) { s.Table = 254 }, "routing table 254"},
		{"negative table", func(s *Spec) { s.Table = -1 }, "routing table -1"},
		{"late rule", func(s *Spec) { s.RulePriority = 32764 }, "rule priority 32764"},
		{"small MTU", func(s *Spec) { s.MTU = 1200 }, "IPv6: 1280"},
		{"bad CIDR", func(s *Spec) { s.PodCIDRs = []netip.Prefix{prefix("10.244.1.1/24")} }, "10.244.1.1/24"},
		{"default as CIDR", func(s *Spec) { s.ClusterCIDRs = []netip.Prefix{prefix("0.0.0.0/0")} }, "0.0.0.0/0"},
		{"gateway outside", func(s *Spec) { s.Gateways = []netip.Addr{addr("10.1.1.1")} }, "gateway 10.1.1.1"},
		{"pod's interface", func(s *Spec) { s.Pods = []Pod{{Interface: "eth0"}} }, `"eth0"`},
		{"bridge without MAC", func(s *Spec) { s.Pods = []Pod{{Interface: "wrn1", Bridge: "br0"}} }, "Ethernet address"},
		{"mapped address", func(s *Spec) {
			s.Pods = []Pod{{Interface: "wrn1", Addrs: []netip.Addr{addr("::ffff:10.0.0.1")}}}
		}, "::ffff:10.0.0.1"},
	}
	if err := testSpec().withDefaults().validate(); err != nil {
		t.Errorf("a good Spec is refused: %v", err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := testSpec()
			tt.edit(&s)
			if _, err := Apply(s, discard()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v does not contain %q", err, tt.want)
			}
		})
	}
}

// TestGuardsOfOwnCIDR covers a cluster of one node, whose CIDR is the node's own.
func TestGuardsOfOwnCIDR(t *testing.T) {
	s := Spec{
		PodCIDRs: []netip.Prefix{prefix("10.244.0.0/16")}, ClusterCIDRs: []netip.Prefix{prefix("10.244.0.0/16")},
		Gateways: []netip.Addr{addr("10.244.0.1")}, Device: "warren0",
	}.withDefaults()
	if got := len(s.guards([]family{v4})); got != 2 {
		t.Errorf("%d guards, want one in main and one in Warren's table", got)
	}
	leads := slices.ContainsFunc(s.deviceRoutes([]family{v4}, 3), func(r route) bool { return r.table == 254 })
	if leads {
		t.Error("absent local pods would be looked for in the TUN")
	}
}

// diff shows the lines that only one of the texts has.
func diff(before, after string) string {
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	var out []string
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}
