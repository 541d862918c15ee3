package hostnet

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// underlay joins the node to another namespace by a veth pair called eth0 at both ends; the other side is the node's
// default gateway and routes pods back.
func (w *world) underlay() netns.NsHandle {
	w.Helper()
	other := w.newNS()
	w.run("ip link add eth0 type veth peer name far0")
	far, err := netlink.LinkByName("far0")
	w.must(err)
	w.must(netlink.LinkSetNsFd(far, int(other)))
	// Detecting duplicates of the link-local address would change the state that tests compare.
	w.run("echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip addr add 192.0.2.1/24 dev eth0")
	w.run("ip addr add 2001:db8::1/64 dev eth0 nodad; ip link set eth0 up")
	w.in(other, func() {
		w.run("ip link set far0 name eth0; ip addr add 192.0.2.2/24 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad")
		w.run("ip addr add 203.0.113.9/32 dev lo; ip addr add 2001:db8:9::9/128 dev lo; ip link set eth0 up")
	})
	w.run("ip route add default via 192.0.2.2; ip -6 route add default via 2001:db8::2")
	// The kernel finishes what follows from the carrier on a work queue.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		link, local := w.run("ip -o link show eth0"), w.run("ip -6 route show table local dev eth0")
		tentative := w.run("ip -6 -o addr show dev eth0 tentative") != ""
		if strings.Contains(link, " state UP ") && strings.Contains(local, "local 2001:db8::1 ") &&
			strings.Contains(local, "local fe80:") && !tentative {
			break
		}
		if time.Now().After(deadline) {
			w.Fatal("the underlay does not come up")
		}
	}
	return other
}

const (
	pod1v4, pod1v6 = "10.244.1.2", "fd00:10:244:1::2"
	pod2v4, pod2v6 = "10.244.1.3", "fd00:10:244:1::3"
)

// twoPods is a node with an underlay, a reflecting TUN and two pods in routed mode.
func (w *world) twoPods() (pod1, pod2, outside netns.NsHandle) {
	w.Helper()
	outside = w.underlay()
	w.tun("warren0")
	w.apply(testSpec())
	pod1, pod2 = w.newNS(), w.newNS()
	w.attach(pod1, "wrn00000000001", addr(pod1v4), addr(pod1v6))
	m := testSpec().masquerade()
	w.must(EnsurePod(Pod{Interface: "wrn00000000001", Addrs: []netip.Addr{addr(pod1v4), addr(pod1v6)}, Masquerade: &m}))
	w.attach(pod2, "wrn00000000002", addr(pod2v4), addr(pod2v6))
	return pod1, pod2, outside
}

func ping(dst string, opts ...string) string {
	return fmt.Sprintf("ping -n -c 2 -i 0.2 -W 1 %s %s", strings.Join(opts, " "), dst)
}

// noPing is for what must fail: one packet, and a short wait.
func noPing(dst string, opts ...string) string {
	return fmt.Sprintf("ping -n -c 1 -W 0.3 %s %s", strings.Join(opts, " "), dst)
}

func TestPodsReachPodsNodeAndOutside(t *testing.T) {
	w := newWorld(t)
	pod1, pod2, outside := w.twoPods()
	w.in(pod1, func() {
		for _, dst := range []string{
			pod2v4, pod2v6, "10.244.1.1", "fd00:10:244:1::1", "192.0.2.1", "2001:db8::1", "203.0.113.9", "2001:db8:9::9",
		} {
			w.run(ping(dst))
		}
	})
	for _, dst := range []string{pod1v4, pod1v6} {
		w.run(ping(dst))
		w.in(pod2, func() { w.run(ping(dst)) })
	}
	// The outside has no route to pods, so its answers show that it saw the node's address.
	w.in(outside, func() {
		if out := w.run("ip route; ip -6 route"); strings.Contains(out, "10.244") || strings.Contains(out, "fd00:") {
			t.Fatal("the outside has a route to pods, the test shows nothing")
		}
	})
	if n, err := Spoofed(); err != nil || n != 0 {
		t.Errorf("%d packets (%v) of honest pods were counted as spoofed", n, err)
	}
}

