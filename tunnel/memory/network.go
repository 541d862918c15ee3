// Package memory is an underlay in memory: a Network joins Sockets that implement tunnel.Socket, so that the whole data
// path of several nodes runs in one unprivileged test. It loses, duplicates and reorders datagrams on demand, has an
// MTU, bounded queues, and joins what it delivers as UDP_GRO does.
//
// # Terms
//
//   - A datagram is one UDP payload. Impairments act on each by itself, also on those of one Send: that is what a
//     network does to the packets that the card cut a superpacket into.
//   - A host is the set of Sockets with one address and port; they share what comes in, as SO_REUSEPORT does: those of
//     Network.Socket by who sent it, those of Network.WireGuard by what it says.
//
// # Ownership and concurrency
//
// A Network and its methods are safe for concurrent use, and so are different Sockets of it. One Socket belongs to one
// worker, as tunnel says. Send copies the bytes; Tap, Drop and the notify function are called in the sender's
// goroutine, without a lock held.
//
// # Repeatability
//
// Each Socket draws from its own generator, which the seed and the order of the Socket calls determine. So the fate of
// a socket's n-th datagram depends on nothing else, except for how long a datagram is held back: that depends on what
// else reaches the receiver.
package memory

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of a Config.
const (
	DefaultMTU     = 1500
	DefaultQueue   = 4096
	DefaultHold    = 2 * time.Millisecond
	DefaultReorder = 8
)

// Config says what a Network does to datagrams. The zero value is a perfect one with an MTU of 1500 bytes.
type Config struct {
	Seed uint64

	Loss      float64 // probability that a datagram disappears
	Duplicate float64 // probability that it arrives twice
	Reorder   float64 // probability that it is overtaken by others

	// ReorderDepth is by how many datagrams to the same receiver one is overtaken at most. 0: DefaultReorder.
	ReorderDepth int

	// Hold is when a datagram that waits to be overtaken arrives at the latest. 0: DefaultHold.
	Hold time.Duration

	MTU   int // bytes of the largest outer IP packet. 0: DefaultMTU
	Queue int // datagrams that wait at a Socket; further ones are lost. 0: DefaultQueue

	NoGSO bool // each Send costs a system call per datagram in SendResult, and Offloads says so
	NoGRO bool // each datagram is received by itself

	// Tap sees every datagram that is sent, before any impairment. Drop loses those for which it returns true, in
	// addition to Loss. Neither may keep Data; both may be called by several senders at once.
	Tap  func(Datagram)
	Drop func(Datagram) bool
}

// A Datagram is what Config.Tap and Config.Drop see.
type Datagram struct {
	From, To netip.AddrPort
	TOS      uint8
	Data     []byte
}

// Stats counts what became of datagrams. Sent = Lost + NoReceiver + QueueFull + Delivered - Duplicated when nothing is
// held back.
type Stats struct {
	Sent       uint64 // handed over by senders
	Lost       uint64 // by Config.Loss or Config.Drop
	Duplicated uint64
	Reordered  uint64 // held back to be overtaken
	NoReceiver uint64 // nobody has the address and port
	QueueFull  uint64 // lost at the receiver
	Delivered  uint64 // put into a receiver's queue
}

// A Network joins Sockets.
type Network struct {
	config Config
	mtu    atomic.Int64
	stats  struct{ sent, lost, duplicated, reordered, noReceiver, queueFull, delivered atomic.Uint64 }

	mu      sync.RWMutex
	hosts   map[netip.AddrPort]host
	sockets uint64 // made so far
}

// A host is the Sockets that share an address and port. Its slice is replaced and never changed, as senders read it
// without the lock.
type host struct {
	sockets []*Socket
	group   *WireGuardGroup // that they are; nil: none
}

// NewNetwork makes a Network. The error names what is wrong with c.
func NewNetwork(c Config) (*Network, error) {
	for name, p := range map[string]float64{"loss": c.Loss, "duplicate": c.Duplicate, "reorder": c.Reorder} {
		if !(p >= 0 && p <= 1) {
			return nil, fmt.Errorf("%s rate %v: use a probability from 0 to 1", name, p)
		}
	}
	if c.MTU < 0 || c.Queue < 0 || c.ReorderDepth < 0 || c.Hold < 0 {
		return nil, fmt.Errorf("MTU %d, queue %d, reorder depth %d, hold %v: none may be negative",
			c.MTU, c.Queue, c.ReorderDepth, c.Hold)
	}
	c.MTU = orDefault(c.MTU, DefaultMTU)
	c.Queue = orDefault(c.Queue, DefaultQueue)
	c.ReorderDepth = orDefault(c.ReorderDepth, DefaultReorder)
	c.Hold = orDefault(c.Hold, DefaultHold)
	n := &Network{config: c, hosts: map[netip.AddrPort]host{}}
	n.mtu.Store(int64(c.MTU))
	return n, nil
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

// SetMTU changes the MTU from now on.
func (n *Network) SetMTU(bytes int) { n.mtu.Store(int64(bytes)) }

// Stats returns the counters.
func (n *Network) Stats() Stats {
	s := &n.stats
	return Stats{
		Sent: s.sent.Load(), Lost: s.lost.Load(), Duplicated: s.duplicated.Load(), Reordered: s.reordered.Load(),
		NoReceiver: s.noReceiver.Load(), QueueFull: s.queueFull.Load(), Delivered: s.delivered.Load(),
	}
}

// Socket makes a Socket that receives at the given addresses, which have to be complete, and sends from the first one
// of the family that the receiver has, from a port of its own (see LocalPort). Sockets with the same address share
// what is sent to it, by the sender's address and port.
func (n *Network) Socket(addrs ...netip.AddrPort) *Socket {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.add(addrs)
}

func (n *Network) add(addrs []netip.AddrPort) *Socket {
	s := newSocket(n, addrs, n.sockets)
	n.sockets++
	for _, a := range addrs {
		h := n.hosts[a]
		h.sockets = append(slices.Clone(h.sockets), s)
		n.hosts[a] = h
	}
	return s
}

// remove takes a closed socket out.
func (n *Network) remove(s *Socket) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range s.addrs {
		h := n.hosts[a]
		h.sockets = slices.DeleteFunc(slices.Clone(h.sockets), func(other *Socket) bool { return other == s })
		n.hosts[a] = h
		if len(h.sockets) == 0 {
			delete(n.hosts, a)
		}
	}
}

// receiver returns the Socket that gets what from sends to to, joined to a first datagram; nil: nobody.
func (n *Network) receiver(from, to netip.AddrPort, first []byte) *Socket {
	n.mu.RLock()
	h := n.hosts[to]
	n.mu.RUnlock()
	if h.group != nil {
		return h.group.receiver(first)
	}
	group := h.sockets
	switch len(group) {
	case 0:
		return nil
	case 1:
		return group[0]
	}
	// FNV-1a of the sender: any hash does that keeps a flow with one receiver.
	hash := uint32(2166136261)
	addr := from.Addr().As16()
	for _, b := range addr {
		hash = (hash ^ uint32(b)) * 16777619
	}
	hash = (hash ^ uint32(from.Port()&0xff)) * 16777619
	hash = (hash ^ uint32(from.Port()>>8)) * 16777619
	return group[hash%uint32(len(group))]
}
