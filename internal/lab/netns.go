package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named namespaces, so that `ip netns` and `nsenter --net=` find the lab's as well.
const netnsDir = "/run/netns"

// An NS is a named network namespace. Its methods are safe for concurrent use.
type NS struct {
	Name string
	id   nsID // by which processes inside are found
}

// Path is the namespace's file, for nsenter and CNI_NETNS.
func (ns *NS) Path() string { return filepath.Join(netnsDir, ns.Name) }

// newNS makes a namespace with its loopback device up. IPv6 is on; forwarding is off, as a new namespace may inherit it
// from the machine. Everything else is as the kernel has it, so that Warren meets what it meets elsewhere.
func newNS(name string) (*NS, error) {
	ns := &NS{Name: name}
	if err := shareNetnsDir(netnsDir); err != nil {
		return nil, fmt.Errorf("preparing %s: %w", netnsDir, err)
	}
	f, err := os.OpenFile(ns.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("naming namespace %s: %w", name, err)
	}
	_ = f.Close()
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, ns.Path(), "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting the namespace at %s: %w", ns.Path(), err)
		}
		return setUpNS()
	})
	if err == nil {
		ns.id, err = identify(ns.Path())
	}
	if err != nil {
		return nil, errors.Join(err, removeNS(name))
	}
	return ns, nil
}

// adoptNS gives a namespace, which a file stands for, a name.
func adoptNS(name, path string) (*NS, error) {
	ns := &NS{Name: name}
	f, err := os.OpenFile(ns.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("naming namespace %s: %w", name, err)
	}
	_ = f.Close()
	if err = unix.Mount(path, ns.Path(), "none", unix.MS_BIND, ""); err != nil {
		err = fmt.Errorf("mounting namespace %s at %s: %w", path, ns.Path(), err)
	} else {
		ns.id, err = identify(ns.Path())
	}
	if err != nil {
		return nil, errors.Join(err, removeNS(name))
	}
	return ns, nil
}

// shareNetnsDir makes the directory of named namespaces a mount point, as the first `ip netns add` on a machine does,
// and under the same lock (ip-netns(8)): one that came later would cover the mounts that are there, and their files
// could not be removed any more.
func shareNetnsDir(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close() // unlocks
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking: %w", err)
	}
	share := func() error { return unix.Mount("", path, "none", unix.MS_SHARED|unix.MS_REC, "") }
	if err := share(); !errors.Is(err, unix.EINVAL) { // EINVAL: no mount point yet
		return err
	}
	if err := unix.Mount(path, path, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mounting it on itself: %w", err)
	}
	return share()
}

// setUpNS runs on a thread inside the new namespace.
func setUpNS() error {
	for key, value := range map[string]string{
		"net/ipv4/ip_forward":                "0",
		"net/ipv6/conf/all/forwarding":       "0",
		"net/ipv6/conf/all/disable_ipv6":     "0",
		"net/ipv6/conf/default/disable_ipv6": "0",
	} {
		if err := writeSysctl(key, value); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback device: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

// writeSysctl writes /proc/sys/<key>; what is under net there belongs to the namespace of the calling thread.
func writeSysctl(key, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("setting %s to %q: %w", key, value, err)
	}
	return nil
}

// Do runs f on a thread of its own inside the namespace. Sockets, processes and netlink calls that f makes belong to
// the namespace; f must not leave that thread, so what it starts as a goroutine runs outside.
func (ns *NS) Do(f func() error) error {
	return onOwnThread(func() error {
		file, err := os.Open(ns.Path())
		if err != nil {
			return fmt.Errorf("entering namespace %s: %w", ns.Name, err)
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering namespace %s: %w", ns.Name, err)
		}
		return f()
	})
}

// SetSysctl writes a sysctl of the namespace; key is a path like net/ipv4/ip_forward.
func (ns *NS) SetSysctl(key, value string) error {
	return ns.Do(func() error { return writeSysctl(key, value) })
}

// Sysctl reads a sysctl of the namespace.
func (ns *NS) Sysctl(key string) (string, error) {
	var value []byte
	err := ns.Do(func() (err error) {
		value, err = os.ReadFile(filepath.Join("/proc/sys", key))
		return err
	})
	return strings.TrimSpace(string(value)), err
}

// LinkMTU is the MTU in bytes of one of the namespace's devices.
func (ns *NS) LinkMTU(link string) (int, error) {
	var mtu int
	err := ns.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return fmt.Errorf("device %s in namespace %s: %w", link, ns.Name, err)
		}
		mtu = l.Attrs().MTU
		return nil
	})
	return mtu, err
}

// onOwnThread runs f on a thread that ends with it: it is never unlocked, so the runtime discards it together with
// the namespace it was moved to.
func onOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- f()
	}()
	return <-result
}

// removeNS unmounts and deletes a namespace's name. It is no error when it is gone already.
func removeNS(name string) error {
	path := filepath.Join(netnsDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing namespace %s: %w", name, err)
	}
	return nil
}

// An nsID tells namespaces apart: the inode of a namespace's file, wherever it is mounted (namespaces(7)).
type nsID struct{ dev, ino uint64 }

func identify(path string) (nsID, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nsID{}, err
	}
	stat := info.Sys().(*syscall.Stat_t)
	return nsID{stat.Dev, stat.Ino}, nil
}
