package worker

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/warren-net/warren/device"
	devmem "github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/forwarder"
	tunmem "github.com/warren-net/warren/tunnel/memory"
	"github.com/warren-net/warren/tunnel/vxlan"
	"github.com/warren-net/warren/tunnel/wireguard"
)

const (
	testVNI  = 87
	testPort = 4789
)

// A testNode is a Warren node without a kernel: workers between an in-memory device and an in-memory underlay.
type testNode struct {
	name    string
	addr    netip.Addr
	cidrs   []netip.Prefix
	gw      []netip.Addr
	mac     [6]byte
	dev     *devmem.Device
	table   forwarder.Table
	workers []*Worker
	peers   []*forwarder.Peer
	secure  *secureEnd // nil: the node has none
}

// clusterConfig says what a testCluster is like.
type clusterConfig struct {
	nodes   int
	queues  int  // per node; 0: 1
	lanes   int  // per worker, a divisor of queues; 0: 1
	express bool // beside the workers the nodes have an express worker
	network tunmem.Config
	device  devmem.Config
	pathMTU int  // inner MTU of every peer; 0: 1450, or 1420 when encrypted
	v6      bool // underlay
	now     func() time.Time
	late    bool // the nodes' workers wait for start

	over    encapsulation // of all traffic; VXLAN is refused by those that encrypt
	noVXLAN bool          // the nodes have no sockets for it
}

type testCluster struct {
	nodes []*testNode
	net   *tunmem.Network
	start func(n *testNode) // begins the work of a node's workers
}

// newCluster starts nodes 1 to n, with pods in 10.244.n.0/24 and fd00:10:244:n::/64, and stops them when the test ends.
func newCluster(t testing.TB, c clusterConfig) *testCluster {
	t.Helper()
	network, err := tunmem.NewNetwork(c.network)
	if err != nil {
		t.Fatal(err)
	}
	cluster := &testCluster{net: network}
	if c.queues == 0 {
		c.queues = 1
	}
	c.lanes = max(c.lanes, 1)
	if c.pathMTU == 0 {
		c.pathMTU = 1450
		if c.over.encrypted {
			c.pathMTU = 1420
		}
	}
	c.device.Queues = c.queues
	for k := 1; k <= c.nodes; k++ {
		n := &testNode{
			name: fmt.Sprintf("n%d", k),
			addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(k)}),
			cidrs: []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", k)),
				netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", k)),
			},
			dev: devmem.New(c.device),
		}
		if c.v6 {
			n.addr = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", k))
		}
		for _, p := range n.cidrs {
			n.gw = append(n.gw, p.Addr().Next())
		}
		n.mac = [6]byte(vxlan.MAC(n.addr))
		if c.over.encrypted {
			n.addSecureEnd(t, network, c)
		}
		cluster.nodes = append(cluster.nodes, n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	running := 0
	cluster.start = func(n *testNode) {
		for _, w := range n.workers {
			running++
			go func() { done <- w.Run(ctx) }()
		}
	}
	for _, n := range cluster.nodes {
		n.publish(t, cluster.nodes, c)
		n.addWorkers(cluster, c)
	}
	for _, n := range cluster.nodes {
		if c.over.encrypted {
			running++
			n.meet(cluster.nodes)
			ctx, stop := context.WithCancel(ctx)
			n.secure.stop = stop
			go func() { done <- n.secure.tunnel.Run(ctx, n.secure.control, n.secure.wait) }()
		}
		if !c.late {
			cluster.start(n)
		}
	}
	t.Cleanup(func() {
		cancel()
		for range running {
			if err := <-done; err != nil {
				t.Errorf("worker ended: %v", err)
			}
		}
	})
	if c.over.frames {
		cluster.agree(t, c.late)
	}
	return cluster
}

// publish puts the node's snapshot in force: all other nodes are its peers.
func (n *testNode) publish(t testing.TB, all []*testNode, c clusterConfig) {
	t.Helper()
	var peers []*forwarder.Peer
	for _, p := range all {
		if p == n {
			continue
		}
		tpl := vxlan.NewTemplate(testVNI, p.mac, n.mac)
		peer := &forwarder.Peer{
			Name: p.name, Endpoint: netip.AddrPortFrom(p.addr, testPort), PodCIDRs: p.cidrs, MTU: c.pathMTU,
			Header4: tpl.V4[:], Header6: tpl.V6[:], Stats: forwarder.NewPeerStats(c.queues + 1),
		}
		if p.secure != nil {
			peer.Tunnel, peer.Encrypted, peer.RefusesPlaintext = p.secure.id, c.over.encrypted, c.over.encrypted
		}
		peers = append(peers, peer)
	}
	n.publishPeers(t, peers)
}

