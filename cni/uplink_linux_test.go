package cni_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
)

// uplinked makes two nodes whose interfaces up0 are joined. Their warren0 has a carrier, and what a node routes to the
// cluster leaves there and is counted.
func uplinked(t *testing.T) [2]*node {
	t.Helper()
	var nodes [2]*node
	for i := range nodes {
		n := newNode(t)
		if i == 1 {
			sh(t, n.ns, "ip addr del "+gateway4+"/32 dev lo && ip addr del "+gateway6+"/128 dev lo && "+
				"ip addr add 10.244.2.1/32 dev lo && ip addr add fd00:10:244:2::1/128 dev lo nodad")
			n.file.Node = "b"
			n.file.PodCIDRs = []netip.Prefix{
				netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:10:244:2::/64"),
			}
			n.file.Gateways = []netip.Addr{netip.MustParseAddr("10.244.2.1"), netip.MustParseAddr("fd00:10:244:2::1")}
		}
		n.file.Device = "warren0"
		n.writeNodeFile()
		sh(t, n.ns, "ip link add warren0 type veth peer name tun-end && ip link set warren0 addrgenmode none up && "+
			"ip link set tun-end addrgenmode none up && ip route add 10.244.0.0/16 dev warren0 && "+
			"ip route add fd00:10:244::/48 dev warren0")
		sh(t, n.ns, "nft 'add table inet seen; add chain inet seen out { type filter hook postrouting priority 0; }; "+
			"add rule inet seen out oifname warren0 ip saddr 10.244.0.0/16 counter; "+
			"add rule inet seen out oifname warren0 ip6 saddr fd00:10:244::/48 counter'")
		nodes[i] = n
	}
	sh(t, nodes[0].ns, "ip link add up0 type veth peer name up0 netns "+nodes[1].ns)
	for _, n := range nodes {
		sh(t, n.ns, "ip link set up0 addrgenmode none")
	}
	return nodes
}

const acrossNodes = `, "uplink": "up0", "ranges": [[{"subnet": "10.244.0.0/16"}], [{"subnet": "fd00:10:244::/48"}]]`

// counters are of what pods send by warren0; the kernel itself says something there now and then.
func (n *node) counters() string {
	n.t.Helper()
	return sh(n.t, n.ns, "nft list chain inet seen out")
}

// uplink is what the interface up0 is at; empty when there is none.
func (n *node) uplink() string {
	n.t.Helper()
	return sh(n.t, n.ns, "ip link show up0 2>/dev/null | grep -o 'master [^ ]*\\|state [A-Z]*\\|<.*>' || true")
}

// Pods of two nodes whose bridges are joined reach each other without Warren; the uplink is free after the last pod.
func TestUplinkJoinsNodes(t *testing.T) {
	nodes := uplinked(t)
	var dumps, links [2]string
	var pods, others [2]*pod
	var addrs [2][]netip.Addr
	for i, n := range nodes {
		n.warm(cni.ModeBridge)
		dumps[i], links[i] = n.dump(), n.uplink()
		n.confMore = acrossNodes
	}
	for i, n := range nodes {
		conf := n.conf("1.0.0", cni.ModeBridge)
		pods[i], others[i] = n.pod(conf), n.pod(conf)
		r := pods[i].add()
		addrs[i] = r.addrs()
		if !strings.HasSuffix(r.IPs[0].Address, "/16") || !n.file.PodCIDRs[0].Contains(addrs[i][0]) ||
			r.IPs[0].Gateway != n.file.Gateways[0].String() || !n.file.PodCIDRs[1].Contains(addrs[i][1]) {
			t.Errorf("node %s gave %+v", n.file.Node, r.IPs)
		}
		others[i].add()
	}
	for i, n := range nodes {
		// The pod's own node is its gateway, as without an uplink.
		for _, gateway := range n.file.Gateways {
			ping(t, pods[i].ns, gateway)
		}
		others[i].del()
		if !strings.Contains(n.uplink(), "master "+cni.DefaultBridge) {
			t.Errorf("DEL of one of two pods took the uplink: %s", n.uplink())
		}
	}
	before := nodes[0].counters() + nodes[1].counters()
	for _, addr := range addrs[1] {
		ping(t, pods[0].ns, addr)
	}
	for _, addr := range addrs[0] {
		ping(t, pods[1].ns, addr)
	}
	unchanged(t, "counters of warren0", before, nodes[0].counters()+nodes[1].counters())
	// The counters do count: a pod whose subnet is its node's goes that way.
	nodes[0].confMore = `, "uplink": "up0", "ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.99"}]]`
	routed := nodes[0].pod(strings.Replace(nodes[0].conf("1.0.0", cni.ModeBridge), `"pods"`, `"other"`, 1))
	routed.add()
	_, _ = try(routed.ns, "ping -c 1 -W 1 "+addrs[1][0].String())
	if nodes[0].counters() == before[:len(nodes[0].counters())] {
		t.Error("a pod with its node's subnet did not use warren0")
	}
	routed.del()
	for i, n := range nodes {
		pods[i].del()
		if now := n.uplink(); now != links[i] {
			t.Errorf("the uplink after the last pod is %s, was %s", now, links[i])
		}
		unchanged(t, "after the last pod", dumps[i], n.dump())
	}
}

