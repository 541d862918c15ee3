package hostnet

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const testTAP = "warren0-gso"

func testMAC() net.HardwareAddr { return net.HardwareAddr{0x0e, 0x57, 0, 0, 0, 7} }

// setUp sets the TAP up for both families.
func (w *world) setUp() {
	w.Helper()
	w.must(SetUpTunnelGSO(testTAP, testMAC(), addr("192.0.2.1")))
	w.must(SetUpTunnelGSO(testTAP, testMAC(), addr("2001:db8::1")))
}

// TestSetUpTunnelGSO wants forwarding turned on for the TAP alone, and everything undone by others put back.
func TestSetUpTunnelGSO(t *testing.T) {
	w := newWorld(t)
	if err := SetUpTunnelGSO(testTAP, testMAC(), addr("192.0.2.1")); err == nil {
		t.Error("set up without the device")
	}
	w.run("ip tuntap add dev " + testTAP + " mode tap")
	for range 2 {
		w.setUp()
		for key, want := range map[string]string{
			"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0", "ipv4/conf/all/forwarding": "0",
			"ipv4/conf/" + testTAP + "/forwarding": "1", "ipv4/conf/" + testTAP + "/accept_local": "1",
			"ipv4/conf/" + testTAP + "/rp_filter": "0", "ipv6/conf/" + testTAP + "/force_forwarding": "1",
		} {
			if got, err := sysctl(key); err != nil || got != want {
				t.Errorf("%s is %q, want %q (%v)", key, got, want, err)
			}
		}
		if out := w.run("ip link show " + testTAP); !strings.Contains(out, ",UP") ||
			!strings.Contains(out, testMAC().String()) {
			t.Errorf("not up, or with another address than %s: %s", testMAC(), out)
		}
		w.run("sysctl -qw net.ipv4.conf." + testTAP + ".accept_local=0 net.ipv4.conf." + testTAP + ".forwarding=0")
		w.run("ip link set " + testTAP + " down address 0e:00:00:00:00:99")
	}
}

// TestSetUpTunnelGSOByFamily wants the settings of a family that the node does not have to be left alone, as a
// container may not be allowed to change them.
func TestSetUpTunnelGSOByFamily(t *testing.T) {
	w := newWorld(t)
	w.run("ip tuntap add dev " + testTAP + " mode tap")
	look := func(want4, want6 string) {
		t.Helper()
		got4, err4 := sysctl("ipv4/conf/" + testTAP + "/forwarding")
		got6, err6 := sysctl("ipv6/conf/" + testTAP + "/force_forwarding")
		if got4 != want4 || got6 != want6 || err4 != nil || err6 != nil {
			t.Errorf("IPv4 is forwarded: %s, IPv6: %s; want %s, %s (%v, %v)", got4, got6, want4, want6, err4, err6)
		}
	}
	look("0", "0")
	w.must(SetUpTunnelGSO(testTAP, testMAC(), addr("2001:db8::1")))
	look("0", "1")
	w.run("sysctl -qw net.ipv6.conf." + testTAP + ".force_forwarding=0")
	w.must(SetUpTunnelGSO(testTAP, testMAC(), addr("192.0.2.1")))
	look("1", "0")
}

// TestSetUpTunnelGSOTwice wants a second set-up to be silent: whoever calls it upon events would never stop. The dummy
// address is to be there while rp_filter asks for it, and no longer.
func TestSetUpTunnelGSOTwice(t *testing.T) {
	w := newWorld(t)
	w.run("ip tuntap add dev " + testTAP + " mode tap")
	wake := make(chan struct{}, 1)
	w.must(listen(t.Context(), unix.NETLINK_ROUTE, wake, func(syscall.NetlinkMessage) bool { return true },
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF))
	heard := func(within time.Duration) bool {
		select {
		case <-wake:
			return true
		case <-time.After(within):
			return false
		}
	}
	for _, step := range []struct {
		filter string
		dummy  int
	}{{"2", 1}, {"0", 0}, {"2", 1}, {"1", 0}} {
		w.run("sysctl -qw net.ipv4.conf.all.rp_filter=" + step.filter)
		w.setUp()
		if !heard(time.Second) {
			t.Errorf("rp_filter %s: no event of the first set-up", step.filter)
		}
		for heard(1200 * time.Millisecond) { // the kernel tells of links that lost their carrier within a second
		}
		w.setUp()
		if heard(200 * time.Millisecond) {
			t.Errorf("rp_filter %s: the second set-up made an event", step.filter)
		}
		out := w.run("ip -4 addr show " + testTAP)
		if n := strings.Count(out, "inet 192.0.0.8/32 scope host"); n != step.dummy || strings.Count(out, "inet") != n {
			t.Errorf("rp_filter %s: want %d dummy addresses and no others: %s", step.filter, step.dummy, out)
		}
	}
}

