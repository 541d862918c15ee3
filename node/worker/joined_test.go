package worker

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	tunmem "github.com/warren-net/warren/tunnel/memory"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// TestManySmallDatagrams joins a flow of small datagrams to superpackets that a kernel takes: one with too many of them
// would be refused, copied, summed and written datagram by datagram.
func TestManySmallDatagrams(t *testing.T) {
	const datagrams = 1000
	c := newCluster(t, clusterConfig{nodes: 2, late: true})
	a, b := c.nodes[0], c.nodes[1]
	h := vxlan.NewHeader(testVNI, a.mac, b.mac, vxlan.EtherTypeIPv4)
	s := newStranger(c, "192.0.2.2")
	for k := range datagrams {
		s.send(t, 0, h[:], build{src: "10.244.2.5", dst: "10.244.1.9", proto: protoUDP, payload: 32, id: uint16(k)}.bytes(t))
	}
	c.start(a)
	got := 0
	for got < datagrams {
		p := a.next(t)
		if p.Meta.Type != packet.GSOUDP {
			t.Fatalf("a packet of %d bytes with %+v after %d datagrams, want a superpacket", len(p.Data), p.Meta, got)
		}
		got += (len(p.Data) - 28) / 32
	}
	w := &a.workers[0].Counters
	for deadline := time.Now().Add(time.Second); w.SegmentsIn.Load() < datagrams && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if writes, runs := w.QueueWrites.Load(), w.RunsIn.Load(); writes > runs || runs > datagrams/50 {
		t.Errorf("%d datagrams became %d superpackets, written in %d calls", got, runs, writes)
	}
	if d := a.allDrops(); len(d) > 0 {
		t.Errorf("dropped: %v", d)
	}
}

// TestRefusedSendsAreCountedInSegments sends a superpacket whose segments are too large for the underlay.
func TestRefusedSendsAreCountedInSegments(t *testing.T) {
	eachEncapsulation(t, testRefusedSendsAreCountedInSegments)
}

func testRefusedSendsAreCountedInSegments(t *testing.T, over encapsulation) {
	c := newCluster(t, clusterConfig{nodes: 2, over: over, network: tunmem.Config{MTU: 1300}})
	p, m := super(t, build{src: "10.244.1.5", dst: "10.244.2.9", payload: 20 * 1360, df: true}.bytes(t), 1360)
	c.nodes[0].dev.Inject(p, m)
	datagrams := uint64(20)
	if over.frames {
		datagrams-- // a piece holds more than a segment
	}
	c.nodes[0].waitDrop(t, forwarder.SendTooBig, datagrams)
}

// TestUSORefused has the device refuse the superpacket that a flow of datagrams was joined to: that one and what
// follows go on as the datagrams that they were, each with its checksum.
func TestUSORefused(t *testing.T) { eachEncapsulation(t, testUSORefused) }

func testUSORefused(t *testing.T, over encapsulation) {
	const size, datagrams = 1000, 20
	c := newCluster(t, clusterConfig{nodes: 2, over: over})
	to := c.nodes[1]
	to.dev.Break(packet.GSOUDP)
	want := build{src: "10.244.1.5", dst: "10.244.2.9", proto: protoUDP, payload: size * datagrams, df: true}.bytes(t)
	for range 2 {
		p, m := super(t, bytes.Clone(want), size)
		c.nodes[0].dev.Inject(p, m)
		var got []byte
		for range datagrams {
			p := to.next(t)
			if p.Meta.Type != packet.GSONone || p.Meta.NeedsChecksum || len(p.Data) != 28+size {
				t.Fatalf("%d bytes with %+v, want a complete datagram", len(p.Data), p.Meta)
			}
			sum := pseudo(netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("10.244.2.9"), protoUDP, 8+size)
			if checksum.Checksum(p.Data[20:], sum) != 0xffff {
				t.Fatalf("datagram with a bad checksum: %x", p.Data[20:28])
			}
			got = append(got, p.Data[28:]...)
		}
		if !bytes.Equal(got, want[28:]) {
			t.Error("the payload did not arrive as it was sent")
		}
	}
	to.nothing(t)
	if d := to.allDrops(); len(d) > 0 || to.dev.Queues()[0].Takes(packet.GSOUDP) {
		t.Errorf("dropped: %v; or the device still takes the type", d)
	}
}
