package worker

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/tunnel"
	tunmem "github.com/warren-net/warren/tunnel/memory"
	"github.com/warren-net/warren/tunnel/wireguard"
)

const (
	securePort = 51820
	// handshakeMessages is how many datagrams a key exchange takes: initiation, response, and the keepalive that confirms.
	// Offers follow once somebody reads that one.
	handshakeMessages = 3
)

// An encapsulation is how packets travel between the nodes of a test.
type encapsulation struct {
	encrypted bool
	frames    bool // superpackets leave as superframes
}

// encrypted is WireGuard without anything else, and superframes the same with these.
var (
	encrypted   = encapsulation{encrypted: true}
	superframes = encapsulation{encrypted: true, frames: true}
)

// eachEncapsulation runs a test with VXLAN between the nodes, with WireGuard alone, and with superframes beside it.
func eachEncapsulation(t *testing.T, f func(t *testing.T, over encapsulation)) {
	t.Run("VXLAN", func(t *testing.T) { f(t, encapsulation{}) })
	t.Run("WireGuard", func(t *testing.T) { f(t, encrypted) })
	t.Run("superframes", func(t *testing.T) { f(t, superframes) })
}

// eachEncryption runs a test with WireGuard alone, and with superframes beside it.
func eachEncryption(t *testing.T, f func(t *testing.T, over encapsulation)) {
	t.Run("WireGuard", func(t *testing.T) { f(t, encrypted) })
	t.Run("superframes", func(t *testing.T) { f(t, superframes) })
}

// overhead is what the encapsulation adds to an inner packet on an IPv4 underlay, in bytes.
func overhead(over encapsulation) int {
	if over.encrypted {
		return wireguard.Overhead4
	}
	return 50
}

// A secureEnd is a test node's end of the encrypted tunnel.
type secureEnd struct {
	id      int32 // at all nodes
	key     key.Private
	tunnel  *wireguard.Tunnel
	lanes   []*movable
	control *movable
	wait    runWaiter
	stop    context.CancelFunc // ends handshakes and timers
}

// addSecureEnd makes the node's end of the encrypted tunnel. Its sessions wake the workers that it has by then.
func (n *testNode) addSecureEnd(t testing.TB, network *tunmem.Network, c clusterConfig) {
	t.Helper()
	e := &secureEnd{id: int32(n.name[1] - '0'), key: key.NewPrivate(), wait: runWaiter{newChanWaiter(1)}}
	config := wireguard.Config{
		Lanes: c.queues, Workers: c.workers() + 1, Superframes: c.over.frames, AES: c.over.frames,
		Established: func(int32) {
			for _, w := range n.workers {
				w.SessionUp()
			}
		},
	}
	if c.now != nil {
		config.Now = func() int64 { return c.now().UnixNano() }
	}
	e.tunnel = wireguard.New(config)
	e.tunnel.SetKeys([]key.Private{e.key}, 0)
	g, err := network.WireGuard(c.queues, netip.AddrPortFrom(n.addr, securePort))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range g.Lanes {
		e.lanes = append(e.lanes, newMovable(s))
	}
	e.control = newMovable(g.Control)
	e.control.setNotify(e.wait.Wake)
	n.secure = e
}

// peerConfig is what others say of the node.
func (n *testNode) peerConfig() wireguard.PeerConfig {
	return wireguard.PeerConfig{ID: n.secure.id, Name: n.name, Public: n.secure.key.Public(),
		Endpoint: netip.AddrPortFrom(n.addr, securePort)}
}

// meet makes all other nodes peers.
func (n *testNode) meet(all []*testNode) {
	var peers []wireguard.PeerConfig
	for _, p := range all {
		if p != n {
			peers = append(peers, p.peerConfig())
		}
	}
	n.secure.tunnel.SetPeers(peers, 0)
}

// with is the tunnel's peer for another node.
func (n *testNode) with(p *testNode) *wireguard.Peer { return n.secure.tunnel.Peer(p.secure.id) }

