package worker

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	tunmem "github.com/warren-net/warren/tunnel/memory"
	"github.com/warren-net/warren/tunnel/vxlan"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// A capture is everything that crossed a network.
type capture struct {
	mu   sync.Mutex
	seen []tunmem.Datagram
}

func (c *capture) tap(d tunmem.Datagram) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d.Data = bytes.Clone(d.Data)
	c.seen = append(c.seen, d)
}

// data is the captured data messages to an address.
func (c *capture) data(to netip.Addr) (msgs []tunmem.Datagram) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.seen {
		if d.To.Addr() == to && wireguard.IsData(d.Data) {
			msgs = append(msgs, d)
		}
	}
	return msgs
}

// secureStranger sends to node 1's WireGuard port.
func secureStranger(c *testCluster, from string) stranger {
	return stranger{c.net.Socket(netip.AddrPortFrom(netip.MustParseAddr(from), 5555)),
		netip.AddrPortFrom(c.nodes[0].addr, securePort)}
}

// sealed is a packet as the session of node from with node to carries it.
func sealed(t testing.TB, from, to *testNode, p []byte) []byte {
	t.Helper()
	s := from.with(to).Current()
	counter, ok := s.Reserve(1)
	if !ok {
		t.Fatal("no counter left")
	}
	padded := make([]byte, wireguard.PaddedLen(len(p), 1<<16))
	copy(padded, p)
	return s.Seal(nil, new(wireguard.Nonce), wireguard.Head{Receiver: s.To(0), Counter: counter}, padded)
}

// TestSecureWireIsNotTrusted sends what an attacker or a misconfigured peer would; each is a drop of its own reason,
// and only what the peer did seal moves it.
func TestSecureWireIsNotTrusted(t *testing.T) {
	good := build{src: "10.244.2.5", dst: "10.244.1.9", payload: 100}
	from := func(src, dst string) build { return build{src: src, dst: dst, payload: 100} }
	flip := func(at int) func([]byte) []byte { return func(m []byte) []byte { m[at] ^= 1; return m } }
	for _, tt := range []struct {
		name  string
		b     build
		edit  func([]byte) []byte
		tos   uint8
		by    int // index of the node that seals; 0: node 2
		moved bool
		want  forwarder.Reason
	}{
		{name: "another session", b: good, edit: flip(5), want: forwarder.UnknownSession},
		{name: "a changed counter", b: good, edit: flip(8), want: forwarder.BadSeal},
		{name: "a changed packet", b: good, edit: flip(40), want: forwarder.BadSeal},
		{name: "a changed tag", b: good, edit: flip(wireguard.Overhead + 143), want: forwarder.BadSeal},
		{name: "truncated", b: good, edit: func(m []byte) []byte { return m[:len(m)-1] }, want: forwarder.BadSeal},
		{name: "only header and tag", b: good, edit: func(m []byte) []byte { return m[:wireguard.Overhead] },
			want: forwarder.BadSeal},
		{name: "too long", b: good, edit: func(m []byte) []byte { return append(m, 0) }, want: forwarder.BadSeal},
		{name: "another peer's pod", b: from("10.244.3.5", "10.244.1.9"), moved: true, want: forwarder.SourceNotPeer},
		{name: "our pod", b: from("10.244.1.5", "10.244.1.9"), moved: true, want: forwarder.SourceNotPeer},
		{name: "our node", b: from("192.0.2.1", "10.244.1.9"), moved: true, want: forwarder.SourceNotPeer},
		{name: "the outside", b: from("198.51.100.5", "10.244.1.9"), moved: true, want: forwarder.SourceNotPeer},
		{name: "the peer's pods sealed by another peer", b: good, by: 2, moved: true, want: forwarder.SourceNotPeer},
		{name: "to the outside", b: from("10.244.2.5", "198.51.100.1"), moved: true, want: forwarder.NotForThisNode},
		{name: "to a third node", b: from("10.244.2.5", "10.244.3.1"), moved: true, want: forwarder.NotForThisNode},
		{name: "congested, sender without ECN", b: good, tos: 3, moved: true, want: forwarder.Congestion},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, clusterConfig{nodes: 3, over: encrypted})
			a, b := c.nodes[0], c.nodes[max(1, tt.by)]
			a.connect(t, b)
			msg := sealed(t, b, a, tt.b.bytes(t))
			if tt.edit != nil {
				msg = tt.edit(msg)
			}
			secureStranger(c, "192.0.2.77").send(t, tt.tos, msg)
			a.waitDrop(t, tt.want, 1)
			a.nothing(t)
			if all := a.allDrops(); len(all) != 1 {
				t.Errorf("counted more than once: %v", all)
			}
			if at := a.with(b).Endpoint(); (at.Addr() != b.addr) != tt.moved {
				t.Errorf("the peer is at %v now", at)
			}
		})
	}
}

