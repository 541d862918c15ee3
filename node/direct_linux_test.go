package node

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
)

// directNode is node n of a cluster, with both families of pods.
func directNode(n int, e control.Encapsulation) control.Node {
	return control.Node{
		Name: fmt.Sprint("n", n), Encapsulation: e,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n), 0}), 24),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", n))},
	}
}

func names(peers []hostnet.DirectPeer) string {
	var out []string
	for _, p := range peers {
		out = append(out, fmt.Sprintf("%s on-link=%t", p.Name, p.OnLink))
	}
	return strings.Join(out, ", ")
}

func TestDirectPeersChange(t *testing.T) {
	cfg := &config.Config{Control: config.Static, Self: directNode(1, control.Direct)}
	var d direct
	d.reset(cfg, []control.Node{
		directNode(2, control.Direct), directNode(3, control.Auto), directNode(4, control.VXLAN),
		{Name: "laptop", Roams: true},
	})
	moved := directNode(3, control.Auto)
	moved.Addresses[0] = netip.MustParseAddr("192.0.2.33")
	for _, c := range []struct {
		name          string
		set           []control.Node
		gone          []string
		before, after string
		all           string
	}{
		{"nothing", nil, nil, "", "", "n2 on-link=false, n3 on-link=true"},
		{"the same again", []control.Node{directNode(2, control.Direct), directNode(4, control.VXLAN)}, []string{"n9"},
			"", "", "n2 on-link=false, n3 on-link=true"},
		{"one moves, one joins", []control.Node{moved, directNode(5, control.Direct)}, nil, "n3 on-link=true",
			"n3 on-link=true, n5 on-link=false", "n2 on-link=false, n3 on-link=true, n5 on-link=false"},
		{"one asks for a tunnel, one leaves", []control.Node{directNode(2, control.WireGuard)}, []string{"n5"},
			"n2 on-link=false, n5 on-link=false", "", "n3 on-link=true"},
		{"one asks for direct", []control.Node{directNode(4, control.Direct)}, nil, "", "n4 on-link=false",
			"n3 on-link=true, n4 on-link=false"},
		{"one left and came again", []control.Node{directNode(4, control.Direct)}, []string{"n4"}, "", "",
			"n3 on-link=true, n4 on-link=false"},
	} {
		before, after := d.change(cfg, c.set, c.gone)
		if names(before) != c.before || names(after) != c.after || names(d.wanted()) != c.all {
			t.Errorf("%s: %q became %q of %q", c.name, names(before), names(after), names(d.wanted()))
		}
	}
	cfg.Self.Encapsulation = control.WireGuard
	if d.reset(cfg, []control.Node{directNode(2, control.Direct)}); len(d.wanted()) > 0 {
		t.Errorf("this node asks for a tunnel: %q", names(d.wanted()))
	}
}

func TestDirectAnswers(t *testing.T) {
	cfg := &config.Config{Control: config.Static, Self: directNode(1, control.Direct)}
	var d direct
	d.reset(cfg, []control.Node{directNode(2, control.Direct), directNode(3, control.Direct), directNode(4, control.Auto)})
	via := netip.MustParseAddr("192.0.2.254")
	way := func(n, cidr int, why string) hostnet.DirectRoute {
		r := hostnet.DirectRoute{Peer: fmt.Sprint("n", n), Prefix: directNode(n, "").PodCIDRs[cidr], Why: why}
		if why == "" {
			r.Via, r.Device = via, "eth0"
		}
		return r
	}
	d.note([]hostnet.DirectRoute{
		way(2, 0, ""), way(2, 1, ""), way(3, 0, ""), way(3, 1, "no"), way(4, 0, "far"), way(4, 1, "far"), way(9, 0, ""),
	})
	for n, want := range map[int]string{2: "direct", 3: "direct+vxlan", 4: "vxlan", 9: "vxlan"} {
		p := api.Peer{Name: fmt.Sprint("n", n), Encapsulation: "vxlan", PodCIDRs: directNode(n, "").PodCIDRs}
		if d.tell(&p); p.Encapsulation != want {
			t.Errorf("node %d: %s, want %s", n, p.Encapsulation, want)
		}
	}
	r := api.Route{Peer: "n2", Prefix: directNode(2, "").PodCIDRs[0]}
	if d.tellRoute(&r); r.NextHop != via || r.Device != "eth0" {
		t.Errorf("%+v", r)
	}
	want := []string{"peer n3 is to be direct, but its pods in fd00:10:244:3::/64 are reached through the tunnel: no"}
	if got := d.warnings(); !reflect.DeepEqual(got, want) {
		t.Errorf("warnings %q, want %q", got, want)
	}
	// An older look at the kernel, which does not know of a newcomer, takes nothing from it.
	d.change(cfg, []control.Node{directNode(5, control.Direct)}, []string{"n3"})
	d.note([]hostnet.DirectRoute{way(5, 0, ""), way(5, 1, "")})
	d.note([]hostnet.DirectRoute{way(2, 0, ""), way(3, 0, "")})
	if len(d.of("n5")) != 2 || len(d.of("n3")) != 0 || len(d.of("n2")) != 1 {
		t.Errorf("n5 %v, n3 %v, n2 %v", d.of("n5"), d.of("n3"), d.of("n2"))
	}
}

// TestGuards goes through the times at which pods' packets without a tunnel are refused.
func TestGuards(t *testing.T) {
	asks := func(own, self control.Encapsulation) *config.Config {
		return &config.Config{
			Control: config.Etcd, Own: control.Node{Encapsulation: own}, Self: control.Node{Encapsulation: self},
		}
	}
	static := asks(control.WireGuard, control.WireGuard)
	static.Control = config.Static
	type step struct {
		at     time.Duration
		cfg    *config.Config
		guards bool
	}
	wireguard, late := asks(control.WireGuard, control.WireGuard), graceTime+time.Second
	asksDirect := asks(control.Direct, control.Direct)
	for name, steps := range map[string][]step{
		"never direct": {{0, wireguard, true}, {late, wireguard, true}},
		"static":       {{0, static, false}, {late, static, false}},
		"direct":       {{0, asksDirect, false}, {3 * late, asksDirect, false}},
		"auto, but the cluster does not know yet": {{0, asks(control.Auto, control.WireGuard), false}},
		"no longer auto": {
			{0, asks(control.Auto, control.Auto), false}, {late, asks(control.WireGuard, control.Auto), false},
			{late + graceTime, wireguard, false}, {2 * late, wireguard, true}, {3 * late, wireguard, true},
		},
		"auto again": {
			{0, asks(control.Auto, control.Auto), false}, {graceTime, wireguard, false}, {late, wireguard, true},
			{2 * late, asks(control.Auto, control.WireGuard), false}, {2*late + graceTime, wireguard, false},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var d, again direct
			start := time.Now()
			before := false
			for _, s := range steps {
				now := start.Add(s.at)
				if since := d.guardsSince(s.cfg, now); since != (s.guards && !before) {
					t.Errorf("at %s it guards since: %t", s.at, since)
				}
				if before = d.guards(s.cfg, now); before != s.guards {
					t.Errorf("at %s it guards: %t", s.at, before)
				}
				if again.guards(s.cfg, now) != s.guards {
					t.Errorf("at %s the node that has started again does not as it did", s.at)
				}
				again = direct{open: again.openUntil(s.cfg, now)}
			}
		})
	}
}
