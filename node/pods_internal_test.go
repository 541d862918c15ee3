package node

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/warren-net/warren/cni/podrecord"
)

// What the source check has to know of a pod comes from its record, also while the pod still asks for its address.
func TestHostPod(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("10.244.1.9")}
	dhcp, other := json.RawMessage(`{"type": "dhcp"}`), json.RawMessage(`{"type": "host-local"}`)
	for _, tc := range []struct {
		name     string
		r        podrecord.Record
		ok, asks bool
	}{
		{"routed", podrecord.Record{Addresses: own}, true, false},
		{"routed, no address yet", podrecord.Record{IPAM: other}, false, false},
		{"bridge", podrecord.Record{Bridge: "br0", MAC: "0e:58:00:00:00:09", Addresses: own, IPAM: other}, true, false},
		{"bridge, no address yet", podrecord.Record{Bridge: "br0", MAC: "0e:58:00:00:00:09", IPAM: other}, false, false},
		{"bridge without MAC", podrecord.Record{Bridge: "br0", Addresses: own}, false, false},
		{"DHCP", podrecord.Record{Bridge: "br0", MAC: "0e:5b:00:00:00:09", Addresses: own, IPAM: dhcp}, true, true},
		{"DHCP, no address yet", podrecord.Record{Bridge: "br0", MAC: "0e:5b:00:00:00:09", IPAM: dhcp}, true, true},
	} {
		if p, ok := hostPod(&tc.r); ok != tc.ok || ok && p.DHCP != tc.asks {
			t.Errorf("%s: %+v, %v", tc.name, p, ok)
		}
	}
}
