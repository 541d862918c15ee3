package hostnet

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// background runs f on a thread of its own in the node's namespace until the test ends.
func (w *world) background(f func(context.Context) error) {
	w.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(w.node); err != nil {
			done <- err
			return
		}
		done <- f(ctx)
	}()
	w.Cleanup(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				w.Errorf("background: %v", err)
			}
		case <-time.After(5 * time.Second):
			w.Error("background: does not end")
		}
	})
}

func TestWatchPutsBack(t *testing.T) {
	w := newWorld(t)
	tun := w.tun("warren0")
	var mu sync.Mutex
	applied := 0
	spec := testSpec()
	spec.Pods = []Pod{{Interface: "wrn00000000001", Addrs: []netip.Addr{addr(pod1v4)}}} // masqueraded, therefore
	w.background(func(ctx context.Context) error {
		return Watch(ctx, func() Spec { mu.Lock(); defer mu.Unlock(); return spec }, WatchOptions{
			Debounce: 20 * time.Millisecond, Interval: time.Hour,
			Applied: func(Changes, error) { mu.Lock(); defer mu.Unlock(); applied++ },
		})
	})
	var good string
	settle := func() {
		w.eventually("state settles", func() bool {
			a := w.state()
			time.Sleep(100 * time.Millisecond)
			return a == w.state()
		})
	}
	w.eventually("first Apply", func() bool { return strings.Contains(w.state(), "chain outgoing") })
	settle()
	good = w.state()

	for _, flush := range []string{
		"ip route flush proto 87",
		"ip route flush table 8787; ip -6 route flush table 8787",
		"ip rule del priority 5203; ip -6 rule del priority 5200",
		"ip rule flush; ip rule add priority 32766 lookup main; ip rule add priority 32767 lookup default",
		"nft flush ruleset",
		"nft flush chain inet warren untracked",
		"nft delete chain inet warren outgoing",
		"ip addr del 10.244.1.1/32 dev warren0",
		"ip addr flush dev warren0",
		"ip link set warren0 down",
		"ip link set warren0 mtu 1300",
	} {
		w.run(flush)
		deadline := time.Now().Add(5 * time.Second)
		for diff(good, w.state()) != "" && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
		}
		if d := diff(good, w.state()); d != "" {
			t.Errorf("%s: was not put back:\n%s", flush, d)
		}
	}
	w.run("sysctl -qw net.ipv4.ip_forward=0")
	w.eventually("forwarding is put back", func() bool { v, _ := sysctl("ipv4/ip_forward"); return v == "1" })

	// The device goes away and comes back.
	_ = tun.Close()
	w.eventually("the device is gone", func() bool { _, err := w.try("ip link show warren0"); return err != nil })
	w.tun("warren0")
	w.eventually("all is as it was with the new device", func() bool {
		return strings.Contains(w.state(), "10.244.0.0/16 dev warren0 proto 87 scope link src 10.244.1.1")
	})

	// Quiet when nothing happens.
	time.Sleep(time.Second)
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

