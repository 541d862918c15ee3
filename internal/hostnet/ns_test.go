package hostnet

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
)

// A world is a set of network namespaces on the test's own thread, which ends with the test and takes them along.
type world struct {
	*testing.T
	node netns.NsHandle
}

// newWorld puts the test into a fresh network namespace, the node.
func newWorld(t *testing.T) *world {
	t.Helper()
	lab.NeedRoot(t)
	t.Parallel()
	return newLoneWorld(t)
}

// newLoneWorld is one beside which no other test runs.
func newLoneWorld(t *testing.T) *world {
	t.Helper()
	lab.NeedRoot(t)
	runtime.LockOSThread()
	w := &world{T: t}
	w.node = w.newNS()
	w.enter(w.node)
	return w
}

// newNS makes a namespace with loopback up and forwarding off, and stays where it was.
func (w *world) newNS() netns.NsHandle {
	w.Helper()
	was, err := netns.Get()
	w.must(err)
	ns, err := netns.New()
	w.must(err)
	w.Cleanup(func() { _ = ns.Close() })
	lo, err := netlink.LinkByName("lo")
	w.must(err)
	w.must(netlink.LinkSetUp(lo))
	var c Changes
	w.must(setSysctl("ipv4/ip_forward", "0", &c))
	w.must(setSysctl("ipv6/conf/all/forwarding", "0", &c))
	w.enter(was)
	_ = was.Close()
	return ns
}

func (w *world) enter(ns netns.NsHandle) {
	w.Helper()
	w.must(netns.Set(ns))
}

// in runs f inside a namespace.
func (w *world) in(ns netns.NsHandle, f func()) {
	w.Helper()
	w.enter(ns)
	defer w.enter(w.node)
	f()
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// run runs a command line in the current namespace and returns what it prints.
func (w *world) run(line string) string {
	w.Helper()
	out, err := w.try(line)
	if err != nil {
		w.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

func (w *world) try(line string) (string, error) {
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	return string(out), err
}

// fails runs a command that must fail.
func (w *world) fails(line string) string {
	w.Helper()
	out, err := w.try(line)
	if err == nil {
		w.Fatalf("%s: succeeded and should not\n%s", line, out)
	}
	return out
}

// state is all that Warren may touch in the current namespace, but for sysctls.
func (w *world) state() string {
	w.Helper()
	w.settle()
	var b strings.Builder
	for _, line := range []string{
		"ip -o link", "ip -o addr", "ip rule", "ip -6 rule", "ip -4 route show table all",
		"ip -6 route show table all", "nft list ruleset",
	} {
		fmt.Fprintf(&b, "# %s\n%s", line, w.run(line))
	}
	return b.String()
}

// settle waits, not for long, until the kernel has made the local routes of global IPv6 addresses, as it does on a work
// queue of its own some time after an address was set.
func (w *world) settle() {
	w.Helper()
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		routes, missing := w.run("ip -6 route show table local"), false
		for _, line := range strings.Split(w.run("ip -o -6 addr show up scope global"), "\n") {
			if f := strings.Fields(line); len(f) > 3 {
				addr, _, _ := strings.Cut(f[3], "/")
				missing = missing || f[1] != "lo" && !strings.Contains(routes, "local "+addr+" dev "+f[1]+" ")
			}
		}
		if !missing {
			return
		}
	}
}

// tun makes the TUN device in the current namespace and writes back what it reads.
func (w *world) tun(name string) *os.File {
	w.Helper()
	return w.tunSeeing(name, func([]byte) {})
}

// tunSeeing also shows every packet to see.
func (w *world) tunSeeing(name string, see func([]byte)) *os.File {
	w.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	w.must(err)
	ifr, err := unix.NewIfreq(name)
	w.must(err)
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
	w.must(unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
	f := os.NewFile(uintptr(fd), "tun")
	w.Cleanup(func() { _ = f.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			see(buf[:n])
			if _, err := f.Write(buf[:n]); err != nil && n > 0 {
				continue // a packet that the kernel does not take
			}
		}
	}()
	return f
}

// attach joins a pod's namespace to the current one, as the CNI plugin does in routed mode.
func (w *world) attach(pod netns.NsHandle, ifname string, addrs ...netip.Addr) {
	w.Helper()
	w.run(fmt.Sprintf("ip link add %s type veth peer name tmp%s", ifname, ifname[3:]))
	peer, err := netlink.LinkByName("tmp" + ifname[3:])
	w.must(err)
	w.must(netlink.LinkSetNsFd(peer, int(pod)))
	w.must(EnsurePodLink(ifname))
	w.run("ip link set " + ifname + " address 0e:00:00:00:00:01 up")
	w.in(pod, func() {
		w.run(fmt.Sprintf("ip link set tmp%s name eth0; ip link set eth0 up", ifname[3:]))
		for _, a := range addrs {
			gw, opt, six := "10.244.1.1", "", ""
			if a.Is6() {
				gw, opt, six = "fd00:10:244:1::1", "nodad", "-6"
			}
			w.run(fmt.Sprintf("ip addr add %s dev eth0 %s", netip.PrefixFrom(a, a.BitLen()), opt))
			w.run(fmt.Sprintf("ip %s route replace %s dev eth0; ip %s route replace default via %s", six, gw, six, gw))
			w.run(fmt.Sprintf("ip neigh replace %s lladdr 0e:00:00:00:00:01 dev eth0 nud permanent", gw))
		}
	})
	for _, a := range addrs {
		w.run(fmt.Sprintf("ip route add %s dev %s proto 87", netip.PrefixFrom(a, a.BitLen()), ifname))
	}
	w.must(EnsurePod(Pod{Interface: ifname, Addrs: addrs}))
}

func (w *world) apply(s Spec) Changes {
	w.Helper()
	c, err := Apply(s, discard())
	if err != nil {
		w.Fatalf("Apply: %v\nafter: %s", err, strings.Join(c.Made, "\n"))
	}
	if len(c.Lost) > 0 {
		w.Fatalf("Apply lost: %v", c.Lost)
	}
	return c
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// eventually waits until ok, at most five seconds.
func (w *world) eventually(what string, ok func() bool) {
	w.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	w.Fatalf("not within five seconds: %s\n%s", what, w.state())
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// testSpec is the node of all tests: both families, one peer.
func testSpec() Spec {
	return Spec{
		Device: "warren0", MTU: 1420, GSOMaxSize: 64000, TxQueueLen: 1000,
		Gateways:      []netip.Addr{addr("10.244.1.1"), addr("fd00:10:244:1::1")},
		PodCIDRs:      []netip.Prefix{prefix("10.244.1.0/24"), prefix("fd00:10:244:1::/64")},
		ClusterCIDRs:  []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00:10:244::/48")},
		NodeAddrs:     []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")},
		PeerNodeAddrs: []netip.Addr{addr("192.0.2.2"), addr("2001:db8::2")},
		CookiePort:    51820,
		Masquerade:    true,
	}
}
