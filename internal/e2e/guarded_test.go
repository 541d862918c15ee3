package e2e_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// arrives has an underlay host send to a pod as one of another node's pods, and reports whether the pod hears it.
func (c *cluster) arrives(pod *lab.Pod, from netip.Addr) bool {
	c.t.Helper()
	to, gateway, bits := pod.V4, pod.Node.V4, from.BitLen()
	if from.Is6() {
		to, gateway = pod.V6, pod.Node.V6
	}
	c.do(c.lab.Outside, fmt.Sprintf("ip addr replace %s/%d dev lo", from, bits),
		fmt.Sprintf("ip route replace %s/%d via %s", to, bits, gateway))
	captured := c.capture(pod.NS, "eth0", func(p *pkt) bool { return p.src == from })
	_, _ = c.lab.Outside.Run(c.ctx, "ping", "-c2", "-i0.2", "-W1", "-I", from.String(),
		to.String()) // nobody answers there
	return captured.stop() > 0
}

// TestNetworkChangesEncapsulation has the nodes of a network, which hear of each other from its etcd, change how they
// reach each other, one after the other, under traffic. While none of them asks for direct, no pod hears a packet of
// another node's pod that comes without a tunnel.
func TestNetworkChangesEncapsulation(t *testing.T) {
	c := newClusterFor(t, lab.Options{Prefix: "e2g"}, 4*time.Minute)
	nodes := c.network("a", "b")
	a, b := nodes[0], nodes[1]
	traffics := c.everybodyTalks(nodes)
	victim := c.pod(a, "victim")
	var others []netip.Addr // of no pod; in b's CIDRs
	for _, p := range b.PodCIDRs {
		next := p.Addr()
		for range 77 {
			next = next.Next()
		}
		others = append(others, next)
	}
	for _, from := range others {
		if c.arrives(victim, from) {
			t.Errorf("a packet from %s is heard", from)
		}
	}
	if c.drops(a, "spoofed") == 0 {
		t.Error("what was dropped is not counted")
	}
	for _, to := range []string{"auto", "vxlan", "direct", "wireguard"} {
		for _, n := range nodes {
			c.edit(n, set("encapsulation", to))
			c.reload(n)
			time.Sleep(quiet)
			for _, k := range traffics {
				k.works()
			}
		}
		want := to
		if to == "auto" {
			want = "direct"
		}
		c.eventually(func() error {
			for _, pair := range [][2]*lab.Node{{a, b}, {b, a}} {
				if got := c.peer(pair[0], pair[1]).Encapsulation; got != want && to != "vxlan" { // to which it moves in ten minutes
					return fmt.Errorf("%w: all ask for %s, and node %s reaches %s by %s", errNotYet, to, pair[0].Name,
						pair[1].Name, got)
				}
			}
			return nil
		})
	}
	lost := 0
	for _, k := range traffics {
		lost += k.end()
	}
	if lost > 0 {
		t.Errorf("%d pings lost", lost)
	}
}
