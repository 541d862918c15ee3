package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// onBridge puts a namespace on a bridge by a port of the given name.
func (w *world) onBridge(bridge, port string, mac net.HardwareAddr, ip netip.Prefix, gateway string) netns.NsHandle {
	w.Helper()
	ns := w.newNS()
	w.run(fmt.Sprintf("ip link add %s type veth peer name far0 address %s; ip link set %s master %s up", port, mac, port,
		bridge))
	w.run(fmt.Sprintf("ip link set far0 netns /proc/%d/fd/%d", unix.Getpid(), int(ns)))
	w.in(ns, func() {
		w.run(fmt.Sprintf("ip link set far0 name eth0; ip addr add %s dev eth0; ip link set eth0 up; "+
			"ip route add default via %s", ip, gateway))
	})
	return ns
}

// TestOthersOnAPodsBridge has a bridge of the operator's own, whose LAN the operator translates, and a pod that comes
// onto it. What the LAN sends stays as it was: tracked, and without Warren's mark.
func TestOthersOnAPodsBridge(t *testing.T) {
	w := newWorld(t)
	outside := w.underlay()
	w.tun("warren0")
	w.apply(testSpec())
	w.run("ip link add br-lan type bridge; ip link set br-lan up; ip addr add 10.50.0.1/24 dev br-lan; " +
		"ip addr add 10.244.1.1/24 dev br-lan")
	host := w.onBridge("br-lan", "lan0", net.HardwareAddr{0x0e, 0, 0, 0, 2, 1}, netip.MustParsePrefix("10.50.0.5/24"),
		"10.50.0.1")
	w.run(`nft 'add table ip own; add chain ip own post { type nat hook postrouting priority 100; }
		add chain ip own pre { type nat hook prerouting priority -100; }
		add chain ip own seen { type filter hook forward priority 0; }
		add rule ip own post ip saddr 10.50.0.0/24 oifname eth0 masquerade
		add rule ip own pre iifname eth0 tcp dport 80 dnat to 10.50.0.5:8080
		add rule ip own seen meta mark and 0x1000 != 0 counter'`)
	w.serve(host, "", 8080)
	check := func(when string) {
		t.Helper()
		w.in(host, func() {
			if out, err := w.try(ping("203.0.113.9", "-w 5")); err != nil {
				t.Errorf("%s the LAN does not get beyond the node: %v\n%s", when, err, out)
			}
		})
		if _, err := w.ask(outside, netip.AddrPortFrom(addr("192.0.2.1"), 80)); err != nil {
			t.Errorf("%s the port that the operator leads to the LAN does not answer: %v", when, err)
		}
		if out := w.run("nft list chain ip own seen"); !strings.Contains(out, "packets 0 ") {
			t.Errorf("%s answers of the LAN have Warren's mark:\n%s", when, out)
		}
	}
	w.eventually("the bridge forwards", func() bool { _, err := w.try(noPing("10.50.0.5")); return err == nil })
	check("before a pod comes")

	mac := net.HardwareAddr{0x0e, 0, 0, 0, 2, 2}
	pod := w.onBridge("br-lan", "wrn00000000001", mac, netip.MustParsePrefix(pod1v4+"/24"), "10.244.1.1")
	m := testSpec().masquerade()
	w.must(EnsurePod(Pod{
		Interface: "wrn00000000001", Bridge: "br-lan", MAC: mac, Addrs: []netip.Addr{addr(pod1v4)}, Masquerade: &m,
	}))
	check("beside a pod")
	w.in(pod, func() { w.run(ping("203.0.113.9", "-w 5")) })
}
