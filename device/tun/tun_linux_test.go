package tun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/internal/lab"
)

// enterFreshNetns moves the test into a network namespace of its own, which goes with the test's thread: the thread is
// never unlocked. Subtests run on other threads and have to enter one themselves.
func enterFreshNetns(t testing.TB) {
	t.Helper()
	lab.NeedRoot(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// open opens a device named wrntun0 unless cfg says otherwise, and removes it after the test.
func open(t testing.TB, cfg Config) *Device {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "wrntun0"
	}
	d, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func link(t testing.TB, name string) *netlink.Tuntap {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	tt, ok := l.(*netlink.Tuntap)
	if !ok {
		t.Fatalf("%s is a %s", name, l.Type())
	}
	return tt
}

func TestOpenCloseReopenRemove(t *testing.T) {
	enterFreshNetns(t)
	d := open(t, Config{Queues: 3, MTU: 1420, GSOMaxSize: 65000, QueueLength: 1000})
	l := link(t, "wrntun0")
	const flags = netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_MULTI_QUEUE
	if a := l.Attrs(); a.Alias != Alias || a.MTU != 1420 || a.Index != d.Index() || a.GSOMaxSize != 65000 ||
		a.TxQLen != 1000 || a.Flags&1 != 0 {
		t.Errorf("attributes %+v", a)
	}
	if l.Mode != netlink.TUNTAP_MODE_TUN || l.Flags != flags || l.NonPersist || l.Queues != 3 {
		t.Errorf("device %+v", l)
	}
	if len(d.Queues()) != 3 || d.Name() != "wrntun0" || !d.Created() || d.ProbeError() != nil {
		t.Errorf("%+v, probe: %v", d, d.ProbeError())
	}
	for _, s := range d.Offloads() {
		if !s.Enabled { // this kernel has them all
			t.Errorf("%+v", s)
		}
	}
	all, err := netlink.LinkList()
	if err != nil || len(all) != 2 { // lo
		t.Errorf("%d devices (%v), want 2: the temporary one should be gone", len(all), err)
	}

	// A second process can't have it while the first one holds it.
	if _, err := Open(Config{Name: "wrntun0"}); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "3 of its") {
		t.Errorf("open twice: %v, want ErrBusy", err)
	}

	// The process ends without a word; the device stays, with what was set on it, and the next one takes it over.
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: netlink.NewIPNet([]byte{10, 244, 1, 1})}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if l := link(t, "wrntun0"); l.Queues != 0 {
		t.Errorf("%d queues after Close", l.Queues)
	}
	again := open(t, Config{Queues: 2, TSO: Off, USO: Off})
	if again.Index() != d.Index() || again.Created() {
		t.Errorf("index %d and then %d, created %v", d.Index(), again.Index(), again.Created())
	}
	if l := link(t, "wrntun0"); l.Attrs().MTU != 1420 || l.Queues != 2 {
		t.Errorf("taken over: %+v", l)
	}
	if a, err := netlink.AddrList(l, netlink.FAMILY_V4); err != nil || len(a) != 1 {
		t.Errorf("addresses %v, %v", a, err)
	}
	for _, s := range again.Offloads()[1:] {
		if s.Enabled || s.Reason != reasonConfig {
			t.Errorf("switched off: %+v", s)
		}
	}
	if err := again.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("wrntun0"); err == nil {
		t.Error("there after Remove")
	}
	if err := errors.Join(again.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if err := d.Remove(); err == nil {
		t.Error("Remove after Close says nothing")
	}
}

// A successor that has attached already keeps the device when its predecessor removes it.
func TestRemoveLeavesDeviceInUse(t *testing.T) {
	enterFreshNetns(t)
	d := open(t, Config{})
	fd, err := openNode("/dev/net/tun")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := attach(fd, "wrntun0", false); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(); !errors.Is(err, ErrBusy) {
		t.Errorf("%v, want ErrBusy", err)
	}
	link(t, "wrntun0")
}

// The device that another one left is never taken: by name only is not ours.
func TestNameTaken(t *testing.T) {
	for name, add := range map[string]func() error{
		"veth": func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wrntun0"}, PeerName: "other"})
		},
		"veth with our alias": func() error {
			err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wrntun0"}, PeerName: "other"})
			l, lookErr := netlink.LinkByName("wrntun0")
			return errors.Join(err, lookErr, netlink.LinkSetAlias(l, Alias))
		},
		"foreign multi-queue TUN": func() error { return foreign(netlink.TUNTAP_MODE_TUN, deviceFlags, "") },
		"single-queue TUN with our alias": func() error {
			return foreign(netlink.TUNTAP_MODE_TUN, deviceFlags&^unix.IFF_MULTI_QUEUE, Alias)
		},
		"TAP with our alias": func() error { return foreign(netlink.TUNTAP_MODE_TAP, deviceFlags, Alias) },
		"alternative name": func() error {
			err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "other"})
			l, lookErr := netlink.LinkByName("eth0")
			return errors.Join(err, lookErr, netlink.LinkAddAltName(l, "wrntun0"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			enterFreshNetns(t)
			if err := add(); err != nil {
				t.Fatal(err)
			}
			before, err := netlink.LinkByName("wrntun0")
			if err != nil {
				t.Fatal(err)
			}
			_, err = Open(Config{Name: "wrntun0"})
			if !errors.Is(err, ErrNotOurs) {
				t.Fatalf("%v, want ErrNotOurs", err)
			}
			t.Log(err)
			if after, err := netlink.LinkByName("wrntun0"); err != nil || after.Attrs().Index != before.Attrs().Index ||
				after.Attrs().Alias != before.Attrs().Alias {
				t.Errorf("the other's device was touched: %v, %v", after, err)
			}
		})
	}
}

