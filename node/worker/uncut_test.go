package worker

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// receiveUncut hands one datagram of a kernel VTEP to node 1's worker: a VXLAN frame whose inner checksum was left to a
// device, and the segment size that the socket said, 0 for none.
func receiveUncut(t *testing.T, inner []byte, segment int) []byte {
	t.Helper()
	c := newCluster(t, clusterConfig{nodes: 2, pathMTU: 1420, late: true})
	a, b := c.nodes[0], c.nodes[1]
	partial, _ := super(t, bytes.Clone(inner), 1)
	h := vxlan.NewHeader(testVNI, a.mac, b.mac, vxlan.EtherTypeIPv4)
	d := append(h[:], partial...)
	s := tunnel.Datagrams{Buf: d, N: len(d), SegmentSize: len(d), From: netip.AddrPortFrom(b.addr, 5555)}
	if segment > 0 {
		s.SegmentSize = segment
	}
	w := a.workers[0]
	w.snap = w.Table.Load()
	w.join.Reset()
	w.fromWire(&s, 1)
	for k := range w.join.Len() {
		if err := w.deliverRun(k); err != nil {
			t.Fatal(err)
		}
	}
	if d := a.allDrops(); len(d) > 0 {
		t.Fatalf("dropped: %v", d)
	}
	p := a.next(t)
	a.nothing(t)
	if p.Meta.Type == packet.GSONone {
		if !bytes.Equal(p.Data, inner) {
			t.Errorf("arrived as %d bytes, want the %d sent with a complete checksum", len(p.Data), len(inner))
		}
		return nil
	}
	if !bytes.Equal(p.Data, partial) {
		t.Errorf("a superpacket of %d bytes arrived, want the %d sent", len(p.Data), len(partial))
	}
	return binary.BigEndian.AppendUint16(nil, p.Meta.SegmentSize)
}

// TestKernelDatagramAboveOurMTU receives a lone UDP datagram that is larger than this node's MTU: a kernel VXLAN
// device's default MTU is 1450 where Warren's pods have 1420. It stays one datagram: whoever cut it would break it.
// What becomes of it then is the kernel's to say, fragments or "too big".
func TestKernelDatagramAboveOurMTU(t *testing.T) {
	p := build{src: "10.244.2.5", dst: "10.244.1.9", proto: protoUDP, payload: 1422, id: 7}.bytes(t)
	if size := receiveUncut(t, p, 0); size != nil {
		t.Errorf("it became a superpacket with segments of %d bytes", binary.BigEndian.Uint16(size))
	}
}

// TestUncutDatagrams receives superpackets that nobody cut, large and small.
func TestUncutDatagrams(t *testing.T) {
	for _, tt := range []struct {
		name    string
		b       build
		segment int // that the socket says
		want    int
	}{
		{"UDP", build{proto: protoUDP, payload: 20*1000 + 9}, 1000, 1000},
		{"UDP, below the MTU", build{proto: protoUDP, payload: 9*100 + 9}, 100, 100},
		{"TCP", build{payload: 30000, flags: 0x18}, 0, 1380},
		{"TCP, below the MTU", build{payload: 1300, flags: 0x18}, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.b.src, tt.b.dst = "10.244.2.5", "10.244.1.9"
			size, got := receiveUncut(t, tt.b.bytes(t), tt.segment), 0
			if size != nil {
				got = int(binary.BigEndian.Uint16(size))
			}
			if got != tt.want {
				t.Errorf("segments of %d bytes, want %d", got, tt.want)
			}
		})
	}
}