// TestTCPToTheOutside goes through masquerading and connection tracking both ways.
func TestTCPToTheOutside(t *testing.T) {
	w := newWorld(t)
	pod1, _, outside := w.twoPods()
	for _, server := range []string{"203.0.113.9", "2001:db8:9::9"} {
		seen := w.fetch(outside, pod1, server)
		if want := map[bool]string{true: "192.0.2.1", false: "2001:db8::1"}[addr(server).Is4()]; seen != want {
			t.Errorf("%s saw the pod as %s, want the node's %s", server, seen, want)
		}
	}
}

func TestUnmasqueraded(t *testing.T) {
	w := newWorld(t)
	outside := w.underlay()
	w.tun("warren0")
	s := testSpec()
	s.Masquerade = false
	w.apply(s)
	pod := w.newNS()
	w.attach(pod, "wrn00000000001", addr(pod1v4), addr(pod1v6))
	w.in(outside, func() {
		w.run("ip route add 10.244.1.0/24 via 192.0.2.1; ip -6 route add fd00:10:244:1::/64 via 2001:db8::1")
	})
	for server, want := range map[string]string{"203.0.113.9": pod1v4, "2001:db8:9::9": pod1v6} {
		if seen := w.fetch(outside, pod, server); seen != want {
			t.Errorf("%s saw the pod as %s, want its own %s", server, seen, want)
		}
	}
}

func TestSpoofedSourcesAreDropped(t *testing.T) {
	w := newWorld(t)
	pod1, pod2, outside := w.twoPods()
	w.in(outside, func() {
		w.run("ip route add 10.244.0.0/16 via 192.0.2.1; ip -6 route add fd00:10:244::/48 via 2001:db8::1")
	})
	before, err := Spoofed()
	w.must(err)
	w.in(pod1, func() {
		// Another pod's, one that nobody has, one of another node, the gateway's, a public one, and the link's.
		for _, a := range []string{pod2v4, "10.244.1.99", "10.244.7.7", "10.244.1.1", "198.51.100.1"} {
			w.run("ip addr add " + a + "/32 dev eth0")
			if a != "10.244.1.1" { // that would not leave the pod
				w.fails(noPing("10.244.1.1", "-I", a))
			}
			w.fails(noPing("203.0.113.9", "-I", a))
			w.run("ip addr del " + a + "/32 dev eth0")
		}
		for _, a := range []string{pod2v6, "fd00:10:244:1::99", "fd00:10:244:7::7", "2001:db8:1::1"} {
			w.run("ip addr add " + a + "/128 dev eth0 nodad")
			w.fails(noPing("fd00:10:244:1::1", "-I", a))
			w.fails(noPing("2001:db8:9::9", "-I", a))
			w.run("ip addr del " + a + "/128 dev eth0")
		}
		w.run(ping("203.0.113.9"))
		w.run(ping("2001:db8:9::9"))
	})
	after, err := Spoofed()
	w.must(err)
	if after-before < 17 {
		t.Errorf("%d packets counted as spoofed, want at least 17", after-before)
	}
	// nftables alone: the reverse path filter must not be what saves us. The answer to a packet from pod2's address goes
	// to pod2, so it is the counters that tell.
	w.run("sysctl -qw net.ipv4.conf.wrn00000000001.rp_filter=0 net.ipv4.conf.all.rp_filter=0")
	w.in(pod1, func() {
		w.run("ip addr add " + pod2v4 + "/32 dev eth0")
		w.fails(noPing("10.244.1.1", "-I", pod2v4))
		w.run("ip addr del " + pod2v4 + "/32 dev eth0")
	})
	if now, err := Spoofed(); err != nil || now <= after {
		t.Errorf("without the reverse path filter nothing was counted: %d, before %d, %v", now, after, err)
	}
	// The reverse path filter alone, as on a kernel without nftables.
	filtered := func() string { return w.run("nstat -asz TcpExtIPReversePathFilter | tail -1 | awk '{print $2}'") }
	wasFiltered := filtered()
	fw := newFirewall()
	defer fw.close()
	w.must(fw.remove(false))
	w.must(EnsurePodLink("wrn00000000001"))
	w.in(pod1, func() {
		w.run("ip addr add " + pod2v4 + "/32 dev eth0")
		w.fails(noPing("10.244.1.1", "-I", pod2v4))
		w.run("ip addr del " + pod2v4 + "/32 dev eth0")
		w.run(ping("10.244.1.1"))
		w.run(ping(pod2v4))
	})
	if now := filtered(); now == wasFiltered {
		t.Errorf("the reverse path filter dropped nothing: %s", now)
	}
	w.in(pod2, func() { w.run(ping(pod1v4)) })
}

