package e2e_test

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/flood"
	"github.com/warren-net/warren/node/api"
)

// An attacker sends to a node from the world outside, which is on the nodes' underlay.
type attacker struct {
	c           *cluster
	victim      *lab.Node
	peer        netip.AddrPort // of the victim
	to          netip.AddrPort
	sender      *flood.Sender
	trains      *flood.Trains
	initiations [][]byte
	heard       map[byte][][]byte
	junk        []byte
	before      map[string]uint64 // handshakes
	sent        int
}

func (c *cluster) newAttacker(victim, peer *lab.Node, heard map[byte][][]byte) *attacker {
	c.t.Helper()
	const strangers = 1000
	x := &attacker{c: c, victim: victim, heard: heard, peer: netip.AddrPortFrom(peer.V4, wireguardPort),
		to: netip.AddrPortFrom(victim.V4, wireguardPort), junk: make([]byte, 1<<20), before: c.handshakes(victim)}
	// The peer's answer to the victim's call, or its own call, and data.
	if len(heard[typeInitiation])+len(heard[typeResponse]) == 0 || len(heard[typeData]) < 100 {
		c.t.Fatalf("messages heard on the underlay: %d, %d and %d of the types 1, 2 and 4; want some",
			len(heard[typeInitiation]), len(heard[typeResponse]), len(heard[typeData]))
	}
	_, _ = crand.Read(x.junk) // never fails
	var err error
	x.initiations, err = flood.Initiations(victim.PublicKey, strangers)
	c.ok(err)
	x.sender, err = flood.Open(c.lab.Outside)
	c.ok(err)
	x.trains, err = flood.OpenTrains(c.lab.Outside, x.to)
	c.ok(err)
	c.t.Cleanup(func() {
		if err := errors.Join(x.sender.Close(), x.trains.Close()); err != nil {
			c.t.Error(err)
		}
	})
	return x
}

// handshakes are a node's counters of these.
func (c *cluster) handshakes(n *lab.Node) map[string]uint64 {
	c.t.Helper()
	return ask[api.Status](c, n, "status").Tunnel.Handshakes
}

// anywhere is an address and a port that hardly come twice: of 254 addresses, from which nobody gets an answer.
func anywhere() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + rand.IntN(254))}),
		uint16(1024+rand.IntN(1<<16-1024)))
}

// itself is the attacker's own address and one port.
func itself() netip.AddrPort { return netip.MustParseAddrPort("192.0.2.254:5555") }

// bytes are n random ones.
func (x *attacker) bytes(n int) []byte {
	at := rand.IntN(len(x.junk) - n)
	return x.junk[at : at+n]
}

// A kind is a part of the attack: datagrams from any address, one by one, or trains from the attacker's own.
type kind struct {
	name  string
	share int // of a hundred parts
	next  func(d *flood.Datagram)
	size  func() int
	fill  func(i int, msg []byte)
}

