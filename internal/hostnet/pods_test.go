package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestEnsurePodWithoutDaemon(t *testing.T) {
	w := newWorld(t)
	p := Pod{Interface: "wrnaaaaaaaaaaa", Addrs: []netip.Addr{addr(pod1v4), addr(pod1v6)}}
	w.must(RemovePod(p.Interface))
	w.must(EnsurePod(p))
	first := w.state()
	if !containsAll(first, `"wrnaaaaaaaaaaa" . 10.244.1.2`, `"wrnaaaaaaaaaaa" . fd00:10:244:1::2`, "chain source") {
		t.Fatalf("after EnsurePod:\n%s", first)
	}
	w.must(EnsurePod(p))
	if now := w.state(); now != first {
		t.Errorf("EnsurePod again changed:\n%s", diff(first, now))
	}
	w.run("nft flush chain inet warren source")
	w.must(EnsurePod(p))
	if now := w.state(); now != first {
		t.Errorf("EnsurePod did not mend the check:\n%s", diff(first, now))
	}
	w.run("nft 'delete chain inet warren source; add chain inet warren source { type filter hook input priority 5; }'")
	w.must(EnsurePod(p))
	if now := w.state(); now != first {
		t.Errorf("EnsurePod did not mend the hook:\n%s", diff(first, now))
	}
	p.Addrs = []netip.Addr{addr("10.244.1.9")}
	w.must(EnsurePod(p))
	now := w.state()
	if strings.Contains(now, "10.244.1.2") || strings.Contains(now, "::2") || !strings.Contains(now, "10.244.1.9") {
		t.Errorf("after EnsurePod with other addresses:\n%s", now)
	}
	w.must(RemovePod(p.Interface))
	w.must(RemovePod(p.Interface))
	if now := w.state(); strings.Contains(now, "10.244.1.9") {
		t.Errorf("after RemovePod:\n%s", now)
	}
}

func TestEnsurePodAtOnce(t *testing.T) {
	w := newWorld(t)
	const n = 24
	var pods sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		pods.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if errs[i] = netns.Set(w.node); errs[i] != nil {
				return
			}
			a := netip.AddrFrom4([4]byte{10, 244, 1, byte(i + 2)})
			p := Pod{Interface: fmt.Sprintf("wrn%011d", i), Addrs: []netip.Addr{a}}
			errs[i] = EnsurePod(p)
			if i%3 == 0 && errs[i] == nil {
				errs[i] = RemovePod(p.Interface)
			}
			if i%8 == 1 && errs[i] == nil {
				fw := newFirewall()
				defer fw.close()
				errs[i] = fw.apply(testSpec().withDefaults(), directPlan{}, nil, everyLink, &Changes{})
			}
		})
	}
	pods.Wait()
	w.must(errors.Join(errs...))
	out := w.run("nft list table inet warren")
	for i := range n {
		a := fmt.Sprintf("10.244.1.%d", i+2)
		there := strings.Contains(out, a+" ") || strings.Contains(out, a+",")
		if there != (i%3 != 0) {
			t.Errorf("pod %d in the set: %v", i, there)
		}
	}
	if strings.Count(out, "not from a pod") != 1 {
		t.Errorf("rules are there twice:\n%s", out)
	}
}