// TestNeighbourDiscovery runs without the permanent neighbour entries, and with a link-local address that has to be
// found unique first.
func TestNeighbourDiscovery(t *testing.T) {
	w := newWorld(t)
	pod1, _, _ := w.twoPods()
	w.run("ip neigh flush all")
	w.in(pod1, func() {
		w.run("ip -6 neigh flush all; ip addr add fe80::77/64 dev eth0; ip addr add fd00:10:244:1::66/128 dev eth0")
	})
	w.run(ping(pod1v6))
	w.eventually("duplicate address detection ends", func() bool {
		out := ""
		w.in(pod1, func() { out = w.run("ip -6 addr show dev eth0") })
		return !strings.Contains(out, "tentative")
	})
	// The link-local address is found, but no echo comes from it: it is not one of the pod's own.
	w.fails(noPing("fe80::77%wrn00000000001"))
	if out := w.run("ip -6 neigh show fe80::77 dev wrn00000000001"); !strings.Contains(out, "lladdr") {
		t.Errorf("neighbour discovery of a pod's link-local address failed: %q", out)
	}
}

// TestGuards takes the device down, then away: nothing for the cluster leaves by the underlay, and nothing loops.
func TestGuards(t *testing.T) {
	w := newWorld(t)
	pod1, pod2, outside := w.twoPods()
	tests := []struct{ name, run string }{
		{"device up, absent local pod", "true"},
		{"device down", "ip link set warren0 down"},
		{"device gone", "ip link del warren0"},
		{"removed with guards", ""},
	}
	absent := []string{"10.244.1.99", "fd00:10:244:1::99"}
	remote := []string{"10.244.2.9", "10.244.7.1", "fd00:10:244:2::9"}
	for _, tt := range tests {
		if tt.run == "" {
			w.must(Remove(testSpec(), true))
		} else {
			w.run(tt.run)
		}
		dsts := absent
		if tt.run != "true" { // the reflector sends a remote pod's packet back, which is not our subject
			dsts = append(append(dsts, remote...), "192.0.2.2", "2001:db8::2")
		}
		watch := w.countLeaks(outside)
		for _, dst := range dsts {
			w.in(pod1, func() { w.fails(noPing(dst)) })
			if !strings.HasSuffix(dst, "::2") && dst != "192.0.2.2" { // the node itself reaches its peers outside the tunnel
				w.fails(noPing(dst))
			}
		}
		if n := watch(); n != 0 {
			t.Errorf("%s: %d packets of the cluster left by the underlay", tt.name, n)
		}
		ttl := w.run("nstat -asz IpInHdrErrors Ip6InHdrErrors | grep HdrErrors | awk '{s+=$2} END {print s}'")
		if strings.TrimSpace(ttl) != "0" {
			t.Errorf("%s: packets looped until their TTL ended (%s)", tt.name, strings.TrimSpace(ttl))
		}
	}
	// Attached pods are still checked, and come back with the next start.
	if out := w.run("nft list table inet warren"); !strings.Contains(out, pod1v4) || strings.Contains(out, "outgoing") {
		t.Errorf("after Remove with guards:\n%s", out)
	}
	w.tun("warren0")
	w.apply(testSpec())
	w.in(pod2, func() { w.run(ping(pod1v4)); w.run(ping(pod1v6)); w.run(ping("203.0.113.9")) })
	w.must(Remove(testSpec(), false))
	if s := w.state(); strings.Contains(s, "unreachable 10.") || strings.Contains(s, "table inet warren") {
		t.Errorf("after the last Remove:\n%s", s)
	}
	// The counters would have seen it.
	watch := w.countLeaks(outside)
	w.in(pod1, func() { w.fails(noPing("10.244.2.9")); w.fails(noPing("fd00:10:244:2::9")) })
	if n := watch(); n < 2 {
		t.Errorf("without guards %d packets left; the test shows nothing", n)
	}
}