func TestWatchMTU(t *testing.T) {
	w := newWorld(t)
	_ = w.underlay()
	if name, mtu, err := Underlay(addr("192.0.2.1")); name != "eth0" || mtu != 1500 || err != nil {
		t.Errorf("Underlay: %s, %d, %v", name, mtu, err)
	}
	if _, _, err := Underlay(addr("192.0.2.77")); err == nil || !strings.Contains(err.Error(), "192.0.2.77") {
		t.Errorf("Underlay of an address that nobody has: %v", err)
	}
	events := make(chan string, 10)
	w.background(func(ctx context.Context) error {
		return WatchMTU(ctx, addr("2001:db8::1"), func(name string, mtu int, err error) {
			events <- fmt.Sprint(name, " ", mtu, " ", err != nil)
		})
	})
	for _, step := range []struct{ run, want string }{
		{"true", "eth0 1500 false"},
		{"ip link set eth0 mtu 1400", "eth0 1400 false"},
		{"ip addr del 2001:db8::1/64 dev eth0", " 0 true"},
		{"ip link add other type bridge; ip addr add 2001:db8::1/64 dev other nodad", "other 1500 false"},
	} {
		w.run(step.run)
		select {
		case got := <-events:
			if got != step.want {
				t.Errorf("%s: %q, want %q", step.run, got, step.want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: no event", step.run)
		}
	}
}

func TestFightCounter(t *testing.T) {
	var f fightCounter
	now := time.Unix(1000, 0)
	for i := range 20 {
		if got, want := f.add(now.Add(time.Duration(i)*time.Second)), i >= fightLimit; got != want {
			t.Errorf("change %d: %v, want %v", i, got, want)
		}
	}
	if f.add(now.Add(time.Hour)) {
		t.Error("a change after an hour is taken for a fight")
	}
}

// TestPodsThatLeaveAreNoFight has pods come and leave beside the daemon, and then somebody who undoes things.
func TestPodsThatLeaveAreNoFight(t *testing.T) {
	w := newWorld(t)
	w.tun("warren0")
	w.run("ip link add br0 type bridge")
	spec := testSpec()
	spec.Bridged = func(string) bool { return false }
	var log lockedBuffer
	w.background(func(ctx context.Context) error {
		return Watch(ctx, func() Spec { return spec }, WatchOptions{
			Debounce: time.Millisecond, Interval: time.Hour, Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
	})
	w.eventually("first Apply", func() bool { return strings.Contains(w.state(), "chain replies") })
	const slow = "keeps undoing"
	m := testSpec().masquerade()
	for i := range 3 * fightLimit {
		tidied := strings.Count(log.String(), "of pods that are gone removed")
		w.run("ip link add wrn00000000001 type veth peer name far0")
		p := bridgePod("br0")
		p.Masquerade = &m
		w.must(EnsurePod(p))
		w.run("ip link del wrn00000000001")
		// Its DEL says so, or the daemon sees it for itself.
		if i%2 == 0 {
			w.must(RemovePod(p.Interface))
		} else {
			w.run("nft delete chain inet warren outgoing")
		}
		w.eventually("what the pod left is gone", func() bool {
			return strings.Count(log.String(), "of pods that are gone removed") > tidied &&
				!strings.Contains(w.run("nft list ruleset"), "br0")
		})
		if strings.Contains(log.String(), slow) {
			t.Fatalf("after %d pods:\n%s", i+1, log.String())
		}
	}
	for range 3 * fightLimit {
		w.run("ip rule del priority 5203")
		w.eventually("the rule is back", func() bool { return strings.Contains(w.run("ip rule"), "5203:") })
		if strings.Contains(log.String(), slow) {
			return
		}
	}
	t.Errorf("a fight was not found:\n%s", log.String())
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestEventsIgnoreWhatIsCutShort(t *testing.T) {
	route := routeEvent(func() string { return "warren0" })
	name := append(make([]byte, unix.SizeofIfInfomsg), attr(unix.IFLA_IFNAME, "warren0\x00")...)
	nft := append(make([]byte, nfgenHeader), attr(nftAttrTable, "warren\x00")...)
	delRule := uint16(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELRULE)
	if !route(msg(unix.RTM_NEWLINK, name)) || !nftEvent(msg(delRule, nft)) {
		t.Error("a whole message is not recognised")
	}
	for n := range name {
		if n < len(name)-1 && route(msg(unix.RTM_NEWLINK, name[:n])) {
			t.Errorf("a link message of %d bytes is recognised", n)
		}
	}
	for n := range nft {
		nftEvent(msg(delRule, nft[:n]))
	}
	for _, kind := range []uint16{unix.RTM_DELROUTE, unix.RTM_NEWROUTE, unix.RTM_NEWNETCONF, unix.RTM_NEWLINK} {
		if route(msg(kind, nil)) {
			t.Errorf("an empty message of type %d is recognised", kind)
		}
	}
}

func msg(kind uint16, data []byte) syscall.NetlinkMessage {
	return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}
}

func attr(kind uint16, value string) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

// TestThreadsNamespace shows that sysctls follow the thread: another thread of this process sees another value.
func TestThreadsNamespace(t *testing.T) {
	w := newWorld(t)
	other := w.newNS()
	var c Changes
	w.must(setSysctl("ipv4/ip_forward", "1", &c))
	w.in(other, func() {
		if v, err := sysctl("ipv4/ip_forward"); v != "0" || err != nil {
			t.Errorf("ip_forward of the other namespace is %q, %v", v, err)
		}
	})
}