// On an operator's bridge the plugin's uplink goes, and the operator's stays.
func TestUplinkOfPreparedBridge(t *testing.T) {
	for _, prepared := range []bool{false, true} {
		t.Run(fmt.Sprintf("port before: %v", prepared), func(t *testing.T) {
			n := newNode(t)
			n.confMore = `, "bridge": "br-mine", "uplink": "up0"`
			sh(t, n.ns, "ip link add br-mine type bridge && ip link set br-mine address 02:00:00:00:00:07 up && "+
				"ip link add up0 type veth peer name up1 && ip link set up0 addrgenmode none up")
			if prepared {
				sh(t, n.ns, "ip link set up0 master br-mine")
			}
			p := n.pod(n.conf("1.0.0", cni.ModeBridge))
			p.add() // makes what stays: nftables tables
			p.del()
			before, link := n.dump(), n.uplink()
			if strings.Contains(link, "master br-mine") != prepared {
				t.Errorf("after the last pod up0 is %s", link)
			}
			out := n.must(p.call("ADD"))
			if !strings.Contains(n.uplink(), "master br-mine") {
				t.Errorf("with a pod up0 is %s", n.uplink())
			}
			n.must(p.withPrev("CHECK", out))
			sh(t, n.ns, "ip link set up0 nomaster")
			if _, err := n.do(p.withPrev("CHECK", out)); err == nil || !strings.Contains(err.Msg, "uplink up0 is no port") {
				t.Errorf("CHECK without the uplink: %+v", err)
			}
			sh(t, n.ns, "ip link set up0 master br-mine")
			p.del()
			unchanged(t, "after the last pod", before, n.dump())
			if now := n.uplink(); now != link {
				t.Errorf("after the last pod up0 is %s, was %s", now, link)
			}
		})
	}
}

// Answers of other nodes' pods come by the uplink, against the way to them: a strict filter would drop them.
func TestUplinkReversePath(t *testing.T) {
	n := newNode(t)
	sh(t, n.ns, "ip link add up0 type veth peer name up1 && ip link add br-mine type bridge && "+
		"sysctl -qw net.ipv4.conf.all.rp_filter=0")
	for _, tc := range []struct {
		conf, before string // rp_filter of the operator's bridge
		after        string
		said         bool
	}{
		{"", "", "1", false},
		{`, "uplink": "up0"`, "", "2", false},
		{`, "bridge": "br-mine", "uplink": "up0"`, "0", "0", false},
		{`, "bridge": "br-mine", "uplink": "up0"`, "1", "1", true},
		{`, "bridge": "br-mine", "uplink": "up0"`, "2", "2", false},
	} {
		bridge := cni.DefaultBridge
		if tc.before != "" {
			bridge = "br-mine"
			sh(t, n.ns, "sysctl -qw net/ipv4/conf/br-mine/rp_filter="+tc.before)
		}
		n.confMore = tc.conf
		p := n.pod(n.conf("1.0.0", cni.ModeBridge))
		cmd := n.command(p.call("ADD"))
		var said bytes.Buffer
		cmd.Stderr = &said
		if out, err := cmd.Output(); err != nil {
			t.Fatalf("ADD with %s: %v\n%s", tc.conf, err, out)
		}
		if now := strings.TrimSpace(sh(t, n.ns, "sysctl -n net/ipv4/conf/"+bridge+"/rp_filter")); now != tc.after {
			t.Errorf("with %s, %q before: rp_filter of %s is %s, want %s", tc.conf, tc.before, bridge, now, tc.after)
		}
		if strings.Contains(said.String(), "rp_filter of bridge br-mine is 1") != tc.said {
			t.Errorf("with %s, %q before, ADD says %q", tc.conf, tc.before, said.String())
		}
		p.del()
	}
}