// TestSecureReplay sends captured messages again, from elsewhere: they are dropped, and the peer stays where it is.
func TestSecureReplay(t *testing.T) {
	var seen capture
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted, network: tunmem.Config{Tap: seen.tap}})
	a, b := c.nodes[0], c.nodes[1]
	p, m := super(t, build{src: "10.244.2.5", dst: "10.244.1.9", payload: 20 * 1360, df: true}.bytes(t), 1360)
	b.dev.Inject(p, m)
	// What arrives in two batches is written as two superpackets.
	for got := 0; got < 20*1360; {
		got += len(a.next(t).Data) - header.IPv4MinimumSize - header.TCPMinimumSize
	}
	msgs := seen.data(a.addr)
	s := secureStranger(c, "192.0.2.77")
	for _, d := range msgs {
		s.send(t, 0, d.Data)
	}
	a.waitDrop(t, forwarder.Replayed, uint64(len(msgs)))
	if len(msgs) < 20 || a.with(b).Endpoint().Addr() != b.addr {
		t.Errorf("%d messages were captured; the peer is at %v now", len(msgs), a.with(b).Endpoint())
	}
}

// TestPlaintextIsRefused: VXLAN from a peer whose traffic is encrypted is dropped, also when it is what the peer may
// send.
func TestPlaintextIsRefused(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted})
	a, b := c.nodes[0], c.nodes[1]
	h := vxlan.NewHeader(testVNI, a.mac, b.mac, vxlan.EtherTypeIPv4)
	p := build{src: "10.244.2.5", dst: "10.244.1.9", payload: 100}.bytes(t)
	newStranger(c, "192.0.2.2").send(t, 0, h[:], p)
	a.waitDrop(t, forwarder.Plaintext, 1)
	a.nothing(t)
	a.connect(t, b)
	secureStranger(c, "192.0.2.2").send(t, 0, sealed(t, b, a, p))
	if got := a.next(t).Data; !bytes.Equal(got, p) {
		t.Errorf("sealed it arrived as %x", got)
	}
}

// TestSecureStrayDatagrams sends what is no data to a lane: handshakes go to where they are answered, the rest is
// dropped.
func TestSecureStrayDatagrams(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted, late: true})
	a := c.nodes[0]
	w := a.workers[0]
	w.snap = w.Table.Load()
	from := netip.AddrPortFrom(c.nodes[1].addr, securePort)
	feed := func(n, size int, first byte) {
		msg := make([]byte, n)
		if n > 0 {
			msg[0] = first
		}
		w.fromTunnel(&tunnel.Datagrams{Buf: msg, N: n, SegmentSize: size, From: from})
	}
	for _, n := range []int{0, 1, 3, 4, 31} {
		feed(n, n, wireguard.TypeData)
	}
	feed(148, 148, 0)
	feed(148, 148, 5)
	feed(147, 147, wireguard.TypeInitiation)
	if n := a.drops(forwarder.NotWireGuard); n != 8 {
		t.Errorf("%d were dropped, want 8: %v", n, a.allDrops())
	}
	feed(148, 148, wireguard.TypeInitiation)
	feed(92, 92, wireguard.TypeResponse)
	feed(64, 64, wireguard.TypeCookieReply)
	invalid := &a.secure.tunnel.Counters.Invalid
	for deadline := time.Now().Add(5 * time.Second); invalid.Load() < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("%d messages of handshakes were looked at, want 3", invalid.Load())
		}
		time.Sleep(time.Millisecond)
	}
	if n := a.drops(forwarder.NotWireGuard); n != 8 || len(a.allDrops()) != 1 {
		t.Errorf("dropped: %v", a.allDrops())
	}
}