// TestAddressOfAnotherPod: as long as its interface is there, it keeps the address.
func TestAddressOfAnotherPod(t *testing.T) {
	for _, mode := range []string{"routed", "bridge", "a bridge beside a routed pod"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			w.run("ip link add br0 type bridge; ip link add wrn00000000001 type bridge; " +
				"ip link set wrn00000000001 alias 'warren pod: n shop/a eth0'")
			p := Pod{Interface: "wrn00000000001", Addrs: []netip.Addr{addr(pod1v4), addr(pod1v6)}}
			q := Pod{Interface: "wrn00000000002"}
			if mode == "bridge" {
				p.Bridge, p.MAC = "br0", net.HardwareAddr{0x0e, 0, 0, 0, 0, 1}
			}
			if mode != "routed" {
				q.Bridge, q.MAC = "br0", net.HardwareAddr{0x0e, 0, 0, 0, 0, 2}
			}
			w.must(EnsurePod(p))
			w.must(EnsurePod(p))
			for _, a := range p.Addrs {
				q.Addrs = []netip.Addr{addr("10.244.1.9"), a}
				err := EnsurePod(q)
				var taken *AddressTakenError
				if !errors.As(err, &taken) || taken.Addr != a || taken.Interface != p.Interface ||
					!strings.Contains(err.Error(), "(warren pod: n shop/a eth0)") {
					t.Errorf("the address %s of another pod: %v", a, err)
				}
				out := w.run("nft list table inet warren")
				if strings.Contains(out, q.Interface) || !strings.Contains(w.run("nft list ruleset"), `"wrn00000000001" . `) {
					t.Errorf("after %s was refused:\n%s", a, out)
				}
			}
			q.Addrs = p.Addrs
			w.run("ip link del wrn00000000001") // with its namespace
			w.must(EnsurePod(q))
		})
	}
}

// everyLink claims that the test's interfaces exist.
func everyLink() (map[string]bool, error) {
	m := map[string]bool{}
	for i := range 1000 {
		m[fmt.Sprintf("wrn%011d", i)] = true
	}
	return m, nil
}

