package e2e_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// mixed are the ranges with which one node has pods of both modes: a subnet for each.
func mixed(n *lab.Node) map[string]lab.PodOptions {
	ranges := func(v4, v6 string) map[string]any {
		return map[string]any{"ranges": [][]map[string]string{{{"subnet": v4}}, {{"subnet": v6}}}}
	}
	v4, v6 := fmt.Sprintf("10.244.%d.", n.Index), fmt.Sprintf("fd00:10:244:%x:", n.Index)
	return map[string]lab.PodOptions{
		"bridge": {Mode: "bridge", Conf: ranges(v4+"0/25", v6+":/65")},
		"routed": {Mode: "routed", Conf: ranges(v4+"128/25", v6+"8000::/65")},
	}
}

// TestModes has pods of both modes, on one node and on two, talk with each other, with nodes and with the outside.
func TestModes(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a, b := c.node("a"), c.node("b")
	c.configure()
	initial := map[*lab.Node]lab.KernelState{a: c.state(a.NS), b: c.state(b.NS)}
	c.up(a, b)
	before := map[*lab.Node]lab.KernelState{a: c.state(a.NS), b: c.state(b.NS)}
	bridge := lab.PodOptions{Mode: "bridge"}
	pods := []*lab.Pod{
		c.podWith(a, "bridge1", bridge), c.podWith(a, "bridge2", bridge),
		c.podWith(b, "bridge1", mixed(b)["bridge"]), c.podWith(b, "routed1", mixed(b)["routed"]),
	}
	// In one subnet pods of both modes would look for each other where they are not.
	if p, err := a.AddPod(c.ctx, "routed1", lab.PodOptions{Mode: "routed"}); err == nil {
		t.Errorf("a routed pod beside bridged ones was attached with %s", p.V4)
	} else if !strings.Contains(err.Error(), "same mode and bridge") {
		t.Errorf("a routed pod beside bridged ones: %v", err)
	}
	for _, f := range families() {
		t.Run(fmt.Sprintf("IPv%d", f), func(t *testing.T) {
			sub := *c
			sub.t = t
			for _, from := range pods {
				for _, to := range pods {
					if from != to {
						sub.meet(from, to, f)
					}
				}
				sub.beyond(from, f)
			}
		})
	}
	for _, p := range pods {
		c.ok(p.Delete(c.ctx, lab.PodOptions{Mode: "bridge"}))
		for _, f := range families() {
			c.eventually(func() error {
				found, err := p.Node.FindAddress(c.ctx, p.Address(f))
				if err == nil && len(found) > 0 {
					err = fmt.Errorf("%w: %s after DEL: %q", errNotYet, p.Address(f), found)
				}
				return err
			})
		}
	}
	for n, state := range before {
		// The table of the bridges' source check stays as long as the daemon.
		delete(state, "nftables")
		now := c.state(n.NS)
		delete(now, "nftables")
		if added, gone := now.Since(state); len(added)+len(gone) > 0 {
			t.Errorf("node %s after the last DEL: added %q, gone %q", n.Name, added, gone)
		}
		records, err := filepath.Glob(filepath.Join(n.StateDir, "cni", "pods", "*"))
		if err != nil || len(records) > 0 {
			t.Errorf("pod records left: %q (%v)", records, err)
		}
		if _, err := os.Stat(filepath.Join(n.StateDir, "cni", "bridges", "warren-br0.json")); !os.IsNotExist(err) {
			t.Errorf("the bridge's record is left: %v", err)
		}
		c.ok(n.Down(c.ctx))
		c.same(n.NS, initial[n])
	}
}

// meet tries one pair of pods in one direction.
func (c *cluster) meet(from, to *lab.Pod, f int) {
	c.t.Helper()
	c.fullPing(from.NS, to.Address(f), 1420)
	c.sources(between(from, to, f), from.Address(f))
	c.transfer(between(from, to, f), 8<<20)
	c.datagrams(between(from, to, f))
}