// TestSecureCongestion follows RFC 6040 through the tunnel; the DSCP is not shown.
func TestSecureCongestion(t *testing.T) {
	var seen capture
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted, network: tunmem.Config{Tap: seen.tap}})
	a, b := c.nodes[0], c.nodes[1]
	a.connect(t, b)
	const dscp = 46 << 2
	for ecn := range uint8(4) {
		p := build{src: "10.244.2.5", dst: "10.244.1.9", payload: 500, tos: dscp | ecn}.bytes(t)
		b.dev.Inject(bytes.Clone(p), packet.Meta{})
		if got := a.next(t).Data; !bytes.Equal(got, p) {
			t.Errorf("ECN %d arrived as TOS %#x", ecn, got[1])
		}
		msgs := seen.data(a.addr)
		if tos := msgs[len(msgs)-1].TOS; tos != ecn {
			t.Errorf("ECN %d shows as TOS %#x", ecn, tos)
		}
	}
	s := secureStranger(c, "192.0.2.2")
	for _, tt := range []struct{ inner, outer, want uint8 }{
		{2, 3, 3}, {1, 3, 3}, {2, 1, 1}, {2, 2, 2}, {3, 0, 3}, {0, 2, 0},
	} {
		p := build{src: "10.244.2.5", dst: "10.244.1.9", payload: 9, tos: dscp | tt.inner}.bytes(t)
		s.send(t, 0xb8|tt.outer, sealed(t, b, a, p))
		got := a.next(t)
		checkTCP(t, got)
		if got.Data[1] != dscp|tt.want {
			t.Errorf("inner %d, outer %d: TOS %#x, want %#x", tt.inner, tt.outer, got.Data[1], dscp|tt.want)
		}
	}
}

// TestSealedInOnePiece: the messages of a superpacket lie one behind the other, padded alike, and in counter order.
func TestSealedInOnePiece(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2, over: encrypted, late: true})
	a, b := c.nodes[0], c.nodes[1]
	a.connectLate(t, b)
	w := a.workers[0]
	w.snap = w.Table.Load()
	for _, size := range []int{1360, 1380, 536, 100, 8} {
		p, m := super(t, build{src: "10.244.1.9", dst: "10.244.2.5", payload: 30000, df: true}.bytes(t), size)
		s := &sealedSends{}
		w.lane.Lane = Lane{Queue: &source{packet: p, meta: m, packets: 1}, Secure: s}
		if _, _, err := w.drainQueue(); err != nil {
			t.Fatal(err)
		}
		if want := (30000 + size - 1) / size; len(s.counters) != want {
			t.Fatalf("segments of %d bytes: %d messages left, want %d", size, len(s.counters), want)
		}
		for k := range s.counters {
			if s.counters[k] != s.counters[0]+uint64(k) {
				t.Fatalf("segments of %d bytes: message %d has counter %d after %d", size, k, s.counters[k], s.counters[0])
			}
		}
		if s.pieces != s.sends {
			t.Errorf("segments of %d bytes: %d pieces in %d sends", size, s.pieces, s.sends)
		}
		wire := wireguard.PaddedLen(40+size, 1420) + wireguard.Overhead
		if s.size != wire {
			t.Errorf("segments of %d bytes leave as %d, want %d", size, s.size, wire)
		}
	}
}

