package cni_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
)

// All that a route of CNI 1.1.0 can have is set, told in the result, and checked, also for a runtime that keeps of the
// result only what older versions have. A route of scope link has no gateway.
func TestRouteFields(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.confMore = `, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "advmss": 1200, "mtu": 1310},
				{"dst": "10.9.0.0/16", "mtu": 1300, "advmss": 1210, "priority": 50, "table": 77, "scope": 253},
				{"dst": "10.10.0.0/16", "mtu": 1300, "advmss": 1210, "priority": 51, "table": 78, "scope": 0},
				{"dst": "fd09::/64", "priority": 52, "table": 79, "scope": 253}, {"dst": "10.11.0.7/32", "scope": 254},
				{"dst": "10.12.0.0/16", "mtu": 65520, "advmss": 65495}, {"dst": "fd12::/64", "mtu": 65520, "advmss": 65495}]`
			p := n.pod(n.conf("1.1.0", mode))
			c := p.call("ADD")
			out := n.must(c)
			var told struct{ Routes []json.RawMessage }
			if err := json.Unmarshal(out, &told); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{
				`{"dst": "10.9.0.0/16", "mtu": 1300, "advmss": 1210, "priority": 50, "table": 77, "scope": 253}`,
				`{"dst": "10.10.0.0/16", "gw": "10.244.1.1", "mtu": 1300, "advmss": 1210, "priority": 51, "table": 78,
					"scope": 0}`,
				`{"dst": "::/0", "gw": "fd00:10:244:1::1", "mtu": 1310, "advmss": 1200}`,
				`{"dst": "fd09::/64", "priority": 52, "table": 79, "scope": 253}`,
			} {
				if !slices.ContainsFunc(told.Routes, func(r json.RawMessage) bool { return sameObject(r, []byte(want)) }) {
					t.Errorf("the result lacks %s: %s", want, out)
				}
			}
			routes := sh(t, p.ns, "ip route show table all; ip -6 route show table all")
			for _, want := range []string{
				"10.9.0.0/16 dev eth0 table 77 scope link metric 50 mtu 1300 advmss 1210",
				"10.10.0.0/16 via 10.244.1.1 dev eth0 table 78 metric 51",
				"fd09::/64 dev eth0 table 79 metric 52",
			} {
				if !strings.Contains(regexp.MustCompile(` +`).ReplaceAllString(routes, " "), want) {
					t.Errorf("the pod lacks %s:\n%s", want, routes)
				}
			}
			n.must(c.check(out))
			older := regexp.MustCompile(`,\s*"(advmss|priority|table|scope)": \d+`).ReplaceAll(out, nil)
			older = regexp.MustCompile(`,\s*"mtu": 13\d0`).ReplaceAll(older, nil)
			if bytes.Contains(older, []byte(`"table"`)) || bytes.Contains(older, []byte("1300")) {
				t.Fatalf("still there: %s", older)
			}
			n.must(c.check(older))
			p.del()

			for _, tc := range []struct{ change, want string }{
				{"ip route replace 10.9.0.0/16 dev eth0 table 77 scope link metric 50 mtu 1200 advmss 1210",
					"route to 10.9.0.0/16 through eth0 has mtu 1200, not 1300"},
				{"ip route replace 10.9.0.0/16 dev eth0 table 77 scope link metric 50 mtu 1300 advmss 1000",
					"route to 10.9.0.0/16 through eth0 has advmss 1000, not 1210"},
				{"ip route replace 10.9.0.0/16 dev eth0 table 77 scope host metric 50 mtu 1300 advmss 1210",
					"route to 10.9.0.0/16 through eth0 has scope 254, not 253"},
				{"ip route del 10.9.0.0/16 table 77; ip route add 10.9.0.0/16 dev eth0 table 77 scope link metric 9 mtu 1300 " +
					"advmss 1210", "route to 10.9.0.0/16 through eth0 has priority 9, not 50"},
				{"ip route del 10.9.0.0/16 table 77; ip route add 10.9.0.0/16 dev eth0 scope link metric 50 mtu 1300 " +
					"advmss 1210", "no route to 10.9.0.0/16 through eth0"},
				{"ip -6 route del fd09::/64 table 79", "no route to fd09::/64 through eth0"},
			} {
				out := n.must(c)
				sh(t, p.ns, tc.change)
				if _, err := n.do(c.check(out)); err == nil || !strings.Contains(err.Msg, tc.want) {
					t.Errorf("after %s: %+v, want %q", tc.change, err, tc.want)
				} else {
					n.follow(err.Msg)
					n.must(c.check(out))
				}
				p.del()
			}
		})
	}
}