// beyond tries a pod with nodes, in both directions, and with the outside.
func (c *cluster) beyond(p *lab.Pod, f int) {
	c.t.Helper()
	for _, n := range c.lab.Nodes() {
		c.ping(n.NS, p.Address(f), lab.Ping{Count: 1})
		c.ping(p.NS, n.Address(f), lab.Ping{Count: 1})
		c.sources(lab.Path{From: p.NS, To: n.NS, Addr: n.Address(f)}, p.Address(f))
	}
	c.ping(p.NS, outside(f), lab.Ping{})
	c.sources(lab.Path{From: p.NS, To: c.lab.Outside, Addr: outside(f)}, p.Node.Address(f))
	c.transfer(lab.Path{From: p.NS, To: c.lab.Outside, Addr: outside(f)}, 4<<20)
}

// TestOutsideWithoutMasquerade has pods reach an outside that knows the way back.
func TestOutsideWithoutMasquerade(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a := c.node("a")
	no := false
	a.Settings.Masquerade = &no
	c.configure()
	c.up(a)
	p := c.pod(a, "1")
	for _, f := range families() {
		// Without a way back the packets arrive under the pod's own address, and no answer does.
		arrived := c.capture(c.lab.Outside, "eth0", func(q *pkt) bool { return q.src == p.Address(f) && q.dst == outside(f) })
		if _, err := p.NS.Ping(c.ctx, outside(f), lab.Ping{Count: 1}); err == nil {
			t.Errorf("IPv%d: an answer without a way back", f)
		}
		arrived.some("a packet with the pod's own address")
		c.do(c.lab.Outside, fmt.Sprintf("ip route add %s via %s", cidr(a, f), a.Address(f)))
		c.ping(p.NS, outside(f), lab.Ping{})
		c.sources(lab.Path{From: p.NS, To: c.lab.Outside, Addr: outside(f)}, p.Address(f))
		// The outside may then begin a connection as well.
		c.sources(lab.Path{From: c.lab.Outside, To: p.NS, Addr: p.Address(f)}, onUnderlay(f))
	}
}

// onUnderlay is the outside's address on the underlay.
func onUnderlay(f int) netip.Addr {
	return netip.MustParseAddr(map[int]string{4: "192.0.2.254", 6: "2001:db8::fe"}[f])
}

// TestOffloadsFromEnvironment holds that what `make test-offloads` asks for is what the daemons do.
func TestOffloadsFromEnvironment(t *testing.T) {
	var off []string
	for key := range allOff() {
		off = append(off, key+"=off")
	}
	t.Setenv(lab.OffloadsEnv, strings.Join(off, ","))
	c := newCluster(t, lab.Options{})
	named, all := c.node("named"), c.node("all")
	named.Settings.Offloads = allAuto()
	c.configure()
	c.up(named, all)
	for _, o := range ask[api.Status](c, all, "status").Offloads {
		if switched := o.Name != "udp-steering"; o.Enabled == switched || switched && o.Reason != "configuration" {
			t.Errorf("with %s: %+v", strings.Join(off, ","), o)
		}
	}
	for _, o := range ask[api.Status](c, named, "status").Offloads {
		if o.Reason == "configuration" {
			t.Errorf("a test asked for all: %+v", o)
		}
	}
}

// TestOffloads switches off each offload alone, and all of them, at one end of the path.
func TestOffloads(t *testing.T) {
	c := newCluster(t, lab.Options{})
	full := c.node("full")
	full.Settings.Offloads = allAuto()
	lacking := map[string]*lab.Node{}
	for key := range allOff() {
		n := c.node(fmt.Sprint("no", len(lacking)))
		n.Settings.Offloads = map[string]string{key: "off"}
		lacking[key+" off"] = n
	}
	none := c.node("none")
	none.Settings.Offloads = allOff()
	lacking["all off"] = none
	c.configure()
	c.up(c.lab.Nodes()...)
	peer := c.pod(full, "1")
	last := c.pod(none, "2")
	for name, n := range lacking {
		t.Run(name, func(t *testing.T) {
			sub := *c
			sub.t = t
			p := sub.pod(n, "1")
			for _, f := range families() {
				for _, path := range []lab.Path{between(p, peer, f), between(peer, p, f), between(p, last, f)} {
					sub.transfer(path, 16<<20)
					sub.datagrams(path)
				}
			}
		})
	}
}
