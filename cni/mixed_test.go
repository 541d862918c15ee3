package cni

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/warren-net/warren/cni/podrecord"
)

func TestNeighbors(t *testing.T) {
	pod := func(host, mode, bridge, addr, subnet string) podrecord.Record {
		r := podrecord.Record{HostIfName: host, Mode: mode, Bridge: bridge, Network: mode,
			Addresses: []netip.Addr{netip.MustParseAddr(addr)}}
		if subnet != "" {
			r.Subnets = []netip.Prefix{netip.MustParsePrefix(subnet)}
		}
		return r
	}
	routed := pod("r", ModeRouted, "", "10.244.1.2", "")
	bridged := pod("b", ModeBridge, "br0", "10.244.1.3", "10.244.1.0/24")
	for _, c := range []struct {
		name  string
		other podrecord.Record
		own   podrecord.Record
		ok    bool
	}{
		{"itself", routed, routed, true},
		{"both routed", routed, pod("r2", ModeRouted, "", "10.244.1.4", ""), true},
		{"both on the bridge", bridged, pod("b2", ModeBridge, "br0", "10.244.1.4", "10.244.1.0/24"), true},
		{"routed after bridge", bridged, routed, false},
		{"bridge after routed", routed, bridged, false},
		{"another bridge", bridged, pod("b2", ModeBridge, "br1", "10.244.1.4", "10.244.1.0/24"), false},
		{"a subnet of its own", routed, pod("b2", ModeBridge, "br0", "10.244.1.130", "10.244.1.128/25"), true},
		{"IPv6", pod("r", ModeRouted, "", "fd00::2", ""), pod("b", ModeBridge, "br0", "fd00::3", "fd00::/64"), false},
	} {
		err := neighbors(c.own, []podrecord.Record{c.other, c.own})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "same mode and bridge") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
