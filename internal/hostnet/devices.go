package hostnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InUse names a TUN device of Warren's that a process serves, in the calling thread's network namespace; "" when there
// is none. Rules and routes are recognised by their protocol number, whoever set them: two nodes in one namespace would
// remove each other's.
func InUse() (string, error) {
	h, err := open()
	if err != nil {
		return "", err
	}
	defer h.Close()
	own, err := ownDevices(h)
	if err != nil {
		return "", err
	}
	for _, d := range own {
		if served(d) {
			return d.Name, nil
		}
	}
	return "", nil
}

// ownDevices lists the TUN devices with Warren's alias.
func ownDevices(h *netlink.Handle) ([]*netlink.Tuntap, error) {
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	var own []*netlink.Tuntap
	for _, l := range links {
		if tun, ok := l.(*netlink.Tuntap); ok && tun.Mode == netlink.TUNTAP_MODE_TUN && tun.Alias == DeviceAlias {
			own = append(own, tun)
		}
	}
	return own, nil
}

// served reports whether a process is attached to the device. Kernels before 4.17 do not tell the number of queues; a
// TUN has a carrier as long as it has one.
func served(d *netlink.Tuntap) bool {
	return d.Queues > 0 || d.RawFlags&unix.IFF_LOWER_UP != 0
}

// removeIdle removes Warren's devices with other names that nobody serves: a killed daemon left them, and the
// configuration has another `device:` since. They would hold the gateway addresses for ever.
func removeIdle(h *netlink.Handle, device string, c *Changes) error {
	own, err := ownDevices(h)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range own {
		if d.Name == device || served(d) {
			continue
		}
		if err := h.LinkDel(d); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("removing %s: %w", d.Name, err))
			continue
		}
		c.add("device %s removed, which nobody serves any more", d.Name)
	}
	return errors.Join(errs...)
}

// names lists the names of all interfaces.
func names(h *netlink.Handle) (map[string]bool, error) {
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	m := make(map[string]bool, len(links))
	for _, l := range links {
		m[l.Attrs().Name] = true
	}
	return m, nil
}
