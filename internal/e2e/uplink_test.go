package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// wire is the device that joins the nodes apart from the underlay.
const wire = "up0"

// acrossNodes are pods whose subnet is all of the cluster's, on bridges that the wire joins.
func acrossNodes() lab.PodOptions {
	return lab.PodOptions{Mode: "bridge", Conf: map[string]any{
		"uplink": wire,
		"ranges": [][]map[string]string{{{"subnet": "10.244.0.0/16"}}, {{"subnet": "fd00:10:244::/48"}}},
	}}
}

// TestUplink joins the bridges of two nodes that run Warren. Pods find each other on the link, also while a daemon is
// dead; what is not on it takes the ways that it takes without an uplink; and the last pod frees the uplink.
func TestUplink(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a, b := c.node("a"), c.node("b")
	c.configure()
	c.do(a.NS, fmt.Sprintf("ip link add %s type veth peer name %s netns %s", wire, wire, b.NS.Name))
	for _, n := range c.lab.Nodes() {
		c.do(n.NS, "ip link set "+wire+" up", "ip link set "+wire+" down") // it gets its queue when it is up first
	}
	initial := map[*lab.Node]lab.KernelState{a: c.state(a.NS), b: c.state(b.NS)}
	c.up(a, b)
	before := map[*lab.Node]lab.KernelState{a: c.state(a.NS), b: c.state(b.NS)}
	o := acrossNodes()
	a1, a2, b1 := c.podWith(a, "1", o), c.podWith(a, "2", o), c.podWith(b, "1", o)
	for _, f := range families() {
		c.onLink(a1, b1, f)
		c.onLink(b1, a1, f)
		for _, p := range []*lab.Pod{a1, b1} {
			c.beyond(p, f)
			for _, n := range c.lab.Nodes() {
				c.ping(p.NS, gateway(n, f), lab.Ping{Count: 1})
			}
		}
	}
	for _, p := range []*lab.Pod{a1, b1} {
		c.ok(p.Check(c.ctx, o))
	}

	// The daemon of one node dies and comes back. Pods of both come and go meanwhile.
	// Its pauses are long enough for a capture to end in one.
	echo, err := lab.StartEcho(c.ctx, between(a1, b1, 4), 100*time.Millisecond)
	c.ok(err)
	c.ok(a.Kill())
	a3 := c.podWith(a, "3", o)
	for _, f := range families() {
		c.onLink(a3, b1, f)
		c.onLink(b1, a1, f)
	}
	c.ok(a2.Delete(c.ctx, o))
	c.ok(echo.WaitAnswered(c.ctx))
	c.ok(a.Up(c.ctx))
	for _, f := range families() {
		c.onLink(b1, a3, f)
		c.beyond(a3, f)
	}
	c.ok(echo.Stop())

	c.ok(a3.Delete(c.ctx, o))
	if master := c.run(a.NS, "ip", "-o", "link", "show", wire); !strings.Contains(master, "master warren-br0") {
		t.Errorf("DEL of two of three pods took the uplink: %s", master)
	}
	for _, p := range []*lab.Pod{a1, b1} {
		c.ok(p.Delete(c.ctx, o))
	}
	for n, state := range before {
		// The table of the bridges' source check stays as long as the daemon.
		delete(state, "nftables")
		c.eventually(func() error {
			now := c.state(n.NS)
			delete(now, "nftables")
			if added, gone := now.Since(state); len(added)+len(gone) > 0 {
				return fmt.Errorf("%w: node %s after the last DEL: added %q, gone %q", errNotYet, n.Name, added, gone)
			}
			return nil
		})
		for _, dir := range []string{"pods", "bridges"} {
			left, err := os.ReadDir(filepath.Join(n.StateDir, "cni", dir))
			if err != nil || len(left) > 0 {
				t.Errorf("left in %s of node %s: %v (%v)", dir, n.Name, left, err)
			}
		}
		c.ok(n.Down(c.ctx))
		c.same(n.NS, initial[n])
	}
}

var etherAddress = regexp.MustCompile(`lladdr (\S+)`)

// onLink wants a pod to find another one, of the other node, on its link: it is the pod itself that says where it is,
// no router counts the packets' hops down, and nothing of it is in the tunnel.
func (c *cluster) onLink(from, to *lab.Pod, f int) {
	c.t.Helper()
	here, there := from.Address(f), to.Address(f)
	const neighborAdvertisement = 136
	says := c.capture(to.NS, "eth0", func(q *pkt) bool {
		return f == 4 && q.neighbor == here && q.src == there ||
			f == 6 && q.neighbor == there && q.kind == neighborAdvertisement
	})
	tunnelled := c.capture(from.Node.NS, "eth0", func(q *pkt) bool {
		return q.vxlan() && q.inner != nil && (q.inner.src == here && q.inner.dst == there ||
			q.inner.src == there && q.inner.dst == here)
	})
	c.do(from.NS, "ip neigh flush dev eth0 to "+there.String())
	if out := c.run(from.NS, "ping", "-n", "-c", "1", "-W", "2", there.String()); !strings.Contains(out, "ttl=64") {
		c.t.Errorf("ping from %s to %s on one link: %s", from.NS.Name, there, out)
	}
	says.some(there.String() + " says where it is")
	says.stop()
	link := c.run(to.NS, "ip", "-o", "link", "show", "eth0")
	known := c.run(from.NS, "ip", "neigh", "show", there.String())
	if mac := etherAddress.FindStringSubmatch(known); mac == nil || !strings.Contains(link, "link/ether "+mac[1]) {
		c.t.Errorf("%s takes %s to be at %q, but it has %s", from.NS.Name, there, known, link)
	}
	c.meet(from, to, f)
	tunnelled.nothing(fmt.Sprintf("packets between %s and %s in the tunnel", here, there))
}
