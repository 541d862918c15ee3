package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// A demo is one run of the program.
type demo struct {
	*report
	ctx  context.Context // ends with the first signal: the whole run belongs to it
	lab  *lab.Lab
	keep bool
	etcd bool // the nodes are in a network of their own, by init and join; else in files that list them

	a, b, c, d *lab.Node
	pods       map[string]*lab.Pod // "a1" is the first pod of node a
	before     map[*lab.Node]lab.KernelState
}

// families are the address families that everything is shown for.
func families() []int { return []int{4, 6} }

// run does the whole show, in an order in which a later part builds on an earlier one.
func (d *demo) run() {
	what := "three nodes, two pods each, attached by warren-cni"
	if d.etcd {
		what = "warren init, warren join twice; two pods on each of the nodes"
	}
	if !d.check(d.ctx, what, d.setUp) {
		return
	}
	d.describe()
	for _, family := range families() {
		d.section(fmt.Sprintf("IPv%d", family))
		d.reachability(family)
		d.outside(family)
		d.throughput(family)
	}
	d.section("Encryption")
	d.unreadable()
	d.section("Change while traffic runs")
	d.fourthNode()
	d.crash()
	d.restart()
	d.section("Taking things away")
	d.deletePod()
	if !d.keep {
		d.takeDown()
	}
}