// countLeaks counts packets with pods' addresses that arrive at the other side of the underlay.
func (w *world) countLeaks(outside netns.NsHandle) func() int {
	w.in(outside, func() {
		w.run(`nft 'add table inet leak; add chain inet leak in { type filter hook prerouting priority -400; }'
			nft add rule inet leak in ip saddr 10.244.0.0/16 counter
			nft add rule inet leak in ip daddr 10.244.0.0/16 counter
			nft add rule inet leak in ip6 saddr fd00:10:244::/48 counter
			nft add rule inet leak in ip6 daddr fd00:10:244::/48 counter`)
	})
	return func() (n int) {
		w.in(outside, func() {
			out := w.run("nft list table inet leak | sed -n 's/.*packets \\([0-9]*\\) .*/\\1/p' | awk '{s+=$1} END {print s}'")
			w.run("nft delete table inet leak")
			if _, err := fmt.Sscan(out, &n); err != nil {
				w.Fatalf("counting leaks: %v: %q", err, out)
			}
		})
		return n
	}
}

// TestTranslatedConnections plays kube-proxy by hand: a service address and a host port, with backends on the node.
func TestTranslatedConnections(t *testing.T) {
	w := newWorld(t)
	pod1, pod2, outside := w.twoPods()
	// The outside is a peer's node as well, and what goes to a peer does not come back from the TUN.
	w.run(`nft 'add table inet tunnel; add chain inet tunnel out { type filter hook postrouting priority 300; }
		add rule inet tunnel out oifname warren0 ip daddr 192.0.2.2 drop
		add rule inet tunnel out oifname warren0 ip6 daddr 2001:db8::2 drop'`)
	w.run(`nft 'add table inet proxy; add chain inet proxy pre { type nat hook prerouting priority -100; }
		add chain inet proxy out { type nat hook output priority -100; }
		add chain inet proxy post { type nat hook postrouting priority 90; }'
		for c in pre out; do
		nft add rule inet proxy $c ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.244.1.3:8080
		nft add rule inet proxy $c ip6 daddr fd00:96::1 tcp dport 80 dnat ip6 to [fd00:10:244:1::3]:8080
		nft add rule inet proxy $c ip daddr 192.0.2.1 tcp dport 80 dnat ip to 10.244.1.3:8080
		nft add rule inet proxy $c ip6 daddr 2001:db8::1 tcp dport 80 dnat ip6 to [fd00:10:244:1::3]:8080
		done
		nft add rule inet proxy post ip saddr 10.244.1.3 ip daddr 10.244.1.3 masquerade
		nft add rule inet proxy post ip6 saddr fd00:10:244:1::3 ip6 daddr fd00:10:244:1::3 masquerade`)
	w.serve(pod2, "", 8080)
	pod1Source := map[bool]string{true: pod1v4, false: pod1v6}
	from := []struct {
		name string
		ns   netns.NsHandle
		dsts []string
		seen map[bool]string // whether IPv4 → source that the server sees; nil: any
	}{
		{"pod to service on the same node", pod1, []string{"10.96.0.1", "fd00:96::1"}, pod1Source},
		{"pod to its own node's port", pod1, []string{"192.0.2.1", "2001:db8::1"}, pod1Source},
		{"outside to the node's port", outside, []string{"192.0.2.1", "2001:db8::1"},
			map[bool]string{true: "192.0.2.2", false: "2001:db8::2"}},
		{"node to service", w.node, []string{"10.96.0.1"}, nil},
		{"pod to itself by the service", pod2, []string{"10.96.0.1", "fd00:96::1"}, nil},
	}
	for _, tt := range from {
		for _, dst := range tt.dsts {
			seen, err := w.ask(tt.ns, netip.AddrPortFrom(addr(dst), 80))
			if err != nil {
				t.Errorf("%s, %s: %v", tt.name, dst, err)
			} else if want := tt.seen[addr(dst).Is4()]; tt.seen != nil && seen != want {
				t.Errorf("%s, %s: seen as %s, want %s", tt.name, dst, seen, want)
			}
		}
	}
}