// TestPadding: messages of lone packets, segments and fragments are padded with zeros up to what the path carries.
func TestPadding(t *testing.T) {
	a, b, w := newSecurePair(t, encrypted)
	for _, tt := range []struct {
		b    build
		size int // of a superpacket's segments
	}{
		{b: build{payload: 5}}, {b: build{payload: 8}}, {b: build{payload: 1379}}, {b: build{payload: 1380}},
		{b: build{payload: 3000}, size: 1001}, {b: build{proto: protoUDP, payload: 1395}},
		{b: build{proto: protoUDP, payload: 20001}, size: 2000},
	} {
		tt.b.src, tt.b.dst = "10.244.1.9", "10.244.2.5"
		p, m := tt.b.bytes(t), packet.Meta{}
		if tt.size > 0 {
			p, m = super(t, p, tt.size)
		}
		s := &sealedSends{}
		w.lane.Lane = Lane{Queue: &source{packet: p, meta: m, packets: 1}, Secure: s}
		for k := range w.seals.messages[:cap(w.seals.messages)] {
			w.seals.messages[:cap(w.seals.messages)][k] = 0xff
		}
		if _, _, err := w.drainQueue(); err != nil {
			t.Fatal(err)
		}
		if len(s.messages) == 0 {
			t.Errorf("%+v: nothing was sent: %v", tt.b, a.allDrops())
		}
		for _, msg := range s.messages {
			inner, opened := b.secure.tunnel.Session(wireguard.Receiver(msg)).Open(msg, new(wireguard.Nonce))
			var i packet.Info
			if opened != wireguard.Fresh || packet.Parse(inner, &i) != packet.OK {
				t.Fatalf("%+v: opened %d", tt.b, opened)
			}
			if want := min(1420, (int(i.Len)+15)/16*16); len(inner) != want {
				t.Errorf("%+v: %d bytes are padded to %d, want %d", tt.b, i.Len, len(inner), want)
			}
			if bytes.ContainsFunc(inner[i.Len:], func(r rune) bool { return r != 0 }) {
				t.Errorf("%+v: padded with %x", tt.b, inner[i.Len:])
			}
		}
	}
}

// sealedSends notes what is sent to it.
type sealedSends struct {
	source
	sends, pieces, size int
	counters            []uint64
	lengths             []int
	messages            [][]byte
}

func (s *sealedSends) Send(o *tunnel.Outbound) (tunnel.SendResult, error) {
	for _, send := range o.Sends {
		s.sends++
		s.pieces += send.N
		s.size = max(s.size, send.SegmentSize)
		var all []byte
		for _, p := range o.Pieces[send.First : send.First+send.N] {
			all = append(all, p...)
		}
		for ; len(all) > 0; all = all[min(send.SegmentSize, len(all)):] {
			s.counters = append(s.counters, binary.LittleEndian.Uint64(all[8:]))
			s.messages = append(s.messages, all[:min(send.SegmentSize, len(all))])
			s.lengths = append(s.lengths, len(s.messages[len(s.messages)-1]))
		}
	}
	return tunnel.SendResult{Sent: len(o.Sends), Syscalls: 1}, nil
}

// TestNoPlaintextSocket runs nodes that have no VXLAN socket; one of them also has a peer that is not encrypted to.
func TestNoPlaintextSocket(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 3, over: encrypted, noVXLAN: true})
	a, b := c.nodes[0], c.nodes[1]
	p := build{src: "10.244.2.5", dst: "10.244.1.9", payload: 500, df: true}.bytes(t)
	b.dev.Inject(bytes.Clone(p), packet.Meta{})
	if got := a.next(t).Data; !bytes.Equal(got, p) {
		t.Errorf("arrived as %x", got)
	}
	plain := *b.peers[1]
	plain.Encrypted = false
	b.publishPeers(t, []*forwarder.Peer{b.peers[0], &plain})
	b.dev.Inject(build{src: "10.244.2.5", dst: "10.244.3.9", payload: 500, df: true}.bytes(t), packet.Meta{})
	b.waitDrop(t, forwarder.SendFailed, 1)
}
