package worker

import (
	"bytes"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-net/warren/device/memory/netpod"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/internal/key"
	tunmem "github.com/warren-net/warren/tunnel/memory"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// waitSealed waits until the node has encrypted so many datagrams, or fails.
func (n *testNode) waitSealed(t *testing.T, want uint64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); n.workers[0].Counters.Sealed.Load() < want; {
		if time.Now().After(deadline) {
			t.Fatalf("%s has encrypted %d datagrams, want %d; drops: %v", n.name, n.workers[0].Counters.Sealed.Load(), want,
				n.allDrops())
		}
		time.Sleep(time.Millisecond)
	}
}

// TestRoaming takes a node to another address in the middle of a transfer. Nobody tells the others.
func TestRoaming(t *testing.T) { eachEncryption(t, testRoaming) }

func testRoaming(t *testing.T, over encapsulation) {
	c := newCluster(t, clusterConfig{nodes: 2, over: over, queues: 2, lanes: 2})
	a, b := c.nodes[0], c.nodes[1]
	pods := withPods(t, c, 1420, netpod.OffloadFull)
	done := make(chan error, 1)
	go func() { done <- transfer(pods[2], pods[0], pods[0].Addresses()[0], 8<<20) }()
	b.waitSealed(t, 2000)
	to := netip.MustParseAddr("198.51.100.2")
	b.move(t, c.net, to)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if at := a.with(b).Endpoint(); at.Addr() != to {
		t.Errorf("the peer is taken to be at %v, want %v", at, to)
	}
	if err := transfer(pods[0], pods[2], pods[2].Addresses()[1], 1<<20); err != nil {
		t.Errorf("after the move: %v", err)
	}
	for r, n := range a.allDrops() {
		t.Errorf("dropped: %d %s", n, r)
	}
}

// TestKeyChange gives a node another key in the middle of a transfer: nothing is lost.
func TestKeyChange(t *testing.T) { eachEncryption(t, testKeyChange) }

func testKeyChange(t *testing.T, over encapsulation) {
	c := newCluster(t, clusterConfig{nodes: 2, over: over})
	a, b := c.nodes[0], c.nodes[1]
	pods := withPods(t, c, 1420, netpod.OffloadFull)
	done := make(chan error, 1)
	go func() { done <- transfer(pods[2], pods[0], pods[0].Addresses()[0], 8<<20) }()
	b.waitSealed(t, 2000)
	before := b.with(a).Current()
	old := b.secure.key
	b.secure.key = key.NewPrivate()
	b.secure.tunnel.SetKeys([]key.Private{b.secure.key, old}, 0)
	config := b.peerConfig()
	config.Greet = true
	a.secure.tunnel.SetPeers([]wireguard.PeerConfig{config}, 0)
	if err := <-done; err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(5 * time.Second); b.with(a).Current() == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("there is no session of the new key")
		}
	}
	if err := transfer(pods[0], pods[2], pods[2].Addresses()[1], 1<<20); err != nil {
		t.Errorf("with the new key: %v", err)
	}
	for _, n := range c.nodes {
		if d := n.allDrops(); len(d) > 0 {
			t.Errorf("%s dropped %v", n.name, d)
		}
	}
}

// TestNothingLeaksInPlaintext watches the underlay while nodes start, lose their sessions and peers, change keys, stop
// and come back, under loss. No datagram may hold any of what the pods sent.
func TestNothingLeaksInPlaintext(t *testing.T) { eachEncryption(t, testNothingLeaksInPlaintext) }

