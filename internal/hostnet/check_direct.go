package hostnet

import (
	"fmt"
	"slices"
	"strings"
)

// direct says which peers would be reached without a tunnel, what is in the way of the others, and whether somebody
// else could send so.
func (c *checker) direct() {
	const what = "direct"
	if c.noNft && c.Spec.checksUnderlay() {
		c.warn(what, "nftables is missing: "+c.Spec.underlayChain(nil).lost, "a kernel with nftables")
	}
	if len(c.Spec.Direct) == 0 {
		return
	}
	plan := c.Spec.planDirect(c.h, c.Spec.kernelHas())
	anyway := map[string]bool{}
	for _, p := range c.Spec.Direct {
		anyway[p.Name] = !p.OnLink
	}
	tunnelled := map[string]bool{}
	for _, a := range plan.answers {
		if a.Why == "" {
			continue
		}
		tunnelled[a.Peer] = true
		if anyway[a.Peer] {
			c.warn(what, fmt.Sprintf("peer %s is to be direct, and its pods in %s are reached through the tunnel: %s", a.Peer,
				a.Prefix, a.Why), "look at `ip route get` for that node's addresses, or let it ask for auto")
		}
	}
	n := len(c.Spec.Direct)
	c.ok(what, "%d of %d peers that may be are reached without a tunnel", n-len(tunnelled), n)
	all, _ := sysctl("ipv4/conf/all/rp_filter")
	strict := slices.DeleteFunc(slices.Clone(plan.devices), func(d string) bool {
		own, _ := sysctl("ipv4/conf/" + d + "/rp_filter")
		return max(own, all) != "1" // one digit each
	})
	if len(strict) > 0 && c.Spec.wants(v4) {
		c.ok(what, "rp_filter is 1 on %s: when nodes change their encapsulation one after the other, two that have not both "+
			"done so don't hear each other; 2 lets them", strings.Join(strict, ", "))
	}
}
