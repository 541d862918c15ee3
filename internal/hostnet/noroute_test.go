package hostnet

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestNoRouteOutside takes the default routes from a node: a pod's packet to the outside passes the device once and is
// answered, where it looped through it until its TTL was used up.
func TestNoRouteOutside(t *testing.T) {
	w := newWorld(t)
	pod1, _, _ := w.twoPods()
	w.run("ip route del default; ip -6 route del default")
	for _, dst := range []string{"203.0.113.9", "2001:db8:9::9"} {
		before := w.read()
		var out string
		w.in(pod1, func() { out = w.run("ping -n -c 1 -W 1 " + dst + " 2>&1 || true") })
		if n := w.read() - before; n > 2 {
			t.Errorf("%s: %d packets were sent to the device for one ping", dst, n)
		}
		if !strings.Contains(strings.ToLower(out), "unreachable") && !strings.Contains(out, "No route") {
			t.Errorf("%s: the pod was not told that it is unreachable:\n%s", dst, out)
		}
	}
}

// read is how many packets the kernel has sent to the device.
func (w *world) read() uint64 {
	w.Helper()
	link, err := netlink.LinkByName("warren0")
	w.must(err)
	return link.Attrs().Statistics.TxPackets
}
