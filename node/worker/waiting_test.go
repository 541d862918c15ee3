package worker

import (
	"bytes"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	tunmem "github.com/warren-net/warren/tunnel/memory"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// numbered are n packets from node 1's pod to node 2's that differ in their payload.
func numbered(t *testing.T, n int) (packets [][]byte) {
	t.Helper()
	for k := range n {
		packets = append(packets, build{src: "10.244.1.5", dst: "10.244.2.9", proto: protoUDP, payload: 100 + k}.bytes(t))
	}
	return packets
}

// TestFirstPacketsAreNotLost sends before there is a session: all arrive in order, lone packets and superpackets.
func TestFirstPacketsAreNotLost(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted})
	a, b := c.nodes[0], c.nodes[1]
	packets := numbered(t, 50)
	for _, p := range packets[:49] {
		a.dev.Inject(bytes.Clone(p), packet.Meta{})
	}
	p, m := super(t, build{src: "10.244.1.5", dst: "10.244.2.9", payload: 10 * 1360, df: true}.bytes(t), 1360)
	want := bytes.Clone(p)
	a.dev.Inject(p, m)
	a.dev.Inject(bytes.Clone(packets[49]), packet.Meta{})
	for k := range 49 {
		if got := b.next(t).Data; !bytes.Equal(got, packets[k]) {
			t.Fatalf("packet %d arrived as one of %d bytes, want %d", k, len(got), len(packets[k]))
		}
	}
	var payload []byte
	for len(payload) < 10*1360 {
		payload = append(payload, b.next(t).Data[40:]...)
	}
	if !bytes.Equal(payload, want[40:]) {
		t.Error("the superpacket did not arrive as it was sent")
	}
	if got := b.next(t).Data; !bytes.Equal(got, packets[49]) {
		t.Error("what was sent after the superpacket did not arrive after it")
	}
	if d := a.allDrops(); len(d) > 0 {
		t.Errorf("dropped: %v", d)
	}
}

// TestWaitEnds: what nobody answers is dropped after waitingTime, and nothing of it leaves.
func TestWaitEnds(t *testing.T) {
	var ahead atomic.Int64
	var seen capture
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted, network: tunmem.Config{
		Tap: seen.tap, Drop: func(tunmem.Datagram) bool { return true },
	}, now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	a := c.nodes[0]
	for _, p := range numbered(t, 20) {
		a.dev.Inject(p, packet.Meta{})
	}
	for a.workers[0].Counters.Waited.Load() < 20 {
		time.Sleep(time.Millisecond)
	}
	ahead.Store(int64(waitingTime - time.Second))
	a.workers[0].Waiter.Wake()
	time.Sleep(20 * time.Millisecond)
	if d := a.allDrops(); len(d) > 0 {
		t.Errorf("dropped too early: %v", d)
	}
	ahead.Store(int64(waitingTime + time.Second))
	a.waitDrop(t, forwarder.NoSession, 20)
	if n := len(seen.data(c.nodes[1].addr)); n > 0 {
		t.Errorf("%d data messages left without a session", n)
	}
	a.nothing(t) // nobody is told
}

// TestUnknownEndpoint: nothing waits for a peer that nobody can call. Once it has called, it gets what is for it.
func TestUnknownEndpoint(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted, late: true})
	a, b := c.nodes[0], c.nodes[1]
	config := b.peerConfig()
	config.Endpoint = netip.AddrPort{}
	a.secure.tunnel.SetPeers(nil, 0)
	config.ID, b.secure.id = 7, 7
	a.secure.tunnel.SetPeers([]wireguard.PeerConfig{config}, 0)
	peer := *a.peers[0]
	peer.Tunnel, peer.Endpoint = 7, netip.AddrPort{}
	a.publishPeers(t, []*forwarder.Peer{&peer})
	c.start(a)
	c.start(b)
	packets := numbered(t, 2)
	a.dev.Inject(bytes.Clone(packets[0]), packet.Meta{})
	a.waitDrop(t, forwarder.NoSession, 1)
	if n := a.workers[0].Counters.Waited.Load(); n > 0 {
		t.Errorf("%d superpackets wait for a peer that can't be called", n)
	}
	b.connect(t, a)
	a.dev.Inject(bytes.Clone(packets[1]), packet.Meta{})
	if got := b.next(t).Data; !bytes.Equal(got, packets[1]) {
		t.Errorf("arrived as %x", got)
	}
}

// TestWaitingFollowsTheSnapshot changes what is known of the peer while packets wait: they go where the new snapshot
// says, also without encryption if that is what it says.
func TestWaitingFollowsTheSnapshot(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 3, over: encrypted, network: tunmem.Config{
		Drop: func(d tunmem.Datagram) bool { return d.To.Port() == securePort },
	}})
	a, b, third := c.nodes[0], c.nodes[1], c.nodes[2]
	packets := numbered(t, 9)
	for _, p := range packets {
		a.dev.Inject(bytes.Clone(p), packet.Meta{})
	}
	for a.workers[0].Counters.Waited.Load() < 9 {
		time.Sleep(time.Millisecond)
	}
	// The pods are the third node's now, which is not encrypted to.
	moved := *a.peers[1]
	moved.Encrypted, moved.PodCIDRs = false, b.cidrs
	third.cidrs, b.cidrs = b.cidrs, nil
	third.publish(t, c.nodes, clusterConfig{queues: 1, pathMTU: 1420})
	for _, p := range third.peers {
		p.Encrypted, p.RefusesPlaintext = false, false
	}
	third.publishPeers(t, third.peers)
	a.publishPeers(t, []*forwarder.Peer{&moved})
	a.workers[0].Waiter.Wake()
	for k, want := range packets {
		if got := third.next(t).Data; !bytes.Equal(got, want) {
			t.Fatalf("packet %d arrived as one of %d bytes, want %d", k, len(got), len(want))
		}
	}
	b.nothing(t)
	if d := a.allDrops(); len(d) > 0 {
		t.Errorf("dropped: %v", d)
	}
}

