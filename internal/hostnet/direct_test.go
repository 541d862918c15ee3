package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

const (
	farPod4, farPod6   = "10.244.2.5", "fd00:10:244:2::5"
	nextPod4, nextPod6 = "10.244.3.5", "fd00:10:244:3::5"
)

// directSpec is the node of all tests with one direct peer.
func directSpec(onLink bool) Spec {
	s := testSpec()
	s.Direct = []DirectPeer{{
		Name: "b", OnLink: onLink,
		PodCIDRs:  []netip.Prefix{prefix("10.244.2.0/24"), prefix("fd00:10:244:2::/64")},
		NodeAddrs: s.PeerNodeAddrs,
	}}
	return s
}

// far gives the other side of the underlay pods: those of peer b, and those of a node c that it may not speak for.
func (w *world) far(other netns.NsHandle) {
	w.Helper()
	w.in(other, func() {
		for _, a := range []string{farPod4, nextPod4} {
			w.run(fmt.Sprintf("ip addr add %s/32 dev lo", a))
		}
		for _, a := range []string{farPod6, nextPod6} {
			w.run(fmt.Sprintf("ip addr add %s/128 dev lo", a))
		}
		w.run("ip route add 10.244.1.0/24 via 192.0.2.1; ip -6 route add fd00:10:244:1::/64 via 2001:db8::1")
	})
}

// seenBy counts the packets of IPv4 and IPv6 that reach a TUN with one of the addresses as destination.
func seenBy(count *atomic.Int64, to ...string) func([]byte) {
	var want [][]byte
	for _, a := range to {
		want = append(want, addr(a).AsSlice())
	}
	return func(p []byte) {
		for _, b := range want {
			if len(p) >= 40 && (p[0]>>4 == 4 && string(p[16:20]) == string(b) || p[0]>>4 == 6 && string(p[24:40]) == string(b)) {
				count.Add(1)
			}
		}
	}
}

