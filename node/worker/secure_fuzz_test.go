package worker

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/tunnel"
	tunmem "github.com/warren-net/warren/tunnel/memory"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// FuzzSecureDatagrams gives a worker what may come to a lane's socket: datagrams alone and in trains, of a peer's that
// came before, pieces of superframes among them, and anything else. Each message is accounted for once, but a piece,
// which may wait for others, and none opens, moves the peer or gets further.
func FuzzSecureDatagrams(f *testing.F) {
	var seen capture
	c := newCluster(f, clusterConfig{nodes: 2, late: true, over: superframes, network: tunmem.Config{Tap: seen.tap}})
	a, b := c.nodes[0], c.nodes[1]
	w := a.workers[0]
	w.snap = w.Table.Load()
	from := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), 9)
	feed := func(buf []byte, size int, tos uint8, from netip.AddrPort) int {
		return w.fromTunnel(&tunnel.Datagrams{Buf: buf, N: len(buf), SegmentSize: size, TOS: tos, From: from})
	}
	sum := func() (n uint64) {
		for r := range forwarder.NumReasons {
			n += a.drops(r)
		}
		return n
	}
	packet := build{src: "10.244.2.5", dst: "10.244.1.9", payload: 100}.bytes(f)
	msg := sealed(f, b, a, packet)
	feed(bytes.Clone(msg), len(msg), 0, netip.AddrPortFrom(b.addr, securePort))
	if w.Counters.Opened.Load() == 0 {
		f.Fatal("a message of the peer's was not opened")
	}
	p, m := super(f, build{src: "10.244.2.5", dst: "10.244.1.9", payload: 4000}.bytes(f), 1300)
	frame := sealedFrame(f, b, a, p, m.SegmentSize)
	feed(bytes.Clone(frame), testPiece, 0, netip.AddrPortFrom(b.addr, securePort))
	if w.Counters.FramesOpened.Load() == 0 {
		f.Fatal("a superframe of the peer's was not opened")
	}
	w.join.Reset() // of their packets, which are not what this is about
	train := bytes.Repeat(msg, 5)
	f.Add(msg, uint16(len(msg)), uint8(0))
	f.Add(train, uint16(len(msg)), uint8(3))
	f.Add(train[:len(train)-1], uint16(len(msg)), uint8(1))
	f.Add(msg[:wireguard.Overhead-1], uint16(0), uint8(0))
	f.Add([]byte{}, uint16(0), uint8(0))
	f.Add(append(bytes.Clone(msg), make([]byte, 1<<15)...), uint16(1), uint8(0))
	f.Add(frame, uint16(testPiece), uint8(2))
	f.Add(frame[testPiece:], uint16(testPiece), uint8(0))
	f.Add(frame[:len(frame)-1], uint16(testPiece), uint8(3))
	f.Add(append(bytes.Clone(frame), frame...), uint16(testPiece), uint8(0))
	f.Add(append(bytes.Clone(frame[testPiece:]), frame[:testPiece]...), uint16(testPiece), uint8(0))
	f.Add(frame[:testPiece], uint16(0), uint8(0))
	for _, d := range seen.seen { // handshakes among them
		f.Add(d.Data, uint16(len(d.Data)), uint8(0))
		f.Add(append(append(bytes.Clone(d.Data), msg...), d.Data...), uint16(len(d.Data)), uint8(0))
	}
	f.Fuzz(func(t *testing.T, buf []byte, size uint16, tos uint8) {
		m := bytes.Clone(buf)
		*w.Crypt.Pieces(0) = wireguard.Assembler{} // what waits in it is of other runs
		from := from
		if tos&0x80 != 0 {
			from = netip.AddrPortFrom(b.addr, securePort)
		}
		messages, handshakes, pieces := 0, 0, 0
		for rest := m; messages == 0 || len(rest) > 0; messages++ {
			one := rest
			if size > 0 {
				one = rest[:min(int(size), len(rest))]
			}
			rest = rest[len(one):]
			switch {
			case wireguard.IsHandshake(one):
				handshakes++
			case wireguard.IsPiece(one) && a.secure.tunnel.Session(wireguard.Receiver(one)) != nil:
				pieces++
			}
		}
		lost := a.drops(forwarder.LostPieces)
		dropped, opened, at := sum(), w.Counters.Opened.Load(), a.with(b).Endpoint()
		if n := feed(m, int(size), tos, from); n != messages {
			t.Errorf("%d messages, want %d", n, messages)
		}
		lost = a.drops(forwarder.LostPieces) - lost
		n, least := sum()-dropped-lost, uint64(messages-handshakes-pieces)
		if n < least || n > least+uint64(pieces) || lost > uint64(pieces) {
			t.Errorf("%d of %d messages were dropped and %d superframes lost, %d are of handshakes, %d are pieces", n, messages,
				lost, handshakes, pieces)
		}
		if n := w.Counters.Opened.Load() - opened; n > 0 {
			t.Errorf("%d messages that nobody sent were opened", n)
		}
		if now := a.with(b).Endpoint(); now != at {
			t.Errorf("the peer is at %s now", now)
		}
		if err := w.deliverRuns(messages); err != nil {
			t.Fatal(err)
		}
		a.empty(t)
	})
}

// empty wants that nothing was written to the node's device up to now; its workers don't run.
func (n *testNode) empty(t testing.TB) {
	t.Helper()
	select {
	case p := <-n.dev.Written():
		t.Errorf("%s: a packet of %d bytes was written to the device", n.name, len(p.Data))
	default:
	}
}