// kinds are all parts; what is oversized comes by itself.
func (x *attacker) kinds() []kind {
	pick := func(msgs [][]byte) []byte { return msgs[rand.IntN(len(msgs))] }
	buf := make([]byte, flood.MaxPayload)
	calls := slices.Concat(x.heard[typeInitiation], x.heard[typeResponse])
	all := slices.Concat(calls, x.heard[typeData])
	data := x.heard[typeData]
	live := data[len(data)-1][:16] // of the session in use
	random := func(msg []byte) { copy(msg, x.bytes(len(msg))) }
	kind32 := func(msg []byte, kind int) { binary.LittleEndian.PutUint32(msg, uint32(kind)) }
	return []kind{
		{name: "initiations from everywhere", share: 12, next: func(d *flood.Datagram) {
			d.From, d.Payload = anywhere(), pick(x.initiations)
		}},
		{name: "initiations from one address", share: 4, next: func(d *flood.Datagram) {
			d.From, d.Payload = itself(), pick(x.initiations)
		}},
		{name: "initiations in trains", share: 20,
			size: func() int { return flood.InitiationLen },
			fill: func(_ int, msg []byte) { copy(msg, pick(x.initiations)) }},
		// The kernel chooses the socket by the first datagram of a train: a worker gets all of it.
		{name: "initiations behind data", share: 6,
			size: func() int { return flood.InitiationLen },
			fill: func(i int, msg []byte) {
				copy(msg, pick(x.initiations))
				if i == 0 {
					copy(msg, live)
				}
			}},
		{name: "initiations with a wrong MAC", share: 4, next: func(d *flood.Datagram) {
			n := copy(buf, pick(x.initiations))
			buf[rand.IntN(n-16)] ^= byte(1 + rand.IntN(255)) // anywhere but in the second MAC, which is not set
			d.From, d.Payload = anywhere(), buf[:n]
		}},
		{name: "replays from elsewhere", share: 4, next: func(d *flood.Datagram) {
			d.From, d.Payload = itself(), pick(all)
		}},
		{name: "replays from the peer's address", share: 4, next: func(d *flood.Datagram) {
			d.From, d.Payload = x.peer, pick(all)
		}},
		{name: "replayed handshakes", share: 4, next: func(d *flood.Datagram) {
			d.From, d.Payload = x.peer, pick(calls)
		}},
		{name: "random bytes", share: 3, next: func(d *flood.Datagram) {
			msg := buf[:4+rand.IntN(flood.MaxPayload-4)]
			random(msg)
			kind32(msg, rand.IntN(8)) // the types that there are, and others
			d.From, d.Payload = anywhere(), msg
		}},
		{name: "random bytes in trains", share: 9,
			size: func() int { return 4 + rand.IntN(flood.MaxPayload-4) },
			fill: func(_ int, msg []byte) { random(msg); kind32(msg, rand.IntN(8)) }},
		{name: "random bytes of a handshake's length", share: 4, next: func(d *flood.Datagram) {
			kind := 1 + rand.IntN(3)
			msg := buf[:[]int{148, 92, 64}[kind-1]]
			random(msg)
			kind32(msg, kind)
			d.From, d.Payload = x.peer, msg
		}},
		{name: "truncated", share: 3, next: func(d *flood.Datagram) {
			d.From, d.Payload = anywhere(), pick(all)[:rand.IntN(32)]
		}},
		{name: "truncated in trains", share: 9,
			size: func() int { return 1 + rand.IntN(31) },
			fill: func(_ int, msg []byte) { copy(msg, pick(all)) }},
		{name: "garbage for the session", share: 6, next: func(d *flood.Datagram) {
			msg := buf[:32+rand.IntN(flood.MaxPayload-32)]
			random(msg)
			copy(msg, live)
			binary.LittleEndian.PutUint64(msg[8:], rand.Uint64N(1<<40))
			d.From, d.Payload = anywhere(), msg
		}},
		{name: "pieces of superframes for the session", share: 4, next: func(d *flood.Datagram) {
			msg := buf[:17+rand.IntN(flood.MaxPayload-17)]
			random(msg)
			msg[0] = typePiece
			copy(msg[4:], live[4:8])
			d.From, d.Payload = anywhere(), msg
		}},
		{name: "superframes for the session in trains", share: 4,
			size: func() int { return flood.MaxPayload },
			fill: func(i int, msg []byte) { // complete every ten datagrams
				const pieces = 10
				random(msg)
				msg[0], msg[1] = typePiece, byte(i%pieces)
				if i%pieces == pieces-1 {
					msg[1] |= 1 << 6 // the last one
				}
				binary.LittleEndian.PutUint16(msg[2:], uint16(pieces*(len(msg)-16)))
				copy(msg[4:], live[4:8])
				binary.LittleEndian.PutUint64(msg[8:], 1<<30)
			}},
	}
}