// TestWaitingRoom: bounds, order, and who goes when there is no more room.
func TestWaitingRoom(t *testing.T) {
	var r waitingRoom
	add := func(peer int32, size int, since int64) int {
		return r.add(waiting{packet: make([]byte, size), peer: peer, since: since})
	}
	if add(1, packet.MaxPacket, 1) != 0 || add(1, 60, 2) != 1 || len(r.line) != 1 {
		t.Error("a peer may have one superpacket of the largest size wait, and no more")
	}
	for peer := int32(2); peer <= 3; peer++ {
		if add(peer, packet.MaxPacket, int64(peer)) != 0 {
			t.Errorf("no room for peer %d", peer)
		}
	}
	if add(4, 60000, 4) != 0 || add(5, 60000, 5) != 1 || r.holds(1) || !r.holds(5) || r.line[0].peer != 2 {
		t.Error("in a full room the oldest has to make place for another peer's")
	}
	if n := r.expire(3 + int64(waitingTime)); n != 2 || r.line[0].peer != 4 {
		t.Errorf("%d expired, want 2", n)
	}
	for k := range 10000 {
		add(6, 20, int64(6+k))
	}
	if n := len(r.line); n != 2+waitingPeer/(20+waitingEntry) {
		t.Errorf("%d small packets of a peer wait, want %d", n-2, waitingPeer/(20+waitingEntry))
	}
	if !slices.IsSortedFunc(r.line, func(a, b waiting) int { return int(a.since - b.since) }) {
		t.Error("the line is not in the order in which they came")
	}
	line := r.takeAll()
	if !r.empty() || r.bytes != 0 || r.holds(6) {
		t.Error("taking all left something")
	}
	for _, e := range line {
		r.put(e)
	}
	r.expire(1 << 62)
	if !r.empty() || r.bytes != 0 || len(r.of) != 0 {
		t.Errorf("%d bytes are left of nothing: %v", r.bytes, r.of)
	}
}

// TestWaitForOneOfTwo: a session that comes up while another peer's packets wait lets these wait on, in
// their order and with their time.
func TestWaitForOneOfTwo(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	mute := netip.MustParseAddr("192.0.2.3")
	c := newCluster(t, clusterConfig{nodes: 3, over: encrypted, network: tunmem.Config{
		Drop: func(d tunmem.Datagram) bool { return down.Load() && d.To.Addr() == mute },
	}})
	a, b, third := c.nodes[0], c.nodes[1], c.nodes[2]
	to := func(dst string, n int) []byte {
		return build{src: "10.244.1.5", dst: dst, proto: protoUDP, payload: n}.bytes(t)
	}
	for k := range 10 {
		a.dev.Inject(to("10.244.3.9", 100+k), packet.Meta{})
		a.dev.Inject(to("10.244.2.9", 100+k), packet.Meta{})
	}
	for k := range 10 {
		if got := b.next(t).Data; len(got) != 128+k {
			t.Fatalf("packet %d has %d bytes", k, len(got))
		}
	}
	third.nothing(t)
	down.Store(false)
	third.connect(t, a)
	for k := range 10 {
		if got := third.next(t).Data; len(got) != 128+k {
			t.Fatalf("packet %d of the late peer has %d bytes", k, len(got))
		}
	}
	if d := a.allDrops(); len(d) > 0 {
		t.Errorf("dropped: %v", d)
	}
}

// TestWaitingLeavesByItsLane: what waited leaves before what is read next, and by the lane that it came by, although
// the session came up in the middle of another lane's turn.
func TestWaitingLeavesByItsLane(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, queues: 2, lanes: 2, over: encrypted, late: true})
	a, b := c.nodes[0], c.nodes[1]
	w := a.workers[0]
	w.snap = w.Table.Load()
	packets := numbered(t, 90)
	sockets := []*sealedSends{{}, {}}
	read := func(lane, n int) {
		t.Helper()
		w.lane = &w.all[lane]
		w.lane.Lane = Lane{Queue: &source{packet: packets[n], packets: 1}, Secure: sockets[lane]}
		if _, _, err := w.drainQueue(); err != nil {
			t.Fatal(err)
		}
		if w.lane != &w.all[lane] {
			t.Fatalf("it is not lane %d's turn any more", lane)
		}
	}
	for n, lane := range []int{0, 1, 1, 0} {
		read(lane, 20*n) // so that each is padded to another size
	}
	if n := len(sockets[0].lengths) + len(sockets[1].lengths); n > 0 {
		t.Fatalf("%d messages left without a session", n)
	}
	a.connectLate(t, b)
	read(1, 80)
	length := func(n int) int { return wireguard.PaddedLen(len(packets[n]), 1420) + wireguard.Overhead }
	want := [][]int{{length(0), length(60)}, {length(20), length(40), length(80)}}
	for lane, s := range sockets {
		if !slices.Equal(s.lengths, want[lane]) {
			t.Errorf("lane %d sent messages of %d bytes, want %d", lane, s.lengths, want[lane])
		}
	}
}