// publishPeers puts a snapshot with these peers in force.
func (n *testNode) publishPeers(t testing.TB, peers []*forwarder.Peer) {
	t.Helper()
	n.peers = peers
	spec := forwarder.Spec{
		PodCIDRs: n.cidrs, NodeAddrs: []netip.Addr{n.addr}, Gateways: n.gw,
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Peers:        peers,
	}
	s, err := forwarder.Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	n.table.Store(s)
}

// workers is how many workers a node has, without an express worker.
func (c *clusterConfig) workers() int { return c.queues / c.lanes }

// addWorkers makes the node's workers and the lanes, each a queue and a socket of its own.
func (n *testNode) addWorkers(cluster *testCluster, c clusterConfig) {
	threads := c.workers()
	var exchange *Exchange
	if c.express {
		exchange = NewExchange(threads, c.queues)
		threads++
	}
	waits := make([]chanWaiter, threads)
	for id := range waits {
		waits[id] = newChanWaiter(c.lanes)
		if c.express {
			waits[id] = newChanWaiter(0)
		}
	}
	lanes := make([][]Lane, threads)
	for i, queue := range n.dev.Queues() {
		wake := waits[i%c.workers()].Wake
		if c.express {
			wake = func() {
				for _, w := range waits {
					w.tell(i)
				}
			}
		}
		queue.SetNotify(wake)
		l := Lane{Number: i, Queue: queue}
		if !c.noVXLAN {
			sock := cluster.net.Socket(netip.AddrPortFrom(n.addr, testPort))
			sock.SetNotify(wake)
			l.Socket = sock
		}
		if n.secure != nil {
			n.secure.lanes[i].setNotify(wake)
			l.Secure = n.secure.lanes[i]
		}
		for id := range lanes {
			if c.express || i%c.workers() == id {
				lanes[id] = append(lanes[id], l)
			}
		}
	}
	for id := range threads {
		n.addWorker(id, lanes[id], waits[id], exchange, c)
	}
}

func (n *testNode) addWorker(id int, lanes []Lane, wait Waiter, exchange *Exchange, c clusterConfig) {
	var crypt *wireguard.Tunnel
	if n.secure != nil {
		crypt = n.secure.tunnel
	}
	var writers []device.Queue // nil: the lanes' own, in which other workers have no part
	if exchange != nil {
		for _, q := range n.dev.Queues() {
			writers = append(writers, q.Share())
		}
	}
	w := New(Config{
		ID: id, Lanes: lanes, Exchange: exchange, Writers: writers, Waiter: wait, Table: &n.table, Now: c.now,
		Decoder: vxlan.Decoder{VNI: testVNI, MAC: n.mac}, Crypt: crypt,
	})
	n.workers = append(n.workers, w)
}

// drops is the node's count for one reason.
func (n *testNode) drops(r forwarder.Reason) uint64 {
	var sum uint64
	for _, w := range n.workers {
		sum += w.Counters.Drops[r].Load()
	}
	return sum
}

// allDrops lists all reasons that were counted, for messages.
func (n *testNode) allDrops() map[string]uint64 {
	m := map[string]uint64{}
	for r := range forwarder.NumReasons {
		if d := n.drops(r); d > 0 {
			m[r.Name()] = d
		}
	}
	return m
}

// next waits for the next packet that the node's workers write to its device.
func (n *testNode) next(t testing.TB) devmem.Packet {
	t.Helper()
	select {
	case p := <-n.dev.Written():
		return p
	case <-time.After(5 * time.Second):
		t.Fatalf("%s: nothing was written to the device; drops: %v", n.name, n.allDrops())
	}
	return devmem.Packet{}
}

// gets sends until the packet is written to the node's device: queues full of other packets drop it.
func (n *testNode) gets(t testing.TB, want []byte, send func()) {
	t.Helper()
	for range 50 {
		send()
		for patience := time.After(100 * time.Millisecond); patience != nil; {
			select {
			case p := <-n.dev.Written():
				if bytes.Equal(p.Data, want) {
					return
				}
			case <-patience:
				patience = nil
			}
		}
	}
	t.Fatalf("%s: the packet was never written to the device; drops: %v", n.name, n.allDrops())
}

// nothing fails when the node's workers write something to its device.
func (n *testNode) nothing(t testing.TB) {
	t.Helper()
	select {
	case p := <-n.dev.Written():
		t.Errorf("%s: a packet of %d bytes was written to the device: %x", n.name, len(p.Data), p.Data[:min(60, len(p.Data))])
	case <-time.After(50 * time.Millisecond):
	}
}

// waitDrop waits until the node has counted n drops for the reason.
func (n *testNode) waitDrop(t testing.TB, r forwarder.Reason, want uint64) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); n.drops(r) < want; {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d drops for %s, want %d; all: %v", n.name, n.drops(r), r, want, n.allDrops())
		}
		time.Sleep(time.Millisecond)
	}
	if got := n.drops(r); got != want {
		t.Errorf("%s: %d drops for %s, want %d", n.name, got, r, want)
	}
}
