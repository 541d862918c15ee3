package udp

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/tunnel"
)

// netNS is an anonymous network namespace: it ends with its last descriptor, whatever happens to the test.
type netNS struct {
	t      testing.TB
	file   *os.File
	handle *netlink.Handle
}

func newNetNS(t testing.TB) *netNS {
	t.Helper()
	lab.NeedRoot(t)
	ns := &netNS{t: t}
	onThread(func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("making a network namespace: %v", err)
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Errorf("opening the namespace: %v", err)
			return
		}
		ns.file = f
		// IPv6 may be off in new namespaces; its absence would hide half of the test.
		for _, which := range []string{"all", "default"} {
			key := "/proc/sys/net/ipv6/conf/" + which + "/disable_ipv6"
			if err := os.WriteFile(key, []byte("0"), 0); err != nil {
				t.Errorf("switching IPv6 on: %v", err)
			}
		}
		if ns.handle, err = netlink.NewHandle(); err != nil {
			t.Errorf("opening netlink: %v", err)
		}
	})
	t.Cleanup(func() {
		if ns.handle != nil {
			ns.handle.Close()
		}
		if ns.file != nil {
			_ = ns.file.Close()
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return ns
}

// onThread runs f on a thread that ends with it, as its namespace may be changed by f.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// do runs f inside the namespace. f must not end the test.
func (ns *netNS) do(f func()) {
	onThread(func() {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			ns.t.Errorf("entering the namespace: %v", err)
			return
		}
		f()
	})
}

func (ns *netNS) must(err error, what string) {
	ns.t.Helper()
	if err != nil {
		ns.t.Fatalf("%s: %v", what, err)
	}
}

// command runs a program inside the namespace.
func (ns *netNS) command(args ...string) {
	ns.t.Helper()
	var out []byte
	var err error
	ns.do(func() { out, err = exec.Command(args[0], args[1:]...).CombinedOutput() })
	if err != nil {
		ns.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// connect joins two namespaces with a veth pair: device name in both, addresses 1 and 2 of the prefixes.
func connect(a, b *netNS, name string, mtu int, prefixes ...string) {
	a.t.Helper()
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name, MTU: mtu},
		PeerName:      name,
		PeerNamespace: netlink.NsFd(int(b.file.Fd())),
	}
	a.must(a.handle.LinkAdd(veth), "making a veth pair")
	ends := [2]*netNS{a, b}
	for i, ns := range ends {
		link, peer := ns.link(name), ends[1-i].link(name).Attrs().HardwareAddr
		ns.must(ns.handle.LinkSetMTU(link, mtu), "setting the MTU")
		ns.must(ns.handle.LinkSetUp(link), "setting the device up")
		for _, p := range prefixes {
			prefix := netip.MustParsePrefix(p)
			addrs := [2]netip.Addr{prefix.Addr().Next(), prefix.Addr().Next().Next()}
			own, other := addrs[i], addrs[1-i]
			flags, family := 0, unix.AF_INET
			if own.Is6() {
				flags, family = unix.IFA_F_NODAD, unix.AF_INET6
			}
			ipnet := &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), own.BitLen())}
			ns.must(ns.handle.AddrAdd(link, &netlink.Addr{IPNet: ipnet, Flags: flags}), "adding an address")
			// IPv6 neighbour discovery would take a second on a new device.
			ns.must(ns.handle.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: family,
				State: netlink.NUD_PERMANENT, IP: other.AsSlice(), HardwareAddr: peer}), "adding a neighbour")
		}
	}
	for _, p := range prefixes {
		first := netip.MustParsePrefix(p).Addr().Next()
		waitPath(b, a, first)
		waitPath(a, b, first.Next())
	}
}

// waitPath waits until a datagram gets through from one namespace to another: after the devices are up, the kernel
// attaches the queueing discipline and enters the route of an IPv6 address in work queues of its own, and throws away
// without a word what is sent before.
func waitPath(from, to *netNS, addr netip.Addr) {
	from.t.Helper()
	var in, out net.Conn
	var err error
	bind := net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 9))
	to.do(func() { in, err = net.ListenUDP("udp", bind) })
	to.must(err, "waiting for a path")
	defer in.Close()
	from.do(func() { out, err = net.DialUDP("udp", nil, bind) })
	from.must(err, "waiting for a path")
	defer out.Close()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		_, _ = out.Write([]byte("there?")) // an ICMP error about an earlier one is no news
		_ = in.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := in.Read(make([]byte, 10)); err == nil {
			return
		}
	}
	from.t.Fatalf("nothing gets through to %v", addr)
}

func (ns *netNS) link(name string) netlink.Link {
	ns.t.Helper()
	link, err := ns.handle.LinkByName(name)
	ns.must(err, "looking up "+name)
	return link
}

func (ns *netNS) open(c Config) *Socket {
	ns.t.Helper()
	return ns.openGroup(1, c)[0]
}

func (ns *netNS) openGroup(n int, c Config) []*Socket {
	ns.t.Helper()
	var group []*Socket
	var err error
	ns.do(func() { group, err = OpenGroup(n, c) })
	ns.must(err, "opening sockets")
	ns.t.Cleanup(func() {
		for _, s := range group {
			_ = s.Close()
		}
	})
	return group
}

// Addresses of the usual pair.
var (
	a4 = netip.MustParseAddr("192.0.2.1")
	b4 = netip.MustParseAddr("192.0.2.2")
	a6 = netip.MustParseAddr("2001:db8::1")
	b6 = netip.MustParseAddr("2001:db8::2")
)

const tunnelPort = 4789

// newPair makes two namespaces with the addresses above, and waits until both families work.
func newPair(t testing.TB) (a, b *netNS) {
	t.Helper()
	a, b = newNetNS(t), newNetNS(t)
	connect(a, b, "wrnudp", 1500, "192.0.2.0/24", "2001:db8::/64")
	return a, b
}

// receive collects n datagrams, or what came within some seconds.
func receive(t testing.TB, s *Socket, n int) []tunnel.Datagrams {
	t.Helper()
	in := tunnel.NewInbound(16)
	var all []tunnel.Datagrams
	for got, end := 0, time.Now().Add(5*time.Second); got < n && time.Now().Before(end); {
		if err := s.Receive(in); err != nil {
			t.Fatalf("Receive: %v", err)
		}
		for _, slot := range in.Slots[:in.N] {
			slot.Buf = append([]byte(nil), slot.Buf[:slot.N]...)
			all = append(all, slot)
			got += len(split(slot))
		}
		if in.N == 0 {
			waitReadable(s, 100*time.Millisecond)
		}
	}
	return all
}

func waitReadable(s *Socket, d time.Duration) {
	var fds []unix.PollFd
	for _, fd := range s.FDs() {
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	_, _ = unix.Poll(fds, int(d.Milliseconds()))
}

// split cuts what one receive delivered into datagrams.
func split(d tunnel.Datagrams) []string {
	if d.N == 0 {
		return []string{""}
	}
	var all []string
	for b := d.Buf[:d.N]; len(b) > 0; {
		n := min(d.SegmentSize, len(b))
		all = append(all, string(b[:n]))
		b = b[n:]
	}
	return all
}

func datagrams(all []tunnel.Datagrams) []string {
	var out []string
	for _, d := range all {
		out = append(out, split(d)...)
	}
	return out
}