func (d *demo) setUp() (string, error) {
	begin := time.Now()
	d.pods = make(map[string]*lab.Pod)
	d.before = make(map[*lab.Node]lab.KernelState)
	for i, node := range []**lab.Node{&d.a, &d.b, &d.c} {
		var err error
		if *node, err = d.addNode(string(rune('a' + i))); err != nil {
			return "", err
		}
	}
	d.b.Settings.OnExit = "leave" // for its orderly restart
	for _, n := range d.lab.Nodes() {
		if err := d.enter(n); err != nil {
			return "", err
		}
		if err := d.startNode(n); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%.1f s", time.Since(begin).Seconds()), nil
}

// enter tells a node of the others and them of it: by init on the first one and join on the others, or by their files.
func (d *demo) enter(n *lab.Node) error {
	switch {
	case !d.etcd:
		return d.lab.WriteConfigs()
	case n == d.a:
		return n.Init(d.ctx)
	}
	return n.Join(d.ctx, d.a)
}

// addNode makes a node with a key and remembers how its kernel looked before Warren came.
func (d *demo) addNode(name string) (*lab.Node, error) {
	n, err := d.lab.AddNode(name)
	if err != nil {
		return nil, err
	}
	if !d.etcd { // else it makes its key itself
		n.Settings.Encapsulation = "wireguard"
		if err := n.MakeKey(); err != nil {
			return nil, err
		}
	}
	d.before[n], err = n.NS.State(d.ctx)
	return n, err
}

// startNode starts the daemon of a node and attaches two pods.
func (d *demo) startNode(n *lab.Node) error {
	if err := n.Up(d.ctx); err != nil {
		return err
	}
	for _, name := range []string{n.Name + "1", n.Name + "2"} {
		pod, err := n.AddPod(d.ctx, name, lab.PodOptions{})
		if err != nil {
			return err
		}
		d.pods[name] = pod
	}
	return nil
}

func (d *demo) describe() {
	for _, n := range d.lab.Nodes() {
		d.print("       node %s   %-10s %-12s", n.Name, n.V4, n.V6)
		for _, name := range []string{n.Name + "1", n.Name + "2"} {
			d.print("   pod %s  %s  %s", name, d.pods[name].V4, d.pods[name].V6)
		}
		d.print("\n")
	}
}

// reachability shows who reaches whom, and as whom.
func (d *demo) reachability(family int) {
	a1, a2, b1, b2, c1 := d.pods["a1"], d.pods["a2"], d.pods["b1"], d.pods["b2"], d.pods["c1"]
	d.ping(family, "pod to pod, same node", lab.Ping{}, route{a1.NS, a2.Address(family)},
		route{b2.NS, b1.Address(family)})
	d.ping(family, "pod to pod, across nodes", lab.Ping{}, route{a1.NS, b1.Address(family)},
		route{b2.NS, c1.Address(family)}, route{c1.NS, a2.Address(family)})
	d.checkFamily(family, "peer sees the pod's own address, same node", func() (string, error) {
		return d.sourceSeen(a1.NS, a2, a1.Address(family), family)
	})
	d.checkFamily(family, "peer sees the pod's own address, across nodes", func() (string, error) {
		return d.sourceSeen(a1.NS, b1, a1.Address(family), family)
	})
	d.ping(family, "node to its own pod", lab.Ping{}, route{d.a.NS, a1.Address(family)})
	d.ping(family, "node to another node's pod", lab.Ping{}, route{d.a.NS, b1.Address(family)},
		route{d.c.NS, b2.Address(family)})
	d.ping(family, "pod to its own node", lab.Ping{}, route{a1.NS, d.a.Address(family)})
	d.ping(family, "pod to another node", lab.Ping{}, route{a1.NS, d.b.Address(family)},
		route{b2.NS, d.c.Address(family)})
	d.checkFamily(family, "full-MTU ping with DF, across nodes", func() (string, error) {
		return d.fullMTU(a1, b1.Address(family))
	})
}

func (d *demo) checkFamily(family int, name string, f func() (string, error)) {
	d.check(d.ctx, fmt.Sprintf("%s, IPv%d", name, family), f)
}

// A route is a ping to be tried.
type route struct {
	from *lab.NS
	to   netip.Addr
}

// ping tries all routes and shows the round trip of the first.
func (d *demo) ping(family int, name string, how lab.Ping, routes ...route) {
	d.checkFamily(family, name, func() (string, error) {
		var first time.Duration
		for i, r := range routes {
			rtt, err := r.from.Ping(d.ctx, r.to, how)
			if err != nil {
				return "", err
			}
			if i == 0 {
				first = rtt
			}
		}
		return milliseconds(first), nil
	})
}

func milliseconds(t time.Duration) string { return fmt.Sprintf("%.2f ms", t.Seconds()*1000) }

// sourceSeen connects by TCP and by UDP and wants the far end to see exactly this source.
func (d *demo) sourceSeen(from *lab.NS, to *lab.Pod, want netip.Addr, family int) (string, error) {
	path := lab.Path{From: from, To: to.NS, Addr: to.Address(family)}
	return d.wantSource(path, want)
}

func (d *demo) wantSource(path lab.Path, want netip.Addr) (string, error) {
	for _, ask := range []func(context.Context) (netip.Addr, error){path.SourceSeen, path.SourceSeenUDP} {
		seen, err := ask(d.ctx)
		if err != nil {
			return "", err
		}
		if seen != want {
			return "", fmt.Errorf("%s sees %s, want %s", path.Addr, seen, want)
		}
	}
	return want.String(), nil
}

func (d *demo) fullMTU(from *lab.Pod, to netip.Addr) (string, error) {
	mtu, err := from.MTU()
	if err != nil {
		return "", err
	}
	rtt, err := from.NS.Ping(d.ctx, to, lab.Ping{Payload: lab.PayloadFor(mtu, to), DontFragment: true})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes, %s", mtu, milliseconds(rtt)), nil
}

// outside shows that pods reach what has no route back to them, under their node's address.
func (d *demo) outside(family int) {
	a1, addr := d.pods["a1"], lab.OutsideV4()
	if family == 6 {
		addr = lab.OutsideV6()
	}
	d.checkFamily(family, "pod to the outside, masqueraded, and its answers", func() (string, error) {
		if _, err := a1.NS.Ping(d.ctx, addr, lab.Ping{}); err != nil {
			return "", err
		}
		seen, err := d.wantSource(lab.Path{From: a1.NS, To: d.lab.Outside, Addr: addr}, d.a.Address(family))
		return "as " + seen, err
	})
}

// leaveUp ends a run with KEEP=1.
func (d *demo) leaveUp() int {
	a1, b1 := d.pods["a1"], d.pods["b1"]
	if a1 == nil || b1 == nil {
		d.print("\nThe set-up failed, so there is no lab to keep.\n")
		if status := d.closeLab(); status != 0 {
			return status
		}
		return d.sumUp()
	}
	if err := d.lab.Keep(); err != nil {
		d.failed++
		d.print("keeping the lab: %v\n", err)
		_ = d.closeLab()
		return d.sumUp()
	}
	warren, _ := d.lab.Binary("warren") // it ran before
	d.print("\n%s\n", d.colour(bold, "The lab is up."))
	lines := [][2]string{
		{"a shell in pod a1", "nsenter --net=" + a1.NS.Path()},
		{"pod a1 pings pod b1", "nsenter --net=" + a1.NS.Path() + " ping " + b1.V4.String()},
		{"a shell on node a", "nsenter --net=" + d.a.NS.Path()},
		{"ask node a's daemon", warren + " peers --config " + d.a.ConfigFile},
		{"", "(status, peers, routes, pods, drops; -o json)"},
		{"examine the host", "nsenter --net=" + d.a.NS.Path() + " " + warren + " check --config " + d.a.ConfigFile},
		{"see the tunnel", "nsenter --net=" + d.a.NS.Path() + " tcpdump -ni eth0 udp port 51820"},
		d.changeHint(warren),
		{"take it all down", "make demo-down"},
	}
	for _, l := range lines {
		d.print("  %-21s %s\n", l[0], l[1])
	}
	return d.sumUp()
}

// changeHint says how to change the cluster that is up.
func (d *demo) changeHint(warren string) [2]string {
	if d.etcd {
		return [2]string{"see the network", "nsenter --net=" + d.a.NS.Path() + " " + warren + " nodes --config " +
			d.a.ConfigFile}
	}
	return [2]string{"change the cluster", "edit " + d.a.ConfigFile + " and watch " + d.a.Daemon().Log}
}

// list joins findings to an error message, or returns nil when there are none.
func list(title string, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("%s:\n  %s", title, strings.Join(lines, "\n  "))
}