func sameObject(a, b []byte) bool {
	var x, y map[string]any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// Routes that the kernel would refuse are refused with what to write instead.
func TestBadRoutes(t *testing.T) {
	for _, tc := range []struct{ route, want string }{
		{`{}`, "write 0.0.0.0/0 or ::/0"},
		{`{"dst": "10.0.0.0/8", "mtu": -1}`, "mtu is -1"},
		{`{"dst": "10.0.0.0/8", "advmss": -1}`, "advmss is -1"},
		{`{"dst": "10.0.0.0/8", "priority": 4294967296}`, "priority is 4294967296"},
		{`{"dst": "10.0.0.0/8", "table": -7}`, "table is -7"},
		{`{"dst": "10.0.0.0/8", "mtu": 65521}`, "mtu is 65521: it must be from 0 to 65520"},
		{`{"dst": "fd00::/8", "mtu": 10000000}`, "mtu is 10000000: it must be from 0 to 65520"},
		{`{"dst": "10.0.0.0/8", "advmss": 65496}`, "advmss is 65496: it must be from 0 to 65495"},
		{`{"dst": "10.0.0.0/8", "mtu": 65520, "advmss": 65495}`, ""},
		{`{"dst": "10.0.0.0/8", "scope": 256}`, "scope is 256: it must be 0 (global), 253 (link)"},
		{`{"dst": "10.0.0.0/8", "scope": 255}`, "scope is 255: it must be 0 (global), 253 (link)"},
		{`{"dst": "10.0.0.0/8", "scope": 1}`, ""},
		{`{"dst": "10.0.0.0/8", "gw": "10.244.1.1", "scope": 253}`, "leave gw 10.244.1.1 or scope out"},
		{`{"dst": "10.0.0.0/8", "gw": "10.244.1.1", "scope": 200}`, ""},
	} {
		err := cni.ResolveForTest(t.TempDir(), fmt.Sprintf(`"routes": [%s]`, tc.route))
		if (err == nil) != (tc.want == "") {
			t.Errorf("%s: %v", tc.route, err)
		} else if err != nil &&
			(!strings.Contains(err.Error(), tc.want) || cni.Code(err) != types.ErrInvalidNetworkConfig) {
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
	if err == nil || err.Code != types.ErrInvalidNetworkConfig ||
		!strings.Contains(err.Msg, `with "routes": [] there is none`) {
		t.Errorf("ADD: %+v", err)
	}
	second.command = "DEL"
	n.must(second)
	unchanged(t, "a refused interface", before, n.dump())
}

// What is not refused before is told with all that the kernel was asked.
func TestRouteRefusedByTheKernel(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeBridge)
	before := n.dump()
	n.confMore = `, "routes": [{"dst": "10.9.0.0/16", "gw": "224.0.0.1"}]`
	_, err := n.do(n.pod(n.conf("1.1.0", cni.ModeBridge)).call("ADD"))
	refusedWith(t, "ADD", err, types.ErrInvalidNetworkConfig,
		"the kernel does not take the route to 10.9.0.0/16 (gw 224.0.0.1")
	unchanged(t, "a refused interface", before, n.dump())
}