// Killed at a random moment, the plugin leaves an uplink that the next DEL frees.

func TestUplinkRefused(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeBridge)
	sh(t, n.ns, "ip link add up0 type veth peer name up1 && ip link set up0 addrgenmode none && "+
		"ip link add br-other type bridge && ip link set br-other addrgenmode none && ip tuntap add tun7 mode tun")
	ranges := func(r string) string { return `, "uplink": "up0", "ranges": [[` + r + `]]` }
	for _, tc := range []struct{ prepare, conf, want string }{
		{"", `, "uplink": "none0"`, "there is no such interface"},
		{"", `, "uplink": "lo"`, "it is the loopback interface"},
		{"", `, "uplink": "tun7"`, "it carries no Ethernet"},
		{"", `, "uplink": "br-other"`, "it is a bridge itself"},
		{"", `, "uplink": "warren-br0"`, "uplink and bridge are both"},
		{"", `, "uplink": "a/b"`, `uplink is "a/b"`},
		{"ip link set up0 master br-other", `, "uplink": "up0"`,
			"it belongs to bridge br-other: run `ip link set up0 nomaster`"},
		{"ip link set up0 nomaster && ip addr add 192.0.2.1/24 dev up0", `, "uplink": "up0"`,
			"it has the address 192.0.2.1/24"},
		{"ip addr flush dev up0 && ip link set up0 mtu 1300", `, "uplink": "up0"`, "run `ip link set up0 mtu 1420`"},
		{"ip link set up0 mtu 1500", ranges(`{"subnet": "10.0.0.0/8"}`), "within the cluster's"},
		{"", ranges(`{"subnet": "10.244.0.0/16", "rangeStart": "10.244.2.7"}`), "with rangeStart in it"},
		{"", ranges(`{"subnet": "10.244.0.0/16", "rangeEnd": "10.244.2.7"}`), "other nodes give those addresses"},
		{"", ranges(`{"subnet": "10.244.0.0/16", "gateway": "10.244.0.1"}`), "is not the node's, which is 10.244.1.1"},
		{"", `, "ranges": [[{"subnet": "10.244.0.0/16"}]]`, "outside the node's pod CIDRs"},
	} {
		if tc.prepare != "" {
			sh(t, n.ns, tc.prepare)
		}
		before := n.dump()
		n.confMore = tc.conf
		_, err := n.do(n.pod(n.conf("1.0.0", cni.ModeBridge)).call("ADD"))
		if err == nil || err.Code != types.ErrInvalidNetworkConfig || !strings.Contains(err.Msg, tc.want) {
			t.Errorf("with %s: %+v, want %q", tc.conf, err, tc.want)
		}
		unchanged(t, tc.conf, before, n.dump())
	}
	n.confMore = `, "uplink": "up0"`
	if _, err := n.do(n.pod(n.conf("1.0.0", cni.ModeRouted)).call("ADD")); err == nil ||
		!strings.Contains(err.Msg, "set mode to \"bridge\"") {
		t.Errorf("in mode routed: %+v", err)
	}
	n.pod(n.conf("1.0.0", cni.ModeBridge)).add()
	sh(t, n.ns, "ip link add up2 type veth peer name up3")
	n.confMore = `, "uplink": "up2"`
	if _, err := n.do(n.pod(n.conf("1.0.0", cni.ModeBridge)).call("ADD")); err == nil ||
		!strings.Contains(err.Msg, "has uplink up0 already") {
		t.Errorf("a second uplink: %+v", err)
	}
}