func testNothingLeaksInPlaintext(t *testing.T, over encapsulation) {
	const secret = "nobody may read this"
	src, dst := netip.MustParseAddr("10.244.1.5").As4(), netip.MustParseAddr("10.244.2.9").As4()
	addresses := append(src[:], dst[:]...)
	var leaks, datagrams atomic.Int64
	var lossy atomic.Bool // not before the nodes have agreed on superframes
	c := newCluster(t, clusterConfig{nodes: 3, over: over, late: true, network: tunmem.Config{
		Seed: 9, Duplicate: 0.05, Reorder: 0.05,
		Drop: func(tunmem.Datagram) bool { return lossy.Load() && datagrams.Load()%10 == 0 },
		Tap: func(d tunmem.Datagram) {
			datagrams.Add(1)
			if d.To.Port() != securePort || bytes.Contains(d.Data, []byte(secret)) || bytes.Contains(d.Data, addresses) {
				leaks.Add(1)
			}
		},
	}})
	a, b := c.nodes[0], c.nodes[1]
	lossy.Store(true)
	send := func() {
		marked := func(n int) []byte {
			p := build{src: "10.244.1.5", dst: "10.244.2.9", payload: n, df: true}.bytes(t)
			for k := 40; k+len(secret) <= len(p); k += len(secret) {
				copy(p[k:], secret)
			}
			return p
		}
		a.dev.Inject(marked(500), packet.Meta{})
		a.dev.Inject(marked(1300), packet.Meta{})
		p, m := super(t, marked(20*1360), 1360)
		a.dev.Inject(p, m)
		p, m = super(t, build{src: "10.244.1.5", dst: "10.244.2.9", proto: protoUDP, payload: 20000}.bytes(t), 1400)
		a.dev.Inject(p, m) // in fragments
		time.Sleep(5 * time.Millisecond)
	}
	steps := []func(){
		func() {}, // before anybody runs
		func() { c.start(a) },
		func() { c.start(b); c.start(c.nodes[2]) },
		func() { a.secure.tunnel.SetPeers(nil, 0) },
		func() { a.meet(c.nodes) },
		func() { a.publishPeers(t, nil) },
		func() { a.publish(t, c.nodes, clusterConfig{queues: 1, pathMTU: 1300, over: over}) },
		func() { b.secure.tunnel.SetPeers(nil, 0) },
		func() { b.meet(c.nodes) },
		func() { a.secure.key = key.NewPrivate(); a.secure.tunnel.SetKeys([]key.Private{a.secure.key}, 0) },
		func() { b.meet(c.nodes) },
		func() { a.secure.tunnel.SetKeys(nil, 0) },
		func() { a.secure.tunnel.SetKeys([]key.Private{a.secure.key}, 0) },
		func() { b.move(t, c.net, netip.MustParseAddr("198.51.100.2")) },
	}
	for _, step := range steps {
		step()
		for range 5 {
			send()
		}
	}
	if n := leaks.Load(); n > 0 {
		t.Errorf("%d of %d datagrams show what the pods sent", n, datagrams.Load())
	}
	if a.workers[0].Counters.Sealed.Load() == 0 || b.workers[0].Counters.BytesIn.Load() == 0 {
		t.Errorf("nothing was carried: %v, %v", a.allDrops(), b.allDrops())
	}
	if n := a.workers[0].Counters.FramesSealed.Load(); n > 0 != over.frames {
		t.Errorf("%d superframes", n)
	}
	for _, r := range []forwarder.Reason{forwarder.SourceNotPeer, forwarder.Plaintext, forwarder.NotForThisNode} {
		if n := b.drops(r); n > 0 {
			t.Errorf("%d packets were dropped: %s", n, r)
		}
	}
}

// TestTimersHearOfData: the protocol's timers run by what workers send and receive. Data that is not answered for ten
// seconds gets a keepalive, and who hears nothing for fifteen calls the peer again.
func TestTimersHearOfData(t *testing.T) {
	var ahead atomic.Int64
	var deaf atomic.Bool
	here := netip.MustParseAddr("192.0.2.1")
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted,
		network: tunmem.Config{Drop: func(d tunmem.Datagram) bool { return deaf.Load() && d.To.Addr() == here }},
		now:     func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	a, b := c.nodes[0], c.nodes[1]
	b.connect(t, a)
	counters := &a.secure.tunnel.Counters
	grows := func(what string, n *atomic.Uint64, before uint64) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); n.Load() == before; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %s", what)
			}
		}
	}
	keepalives, initiated := counters.Keepalives.Load(), counters.Initiated.Load()
	b.dev.Inject(build{src: "10.244.2.9", dst: "10.244.1.5", proto: protoUDP, payload: 9}.bytes(t), packet.Meta{})
	a.next(t)
	ahead.Add(int64(wireguard.KeepaliveTimeout + time.Second))
	grows("keepalive for data received", &counters.Keepalives, keepalives)

	deaf.Store(true)
	a.dev.Inject(build{src: "10.244.1.5", dst: "10.244.2.9", proto: protoUDP, payload: 9}.bytes(t), packet.Meta{})
	b.next(t)
	ahead.Add(int64(wireguard.KeepaliveTimeout + wireguard.RekeyTimeout + time.Second))
	grows("call for data that is not answered", &counters.Initiated, initiated)
}