// connect has node n call another one, and waits until both can encrypt and have nothing to say to each other any more.
func (n *testNode) connect(t testing.TB, p *testNode) {
	t.Helper()
	n.with(p).Want()
	for deadline := time.Now().Add(5 * time.Second); !n.heardOffer(p) || !p.heardOffer(n); {
		if time.Now().After(deadline) {
			t.Fatalf("%s and %s have no session", n.name, p.name)
		}
		time.Sleep(time.Millisecond)
	}
}

// heardOffer reports whether the node has a session with another one, and an offer of its in that.
func (n *testNode) heardOffer(p *testNode) bool {
	s := n.with(p).Current()
	return s != nil && s.To(1) != s.To(2) // all offer lanes
}

// move takes the node's end of the tunnel to another address, as when its network has changed. Nobody is told.
func (n *testNode) move(t testing.TB, network *tunmem.Network, to netip.Addr) {
	t.Helper()
	g, err := network.WireGuard(len(n.secure.lanes), netip.AddrPortFrom(to, securePort))
	if err != nil {
		t.Fatal(err)
	}
	for k, s := range g.Lanes {
		n.secure.lanes[k].move(s)
	}
	n.secure.control.move(g.Control)
}

// A movable is a socket that can become another one.
type movable struct {
	now    atomic.Pointer[tunmem.Socket]
	notify func()
}

func newMovable(s *tunmem.Socket) *movable {
	m := new(movable)
	m.now.Store(s)
	return m
}

func (m *movable) setNotify(f func()) {
	m.notify = f
	m.now.Load().SetNotify(f)
}

func (m *movable) move(to *tunmem.Socket) {
	m.now.Swap(to).SetNotify(nil)
	to.SetNotify(m.notify)
}

func (m *movable) Send(o *tunnel.Outbound) (tunnel.SendResult, error) { return m.now.Load().Send(o) }
func (m *movable) Receive(in *tunnel.Inbound) error                   { return m.now.Load().Receive(in) }
func (m *movable) Offloads() []tunnel.OffloadState                    { return m.now.Load().Offloads() }
func (m *movable) LocalPort() uint16                                  { return m.now.Load().LocalPort() }
func (m *movable) Close() error                                       { return m.now.Load().Close() }

func (m *movable) PathEvents(dst []tunnel.PathEvent) []tunnel.PathEvent {
	return m.now.Load().PathEvents(dst)
}

// runWaiter is the Waiter of a wireguard.Tunnel.
type runWaiter struct{ chanWaiter }

func (r runWaiter) Wait(timeout time.Duration) error {
	_, err := r.chanWaiter.Wait(timeout)
	return err
}

// connectLate is connect where the workers don't run: nobody but the caller reads what the other node confirms with.
func (n *testNode) connectLate(t testing.TB, p *testNode) {
	t.Helper()
	n.with(p).Want()
	for deadline := time.Now().Add(5 * time.Second); p.with(n).Current() == nil; {
		if time.Now().After(deadline) {
			t.Fatalf("%s and %s have no session", n.name, p.name)
		}
		time.Sleep(time.Millisecond)
		p.drainOnce(t)
	}
}

// drainOnce does a worker's turn at the encrypted tunnel, for all lanes of a node whose workers don't run.
func (n *testNode) drainOnce(t testing.TB) {
	t.Helper()
	for _, w := range n.workers {
		w.snap = w.Table.Load()
		for k := range w.all {
			w.lane = &w.all[k]
			if _, _, err := w.drainSecure(); err != nil {
				t.Fatal(err)
			}
		}
		w.lane = &w.all[0]
	}
}

// agree has all nodes offer superframes to each other, and waits until they have. late: the workers don't run.
func (c *testCluster) agree(t testing.TB, late bool) {
	t.Helper()
	agreed := func(n, p *testNode) bool {
		s := n.with(p).Current()
		return s != nil && s.TakesFrames()
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		done := true
		for k, n := range c.nodes {
			for _, p := range c.nodes[k+1:] {
				if n.with(p).Current() == nil {
					n.with(p).Want()
				}
				done = done && agreed(n, p) && agreed(p, n)
			}
			if late {
				n.drainOnce(t)
			}
		}
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the nodes do not take superframes from each other")
		}
	}
}