func TestDirectPeer(t *testing.T) {
	w := newWorld(t)
	other := w.underlay()
	w.far(other)
	w.run("sysctl -qw net.ipv6.conf.all.forwarding=1") // which is left on, and makes anycast addresses
	before := w.state()
	var tunnelled atomic.Int64
	tun := w.tunSeeing("warren0", seenBy(&tunnelled, farPod4, farPod6, "192.0.2.2", "2001:db8::2"))
	spec := directSpec(true)
	first := w.apply(spec)
	want := []DirectRoute{
		{Peer: "b", Prefix: prefix("10.244.2.0/24"), Via: addr("192.0.2.2"), Device: "eth0"},
		{Peer: "b", Prefix: prefix("fd00:10:244:2::/64"), Via: addr("2001:db8::2"), Device: "eth0"},
		{Peer: "b", Prefix: prefix("192.0.2.2/32"), Via: addr("192.0.2.2"), Device: "eth0"},
		{Peer: "b", Prefix: prefix("2001:db8::2/128"), Via: addr("2001:db8::2"), Device: "eth0"},
	}
	if !slices.Equal(first.Direct, want) {
		t.Errorf("got  %v\nwant %v", first.Direct, want)
	}
	state := w.state()
	for _, line := range []string{
		"10.244.2.0/24 via 192.0.2.2 dev eth0 proto 87 src 10.244.1.1 onlink",
		"10.244.2.0/24 via 192.0.2.2 dev eth0 table 8787 proto 87 onlink",
		"192.0.2.2 via 192.0.2.2 dev eth0 table 8787 proto 87 onlink",
		"fd00:10:244:2::/64 via 2001:db8::2 dev eth0 proto 87 src fd00:10:244:1::1 metric 1024 onlink",
		"fd00:10:244:2::/64 via 2001:db8::2 dev eth0 table 8787 proto 87 metric 1024 onlink",
		"2001:db8::2 via 2001:db8::2 dev eth0 table 8787 proto 87 metric 1024 onlink",
	} {
		if !strings.Contains(state, line) {
			t.Errorf("missing: %s", line)
		}
	}
	if second := w.apply(spec); len(second.Made) != 0 {
		t.Errorf("the second Apply changed: %s", strings.Join(second.Made, "\n"))
	}

	pod := w.newNS()
	w.attach(pod, "wrn00000000001", addr(pod1v4), addr(pod1v6))
	m := spec.masquerade()
	w.must(EnsurePod(Pod{Interface: "wrn00000000001", Addrs: []netip.Addr{addr(pod1v4), addr(pod1v6)}, Masquerade: &m}))
	if wrong := w.apply(spec).Made; len(wrong) > 0 {
		t.Logf("with a pod: %s", strings.Join(wrong, "\n"))
	}
	for _, to := range []string{farPod4, farPod6, "192.0.2.2", "2001:db8::2"} {
		w.in(pod, func() { w.run("ping -c 2 -i 0.2 -W 2 " + to) })
	}
	for _, to := range []string{farPod4, farPod6} {
		w.run("ping -c 2 -i 0.2 -W 2 " + to) // the node to a far pod
	}
	for _, from := range []string{farPod4, farPod6, "192.0.2.2", "2001:db8::2"} {
		to := map[bool]string{true: pod1v4, false: pod1v6}[addr(from).Is4()]
		w.in(other, func() { w.run(fmt.Sprintf("ping -c 2 -i 0.2 -W 2 -I %s %s", from, to)) })
	}
	// With a strict filter of reverse paths on the underlay too: the way back is the way that packets come.
	w.run("sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
	w.in(other, func() { w.run(fmt.Sprintf("ping -c 2 -i 0.2 -W 2 -I %s %s", farPod4, pod1v4)) })
	w.run("sysctl -qw net.ipv4.conf.eth0.rp_filter=0")
	if n := tunnelled.Load(); n != 0 {
		t.Errorf("%d packets for the direct peer went to the TUN", n)
	}
	// Nobody else's pods speak from there, nor this node's own.
	w.in(other, func() {
		w.fails(fmt.Sprintf("ping -c 2 -i 0.2 -W 1 -I %s %s", nextPod4, pod1v4))
		w.fails(fmt.Sprintf("ping -c 2 -i 0.2 -W 1 -I %s %s", nextPod6, pod1v6))
	})
	if dropped := w.run("nft list counter inet warren spoofed"); strings.Contains(dropped, "packets 0 ") {
		t.Errorf("not counted: %s", dropped)
	}

	// The peer is no longer direct: through the tunnel, nothing by the underlay.
	w.apply(testSpec())
	if state := w.state(); strings.Contains(state, "10.244.2.0/24") || strings.Contains(state, "192.0.2.2 via") ||
		strings.Contains(state, "direct4") || strings.Contains(state, chainUnderlay) {
		t.Errorf("something stayed:\n%s", state)
	}
	w.in(pod, func() { w.fails("ping -c 1 -W 1 " + farPod4) })
	if tunnelled.Load() == 0 {
		t.Error("nothing went to the TUN")
	}

	w.apply(spec)
	w.must(RemovePod("wrn00000000001"))
	w.run("ip link del wrn00000000001")
	_ = tun.Close()
	w.must(Remove(spec, false))
	if d := diff(before, w.state()); d != "" {
		t.Errorf("Remove left something:\n%s", d)
	}
}

// TestGuarded refuses what comes as a pod's without a tunnel where nobody is direct, and goes on to hear everybody
// else.
func TestGuarded(t *testing.T) {
	w := newWorld(t)
	other := w.underlay()
	w.far(other)
	// The answers go the way that the questions came, and not into the tunnel.
	w.run("ip route add 10.244.2.0/24 via 192.0.2.2; ip -6 route add fd00:10:244:2::/64 via 2001:db8::2")
	tun := w.tunSeeing("warren0", func([]byte) {})
	spec := testSpec()
	w.apply(spec)
	pod := w.newNS()
	w.attach(pod, "wrn00000000001", addr(pod1v4), addr(pod1v6))
	w.must(EnsurePod(Pod{Interface: "wrn00000000001", Addrs: []netip.Addr{addr(pod1v4), addr(pod1v6)}}))
	echoes := func() (text string) {
		w.in(pod, func() { text = w.run("nstat -asz IcmpInEchos Icmp6InEchos | awk '/Echos/ {print $2}'") })
		return text
	}
	heard := func(from string) bool {
		before := echoes()
		to := map[bool]string{true: pod1v4, false: pod1v6}[addr(from).Is4()]
		w.in(other, func() { _, _ = w.try(fmt.Sprintf("ping -c 2 -i 0.2 -W 1 -I %s %s", from, to)) })
		return echoes() != before
	}
	for _, from := range []string{farPod4, farPod6} {
		w.eventually(from+" is heard without the check", func() bool { return heard(from) })
	}
	spec.Guarded = true
	w.apply(spec)
	if second := w.apply(spec); len(second.Made) != 0 {
		t.Errorf("the second Apply changed: %s", strings.Join(second.Made, "\n"))
	}
	for _, from := range []string{farPod4, farPod6, nextPod4, nextPod6} {
		if heard(from) {
			t.Errorf("heard: %s", from)
		}
	}
	if dropped := w.run("nft list counter inet warren spoofed"); strings.Contains(dropped, "packets 0 ") {
		t.Errorf("not counted: %s", dropped)
	}
	for _, from := range []string{"192.0.2.2", "2001:db8::2"} {
		if !heard(from) {
			t.Errorf("not heard: %s", from)
		}
	}

	// With a direct peer, which comes and goes by itself.
	direct := directSpec(true)
	direct.Guarded = true
	_, err := ChangeDirect(direct, nil, direct.Direct)
	w.must(err)
	if !heard(farPod4) || !heard(farPod6) || heard(nextPod4) || heard(nextPod6) {
		t.Error("the direct peer is not heard, or somebody else is")
	}
	_, err = ChangeDirect(direct, direct.Direct, nil)
	w.must(err)
	if heard(farPod4) || heard(farPod6) {
		t.Error("who is no longer direct is heard")
	}
	spec.Guarded = false
	w.apply(spec)
	if state := w.state(); strings.Contains(state, chainUnderlay) || strings.Contains(state, setDirect4) {
		t.Errorf("something stayed:\n%s", state)
	}
	_ = tun.Close()
}

// TestDirectWays goes through what the kernel may say of the way to a peer.
func TestDirectWays(t *testing.T) {
	w := newWorld(t)
	_ = w.underlay()
	w.tun("warren0")
	for _, k := range []struct {
		name, set, undo string
		spec            func(*Spec)
		via4, via6      string // what is not direct has none
	}{
		{name: "on the link", via4: "192.0.2.2", via6: "2001:db8::2"},
		{name: "behind a router",
			set:  "ip route add 198.51.100.2 via 192.0.2.9; ip -6 route add 2001:db8:7::2 via fe80::9 dev eth0",
			undo: "ip route del 198.51.100.2; ip -6 route del 2001:db8:7::2",
			spec: func(s *Spec) {
				s.Direct[0].NodeAddrs = []netip.Addr{addr("198.51.100.2"), addr("2001:db8:7::2")}
				s.Direct[0].OnLink = false
			}, via4: "192.0.2.9", via6: "fe80::9"},
		{name: "behind a router, automatic", spec: func(s *Spec) {
			s.Direct[0].NodeAddrs = []netip.Addr{addr("203.0.113.2"), addr("2001:db8:7::2")}
		}},
		{name: "IPv6 underlay", spec: func(s *Spec) {
			s.NodeAddrs, s.Direct[0].NodeAddrs = s.NodeAddrs[1:], s.Direct[0].NodeAddrs[1:]
		}, via4: "2001:db8::2", via6: "2001:db8::2"},
		{name: "IPv4 underlay", spec: func(s *Spec) {
			s.NodeAddrs, s.Direct[0].NodeAddrs = s.NodeAddrs[:1], s.Direct[0].NodeAddrs[:1]
		}, via4: "192.0.2.2"},
		{name: "no route", set: "ip route add unreachable 192.0.2.2", undo: "ip route del unreachable 192.0.2.2",
			via4: "2001:db8::2", via6: "2001:db8::2"},
		{name: "this node itself", spec: func(s *Spec) {
			s.Direct[0].NodeAddrs = s.NodeAddrs
		}},
		{name: "policy routing",
			set:  "ip rule add from 192.0.2.1 lookup 99 priority 100; ip route add 198.51.100.2 via 192.0.2.7 table 99",
			undo: "ip rule del priority 100; ip route flush table 99",
			spec: func(s *Spec) {
				s.Direct[0].NodeAddrs = []netip.Addr{addr("198.51.100.2"), addr("2001:db8::2")}
				s.Direct[0].OnLink = false
			}, via4: "192.0.2.7", via6: "2001:db8::2"},
		{name: "the whole cluster's range is one node's", spec: func(s *Spec) {
			s.ClusterCIDRs = append(slices.Clone(s.PodCIDRs), s.Direct[0].PodCIDRs...)
		}, via4: "192.0.2.2", via6: "2001:db8::2"},
	} {
		if k.set != "" {
			w.run(k.set)
		}
		spec := directSpec(true)
		if k.spec != nil {
			k.spec(&spec)
		}
		c, err := Apply(spec, discard())
		w.must(err)
		if again, _ := Apply(spec, discard()); len(again.Made) != 0 {
			t.Errorf("%s: the second Apply changed: %s", k.name, strings.Join(again.Made, "\n"))
		}
		for i, want := range []string{k.via4, k.via6} {
			got := c.Direct[i]
			_, dev, _ := strings.Cut(w.run("ip route get "+map[int]string{0: farPod4, 1: farPod6}[i]), " dev ")
			dev, _, _ = strings.Cut(dev, " ")
			switch {
			case want == "" && (got.Why == "" || dev != "warren0"):
				t.Errorf("%s: %+v, and the kernel sends it to %s; want the tunnel", k.name, got, dev)
			case want != "" && (got.Why != "" || got.Via != addr(want) || dev != "eth0"):
				t.Errorf("%s: %+v, and the kernel sends it to %s; want it direct via %s", k.name, got, dev, want)
			}
		}
		if k.undo != "" {
			w.run(k.undo)
		}
	}
}

// TestWatchFollowsDirectPeers has the way to a peer move, go and come back.
func TestWatchFollowsDirectPeers(t *testing.T) {
	w := newWorld(t)
	_ = w.underlay()
	w.tun("warren0")
	spec := directSpec(false)
	var mu sync.Mutex
	applied := 0
	w.background(func(ctx context.Context) error {
		return Watch(ctx, func() Spec { mu.Lock(); defer mu.Unlock(); return spec }, WatchOptions{
			Debounce: 20 * time.Millisecond, Interval: time.Hour,
			Applied: func(Changes, error) { mu.Lock(); defer mu.Unlock(); applied++ },
		})
	})
	for _, k := range []struct{ name, do, main, table string }{
		{"at first", "true", "via 192.0.2.2 dev eth0", "10.244.2.0/24 via 192.0.2.2 dev eth0"},
		{"another way", "ip route add 192.0.2.2 via 192.0.2.77", "via 192.0.2.77 dev", "10.244.2.0/24 via 192.0.2.77"},
		{"yet another", "ip route replace 192.0.2.2 via 192.0.2.78", "via 192.0.2.78", "10.244.2.0/24 via 192.0.2.78"},
		{"back", "ip route del 192.0.2.2", "via 192.0.2.2 dev eth0", "10.244.2.0/24 via 192.0.2.2 dev eth0"},
		{"flushed", "ip route flush proto 87; ip route flush table 8787", "via 192.0.2.2 dev", "10.244.2.0/24 via 192.0.2.2"},
		{"a rule", "ip rule add to 192.0.2.2 lookup 99 priority 100; ip route add 192.0.2.2 via 192.0.2.79 table 99",
			"via 192.0.2.79 dev", "10.244.2.0/24 via 192.0.2.79"},
		{"no rule", "ip rule del priority 100", "via 192.0.2.2 dev", "10.244.2.0/24 via 192.0.2.2"},
		{"down", "ip link set eth0 down", "dev warren0", "default dev warren0"},
		{"up", "ip link set eth0 up", "via 192.0.2.2 dev eth0", "10.244.2.0/24 via 192.0.2.2 dev eth0"},
	} {
		w.run(k.do)
		w.eventually(k.name, func() bool {
			main, _ := w.try("ip route get 10.244.2.5")
			table := w.run("ip route show table 8787")
			return strings.Contains(main, k.main) && strings.Contains(table, k.table)
		})
	}
	time.Sleep(500 * time.Millisecond)
	mu.Lock()
	n := applied
	mu.Unlock()
	time.Sleep(300 * time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	if applied != n {
		t.Errorf("%d Applies while nothing happened", applied-n)
	}
}

func TestInterval(t *testing.T) {
	for _, k := range []struct{ in, first, end string }{
		{"10.244.1.0/24", "10.244.1.0", "10.244.2.0"},
		{"10.244.255.0/24", "10.244.255.0", "10.245.0.0"},
		{"10.244.1.7/32", "10.244.1.7", "10.244.1.8"},
		{"10.244.1.255/32", "10.244.1.255", "10.244.2.0"},
		{"255.255.255.0/24", "255.255.255.0", ""},
		{"fd00:10:244:ffff::/64", "fd00:10:244:ffff::", "fd00:10:245::"},
	} {
		first, end := interval(prefix(k.in))
		got := [2]string{addrOf(first).String(), ""}
		if end != nil {
			got[1] = addrOf(end).String()
		}
		if got != [2]string{k.first, k.end} {
			t.Errorf("%s: %v, want %s and %s", k.in, got, k.first, k.end)
		}
	}
}

// TestChangeDirect takes peers in one by one: the kernel is then as Apply of all of them makes it.
func TestChangeDirect(t *testing.T) {
	w := newWorld(t)
	_ = w.underlay()
	w.tun("warren0")
	peer := func(n int) DirectPeer {
		return DirectPeer{
			Name: fmt.Sprint("n", n), OnLink: true,
			PodCIDRs:  []netip.Prefix{prefix(fmt.Sprintf("10.244.%d.0/24", n)), prefix(fmt.Sprintf("fd00:10:244:%x::/64", n))},
			NodeAddrs: []netip.Addr{addr(fmt.Sprintf("192.0.2.%d", n)), addr(fmt.Sprintf("2001:db8::%x", n))},
		}
	}
	spec := testSpec()
	change := func(name string, before, after []DirectPeer, direct int) {
		t.Helper()
		c, err := ChangeDirect(spec, before, after)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		n := 0
		for _, r := range c.Direct {
			if r.Why == "" {
				n++
			}
		}
		if n != direct {
			t.Errorf("%s: %+v", name, c.Direct)
		}
		names := map[string]bool{}
		for _, p := range before {
			names[p.Name] = true
		}
		spec.Direct = append(slices.DeleteFunc(spec.Direct, func(p DirectPeer) bool { return names[p.Name] }), after...)
		if made := w.apply(spec).Made; len(made) != 0 {
			t.Errorf("%s: Apply had to change: %s", name, strings.Join(made, "\n"))
		}
	}
	w.apply(spec)
	if _, err := ChangeDirect(spec, nil, []DirectPeer{peer(2)}); !errors.Is(err, ErrWholeDirect) {
		t.Errorf("without a chain: %v", err)
	}
	spec.Direct = []DirectPeer{peer(2)}
	w.apply(spec)
	change("two join", nil, []DirectPeer{peer(3), peer(4)}, 8)
	moved := peer(3)
	moved.NodeAddrs = []netip.Addr{addr("192.0.2.33"), addr("2001:db8::33")}
	change("one moves", []DirectPeer{peer(3)}, []DirectPeer{moved}, 4)
	other := moved
	other.PodCIDRs = []netip.Prefix{prefix("10.244.3.128/25"), prefix("fd00:10:244:33::/64")}
	change("has other pods", []DirectPeer{moved}, []DirectPeer{other}, 4)
	away := peer(4)
	away.NodeAddrs = []netip.Addr{addr("203.0.113.4"), addr("2001:db8:7::4")}
	change("is on another subnet", []DirectPeer{peer(4)}, []DirectPeer{away}, 0)
	change("leave, and one joins", []DirectPeer{away, other}, []DirectPeer{peer(5)}, 4)
	whole := peer(6)
	spec.ClusterCIDRs = append(spec.ClusterCIDRs, prefix("10.9.0.0/24"))
	whole.PodCIDRs = []netip.Prefix{prefix("10.9.0.0/24")}
	if _, err := ChangeDirect(spec, nil, []DirectPeer{whole}); !errors.Is(err, ErrWholeDirect) {
		t.Errorf("a cluster's range of its own: %v", err)
	}
}

func TestCheckDirect(t *testing.T) {
	w := newWorld(t)
	_ = w.underlay()
	spec := directSpec(false)
	spec.Direct = append(spec.Direct, DirectPeer{Name: "c", PodCIDRs: []netip.Prefix{prefix("fd00:10:244:3::/64")},
		NodeAddrs: []netip.Addr{addr("192.0.2.3")}})
	find := func() (levels []Level, text string) {
		for _, f := range Check(Environment{Spec: spec}) {
			if f.What == "direct" {
				levels, text = append(levels, f.Level), text+f.Why+"\n"
			}
		}
		return levels, text
	}
	levels, text := find()
	const lost = "peer c is to be direct, and its pods in fd00:10:244:3::/64 are reached through the tunnel: "
	if !slices.Equal(levels, []Level{Warning, OK}) || !strings.Contains(text, "1 of 2 peers") ||
		!strings.Contains(text, lost) {
		t.Errorf("%v\n%s", levels, text)
	}
	w.run("sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
	if _, text := find(); !strings.Contains(text, "rp_filter is 1 on eth0") {
		t.Error(text)
	}
	w.run("sysctl -qw net.ipv4.conf.all.rp_filter=2")
	if _, text := find(); strings.Contains(text, "rp_filter") {
		t.Error(text)
	}
}

// TestManyDirectPeers sets thousands up at once and one more: messages have a size, and lists are compared.
func TestManyDirectPeers(t *testing.T) {
	w := newWorld(t)
	_ = w.underlay()
	w.run("ip addr add 198.51.100.1/16 dev eth0; sysctl -qw net.ipv6.route.max_size=100000")
	w.tun("warren0")
	spec := testSpec()
	spec.PodCIDRs, spec.Gateways = []netip.Prefix{prefix("10.0.1.0/24")}, []netip.Addr{addr("10.0.1.1")}
	spec.ClusterCIDRs = []netip.Prefix{prefix("10.0.0.0/8")}
	const peers = 5000
	peer := func(n int) DirectPeer {
		return DirectPeer{
			Name: fmt.Sprint("n", n), OnLink: true,
			PodCIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + n/256), byte(n), 0}), 24)},
			NodeAddrs: []netip.Addr{netip.AddrFrom4([4]byte{198, 51, byte(101 + n/256), byte(n)})},
		}
	}
	for n := range peers {
		spec.Direct = append(spec.Direct, peer(n))
	}
	began := time.Now()
	w.apply(spec)
	t.Logf("%d direct peers set up in %v", peers, time.Since(began))
	began = time.Now()
	if made := w.apply(spec).Made; len(made) > 0 {
		t.Errorf("the second Apply changed %d things: %s", len(made), made[0])
	}
	t.Logf("and looked at again in %v", time.Since(began))
	if n := strings.Count(w.run("ip route show table 8787 proto 87 via 198.51.101.0/0"), "10."); n < peers {
		t.Errorf("%d routes to pods", n)
	}
	one := peer(peers)
	began = time.Now()
	c, err := ChangeDirect(spec, []DirectPeer{spec.Direct[0]}, []DirectPeer{one})
	if w.must(err); len(c.Direct) != 2 {
		t.Errorf("%+v", c.Direct)
	}
	t.Logf("one changed in %v", time.Since(began))
	spec.Direct[0] = one
	if made := w.apply(spec).Made; len(made) > 0 {
		t.Errorf("after a change Apply changed %d things: %s", len(made), made[0])
	}
	began = time.Now()
	spec.Direct = nil
	w.apply(spec)
	t.Logf("all removed in %v", time.Since(began))
}
