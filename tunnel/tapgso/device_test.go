package tapgso

import (
	"bytes"
	"errors"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/tunnel"
)

// isolate puts the test into a network namespace of its own, which ends with the test's thread.
func isolate(t *testing.T) {
	t.Helper()
	lab.NeedRoot(t)
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
}

func open(t *testing.T, name string) *Device {
	t.Helper()
	d, err := Open(Config{Name: name, Alias: "for a test", Queues: 2, Addrs: []netip.Addr{own4, own6}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func superpacket(t *testing.T) *tunnel.Superpacket {
	t.Helper()
	p, i, m := tcpSuperpacket(t, 4, 3000, 0x10)
	return &tunnel.Superpacket{To: peer4, SourcePort: 1, Header: encapsulation(4), Packet: p, Info: i, Meta: m}
}

// TestOpen wants a device that says nothing and belongs to nobody else, and nothing left of it afterwards.
func TestOpen(t *testing.T) {
	isolate(t)
	d := open(t, "warren0-gso")
	link, err := netlink.LinkByName(d.Name())
	if err != nil {
		t.Fatal(err)
	}
	attrs := link.Attrs()
	const noARP, multicast = 0x80, 0x1000 // IFF_NOARP, IFF_MULTICAST
	if attrs.Alias != "for a test" || string(attrs.HardwareAddr) != string(deviceMAC[:]) || attrs.RawFlags&noARP == 0 ||
		attrs.RawFlags&multicast != 0 || len(d.Queues()) != 2 {
		t.Errorf("%d queues, %+v", len(d.Queues()), attrs)
	}
	if tap, ok := link.(*netlink.Tuntap); !ok || tap.Mode != netlink.TUNTAP_MODE_TAP || tap.NonPersist == false {
		t.Errorf("%+v", link)
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if link, err := netlink.LinkByName(d.Name()); err == nil {
		t.Errorf("left: %+v", link)
	}
	open(t, d.Name())
	if _, err := Open(Config{Name: d.Name(), Queues: 1}); !errors.Is(err, ErrTaken) {
		t.Errorf("a second one: %v, want %v", err, ErrTaken)
	}
	if _, err := Open(Config{Name: "lo", Queues: 1}); !errors.Is(err, ErrTaken) {
		t.Errorf("over the loopback device: %v, want %v", err, ErrTaken)
	}
	if _, err := Open(Config{Name: "x", Node: "/dev/null"}); err == nil {
		t.Error("/dev/null has TAP devices")
	}
}

// TestRefusals wants a device that the kernel refuses packets from to be given up after a few, and one that is only
// down not to be.
func TestRefusals(t *testing.T) {
	isolate(t)
	d := open(t, "wrntap0")
	q, good := d.Queues()[0], superpacket(t)
	for range 2 * maxRefusals {
		if q.SendWhole(good) {
			t.Fatal("taken while the link is down")
		}
	}
	if why := d.Broken(); why != "" {
		t.Errorf("given up while the link is down: %s", why)
	}
	link, err := netlink.LinkByName(d.Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	bad := superpacket(t)
	bad.Meta.SegmentSize = 0 // the kernel's EINVAL
	for k := range 3 * maxRefusals {
		if q.SendWhole(bad) {
			t.Fatal("segments of no bytes were taken")
		}
		if k%(maxRefusals-1) == 0 && !q.SendWhole(good) { // not in a row
			t.Fatalf("refused: %s", d.Broken())
		}
	}
	if err := d.Probe(1, peer6); err != nil {
		t.Error(err)
	}
	if n := testing.AllocsPerRun(100, func() { q.SendWhole(good) }); n != 0 {
		t.Errorf("%v allocations for a superpacket", n)
	}
	for range maxRefusals {
		q.SendWhole(bad)
	}
	if why := d.Broken(); !strings.Contains(why, "refused 4 superpackets") {
		t.Errorf("after %d refusals in a row: %q", maxRefusals, why)
	}
	if q.SendWhole(good) || d.Queues()[1].SendWhole(good) {
		t.Error("taken after it was given up")
	}
}

// TestTried wants Open to have the kernel look at a superpacket of each kind, and to give up on a refusal alone: a link
// that is down is what it is to find.
func TestTried(t *testing.T) {
	isolate(t)
	d := open(t, "wrntap0")
	write := func(frame []byte) error {
		_, err := unix.Write(d.queues[0].fd, frame)
		return err
	}
	var kinds []byte
	err := d.try(func(frame []byte) error {
		kinds = append(kinds, frame[offType])
		err := write(frame)
		if !errors.Is(err, unix.EIO) {
			t.Errorf("kind %#x, while the link is down: %v, want EIO", frame[offType], err)
		}
		return err
	})
	want := []byte{vnetTCP4 | vnetTunnel4, vnetTCP6 | vnetTunnel4, vnetTCP4 | vnetTunnel6, vnetTCP6 | vnetTunnel6}
	if err != nil || !bytes.Equal(kinds, want) {
		t.Errorf("tried %#x, want %#x: %v", kinds, want, err)
	}
	for _, kind := range want {
		err := d.try(func(frame []byte) error {
			if frame[offType] == kind {
				frame[offSegmentSize] = 0 // the kernel's EINVAL, also of a device that is down
			}
			return write(frame)
		})
		if !errors.Is(err, ErrRefused) {
			t.Errorf("kind %#x refused: %v, want %v", kind, err, ErrRefused)
		}
	}
	if why := d.Broken(); why != "" {
		t.Errorf("given up: %s", why)
	}
}

// TestProbeArrives wants the kernel to take a probe for what it is, one packet of two segments: it is uncut where it
// comes in.
func TestProbeArrives(t *testing.T) {
	isolate(t)
	d := open(t, "wrntap0")
	link, err := netlink.LinkByName(d.Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	const everything = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	wait := unix.Timeval{Sec: 5}
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: link.Attrs().Index}))
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.AddrPort{peer4, peer6} {
		if err := d.Probe(1, to); err != nil {
			t.Fatal(err)
		}
		want := probe(4, netip.AddrPortFrom(d.From(to.Addr()), 1), to)[vnetLen:]
		got := make([]byte, 2*len(want))
		n, _, err := unix.Recvfrom(fd, got, 0)
		if err != nil || !bytes.Equal(got[:n], want) {
			t.Errorf("to %s: %v, got\n%x, want\n%x", to, err, got[:n], want)
		}
	}
}

// TestProbeRefused wants one refusal of a probe to be enough: nobody but this package makes them. A timer can't be
// written to, which is a real EINVAL.
func TestProbeRefused(t *testing.T) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{name: "wrntap0", from4: own4}
	d.queues = []*Queue{{device: d, fd: fd}}
	defer func() { _ = d.Close() }()
	if err := d.Probe(1, peer4); !errors.Is(err, unix.EINVAL) || !strings.Contains(d.Broken(), "tried") {
		t.Errorf("%v, given up because of %q", err, d.Broken())
	}
	if d.queues[0].SendWhole(superpacket(t)) {
		t.Error("taken after it was given up")
	}
}

// TestGone wants a device that somebody deleted to be given up at once, whoever finds out first, with what to do.
func TestGone(t *testing.T) {
	isolate(t)
	for name, find := range map[string]func(*Device) bool{
		"a superpacket": func(d *Device) bool { return d.Queues()[0].SendWhole(superpacket(t)) },
		"a probe":       func(d *Device) bool { return d.Probe(1, peer4) == nil },
		"a look":        func(d *Device) bool { d.Look(); return d.Queues()[1].Usable() },
	} {
		d := open(t, "wrntap0")
		if d.Look(); d.Broken() != "" || !d.Queues()[0].Usable() {
			t.Errorf("%s: given up before: %s", name, d.Broken())
		}
		link, err := netlink.LinkByName(d.Name())
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
		if find(d) || !strings.Contains(d.Broken(), "wrntap0 is gone") || !strings.Contains(d.Broken(), "restart warren") {
			t.Errorf("%s: given up because of %q", name, d.Broken())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestNoWayInThisFamily leaves superpackets to a family without an own address to the caller.
func TestNoWayInThisFamily(t *testing.T) {
	isolate(t)
	d, err := Open(Config{Name: "wrntap0", Addrs: []netip.Addr{own6}})
	if err != nil {
		t.Fatal(err)
	}
	if d.Queues()[0].SendWhole(superpacket(t)) || d.Probe(1, peer4) == nil || d.Broken() != "" {
		t.Errorf("IPv4 without an address; given up because of %q", d.Broken())
	}
	if err := d.Close(); err != nil || d.Probe(1, peer6) == nil {
		t.Errorf("after the end: %v", err)
	}
}
