package hostnet

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

func testEnvironment() Environment {
	s := testSpec()
	s.MTU = 1420
	return Environment{Spec: s, VXLANPort: 4789}
}

// finding finds the worst finding about what.
func finding(fs []Finding, what string) Finding {
	var worst Finding
	for _, f := range fs {
		if f.What == what && (worst.Level == "" || worst.Level == OK || f.Level == Error) {
			worst = f
		}
	}
	return worst
}

func TestCheckOfAGoodHost(t *testing.T) {
	w := newWorld(t)
	w.underlay()
	before := w.state()
	for _, when := range []string{"before the start", "beside the daemon"} {
		fs := Check(testEnvironment())
		for _, f := range fs {
			if f.Level != OK {
				t.Errorf("%s: %+v", when, f)
			}
		}
		for _, what := range []string{
			"privileges", "TUN", "nftables", "IPv6", "device name", "MTU", "UDP port", "routes", "policy rules", "forwarding",
			"rp_filter", "firewall", "bridge netfilter", "conntrack",
		} {
			if finding(fs, what).Level == "" {
				t.Errorf("%s: nothing about %s", when, what)
			}
		}
		if when == "before the start" {
			if now := w.state(); now != before {
				t.Errorf("the check changed the host:\n%s", diff(before, now))
			}
			w.tun("warren0")
			w.apply(testSpec())
			w.attach(w.newNS(), "wrn00000000001", addr(pod1v4), addr(pod1v6))
		}
	}
}

func TestCheckFinds(t *testing.T) {
	tests := []struct {
		name, run string
		edit      func(*Environment)
		what      string
		level     Level
		why, mend string
	}{
		{"device taken", "ip link add warren0 type bridge", nil, "device name", Error, "not Warren's (bridge",
			"ip link del warren0"},
		{"underlay gone", "ip addr del 192.0.2.1/24 dev eth0", nil, "underlay", Error, "192.0.2.1", "addresses:"},
		{"MTU shrunk", "ip link set eth0 mtu 1460", nil, "MTU", Error, "need 14", "`mtu: 1380`"},
		{"MTU too small", "ip link set eth0 mtu 1300", func(e *Environment) { e.Spec.MTU = 0 }, "MTU", Error,
			"leaves pods 1220", "ip link set eth0 mtu 1360"},
		{"kernel VXLAN", "ip link add vx0 type vxlan id 7 dstport 4789 local 192.0.2.1 dev eth0; ip link set vx0 up", nil,
			"UDP port", Error, "vxlan device vx0", "ip link del vx0"},
		{"route inside", "ip route add 10.244.5.0/24 via 192.0.2.2", nil, "routes", Error, "10.244.5.0/24 dev eth0",
			"`ip route del 10.244.5.0/24 dev eth0`"},
		{"route inside, IPv6", "ip -6 route add fd00:10:244:5::/64 via 2001:db8::2", nil, "routes", Error,
			"fd00:10:244:5::/64", "`ip -6 route del"},
		{"route around", "ip route add 10.0.0.0/8 via 192.0.2.2", nil, "routes", Warning, "contains the cluster's",
			"10.0.0.0/8"},
		{"same priority", "ip rule add from 198.51.100.0/24 lookup 7 priority 5201", nil, "policy rules", Warning,
			"one of Warren's priorities", "rulePriority"},
		{"rule before", "ip rule add from 10.244.0.0/16 lookup 7 priority 512", nil, "policy rules", Warning,
			"AWS VPC CNI, comes before", "rulePriority"},
		{"Tailscale", "true", func(e *Environment) { e.Spec.RulePriority = 5250 }, "policy rules", Warning, "Tailscale",
			"rulePriority"},
		{"firewall",
			"nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
			nil, "firewall", Warning, "ip filter FORWARD", "iptables -I FORWARD -i $d"},
		{"firewall of others",
			"nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 0; policy drop; }'",
			func(e *Environment) { e.Spec.TunnelGSO = "warren0-gso" },
			"firewall", Warning, "inet fw f", "warren0 warren0-gso; do nft insert rule inet fw f"},
		{"IPv6 off", "sysctl -qw net.ipv6.conf.default.disable_ipv6=1", nil, "IPv6", Warning, "default.disable_ipv6",
			"sysctl -w net.ipv6.conf.default.disable_ipv6=0"},
		{"no TUN", "true", func(e *Environment) { e.TUN = "/nowhere/tun" }, "TUN", Error, "does not exist", "modprobe tun"},
		{"not a TUN", "true", func(e *Environment) { e.TUN = "/dev/null" }, "TUN", Error, "is no TUN", "mknod"},
		{"kube-proxy", "nft 'add table ip kube-proxy; add chain ip kube-proxy services'; " +
			"sysctl -qw net.bridge.bridge-nf-call-iptables=0",
			nil, "bridge netfilter", Warning, "kube-proxy is here", "bridge-nf-call-iptables=1"},
		{"rp_filter of the device", "ip tuntap add warren0 mode tun; ip link set warren0 alias 'warren pod network'; " +
			"sysctl -qw net.ipv4.conf.warren0.rp_filter=1", nil, "rp_filter", Warning, "should be 2", "rp_filter=2"},
		{"bad configuration", "true", func(e *Environment) { e.Spec.Table = 254 }, "configuration", Error, "254", "correct"},
		{"no node address", "true", func(e *Environment) { e.Spec.NodeAddrs = nil }, "underlay", Error, "no address",
			"addresses:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.underlay()
			w.run(tt.run)
			env := testEnvironment()
			if tt.edit != nil {
				tt.edit(&env)
			}
			fs := Check(env)
			f := finding(fs, tt.what)
			if f.Level != tt.level || !strings.Contains(f.Why, tt.why) || !strings.Contains(f.Mend, tt.mend) {
				t.Errorf("got %+v\nwant %s with %q and %q\nof %+v", f, tt.level, tt.why, tt.mend, fs)
			}
		})
	}
}