func TestApplyRepairsSets(t *testing.T) {
	w := newWorld(t)
	w.run("ip link add wrn00000000001 type bridge; ip link add wrn00000000009 type bridge; ip link add br0 type bridge")
	w.tun("warren0")
	s := testSpec()
	mac := net.HardwareAddr{0x0e, 0, 0, 0, 0, 9}
	s.Pods = []Pod{
		{Interface: "wrn00000000001", Addrs: []netip.Addr{addr(pod1v4)}},
		{
			Interface: "wrn00000000009", Addrs: []netip.Addr{addr("10.244.1.9"), addr("fd00:10:244:1::9")},
			Bridge: "br0", MAC: mac,
		},
		{Interface: "wrnnotthere", Addrs: []netip.Addr{addr("10.244.1.8")}},
	}
	w.apply(s)
	first := w.state()
	for _, want := range []string{
		`"wrn00000000001" . 10.244.1.2`, `"wrn00000000009" . 0e:00:00:00:00:09`,
		`"wrn00000000009" . fd00:10:244:1::9`, `"br0"`,
	} {
		if !strings.Contains(first, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if strings.Contains(first, "wrnnotthere") {
		t.Error("a pod without interface is in the sets")
	}
	if c := w.apply(s); len(c.Made) > 0 {
		t.Errorf("changed again: %q", c.Made)
	}
	w.run("nft flush ruleset")
	w.apply(s)
	if now := w.state(); now != first {
		t.Errorf("after flushing the ruleset:\n%s", diff(first, now))
	}
	w.run("ip link del wrn00000000001; ip link del br0")
	w.apply(s)
	if now := w.state(); strings.Contains(now, pod1v4) || strings.Contains(now, `"br0"`) {
		t.Errorf("elements of interfaces that are gone:\n%s", now)
	}
	w.must(Remove(s, false))
	if now := w.run("nft list ruleset"); now != "" {
		t.Errorf("after Remove:\n%s", now)
	}
}

// TestPodRoutesComeBackWithTheDevice: the kernel drops them with the gateway address.
func TestPodRoutesComeBackWithTheDevice(t *testing.T) {
	w := newWorld(t)
	pod1, _, _ := w.twoPods()
	s := testSpec()
	s.Pods = []Pod{
		{Interface: "wrn00000000001", Addrs: []netip.Addr{addr(pod1v4), addr(pod1v6)}},
		{Interface: "wrn00000000002", Addrs: []netip.Addr{addr(pod2v4), addr(pod2v6)}},
		{Interface: "wrngone", Addrs: []netip.Addr{addr("10.244.1.8")}},
	}
	w.apply(s)
	if c := w.apply(s); len(c.Made) > 0 {
		t.Errorf("changed again: %q", c.Made)
	}
	const want = "10.244.1.2 dev wrn00000000001 proto 87 scope link src 10.244.1.1"
	if out := w.run("ip route"); !strings.Contains(out, want) {
		t.Errorf("routes to pods:\n%s", out)
	}
	w.run("ip link del warren0")
	w.run("ip route flush proto 87; ip -6 route flush proto 87")
	if _, err := Apply(s, discard()); !errors.Is(err, ErrNoDevice) {
		t.Errorf("without the device: %v", err)
	}
	w.tun("warren0")
	w.apply(s)
	w.in(pod1, func() { w.run(ping(pod2v4)); w.run(ping(pod2v6)) })
	w.run(ping(pod1v4))
	if out := w.run("ip route"); strings.Contains(out, "10.244.1.8") {
		t.Errorf("a route to a pod that is gone:\n%s", out)
	}
}

// TestPodsAreFoundByTheirRoutes flushes the ruleset under pods that no Spec names.
func TestPodsAreFoundByTheirRoutes(t *testing.T) {
	w := newWorld(t)
	pod1, _, _ := w.twoPods()
	w.run("nft flush ruleset")
	w.apply(testSpec())
	w.in(pod1, func() { w.run(ping(pod2v4)); w.run(ping(pod2v6)) })
}

func TestBridgeModeSourceCheck(t *testing.T) {
	w := newWorld(t)
	w.run("ip link add br0 type bridge; ip link set br0 up")
	w.run("ip addr add 10.244.1.1/24 dev br0; ip addr add fd00:10:244:1::1/64 dev br0 nodad")
	pod := map[string]netns.NsHandle{}
	for i, name := range []string{"wrn00000000002", "wrn00000000003"} {
		ns := w.newNS()
		pod[name] = ns
		mac := net.HardwareAddr{0x0e, 0, 0, 0, 1, byte(i + 2)}
		w.run(fmt.Sprintf("ip link add %s type veth peer name p%d address %s", name, i, mac))
		w.run(fmt.Sprintf("ip link set %s master br0 up", name))
		w.run(fmt.Sprintf("ip link set p%d netns /proc/%d/fd/%d", i, unix.Getpid(), int(ns)))
		w.in(ns, func() {
			w.run(fmt.Sprintf("ip link set p%d name eth0; ip link set eth0 up; ip addr add 10.244.1.%d/24 dev eth0; "+
				"ip addr add fd00:10:244:1::%d/64 dev eth0 nodad; ip route add default via 10.244.1.1", i, i+2, i+2))
		})
		w.must(EnsurePod(Pod{
			Interface: name, Bridge: "br0", MAC: mac,
			Addrs: []netip.Addr{addr(fmt.Sprintf("10.244.1.%d", i+2)), addr(fmt.Sprintf("fd00:10:244:1::%d", i+2))},
		}))
	}
	w.eventually("the bridge forwards", func() bool { _, err := w.try(noPing("10.244.1.2")); return err == nil })
	w.in(pod["wrn00000000002"], func() {
		for _, dst := range []string{"10.244.1.1", "10.244.1.3", "fd00:10:244:1::1", "fd00:10:244:1::3"} {
			w.run(ping(dst, "-w 5"))
		}
		w.run("ip addr add 10.244.1.77/32 dev eth0; ip addr add fd00:10:244:1::77/128 dev eth0 nodad")
		w.fails(noPing("10.244.1.3", "-I", "10.244.1.77"))
		w.fails(noPing("fd00:10:244:1::3", "-I", "fd00:10:244:1::77"))
		w.fails(noPing("10.244.1.1", "-I", "10.244.1.77"))
		w.run("ip addr del 10.244.1.77/32 dev eth0; ip addr del fd00:10:244:1::77/128 dev eth0")
		// It can't answer for the gateway's address either.
		w.run("ip addr add 10.244.1.1/32 dev eth0; ip addr add fd00:10:244:1::1/128 dev eth0 nodad")
	})
	w.in(pod["wrn00000000003"], func() {
		w.run("ip neigh flush all; ip -6 neigh flush all")
		w.run(ping("10.244.1.1") + "; " + ping("fd00:10:244:1::1"))
		out := w.run("ip neigh show 10.244.1.1; ip -6 neigh show fd00:10:244:1::1")
		if strings.Contains(out, "0e:00:00:00:01:02") {
			t.Errorf("a pod took the gateway's address over:\n%s", out)
		}
	})
	w.in(pod["wrn00000000002"], func() {
		w.run("ip addr del 10.244.1.1/32 dev eth0; ip addr del fd00:10:244:1::1/128 dev eth0")
		w.run("ip link set eth0 down; ip link set eth0 address 0e:00:00:00:01:99 up")
		w.fails(noPing("10.244.1.3"))
	})
	if n, err := Spoofed(); err != nil || n == 0 {
		t.Errorf("spoofed packets counted: %d, %v", n, err)
	}
}

// TestWithoutNftables plays a kernel that has none, and one that lacks a part.
func TestWithoutNftables(t *testing.T) {
	w := newWorld(t)
	w.tun("warren0")
	for _, errno := range []error{unix.EOPNOTSUPP, unix.EINVAL, unix.EPROTONOSUPPORT} {
		none := &firewall{dial: func() (*nftables.Conn, error) {
			return nftables.New(nftables.WithTestDial(func([]netlink.Message) ([]netlink.Message, error) { return nil, errno }))
		}}
		c, err := apply(testSpec(), discard(), none)
		if err != nil || len(c.Lost) != 1 || !strings.Contains(c.Lost[0], "unchecked") {
			t.Errorf("%v: Apply without nftables: %v, lost %q", errno, err, c.Lost)
		}
		if err := none.ensurePod(Pod{Interface: "wrn1", Addrs: []netip.Addr{addr(pod1v4)}}); !errors.Is(err, ErrNoNftables) {
			t.Errorf("%v: EnsurePod without nftables: %v", errno, err)
		}
		if err := remove(testSpec(), false, none); err != nil {
			t.Errorf("%v: Remove without nftables: %v", errno, err)
		}
		w.tun("warren0")
	}

	lacking := newFirewall()
	defer lacking.close()
	lacking.extra = []chain{{name: "more", kind: "bogus", hook: *nftables.ChainHookPrerouting, lost: "more does not work"}}
	c, err := apply(testSpec(), discard(), lacking)
	if err != nil || len(c.Lost) != 1 || !strings.Contains(c.Lost[0], "more does not work") {
		t.Errorf("Apply with a part of nftables: %v, lost %q", err, c.Lost)
	}
	if out := w.run("nft list table inet warren"); !containsAll(out, "chain replies", "chain source") {
		t.Errorf("the other chains are missing:\n%s", out)
	}
	c, err = apply(testSpec(), discard(), lacking)
	if err != nil || len(c.Made) != 0 {
		t.Errorf("second Apply with a part of nftables: %v, made %q", err, c.Made)
	}
}

// TestManyPeers needs more than one message for the nodes' addresses.
func TestManyPeers(t *testing.T) {
	w := newWorld(t)
	w.tun("warren0")
	s := testSpec()
	for i := range 2500 {
		s.PeerNodeAddrs = append(s.PeerNodeAddrs, netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}))
	}
	w.apply(s)
	if c := w.apply(s); len(c.Made) != 0 {
		t.Errorf("changed again: %q", c.Made)
	}
	if n := strings.Count(w.run("nft list set inet warren nodes4"), "198.51."); n != 2500 {
		t.Errorf("%d addresses in the set, want 2500", n)
	}
	s.PeerNodeAddrs = s.PeerNodeAddrs[:1]
	w.apply(s)
	if n := strings.Count(w.run("nft list set inet warren nodes4"), "198.51."); n != 0 {
		t.Errorf("%d addresses in the set, want those of peers that are gone removed", n)
	}
}

func containsAll(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}
