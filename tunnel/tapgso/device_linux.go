package tapgso

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Why Open fails, for callers that decide on it. The error's text says what to do.
var (
	ErrUnsupported = errors.New("this kernel has no UDP tunnel GSO for TAP devices, which came with Linux 6.17")
	ErrTaken       = errors.New("device name taken")
	ErrRefused     = errors.New("this kernel refuses a tunnelled superpacket that was tried, though it says it takes them")
)

// What package unix does not name yet (include/uapi/linux/if_tun.h, Linux 6.17).
const (
	offTunnel    = 0x080 // TUN_F_UDP_TUNNEL_GSO
	offTunnelSum = 0x100 // TUN_F_UDP_TUNNEL_GSO_CSUM
	offloads     = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN | unix.TUN_F_USO4 |
		unix.TUN_F_USO6 | offTunnel | offTunnelSum
)

// A predecessor that was killed gives its run directory's lock back before its device is gone.
const (
	goneWithin = 2 * time.Second
	goneEvery  = 20 * time.Millisecond
)

const nameMax = 15 // IFNAMSIZ without the terminating zero

// Name derives the TAP's name from the TUN's: the same with "-gso", and shortened where both do not fit. It is never
// the TUN's own.
func Name(device string) string {
	const suffix, other = "-gso", "-tap"
	short := device[:min(len(device), nameMax-len(suffix))]
	if short+suffix == device {
		return short + other
	}
	return short + suffix
}

// Config says what device to open.
type Config struct {
	Name   string       // see Name
	Alias  string       // interface alias, for people
	Queues int          // one for each worker, at least 1
	Addrs  []netip.Addr // the node's own underlay addresses, at most one of each family
	Node   string       // path of the TUN device node; empty: /dev/net/tun
}

// A Device is an open TAP device.
type Device struct {
	name         string
	queues       []*Queue
	from4, from6 netip.Addr // zero: no superpackets over this family
	broken       atomic.Pointer[string]
}

// Open makes the device and tries whether the kernel takes superpackets; it is down, see hostnet.SetUpTunnelGSO.
func Open(cfg Config) (*Device, error) {
	if cfg.Node == "" {
		cfg.Node = "/dev/net/tun"
	}
	d := &Device{name: cfg.Name}
	for _, a := range cfg.Addrs {
		if a.Is4() {
			d.from4 = a
		} else {
			d.from6 = a
		}
	}
	for len(d.queues) < max(cfg.Queues, 1) {
		fd, err := d.openQueue(cfg.Node, len(d.queues) == 0)
		if err == nil {
			d.queues = append(d.queues, &Queue{device: d, fd: fd})
			if len(d.queues) == 1 {
				err = d.dress(cfg.Alias)
			}
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open TAP device %s: %w", cfg.Name, err), d.Close())
		}
	}
	err := d.try(func(frame []byte) error {
		_, err := unix.Write(d.queues[0].fd, frame)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open TAP device %s: %w", cfg.Name, err), d.Close())
	}
	return d, nil
}

// openQueue opens a queue, the first one together with the device.
func (d *Device) openQueue(node string, first bool) (int, error) {
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", node, err)
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
	if first {
		flags |= unix.IFF_TUN_EXCL
	}
	if err := d.attach(fd, flags); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func (d *Device) attach(fd int, flags uint16) error {
	ifr, err := unix.NewIfreq(d.name)
	if err != nil {
		return fmt.Errorf("device name %q: %w", d.name, err)
	}
	ifr.SetUint16(flags)
	for end := time.Now().Add(goneWithin); ; time.Sleep(goneEvery) {
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			break
		}
	}
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: an interface of that name exists (%w): remove it, or choose another `device:`", ErrTaken, err)
	}
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetLen); err != nil {
		return fmt.Errorf("set virtio-net header to %d bytes: %w", vnetLen, err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1); err != nil {
		return fmt.Errorf("set virtio-net header to little endian: %w", err)
	}
	err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w (TUNSETOFFLOAD: %w)", ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("set offloads: %w", err)
	}
	return nil
}

// dress makes the new device one that neither speaks nor is spoken to.
func (d *Device) dress(alias string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(d.name)
	if err != nil {
		return fmt.Errorf("look up the new device: %w", err)
	}
	if err := h.LinkSetAlias(link, alias); err != nil {
		return fmt.Errorf("set alias %q: %w", alias, err)
	}
	if err := h.LinkSetHardwareAddr(link, HardwareAddr()); err != nil {
		return fmt.Errorf("set Ethernet address: %w", err)
	}
	if err := h.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("turn ARP off: %w", err)
	}
	if err := h.LinkSetMulticastOff(link); err != nil {
		return fmt.Errorf("turn multicast off: %w", err)
	}
	// A kernel without IPv6 has no such mode, and gives no such address.
	_ = h.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE)
	return nil
}

// HardwareAddr is the Ethernet address of every such device, to which its frames are addressed.
func HardwareAddr() net.HardwareAddr { return net.HardwareAddr(deviceMAC[:]) }

// Name is the device's name.
func (d *Device) Name() string { return d.name }

// Queues are the device's queues, one for each worker.
func (d *Device) Queues() []*Queue { return d.queues }

// From is the address that superpackets to an address of to's family come from; the zero Addr when there is none.
func (d *Device) From(to netip.Addr) netip.Addr {
	if to.Is4() {
		return d.from4
	}
	return d.from6
}

// Broken says why the device takes nothing any more; empty while it does. Safe for concurrent use.
func (d *Device) Broken() string {
	if why := d.broken.Load(); why != nil {
		return *why
	}
	return ""
}

// Look asks the kernel whether the device is still there; when it is not, Broken says so from now on. For the goroutine
// that calls Probe.
func (d *Device) Look() {
	ifr, err := unix.NewIfreq(d.name)
	if err != nil || len(d.queues) == 0 {
		return
	}
	d.lost(unix.IoctlIfreq(d.queues[0].fd, unix.TUNGETIFF, ifr))
}

// lost gives the device up when an error of the kernel says that it is gone: somebody deleted it.
func (d *Device) lost(err error) {
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.EBADFD) || errors.Is(err, unix.ENODEV) {
		d.fail(fmt.Sprintf("device %s is gone (%v); restart warren to have it back", d.name, err))
	}
}

// fail switches the device off for good; the first reason counts.
func (d *Device) fail(reason string) { d.broken.CompareAndSwap(nil, &reason) }

// Close closes all queues, and with them the device. A second call does nothing.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, unix.Close(q.fd))
	}
	d.queues = nil
	return errors.Join(errs...)
}