func TestCheckFindsAnotherNode(t *testing.T) {
	w := newWorld(t)
	w.underlay()
	w.tun("warren1")
	w.run("ip link set warren1 alias '" + DeviceAlias + "' up")
	f := finding(Check(testEnvironment()), "device name")
	if f.Level != Error || !strings.Contains(f.Why, "another Warren serves warren1") || f.Mend == "" {
		t.Errorf("got %+v", f)
	}
}

func TestCheckNamesWhoHasThePort(t *testing.T) {
	w := newWorld(t)
	w.underlay()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 4789})
	w.must(err)
	defer conn.Close()
	comm, err := os.ReadFile("/proc/self/comm")
	w.must(err)
	f := finding(Check(testEnvironment()), "UDP port")
	if want := fmt.Sprintf("taken by %s (process %d)", strings.TrimSpace(string(comm)), os.Getpid()); f.Level != Error ||
		!strings.Contains(f.Why, want) {
		t.Errorf("got %+v, want %q", f, want)
	}
}

func TestCheckWithoutNftables(t *testing.T) {
	c := &checker{Environment: testEnvironment(), noNft: true}
	c.forwardPolicy()
	if len(c.found) != 0 {
		t.Errorf("findings about a firewall that is not there: %+v", c.found)
	}
	if c.direct(); len(c.found) != 0 {
		t.Errorf("the check of the underlay, which is not wanted, is missed: %+v", c.found)
	}
	c.Spec.Guarded = true
	if c.direct(); finding(c.found, "direct").Level != Warning {
		t.Errorf("nobody is direct, and that anybody can send so is not said: %+v", c.found)
	}
}

func TestEffectiveCapabilities(t *testing.T) {
	if caps, err := effective("Name:\tx\nCapPrm:\t0\nCapEff:\t0000000000001000\n"); err != nil || caps != 1<<capNetAdmin {
		t.Errorf("got %x, %v", caps, err)
	}
	for _, bad := range []string{"", "CapEff:", "CapEff:\tzz\n"} {
		if _, err := effective(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestUDPInodes(t *testing.T) {
	const text = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
  100: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0000000000000000 0
  101: 00000000:12B6 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4343 2 0000000000000000 0
  102: short
`
	got := udpInodes(text, 4789)
	if len(got) != 1 || !got["4242"] {
		t.Errorf("got %v", got)
	}
}
