package cni_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
)

// Routes that the kernel would refuse are refused with what to write instead.
func TestBadRoutes(t *testing.T) {
	for _, tc := range []struct{ route, want string }{
		{`{}`, "write 0.0.0.0/0 or ::/0"},
		{`{"dst": "10.0.0.0/8", "mtu": -1}`, "mtu is -1"},
		{`{"dst": "10.0.0.0/8", "advmss": -1}`, "advmss is -1"},
		{`{"dst": "10.0.0.0/8", "priority": 4294967296}`, "priority is 4294967296"},
		{`{"dst": "10.0.0.0/8", "table": -7}`, "table is -7"},
		{`{"dst": "10.0.0.0/8", "scope": 256}`, "scope is 256: it must be 0 (global), 253 (link)"},
		{`{"dst": "10.0.0.0/8", "gw": "10.244.1.1", "scope": 253}`, "leave gw 10.244.1.1 or scope out"},
		{`{"dst": "10.0.0.0/8", "gw": "10.244.1.1", "scope": 200}`, ""},
	} {
		err := cni.ResolveForTest(t.TempDir(), fmt.Sprintf(`"routes": [%s]`, tc.route))
		if (err == nil) != (tc.want == "") {
			t.Errorf("%s: %v", tc.route, err)
		} else if err != nil && (!strings.Contains(err.Error(), tc.want) || cni.Code(err) != types.ErrInvalidNetworkConfig) {
			t.Errorf("%s: code %d, %v, want %q", tc.route, cni.Code(err), err, tc.want)
		}
	}
}

// A second interface whose network says nothing of routes would get default routes, which the pod has.
func TestRouteTaken(t *testing.T) {
	n := newNode(t)
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	p.add()
	before := n.dump()
	second := p.call("ADD")
	second.ifname = "net1"
	_, err := n.do(second)
	if err == nil || err.Code != types.ErrInvalidNetworkConfig || !strings.Contains(err.Msg, `with "routes": [] there is none`) {
		t.Errorf("ADD: %+v", err)
	}
	second.conf = strings.Replace(second.conf, `"mode"`, `"routes": [{"dst": "10.9.0.0/16", "scope": 255}], "mode"`, 1)
	_, err = n.do(second)
	if err == nil || err.Code != types.ErrInvalidNetworkConfig ||
		!strings.Contains(err.Msg, "the kernel does not take the route to 10.9.0.0/16") {
		t.Errorf("ADD: %+v", err)
	}
	second.command = "DEL"
	n.must(second)
	unchanged(t, "a refused interface", before, n.dump())
}
