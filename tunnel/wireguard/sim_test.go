package wireguard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/tunnel"
)

// A sim is some nodes without sockets, goroutines and clocks: the test turns the clock and carries the messages.
type sim struct {
	t     testing.TB
	now   int64
	nodes []*simNode
	lose  func(from, to *simNode, msg []byte) bool // nil: nothing is lost
	sent  [][]byte                                 // all that was sent so far
}

type simNode struct {
	*Tunnel
	sim         *sim
	name        string
	addr        netip.AddrPort
	key         key.Private
	ticked      int64
	got         [][]byte // packets that came in data messages
	established int
	roamedCalls int
	results     map[Opened]int
	unknown     int // data messages of no session
	inbox       []simMessage
}

type simMessage struct {
	from netip.AddrPort
	msg  []byte
}

func newSim(t testing.TB, nodes int) *sim {
	s := &sim{t: t, now: 1_700_000_000_000_000_000}
	for k := range nodes {
		n := &simNode{
			sim: s, name: fmt.Sprintf("n%d", k), key: key.NewPrivate(), results: map[Opened]int{},
			addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(k + 1)}), Port),
		}
		n.Tunnel = New(Config{
			Lanes: 4, Workers: 1, Now: func() int64 { return s.now },
			Superframes: true, AES: true, Stamp: s.stamp,
			Established: func(int32) { n.established++ }, Roamed: func(int32) { n.roamedCalls++ },
		})
		n.limiter.Init()
		t.Cleanup(n.limiter.Close)
		n.SetKeys([]key.Private{n.key}, 0)
		s.nodes = append(s.nodes, n)
	}
	return s
}

// stamp is the time of the test as TAI64N, but for leap seconds.
func (s *sim) stamp() (t tai64n.Timestamp) {
	binary.BigEndian.PutUint64(t[:], 1<<62+uint64(s.now)/1e9)
	binary.BigEndian.PutUint32(t[8:], uint32(s.now%1e9))
	return t
}

// peers makes everybody everybody's peer; change may alter what node n is told of node p.
func (s *sim) peers(change func(n, p *simNode, c *PeerConfig)) {
	for _, n := range s.nodes {
		n.SetPeers(n.configs(change), 0)
	}
}

func (n *simNode) configs(change func(n, p *simNode, c *PeerConfig)) []PeerConfig {
	var list []PeerConfig
	for k, p := range n.sim.nodes {
		if p == n {
			continue
		}
		c := PeerConfig{ID: int32(k + 1), Name: p.name, Public: p.key.Public(), Endpoint: p.addr}
		if change != nil {
			change(n, p, &c)
		}
		list = append(list, c)
	}
	return list
}

// of is what n knows of another node.
func (n *simNode) of(p *simNode) *Peer {
	for k, o := range n.sim.nodes {
		if o == p {
			return n.Tunnel.Peer(int32(k + 1))
		}
	}
	return nil
}

// step has a node do a round with what waits for it.
func (n *simNode) step() {
	in := &tunnel.Inbound{}
	for _, m := range n.inbox {
		if IsData(m.msg) {
			n.data(m)
			continue
		}
		in.Slots = append(in.Slots, tunnel.Datagrams{Buf: m.msg, N: len(m.msg), SegmentSize: len(m.msg), From: m.from})
		in.N++
	}
	n.inbox = nil
	n.round(in, n.sim.now, &n.ticked)
	for _, s := range n.out.Sends {
		msg := bytes.Join(n.out.Pieces[s.First:s.First+s.N], nil)
		for len(msg) > 0 {
			d := msg[:min(len(msg), max(s.SegmentSize, 1))]
			msg = msg[len(d):]
			n.transmitTo(d, s.To)
		}
	}
	n.out.Reset()
}

func (n *simNode) transmitTo(msg []byte, to netip.AddrPort) {
	n.sim.sent = append(n.sim.sent, bytes.Clone(msg))
	for _, o := range n.sim.nodes {
		if o.addr == to && (n.sim.lose == nil || !n.sim.lose(n, o, msg)) {
			o.inbox = append(o.inbox, simMessage{n.addr, bytes.Clone(msg)})
		}
	}
}

// data does what a worker does with a data message.
func (n *simNode) data(m simMessage) {
	s := n.Session(Receiver(m.msg))
	if s == nil {
		n.unknown++
		return
	}
	var nonce Nonce
	packet, opened := s.Open(m.msg, &nonce)
	n.results[opened]++
	if opened != Fresh {
		return
	}
	if IsOffer(packet) {
		s.Offered(packet)
		packet = nil
	}
	s.Got(0, n.sim.now, len(packet) > 0, m.from)
	if len(packet) > 0 {
		n.got = append(n.got, packet)
	}
}

// send has a node send a packet to another, and reports whether it had a session for that.
func (n *simNode) send(to *simNode, packet string) bool {
	p := n.of(to)
	s := p.Current()
	if s == nil {
		p.Want()
		return false
	}
	counter, ok := s.Reserve(1)
	if !ok {
		return false
	}
	var nonce Nonce
	n.transmitTo(s.Seal(nil, &nonce, s.head(counter), []byte(packet)), p.Endpoint())
	p.Sent(0, n.sim.now, true)
	return true
}

// settle carries messages until there are none.
func (s *sim) settle() {
	s.t.Helper()
	for range 100 {
		for _, n := range s.nodes {
			n.step()
		}
		quiet := true
		for _, n := range s.nodes {
			quiet = quiet && len(n.inbox) == 0
		}
		if quiet {
			return
		}
	}
	s.t.Fatal("messages go round for ever")
}

// pass lets time go by.
func (s *sim) pass(d time.Duration) {
	s.t.Helper()
	for end := s.now + int64(d); s.now < end; {
		s.now = min(s.now+int64(tickTime), end)
		s.settle()
	}
}

// connect has the first node call the second.
func (s *sim) connect(a, b *simNode) {
	s.t.Helper()
	a.of(b).Want()
	s.settle()
	if a.of(b).Current() == nil || b.of(a).Current() == nil {
		s.t.Fatalf("no session: %v, %v", a.of(b).Current(), b.of(a).Current())
	}
}

// exchange sends a packet each way, and fails when one does not arrive.
func (s *sim) exchange(a, b *simNode) {
	s.t.Helper()
	for _, d := range [][2]*simNode{{a, b}, {b, a}} {
		before := len(d[1].got)
		want := fmt.Sprintf("from %s at %d", d[0].name, s.now)
		if !d[0].send(d[1], want) {
			s.t.Fatalf("%s has no session with %s", d[0].name, d[1].name)
		}
		s.settle()
		if len(d[1].got) != before+1 || string(d[1].got[before]) != want {
			s.t.Fatalf("%s did not get %q", d[1].name, want)
		}
	}
}

// count is how many messages of a type have been sent so far.
func (s *sim) count(typ byte) int {
	n := 0
	for _, m := range s.sent {
		if m[0] == typ {
			n++
		}
	}
	return n
}

// head is that of a message as it was before there were lanes.
func (s *Session) head(counter uint64) Head { return Head{s.remote, counter} }

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
