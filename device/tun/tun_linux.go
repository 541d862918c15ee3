package tun

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/device"
)

// A Device is an open TUN device and its queues.
type Device struct {
	name     string
	index    int
	created  bool
	queues   []*Queue
	offloads *offloads
	probeErr error
	netlink  *netlink.Handle // bound to the network namespace of Open; nil once closed
}

// Open opens the device, or makes it when there is none of that name. It runs in the calling thread's network
// namespace. When it fails it leaves everything as it was, except that an existing device may have got other offloads
// or another MTU.
func Open(cfg Config) (*Device, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open TUN device %s: netlink: %w", cfg.Name, err)
	}
	d := &Device{name: cfg.Name, netlink: h}
	fds, err := d.attachQueues(cfg)
	if err == nil {
		err = d.setUp(cfg, fds)
	}
	if err != nil {
		if d.created && len(fds) > 0 {
			err = errors.Join(err, setPersistent(fds[0], cfg.Name, false))
		}
		for _, fd := range fds {
			err = errors.Join(err, unix.Close(fd))
		}
		h.Close()
		return nil, fmt.Errorf("open TUN device %s: %w", cfg.Name, err)
	}
	for _, fd := range fds {
		d.queues = append(d.queues, newQueue(fd, d.offloads))
	}
	return d, nil
}

// attachQueues makes or takes over the device and returns the descriptors of its queues; those that it got so far also
// when it fails.
func (d *Device) attachQueues(cfg Config) (fds []int, err error) {
	for len(fds) < cfg.Queues {
		fd, err := openNode(cfg.Node)
		if err != nil {
			return fds, err
		}
		fds = append(fds, fd)
		if len(fds) == 1 {
			err = d.claim(fd)
		} else {
			err = attach(fd, d.name, false)
		}
		if err == nil {
			err = settle(fd, d.name)
		}
		if err != nil {
			return fds, err
		}
	}
	return fds, nil
}

// claim attaches the first queue: to a new device, or to one that an earlier process left.
func (d *Device) claim(fd int) error {
	err := attach(fd, d.name, true)
	if err == nil {
		d.created = true
		return d.mark(fd)
	}
	if !errors.Is(err, errExists) {
		return err
	}
	link, err := d.netlink.LinkByName(d.name)
	if err != nil {
		return fmt.Errorf("look up the device of that name: %w", err)
	}
	if err := d.checkOurs(link); err != nil {
		return err
	}
	d.index = link.Attrs().Index
	return attach(fd, d.name, false)
}

// mark gives the new device its alias and only then lets it outlive the process.
func (d *Device) mark(fd int) error {
	link, err := d.netlink.LinkByName(d.name)
	if err != nil {
		return fmt.Errorf("look up the new device: %w", err)
	}
	d.index = link.Attrs().Index
	if err := d.netlink.LinkSetAlias(link, Alias); err != nil {
		return fmt.Errorf("set alias %q: %w", Alias, err)
	}
	return setPersistent(fd, d.name, true)
}

// checkOurs says whether an existing device is one that an earlier Warren left: of the right kind, with our alias, and
// not in use.
func (d *Device) checkOurs(link netlink.Link) error {
	attrs := link.Attrs()
	advice := fmt.Sprintf("choose another name in the configuration (device:), or remove it with `ip link delete %s` "+
		"if nobody needs it", attrs.Name)
	if attrs.Name != d.name {
		return fmt.Errorf("%w: %s is an alternative name of interface %s: choose another name in the configuration "+
			"(device:)", ErrNotOurs, d.name, attrs.Name)
	}
	t, ok := link.(*netlink.Tuntap)
	if !ok {
		return fmt.Errorf("%w: it is an interface of type %s: %s", ErrNotOurs, link.Type(), advice)
	}
	if attrs.Alias != Alias {
		return fmt.Errorf("%w: a %s device without the alias %q: %s", ErrNotOurs, t.Mode, Alias, advice)
	}
	// Since Linux 4.17 the kernel tells more; without that, attach finds out.
	if t.Mode == netlink.TUNTAP_MODE_TAP {
		return fmt.Errorf("%w: it is a TAP device: %s", ErrNotOurs, advice)
	}
	if t.Queues > 0 {
		return fmt.Errorf("%w: %d of its queues are attached: stop the other Warren that runs with this device, "+
			"or choose another name in the configuration (device:)", ErrBusy, t.Queues)
	}
	return nil
}

// setUp applies the configuration to the device as a whole.
func (d *Device) setUp(cfg Config, fds []int) error {
	d.offloads = negotiate(cfg, func(flags int) error { return unix.IoctlSetInt(fds[0], unix.TUNSETOFFLOAD, flags) })
	d.probeErr = d.offloads.probe(cfg.Node)
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: d.name, Index: d.index}}
	if cfg.MTU != 0 {
		if err := d.netlink.LinkSetMTU(link, cfg.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", cfg.MTU, err)
		}
	}
	if cfg.GSOMaxSize != 0 {
		if err := d.netlink.LinkSetGSOMaxSize(link, cfg.GSOMaxSize); err != nil {
			return fmt.Errorf("set gso_max_size %d: %w", cfg.GSOMaxSize, err)
		}
	}
	if cfg.QueueLength != 0 {
		if err := d.netlink.LinkSetTxQLen(link, cfg.QueueLength); err != nil {
			return fmt.Errorf("set queue length %d: %w", cfg.QueueLength, err)
		}
	}
	return nil
}

// Name is the device's name.
func (d *Device) Name() string { return d.name }

// Index is the device's interface index.
func (d *Device) Index() int { return d.index }

// Created reports whether Open made the device; false: it took over one that an earlier process left.
func (d *Device) Created() bool { return d.created }

// Queues are the device's queues.
func (d *Device) Queues() []*Queue { return d.queues }

// Offloads reports the state of the device's offloads: tun-checksum, tun-tso and tun-uso. Safe for concurrent use.
func (d *Device) Offloads() []device.OffloadState { return d.offloads.states() }

// ProbeError is why the offloads could not be tried at Open; nil when they were. They are in use all the same, and a
// worker would notice a broken one at its first writes.
func (d *Device) ProbeError() error { return d.probeErr }

// Close closes all queues and leaves the device, with its addresses and routes, for the next process.
// After Close or Remove it does nothing.
func (d *Device) Close() error {
	if d.netlink == nil {
		return nil
	}
	err := d.closeQueues()
	d.netlink.Close()
	d.netlink = nil
	return err
}

// Remove closes all queues and deletes the device; the workers must have stopped. It is no error when the device is
// gone already. ErrBusy: another process has attached meanwhile (a successor), so the device stays.
func (d *Device) Remove() error {
	if d.netlink == nil {
		return fmt.Errorf("remove TUN device %s: it was closed before", d.name)
	}
	err := d.closeQueues()
	defer func() {
		d.netlink.Close()
		d.netlink = nil
	}()
	link, lookErr := d.netlink.LinkByIndex(d.index)
	if errors.As(lookErr, &netlink.LinkNotFoundError{}) {
		return err
	}
	if lookErr != nil {
		return errors.Join(err, fmt.Errorf("remove TUN device %s: %w", d.name, lookErr))
	}
	if lookErr = d.checkOurs(link); lookErr == nil {
		lookErr = d.netlink.LinkDel(link)
	}
	if lookErr != nil {
		return errors.Join(err, fmt.Errorf("remove TUN device %s: %w", d.name, lookErr))
	}
	return err
}

func (d *Device) closeQueues() error {
	var err error
	for _, q := range d.queues {
		err = errors.Join(err, q.Close())
	}
	return err
}