// foreign makes a persistent TUN or TAP device as another program would.
func foreign(mode netlink.TuntapMode, flags uint16, alias string) error {
	fd, err := openNode("/dev/net/tun")
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("wrntun0")
	if err != nil {
		return err
	}
	ifr.SetUint16(flags&^unix.IFF_TUN | uint16(mode))
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	l, err := netlink.LinkByName("wrntun0")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetAlias(l, alias), setPersistent(fd, "wrntun0", true))
}

// Killed between creation and persistence, a process leaves nothing behind.
func TestKilledBeforePersistence(t *testing.T) {
	enterFreshNetns(t)
	fd, err := openNode("/dev/net/tun")
	if err != nil {
		t.Fatal(err)
	}
	if err := attach(fd, "wrntun0", true); err != nil {
		t.Fatal(err)
	}
	if err := attach(fd, "wrntun0", true); err == nil {
		t.Error("attached the same descriptor twice")
	}
	link(t, "wrntun0")
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("wrntun0"); err == nil {
		t.Error("the device outlived its creator before it was marked")
	}
}

// When a later step fails, the new device and its queues are gone again.
func TestFailureLeavesNothing(t *testing.T) {
	enterFreshNetns(t)
	before := descriptors(t)
	if _, err := Open(Config{Name: "wrntun0", Queues: 4, GSOMaxSize: 1 << 30}); err == nil {
		t.Fatal("no error for a GSO size that the kernel does not take")
	}
	if _, err := netlink.LinkByName("wrntun0"); err == nil {
		t.Error("the device is still there")
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNoDeviceNode(t *testing.T) {
	lab.NeedRoot(t)
	missing := filepath.Join(t.TempDir(), "tun")
	_, err := Open(Config{Name: "wrntun0", Node: missing})
	if !errors.Is(err, ErrNoDevice) || !strings.Contains(err.Error(), "mknod "+missing) {
		t.Errorf("%v, want ErrNoDevice and the mknod command", err)
	}
	// A node without a driver behind it.
	if err := unix.Mknod(missing, unix.S_IFCHR|0o600, int(unix.Mkdev(240, 200))); err != nil {
		t.Fatal(err)
	}
	if _, err = Open(Config{Name: "wrntun0", Node: missing}); !errors.Is(err, ErrNoDevice) ||
		!strings.Contains(err.Error(), "modprobe tun") {
		t.Errorf("%v, want ErrNoDevice and modprobe", err)
	}
}

func TestNoPrivilege(t *testing.T) {
	enterFreshNetns(t)
	// Capabilities are the thread's, and this thread ends with the test.
	dropCapability(t, unix.CAP_NET_ADMIN)
	if _, err := Open(Config{Name: "wrntun0"}); !errors.Is(err, ErrPermission) ||
		!strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("%v, want ErrPermission naming CAP_NET_ADMIN", err)
	}
}

func dropCapability(t *testing.T, capability int) {
	t.Helper()
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&h, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[capability/32].Effective &^= 1 << (capability % 32)
	if err := unix.Capset(&h, &data[0]); err != nil {
		t.Fatal(err)
	}
}

func TestDownAndDeleted(t *testing.T) {
	enterFreshNetns(t)
	d := open(t, Config{})
	q := d.Queues()[0]
	buf := make([]byte, device.BufferSize)
	lone := [][]byte{probes()[0].packet}
	super := probes()[0].meta

	// Down: nothing to read, writes are lost, and no offload is blamed for it.
	if _, _, err := q.Read(buf); !errors.Is(err, device.ErrWouldBlock) {
		t.Errorf("read while down: %v, want ErrWouldBlock", err)
	}
	for range 2 * maxRefusals {
		if err := q.Write(packet.Meta{}, lone); !errors.Is(err, device.ErrDown) {
			t.Errorf("write while down: %v, want ErrDown", err)
		}
		if err := q.Write(super, lone); !errors.Is(err, device.ErrDown) || !q.Takes(super.Type) {
			t.Errorf("write of a superpacket while down: %v, want ErrDown", err)
		}
	}
	l := link(t, "wrntun0")
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	if err := q.Write(packet.Meta{}, lone); err != nil {
		t.Errorf("write while up: %v", err)
	}
	if err := q.Write(packet.Meta{}, [][]byte{{0x50}}); !errors.Is(err, device.ErrBadPacket) {
		t.Errorf("write of garbage: %v, want ErrBadPacket", err)
	}

	// Deleted by somebody else.
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	if _, _, err := q.Read(buf); !errors.Is(err, device.ErrClosed) {
		t.Errorf("read when deleted: %v, want ErrClosed", err)
	}
	if err := q.Write(packet.Meta{}, lone); !errors.Is(err, device.ErrClosed) {
		t.Errorf("write when deleted: %v, want ErrClosed", err)
	}
	if err := d.Remove(); err != nil {
		t.Errorf("Remove of a deleted device: %v", err)
	}
	if _, _, err := q.Read(buf); !errors.Is(err, device.ErrClosed) {
		t.Errorf("read when closed: %v, want ErrClosed", err)
	}
}

// Close beside Read and Write neither races nor hits somebody else's descriptor.
func TestCloseBesideUse(t *testing.T) {
	enterFreshNetns(t)
	for range 20 {
		d := open(t, Config{Name: fmt.Sprintf("wrntun%d", 0)})
		q := d.Queues()[0]
		done := make(chan error)
		go func() {
			buf := make([]byte, device.BufferSize)
			for {
				if _, _, err := q.Read(buf); !errors.Is(err, device.ErrWouldBlock) {
					done <- err
					return
				}
				if err := q.Write(packet.Meta{}, [][]byte{probes()[0].packet}); !errors.Is(err, device.ErrDown) {
					done <- err
					return
				}
			}
		}()
		if err := errors.Join(q.Close(), q.Close()); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, device.ErrClosed) {
			t.Errorf("%v, want ErrClosed", err)
		}
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	}
}
