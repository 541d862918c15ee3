package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// A pair is two nodes that run Warren, with pods: two on a, one on b.
type pair struct {
	*cluster
	a, b       *lab.Node
	a1, a2, b1 *lab.Pod
}

func newPair(t *testing.T, mode string) *pair {
	t.Helper()
	p := &pair{cluster: newCluster(t, lab.Options{})}
	nodes := p.running("a", "b")
	p.a, p.b = nodes[0], nodes[1]
	o := lab.PodOptions{Mode: mode}
	p.a1, p.a2, p.b1 = p.podWith(p.a, "1", o), p.podWith(p.a, "2", o), p.podWith(p.b, "1", o)
	return p
}

// talks wants everybody to reach everybody, maybe after a moment.
func (p *pair) talks() {
	p.t.Helper()
	for _, f := range families() {
		for _, r := range p.roads(f) {
			p.eventually(func() error {
				_, err := r.from.Ping(p.ctx, r.to, lab.Ping{Count: 1})
				return err
			})
		}
	}
}

// A road is from a namespace to an address.
type road struct {
	name string
	from *lab.NS
	to   netip.Addr
}

// roads are those that lead through the pod network and exist.
func (p *pair) roads(f int) []road {
	return []road{
		{"pod to pod of the node", p.a1.NS, p.a2.Address(f)},
		{"pod to pod of another node", p.a1.NS, p.b1.Address(f)},
		{"pod to pod of another node, back", p.b1.NS, p.a1.Address(f)},
		{"pod to another node", p.a1.NS, p.b.Address(f)},
		{"node to another node's pod", p.a.NS, p.b1.Address(f)},
		{"node to its own pod", p.a.NS, p.a1.Address(f)},
	}
}

// nowhere are roads to pods that do not exist.
func (p *pair) nowhere(f int) []road {
	return []road{
		{"pod to an absent pod of the node", p.a1.NS, n200(p.a, f)},
		{"pod to an absent pod of another node", p.a1.NS, n200(p.b, f)},
		{"pod to a free part of the cluster's range", p.a1.NS, unused(f)},
		{"node to an absent pod of its own", p.a.NS, n200(p.a, f)},
		{"node to an absent pod of another node", p.a.NS, n200(p.b, f)},
		{"node to a free part of the cluster's range", p.a.NS, unused(f)},
	}
}

// unused is an address in the cluster's range that no node has.
func unused(f int) netip.Addr {
	return netip.MustParseAddr(map[int]string{4: "10.244.99.9", 6: "fd00:10:244:99::9"}[f])
}

// provoke sends pings along every road, answered or not, and returns how many packets it sent.
func (p *pair) provoke() (packets int) {
	var wait sync.WaitGroup
	for _, f := range families() {
		roads := append(p.roads(f), p.nowhere(f)...)
		roads = append(roads, road{"pod to the outside", p.a1.NS, outside(f)})
		for _, r := range roads {
			packets += 2
			wait.Go(func() {
				ctx, cancel := context.WithTimeout(p.ctx, 3*time.Second)
				defer cancel()
				_, _ = r.from.Run(ctx, "ping", "-n", "-q", "-c", "2", "-i", "0.05", "-W", "1", r.to.String())
			})
		}
	}
	wait.Wait()
	quietly()
	return packets
}

// quietly waits, for what must not come.
func quietly() { time.Sleep(quiet) }

// TestNothingLeaksWhenWarrenIsDown ends Warren in several ways while pods are attached, has everybody send to
// everybody, and looks at the underlay. The node has a default route: it is where a leak would go.
func TestNothingLeaksWhenWarrenIsDown(t *testing.T) {
	for _, mode := range []string{"routed", "bridge"} {
		t.Run(mode, func(t *testing.T) {
			p := newPair(t, mode)
			p.talks()
			for _, end := range []struct {
				name string
				do   func()
			}{
				{"kill -9", func() { p.ok(p.a.Kill()) }},
				{"SIGTERM", func() { p.ok(p.a.Down(p.ctx)) }},
				{"device deleted", p.deleteDevice},
			} {
				end.do()
				p.sealed(end.name)
				p.ok(p.a.Up(p.ctx))
				p.talks()
			}
		})
	}
}

// deleteDevice takes the device from under a running daemon, which has to end with an error.
func (p *pair) deleteDevice() {
	p.t.Helper()
	p.do(p.a.NS, "ip link del warren0")
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	if err := p.a.Daemon().Wait(ctx); err == nil || ctx.Err() != nil {
		p.t.Errorf("the daemon without its device: %v", err)
	}
}

// sealed wants node a to send nothing of the pods' in the clear, and no more answers than there are questions.
func (p *pair) sealed(after string) {
	p.t.Helper()
	leaks := p.capture(p.a.NS, "eth0", bare)
	tunnel := p.capture(p.a.NS, "eth0", func(q *pkt) bool { return q.vxlan() && q.src == p.a.V4 })
	storm := p.capture(p.a.NS, "eth0", (*pkt).icmpError)
	errors := p.capture(p.a1.NS, "eth0", (*pkt).icmpError)
	sent := p.provoke()
	leaks.nothing(after + ": packets with a pod's address outside the tunnel")
	tunnel.nothing(after + ": tunnel packets of a daemon that does not run")
	// The other node goes on sending, and is told that nobody listens.
	storm.atMost(sent, after+": ICMP errors on the underlay")
	errors.atMost(sent, after+": ICMP errors at a pod")
	// The capture sees right: a packet that anybody else sends in the clear is seen.
	look := p.capture(p.a.NS, "eth0", bare)
	p.do(p.lab.Outside, "ip addr replace 10.244.77.7/32 dev lo")
	_, _ = p.lab.Outside.Run(p.ctx, "ping", "-c1", "-W1", "-I", "10.244.77.7", p.a.V4.String())
	look.some("a packet with a pod's address")
	look.stop()
}

// TestAbsentPods wants an error, soon, for a destination that is not there, and few packets on the device: a packet
// must not go in circles between the kernel and the daemon.
func TestAbsentPods(t *testing.T) {
	p := newPair(t, "routed")
	for _, f := range families() {
		for _, r := range p.nowhere(f) {
			t.Run(fmt.Sprintf("%s, IPv%d", r.name, f), func(t *testing.T) {
				sub := *p.cluster
				sub.t = t
				about := func(q *pkt) bool {
					for _, a := range q.addresses() {
						if a == r.to {
							return true
						}
					}
					return q.vxlan() && q.inner != nil && (q.inner.dst == r.to || q.inner.icmpError())
				}
				onDevice := []*capture{sub.capture(p.a.NS, "warren0", about), sub.capture(p.b.NS, "warren0", about)}
				underlay := sub.capture(p.a.NS, "eth0", about)
				out, err := r.from.Run(p.ctx, "ping", "-n", "-c", "1", "-W", "3", r.to.String())
				// ping says "No route to host" when its own kernel tells it so.
				if err == nil || !regexp.MustCompile(`(?i)unreachable|no route to host`).MatchString(out+err.Error()) {
					t.Errorf("want an unreachable error, got %v: %s", err, out)
				}
				for _, k := range onDevice {
					k.atMost(4, "packets on the device")
				}
				underlay.atMost(4, "packets on the underlay")
			})
		}
	}
}
