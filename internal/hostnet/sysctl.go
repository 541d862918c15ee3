package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warren-net/warren/internal/netsysctl"
)

// sysctl reads a sysctl; key is a path below net, like "ipv4/ip_forward".
func sysctl(key string) (string, error) { return netsysctl.Get(key) }

// setSysctl writes a sysctl where it differs.
func setSysctl(key, value string, c *Changes) error {
	was, err := netsysctl.Set(key, value)
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil {
		return fmt.Errorf("%w; run `sysctl -w net/%s=%s` on the host, or give Warren a writable /proc/sys", err, key, value)
	}
	if was != value {
		c.add("sysctl net/%s set from %s to %s", key, was, value)
	}
	return nil
}

// haveIPv6 reports whether the kernel has IPv6 at all; a single interface may still have it turned off.
func haveIPv6() bool {
	_, err := os.Stat(filepath.Join(netsysctl.Dir, "ipv6/conf/all/disable_ipv6"))
	return err == nil
}

// setUpForwarding turns forwarding on for the node's families.
func setUpForwarding(families []family, c *Changes) error {
	var errs []error
	for _, f := range families {
		switch f {
		case v4:
			errs = append(errs, setSysctl("ipv4/ip_forward", "1", c))
			// A device sends redirects when all or the device say so, so turning the device's off needs all's off as
			// well. Other interfaces have a 1 of their own and go on as before.
			errs = append(errs, setSysctl("ipv4/conf/all/send_redirects", "0", c))
		case v6:
			errs = append(errs, forwardIPv6(c))
		}
	}
	return errors.Join(errs...)
}

// forwardIPv6 turns IPv6 forwarding on without losing the default routes that came by router advertisements: a router
// ignores advertisements unless accept_ra is 2, and turning forwarding on drops the routes of those that have 1.
func forwardIPv6(c *Changes) error {
	on, err := sysctl("ipv6/conf/all/forwarding")
	if err != nil {
		return fmt.Errorf("reading sysctl net/ipv6/conf/all/forwarding: %w", err)
	}
	if on == "1" {
		return nil
	}
	entries, err := os.ReadDir(filepath.Join(netsysctl.Dir, "ipv6/conf"))
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		// all and default are no interfaces, and a pod must not be able to advertise routes to its node.
		if name == "all" || name == "default" || strings.HasPrefix(name, PodPrefix) {
			continue
		}
		key := filepath.Join("ipv6/conf", name, "accept_ra")
		if v, err := sysctl(key); err != nil || v != "1" {
			continue // an interface that vanished, or one that never listened
		}
		if err := setSysctl(key, "2", c); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return setSysctl("ipv6/conf/all/forwarding", "1", c)
}

// deviceSysctls sets what belongs to the TUN device alone. It comes before the device is set up, as addr_gen_mode acts
// at that moment.
func deviceSysctls(device string, families []family, c *Changes) error {
	var errs []error
	set := func(key, value string) { errs = append(errs, setSysctl(key, value, c)) }
	for _, f := range families {
		conf := filepath.Join("ipv4/conf", device) + "/"
		if f == v6 {
			conf = filepath.Join("ipv6/conf", device) + "/"
			set(conf+"disable_ipv6", "0")
			// No link-local address, hence no router solicitations: the forwarder would only count and drop them.
			set(conf+"addr_gen_mode", "1")
			set(conf+"accept_ra", "0")
			continue
		}
		// Loose, as sources on the wire are the forwarder's business. The larger of all's and this one counts.
		set(conf+"rp_filter", "2")
		// ICMP errors of the forwarder come from the gateway address, which is local.
		set(conf+"accept_local", "1")
		// In and out by the TUN is the normal way of a translated packet.
		set(conf+"send_redirects", "0")
	}
	if !slices.Contains(families, v6) {
		// The kernel would give the device a link-local address all the same, and speak from it. Good to have only: without
		// it the node counts a packet or two as dropped.
		_ = setSysctl(filepath.Join("ipv6/conf", device, "addr_gen_mode"), "1", c)
	}
	return errors.Join(errs...)
}

// EnsurePodLink sets the sysctls of the host side of a pod's veth in routed mode: strict reverse path filtering, which
// is the source check for IPv4 where nftables is missing, with the packet's mark taken into account (answers of
// translated connections are routed by it and would fail the check); no router advertisements from pods; and no
// duplicate address detection, which keeps the node from asking for the pod's neighbour entry for more than a second.
// It is the CNI plugin's to call before it sets the interface up, in the node's network namespace.
func EnsurePodLink(ifname string) error { return ensurePodLink(ifname, "1") }

// EnsurePodBridge does the same for the bridge of mode bridge. One with an uplink gets answers of other nodes' pods
// on the link, while the way to them is the tunnel: reverse path filtering that is strict would drop them, and not
// even answer their ARP. The source check there is that of the ports.
func EnsurePodBridge(ifname string, uplink bool) error {
	if uplink {
		return ensurePodLink(ifname, "2")
	}
	return ensurePodLink(ifname, "1")
}

func ensurePodLink(ifname, reversePathFilter string) error {
	var errs []error
	var c Changes
	conf := filepath.Join("ipv4/conf", ifname) + "/"
	for _, kv := range [][2]string{{"rp_filter", reversePathFilter}, {"src_valid_mark", "1"}, {"send_redirects", "0"}} {
		errs = append(errs, setSysctl(conf+kv[0], kv[1], &c))
	}
	conf = filepath.Join("ipv6/conf", ifname) + "/"
	for _, kv := range [][2]string{{"accept_ra", "0"}, {"accept_dad", "0"}} {
		err := setSysctl(conf+kv[0], kv[1], &c)
		if errors.Is(err, fs.ErrNotExist) {
			break // no IPv6 on this interface
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
