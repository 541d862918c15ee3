package tun

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// deviceFlags are what every queue is attached with.
const deviceFlags = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE

// openNode opens the TUN device node. Its errors say what to do.
func openNode(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT):
		return -1, fmt.Errorf("open %s: %w: %w: make it with `mkdir -p /dev/net && mknod %s c 10 200`, "+
			"or start the container with `--device /dev/net/tun`", path, ErrNoDevice, err, path)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("open %s: %w: %w: the node is there, but the kernel's driver is not: `modprobe tun`",
			path, ErrNoDevice, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("open %s: %w: %w: run as root; in a container, allow the device with "+
			"`--device /dev/net/tun`", path, ErrPermission, err)
	}
	return -1, fmt.Errorf("open %s: %w", path, err)
}

// attach makes fd a queue of the named device. With create, the device must not exist yet (errExists), and it vanishes
// with its last queue as long as it is not made persistent.
func attach(fd int, name string, create bool) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("device name %q: %w", name, err)
	}
	flags := uint16(deviceFlags)
	if create {
		flags |= unix.IFF_TUN_EXCL
	}
	ifr.SetUint16(flags)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	switch {
	case err == nil:
		return nil
	case create && errors.Is(err, unix.EBUSY):
		return errExists
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("attach to device %s: %w: %w: CAP_NET_ADMIN is needed in this network namespace", name,
			ErrPermission, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("attach to device %s: %w: %w: find it with `grep -l %s /proc/*/fdinfo/*` and stop it", name,
			ErrBusy, err, name)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("attach to device %s: %w: %w: it is no multi-queue TUN device; remove it with "+
			"`ip link delete %s` if nobody needs it", name, ErrNotOurs, err, name)
	case errors.Is(err, unix.ENOTTY):
		return fmt.Errorf("attach to device %s: %w: %w: /dev/net/tun is something else; remove it, and "+
			"`mknod /dev/net/tun c 10 200`", name, ErrNoDevice, err)
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("attach to device %s: %w: it has %d queues already, as many as the kernel allows", name, err,
			maxQueues)
	}
	return fmt.Errorf("attach to device %s: %w", name, err)
}

// errExists is attach's answer to a device that should have been new.
var errExists = errors.New("device exists")

// settle fixes the virtio-net header's size and reads back what the queue really got: the kernel applies the flags of
// TUNSETIFF only to the first queue of a device, later ones silently keep the flags that it has.
func settle(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("device name %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return fmt.Errorf("read flags of device %s: %w", name, err)
	}
	if got := ifr.Uint16() & deviceFlags; got != deviceFlags {
		return fmt.Errorf("device %s has flags %#x where %#x is needed: %w: another process holds a queue of it with "+
			"other flags; stop it, or remove the device with `ip link delete %s`", name, got, deviceFlags, ErrBusy, name)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetLen); err != nil {
		return fmt.Errorf("set virtio-net header of device %s to %d bytes: %w", name, vnetLen, err)
	}
	size, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
	if err != nil {
		return fmt.Errorf("read virtio-net header size of device %s: %w", name, err)
	}
	// The kernel writes a C int of 32 bits.
	if int32(size) != vnetLen {
		return fmt.Errorf("device %s has virtio-net headers of %d bytes where %d were asked for", name, int32(size), vnetLen)
	}
	return nil
}

// setPersistent says whether the device outlives its last queue.
func setPersistent(fd int, name string, persistent bool) error {
	value := 0
	if persistent {
		value = 1
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, value); err != nil {
		return fmt.Errorf("set persistence of device %s to %v: %w", name, persistent, err)
	}
	return nil
}
