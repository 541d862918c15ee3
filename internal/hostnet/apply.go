package hostnet

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Apply makes the kernel what spec says, changing only what differs, and removes Warren's own objects that spec no
// longer has. A failure of one part does not keep the others from being set up; all of them are in the returned error.
// errors.Is finds ErrNoDevice (the guards are in place, and a later Apply completes the rest) and ErrDeviceTaken.
//
// What keeps cluster traffic from leaving in the clear comes first, forwarding is turned on last.
func Apply(spec Spec, log *slog.Logger) (Changes, error) {
	fw := newFirewall()
	defer fw.close()
	return apply(spec, log, fw)
}

func apply(spec Spec, log *slog.Logger, fw *firewall) (Changes, error) {
	var c Changes
	spec = spec.withDefaults()
	if err := spec.validate(); err != nil {
		return c, fmt.Errorf("network set-up: %w", err)
	}
	h, err := open()
	if err != nil {
		return c, err
	}
	defer h.Close()

	var errs []error
	step := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	families := spec.families(&errs)

	direct := spec.planDirect(h, families)
	c.Direct = direct.answers

	step("guard routes", syncRoutes(h, families, spec.guards(families), keepOthers, &c))
	step("policy rules", syncRules(h, families, spec.rules(families), &c))
	links := func() (map[string]bool, error) { return names(h) }
	step("nftables", fw.apply(spec, direct, podsOfRoutes(h, families), links, &c))
	step("devices of before", removeIdle(h, spec.Device, &c))
	dev, err := setUpDevice(h, spec, families, &c)
	step("device "+spec.Device, err)
	want := spec.guards(families)
	if dev != nil {
		want = append(want, beside(direct.routes, spec.deviceRoutes(families, dev.Attrs().Index))...)
		want = append(want, direct.routes...)
	} else {
		want = append(want, withoutSource(direct.routes)...)
	}
	want = append(want, spec.podRoutes(h, families, dev != nil)...)
	step("routes", syncRoutes(h, families, want, dropStale(spec.Device), &c))
	step("forwarding", errors.Join(setUpForwarding(families, &c), direct.setUpForwarding(families, &c)))

	for _, m := range c.Made {
		log.Info("network set-up changed", "change", m)
	}
	return c, errors.Join(errs...)
}

// families lists the address families that spec needs and the kernel has. A family that is needed and missing is an
// error, and the other one is set up all the same.
func (s Spec) families(errs *[]error) []family {
	var fs []family
	if s.wants(v4) {
		fs = append(fs, v4)
	}
	if s.wants(v6) {
		if haveIPv6() {
			fs = append(fs, v6)
		} else {
			*errs = append(*errs, errors.New("IPv6: the configuration has IPv6 pod CIDRs and this kernel has no IPv6: "+
				"boot without ipv6.disable=1, or take the IPv6 CIDRs out of the configuration"))
		}
	}
	return fs
}

// kernelFamilies lists the address families that the kernel has: leftovers are looked for in all of them.
func kernelFamilies() []family {
	if haveIPv6() {
		return []family{v4, v6}
	}
	return []family{v4}
}

// Remove takes Warren's kernel state away: the device, its addresses and routes, the rules, the guards and the nftables
// tables, whatever Spec they were made from; of spec only Device and Pods are used. Sysctls stay as they are.
//
// With keepGuards, which is for a host that still has pods attached, what keeps those pods from sending where they
// should not stays: the unreachable routes for the cluster's and the own pod CIDRs, the rule that leads packets of
// pods to Warren's table, its unreachable default route, and the source check with its sets. Pods then reach their own
// node and nothing else, until the next Apply, or Remove without keepGuards; the node's routes to spec.Pods no longer
// name the gateway address as source, which went with the device.
func Remove(spec Spec, keepGuards bool) error {
	fw := newFirewall()
	defer fw.close()
	return remove(spec, keepGuards, fw)
}

func remove(spec Spec, keepGuards bool, fw *firewall) error {
	spec = spec.withDefaults()
	h, err := open()
	if err != nil {
		return err
	}
	defer h.Close()
	var errs []error
	step := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("removing %s: %w", what, err))
		}
	}
	var c Changes
	families := kernelFamilies()
	stale := dropStale(spec.Device)
	var guards []route
	var rules []rule
	if keepGuards {
		if guards, err = ownGuards(h, families); err != nil {
			return fmt.Errorf("removing routes: %w", err)
		}
		if rules, err = ownRules(h, families); err != nil {
			return fmt.Errorf("removing rules: %w", err)
		}
		rules = guardRules(rules)
		step("sources of routes to pods", keepPodRoutes(h, spec))
	}
	// The rules go after the routes that they lead to, so that no packet of a pod finds a rule gone and a way out.
	step("device "+spec.Device, removeDevice(h, spec.Device))
	step("devices of before", removeIdle(h, spec.Device, &c))
	if keepGuards {
		guards = append(guards, spec.podRoutes(h, families, false)...)
	}
	step("nftables", fw.remove(keepGuards))
	step("routes through the device", syncRoutes(h, families, guards, stale, &c))
	step("rules", syncRules(h, families, rules, &c))
	return errors.Join(errs...)
}

// open gives a netlink socket in the calling thread's network namespace. Kernels before 4.20 lack strict checks, and
// send more than was asked for; the results are filtered anyway.
func open() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return h, nil
}

// dumpAttempts is how often a dump that changes interrupted (NLM_F_DUMP_INTR) is repeated. Each attempt is a fresh
// chance, and a table that changes all the time still has to be worked with in the end.
const dumpAttempts = 20

// dump lists kernel objects, again when the list changed under the kernel's hands.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for i := 1; ; i++ {
		items, err := list()
		if err == nil {
			return items, nil
		}
		if i == dumpAttempts || !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
}