// send sends so many datagrams of a kind, as fast as it goes.
func (x *attacker) send(k kind, n int) (sent int, took time.Duration) {
	x.c.t.Helper()
	var err error
	if k.next == nil {
		sent, took, err = x.trains.Run(x.c.ctx, flood.TrainLoad{Datagrams: n, Size: k.size, Fill: k.fill})
	} else {
		next := func(d *flood.Datagram) { d.To = x.to; k.next(d) }
		sent, took, err = x.sender.Run(x.c.ctx, flood.Load{Datagrams: n, Next: next})
	}
	x.c.ok(err)
	x.sent += sent
	return sent, took
}

// warmUp sends a little of everything, so that what a node keeps for the size of its batches is there.
func (x *attacker) warmUp() {
	x.c.t.Helper()
	for _, k := range x.kinds() {
		x.send(k, hostileDatagrams()/1000)
	}
	time.Sleep(quiet)
}

// oversized sends what is longer than any message on this underlay, up to what UDP carries; the kernel fragments it.
func (x *attacker) oversized() {
	x.c.t.Helper()
	const largest = 65507
	var conn *net.UDPConn
	x.c.ok(x.c.lab.Outside.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(x.to))
		return err
	}))
	defer conn.Close()
	msg := make([]byte, largest)
	n := hostileDatagrams() / 1000
	for i := range n {
		size := flood.MaxPayload + 1 + rand.IntN(largest-flood.MaxPayload)
		if i%2 == 0 {
			size = largest
		}
		copy(msg, x.bytes(size))
		binary.LittleEndian.PutUint32(msg, uint32(1+i%4))
		if i%8 == 3 {
			copy(msg, x.heard[typeData][0][:16])
		}
		// ICMP errors, and a queue that is full, are no reason to end.
		_, _ = conn.Write(msg[:size])
	}
	x.sent += n
	x.c.t.Logf("oversized: %d", n)
}

// newPeer has a node come while initiations flood the victim, so that whoever wants a session has to bring a cookie.
// The flood leaves the socket for handshakes some room: what the kernel drops it drops of everybody.
func (x *attacker) newPeer(late *lab.Node, pod *lab.Pod) {
	x.c.t.Helper()
	const rate = 20_000
	ctx, cancel := context.WithCancel(x.c.ctx)
	defer cancel()
	ended := make(chan error, 1)
	kinds := x.kinds()
	begin := time.Now()
	go func() {
		sent, _, err := x.sender.Run(ctx, flood.Load{Rate: rate, Next: func(d *flood.Datagram) {
			d.To = x.to
			kinds[rand.IntN(2)].next(d)
		}})
		x.sent += sent
		ended <- err
	}()
	time.Sleep(quiet)
	x.c.up(late)
	first := x.c.pod(late, "1")
	x.c.within(time.Minute, func() error {
		_, err := first.NS.Ping(x.c.ctx, pod.V4, lab.Ping{Count: 1})
		return err
	})
	x.c.t.Logf("a new peer has a session after %.1f s", time.Since(begin).Seconds())
	cancel()
	x.c.ok(<-ended)
	if got := x.c.handshakes(late)["cookies-got"]; got == 0 {
		x.c.t.Error("the new peer got its session without a cookie: the node was not under load")
	}
}

// accounted wants the node's counters to say what came, in kind: the kernel drops most of it.
func (x *attacker) accounted() {
	x.c.t.Helper()
	now := x.c.handshakes(x.victim)
	seen := make(map[string]int)
	for _, name := range []string{"cookies-sent", "invalid"} {
		seen[name] = int(now[name] - x.before[name])
	}
	for _, name := range []string{"handshake-socket-full", "bad-seal", "replayed", "unknown-session"} {
		seen[name] = x.c.drops(x.victim, name)
	}
	for name, n := range seen {
		if n == 0 {
			x.c.t.Errorf("%q has counted nothing", name)
		}
	}
	x.c.t.Logf("%d datagrams in all; %v", x.sent, seen)
}