// TestEgresses wants each peer's device to be found, and what keeps it from cutting.
func TestEgresses(t *testing.T) {
	w := newWorld(t)
	w.run("ip tuntap add dev " + testTAP + " mode tap")
	for _, line := range []string{
		"ip link add eth0 type veth peer name far0", "ip link add eth1 type veth peer name far1",
		"ip addr add 192.0.2.1/24 dev eth0", "ip addr add 2001:db8::1/64 dev eth1 nodad",
		"ip link set eth0 up", "ip link set far0 up", "ip link set eth1 up", "ip link set far1 up",
		"ethtool -K eth1 tx-udp_tnl-csum-segmentation off",
	} {
		w.run(line)
	}
	w.setUp()
	own4, own6 := addr("192.0.2.1"), addr("2001:db8::1")
	look := func(want ...Egress) {
		t.Helper()
		got, err := Egresses(testTAP, []Flow{
			{own4, addr("192.0.2.2")}, {own6, addr("2001:db8::2")}, {own4, addr("198.51.100.1")}, {own4, own4},
		})
		w.must(err)
		for k := range want {
			if got[k].Device != "" {
				want[k].Driver = "veth"
			}
			if got[k].Device != want[k].Device || got[k].Driver != want[k].Driver ||
				(want[k].Why == "") != (got[k].Why == "") ||
				!strings.Contains(got[k].Why, want[k].Why) {
				t.Errorf("flow %d: %+v, want %+v", k, got[k], want[k])
			}
		}
	}
	unreachable := Egress{Why: "does not forward from warren0-gso to 198.51.100.1"}
	self := Egress{Why: "no route from warren0-gso to 192.0.2.1"}
	noSum := Egress{Device: "eth1", Why: "eth1 does not cut tunnelled superpackets (tx-udp_tnl-csum-segmentation off)"}
	look(Egress{Device: "eth0"}, noSum,
		unreachable, self)
	w.run("ethtool -K eth1 tx-udp_tnl-csum-segmentation on")
	w.run("ethtool -K eth0 gso off")
	look(Egress{Device: "eth0", Why: "tx-generic-segmentation"}, Egress{Device: "eth1"}, unreachable, self)
	w.run("ip link set eth1 gso_max_size 63000")
	look(Egress{Device: "eth0", Why: "tx-generic-segmentation"}, Egress{Device: "eth1"})
	w.run("ip link set eth1 gso_max_size 50000")
	look(Egress{Device: "eth0", Why: "tx-generic-segmentation"}, Egress{Device: "eth1", Why: "less than 50000 bytes"})
	w.run("ip link set eth1 gso_max_size 65536")
	// Another device, another gateway by the same one, and a way that only forwarded packets have.
	const another = "traffic takes another way from warren0-gso than the node's own packets"
	w.run("ip rule add iif " + testTAP + " pref 10 lookup 77")
	for _, route := range []string{"192.0.2.2 dev eth1", "192.0.2.2 via 192.0.2.7 dev eth0"} {
		w.run("ip route replace table 77 " + route)
		look(Egress{Why: another}, Egress{Device: "eth1"})
	}
	w.run("ip route replace table 77 192.0.2.2 dev eth0")
	look(Egress{Device: "eth0", Why: "tx-generic-segmentation"}, Egress{Device: "eth1"})
	w.run("ip rule add iif lo to 192.0.2.2 pref 11 unreachable")
	look(Egress{Why: "the node itself has no route to 192.0.2.2"}, Egress{Device: "eth1"})
	w.run("ip rule del pref 10; ip rule del pref 11; ip route flush table 77")
	w.run("sysctl -qw net.ipv4.conf.all.rp_filter=1")
	look(Egress{Why: "rp_filter is 1"}, Egress{Device: "eth1"})
	if _, err := Egresses("absent0", []Flow{{own4, addr("192.0.2.2")}}); err == nil {
		t.Error("found a way from a device that does not exist")
	}
}

// TestTunnelGSOProbes wants to hear when nothing would stop a probe.
func TestTunnelGSOProbes(t *testing.T) {
	w := newWorld(t)
	w.tun("warren0")
	missing := func(when string) {
		t.Helper()
		if _, err := TunnelGSOProbes(testTAP); !errors.Is(err, ErrNoProbes) {
			t.Errorf("%s: %v, want %v", when, err, ErrNoProbes)
		}
	}
	missing("before the set-up")
	s := testSpec()
	w.apply(s)
	missing("without a TAP")
	s.TunnelGSO = testTAP
	w.apply(s)
	if n, err := TunnelGSOProbes(testTAP); n != 0 || err != nil {
		t.Errorf("%d probes, %v", n, err)
	}
	if c := w.apply(s); len(c.Made) > 0 {
		t.Errorf("changed again: %q", c.Made)
	}
	w.run("nft flush chain inet warren probes")
	missing("without rules")
	w.apply(s)
	w.run("nft delete rule inet warren probes handle " + lastHandle(w.run("nft -a list chain inet warren probes")))
	missing("without a rule")
	w.apply(s)
	if _, err := TunnelGSOProbes(testTAP); err != nil {
		t.Error(err)
	}
	if _, err := TunnelGSOProbes("other0"); !errors.Is(err, ErrNoProbes) {
		t.Errorf("probes of another device: %v", err)
	}
	w.must(Remove(s, true))
	missing("after the end, with the guards kept")
	w.must(Remove(s, false))
	missing("after the end")
}

// lastHandle is the handle of the last rule that nft lists.
func lastHandle(list string) string {
	const mark = "# handle "
	rest := list[strings.LastIndex(list, mark)+len(mark):]
	return strings.Fields(rest)[0]
}
