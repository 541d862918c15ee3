package worker

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	devmem "github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
	tunmem "github.com/warren-net/warren/tunnel/memory"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// TestPassesUnharmed sends packets of every awkward kind through two nodes; each has to arrive byte for byte.
func TestPassesUnharmed(t *testing.T) { eachEncapsulation(t, testPassesUnharmed) }

func testPassesUnharmed(t *testing.T, over encapsulation) {
	hop := append([]byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, []byte{}...) // hop-by-hop with PadN
	tests := []struct {
		name string
		b    build
	}{
		{"TCP data", build{payload: 1000}},
		{"TCP without payload", build{flags: 0x10}},
		{"FIN", build{flags: 0x11}},
		{"RST", build{flags: 0x14}},
		{"PSH", build{flags: 0x18, payload: 10}},
		{"URG", build{flags: 0x38, payload: 10}},
		{"CWR", build{flags: 0x90, payload: 10}},
		{"ECE", build{flags: 0x50, payload: 10}},
		{"every flag but SYN", build{flags: 0xfd, payload: 10}},
		{"SYN whose MSS fits", build{flags: 0x02, mss: 1000}},
		{"UDP", build{proto: protoUDP, payload: 500}},
		{"UDP, empty", build{proto: protoUDP}},
		{"ECT(0)", build{payload: 10, tos: 2}},
		{"ECT(1)", build{payload: 10, tos: 1}},
		{"CE", build{payload: 10, tos: 3}},
		{"DSCP EF", build{payload: 10, tos: 46 << 2}},
		{"UDP CE, DSCP AF41", build{proto: protoUDP, payload: 10, tos: 34<<2 | 3}},
		{"unknown protocol", build{proto: 132, l4: bytes.Repeat([]byte{9}, 77)}},
		{"a bad TCP checksum", build{l4: bytes.Repeat([]byte{0x50}, 40)}},
	}
	v4 := []struct {
		name string
		b    build
	}{
		{"UDP, zero checksum", build{proto: protoUDP, payload: 500, noSum: true}},
		{"IP options", build{payload: 10, ipOpts: []byte{0x94, 4, 0, 0, 1, 1, 1, 0}}},
		{"first fragment", build{proto: protoUDP, payload: 800, fragment: 0x2000, id: 77}},
		{"middle fragment", build{proto: protoUDP, l4: bytes.Repeat([]byte{7}, 800), fragment: 0x2064, id: 77}},
		{"last fragment", build{proto: protoUDP, l4: bytes.Repeat([]byte{7}, 99), fragment: 0x00c8, id: 77}},
		{"DF", build{payload: 100, df: true}},
		{"ping", build{proto: protoICMP, payload: 56}},
	}
	v6 := []struct {
		name string
		b    build
	}{
		{"hop-by-hop options", build{proto: protoUDP, payload: 100, ext: hop, extType: 0}},
		{"first fragment", build{proto: protoUDP, l4: bytes.Repeat([]byte{5}, 808), ext: []byte{protoUDP, 0, 0, 1, 1, 2, 3,
			4}, extType: 44}},
		{"last fragment", build{proto: protoUDP, l4: bytes.Repeat([]byte{5}, 99), ext: []byte{protoUDP, 0, 3, 0x28, 1, 2,
			3, 4}, extType: 44}},
		{"destination options", build{payload: 100, ext: []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0}, extType: 60}},
	}
	for _, underlay := range []bool{false, true} {
		c := newCluster(t, clusterConfig{nodes: 2, over: over, v6: underlay})
		a, b := c.nodes[0], c.nodes[1]
		run := func(family, name string, bld build, src, dst string) {
			bld.src, bld.dst = src, dst
			t.Run(fmt.Sprintf("IPv6 underlay %v/%s/%s", underlay, family, name), func(t *testing.T) {
				want := bld.bytes(t)
				if !a.dev.Inject(bytes.Clone(want), packet.Meta{}) {
					t.Fatal("the queue is full")
				}
				got := b.next(t)
				if !bytes.Equal(got.Data, want) {
					t.Errorf("arrived as\n%x\nwant\n%x", got.Data, want)
				}
				if got.Meta.Type != packet.GSONone || got.Meta.NeedsChecksum {
					t.Errorf("a lone packet arrived with %+v", got.Meta)
				}
			})
		}
		for _, tt := range tests {
			run("IPv4", tt.name, tt.b, "10.244.1.5", "10.244.2.9")
			run("IPv6", tt.name, tt.b, "fd00:10:244:1::5", "fd00:10:244:2::9")
		}
		for _, tt := range v4 {
			run("IPv4", tt.name, tt.b, "10.244.1.5", "10.244.2.9")
		}
		for _, tt := range v6 {
			run("IPv6", tt.name, tt.b, "fd00:10:244:1::5", "fd00:10:244:2::9")
		}
		if d := a.allDrops(); len(d) > 0 {
			t.Errorf("node a dropped %v", d)
		}
		if d := b.allDrops(); len(d) > 0 {
			t.Errorf("node b dropped %v", d)
		}
	}
}

// TestSuperpacketArrivesWhole sends 64 KiB superpackets; every one has to arrive in one piece, with the same bytes.
func TestSuperpacketArrivesWhole(t *testing.T) { eachEncapsulation(t, testSuperpacketArrivesWhole) }

func testSuperpacketArrivesWhole(t *testing.T, over encapsulation) {
	for _, tt := range []struct {
		name string
		b    build
	}{
		{"TCP over IPv4", build{src: "10.244.1.5", dst: "10.244.2.9", payload: 60000, flags: 0x18, df: true, id: 9}},
		{"TCP over IPv6", build{src: "fd00:10:244:1::5", dst: "fd00:10:244:2::9", payload: 60000, flags: 0x11}},
		{"UDP over IPv4", build{src: "10.244.1.5", dst: "10.244.2.9", proto: protoUDP, payload: 60000, df: true}},
		{"UDP over IPv6", build{src: "fd00:10:244:1::5", dst: "fd00:10:244:2::9", proto: protoUDP, payload: 60000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, clusterConfig{nodes: 2, over: over, late: true})
			agreed := c.net.Stats().Delivered
			p, m := super(t, tt.b.bytes(t), 1360)
			want := bytes.Clone(p)
			if !c.nodes[0].dev.Inject(p, m) {
				t.Fatal("not injected")
			}
			// The receiver begins when all of it is there: what arrives in two batches may be joined to two superpackets.
			c.start(c.nodes[0])
			arrive := uint64(45)
			switch {
			case over.frames:
				f := wireguard.Frame{Packet: want, Piece: 1420 + wireguard.Overhead}
				_, pieces, _ := f.Bounds()
				arrive = agreed + uint64(pieces)
			case over.encrypted:
				arrive += handshakeMessages
			}
			for c.net.Stats().Delivered < arrive {
				time.Sleep(time.Millisecond)
			}
			c.start(c.nodes[1])
			got := c.nodes[1].next(t)
			if got.Meta != m {
				t.Errorf("metadata %+v, want %+v", got.Meta, m)
			}
			if !bytes.Equal(got.Data, want) {
				t.Errorf("%d bytes arrived, want %d; headers\n%x\n%x", len(got.Data), len(want), got.Data[:60], want[:60])
			}
			sends := &c.nodes[0].workers[0].Counters.Sends
			for deadline := time.Now().Add(time.Second); sends.Load() == 0 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond) // counted after the send
			}
			if s := sends.Load(); s != 1 {
				t.Errorf("it left in %d sends, want 1", s)
			}
		})
	}
}

// TestOffloadsMissing cuts what the device cannot take whole, from the start or once a write showed it.
func TestOffloadsMissing(t *testing.T) { eachEncapsulation(t, testOffloadsMissing) }

func testOffloadsMissing(t *testing.T, over encapsulation) {
	b := build{src: "10.244.1.5", dst: "10.244.2.9", payload: 10 * 1360, flags: 0x18, df: true}
	for _, tt := range []struct {
		name    string
		device  devmem.Config
		network tunmem.Config
		broken  bool
		dst     string
	}{
		{name: "no TSO", device: devmem.Config{NoTSO: true}, dst: "10.244.2.9"},
		{name: "TSO breaks at the first write", broken: true, dst: "10.244.2.9"},
		{name: "TSO breaks on the same node", broken: true, dst: "10.244.1.9"},
		{name: "no UDP GSO, no UDP GRO, no TSO", device: devmem.Config{NoTSO: true, NoUSO: true},
			network: tunmem.Config{NoGSO: true, NoGRO: true}, dst: "10.244.2.9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, clusterConfig{nodes: 2, over: over, device: tt.device, network: tt.network})
			to := c.nodes[1]
			if tt.dst == "10.244.1.9" {
				to = c.nodes[0]
			}
			if tt.broken {
				to.dev.Break(packet.GSOTCP4)
			}
			b.dst = tt.dst
			p, m := super(t, b.bytes(t), 1360)
			payload := bytes.Clone(p[40:])
			c.nodes[0].dev.Inject(p, m)
			var got []byte
			for range 10 {
				s := to.next(t)
				checkTCP(t, s)
				got = append(got, s.Data[40:]...)
			}
			if !bytes.Equal(got, payload) {
				t.Error("the payload did not arrive as it was sent")
			}
			to.nothing(t)
		})
	}
}

// TestNoUDPGRO joins segments that arrive one by one.
func TestNoUDPGRO(t *testing.T) { eachEncapsulation(t, testNoUDPGRO) }

func testNoUDPGRO(t *testing.T, over encapsulation) {
	c := newCluster(t, clusterConfig{nodes: 2, over: over, network: tunmem.Config{NoGSO: true, NoGRO: true}})
	p, m := super(t, build{src: "10.244.1.5", dst: "10.244.2.9", payload: 8 * 1360, df: true}.bytes(t), 1360)
	want := bytes.Clone(p[40:])
	c.nodes[0].dev.Inject(p, m)
	var got []byte
	for len(got) < len(want) {
		got = append(got, c.nodes[1].next(t).Data[40:]...)
	}
	if !bytes.Equal(got, want) {
		t.Error("the payload did not arrive as it was sent")
	}
}

// checkTCP verifies the checksums of a lone TCP segment over IPv4 with gVisor's code.
func checkTCP(t *testing.T, p devmem.Packet) {
	t.Helper()
	if p.Meta.Type != packet.GSONone || p.Meta.NeedsChecksum {
		t.Fatalf("not a complete lone packet: %+v", p.Meta)
	}
	ip := header.IPv4(p.Data)
	if !ip.IsValid(len(p.Data)) || !ip.IsChecksumValid() {
		t.Fatalf("bad IPv4 header: %x", p.Data[:20])
	}
	seg := header.TCP(ip.Payload())
	if !seg.IsChecksumValid(ip.SourceAddress(), ip.DestinationAddress(),
		checksum.Checksum(seg.Payload(), 0), uint16(len(seg.Payload()))) {
		t.Fatalf("bad TCP checksum: %x", p.Data[:40])
	}
}

// TestRejects answers what cannot go on with the right ICMP error from the gateway address.
func TestRejects(t *testing.T) { eachEncapsulation(t, testRejects) }

func testRejects(t *testing.T, over encapsulation) {
	tests := []struct {
		name       string
		b          build
		reason     forwarder.Reason
		typ, code  byte
		mtu        int
		superSize  int
		v6         bool
		noResponse bool
	}{
		{name: "too big, DF", b: build{dst: "10.244.2.9", payload: 1361, df: true}, reason: forwarder.TooBig, typ: 3,
			code: 4, mtu: 1400},
		{name: "IPv6 too big", b: build{dst: "fd00:10:244:2::9", payload: 1341}, reason: forwarder.TooBig, typ: 2, code: 0,
			mtu: 1400, v6: true},
		{name: "superpacket too big", b: build{dst: "10.244.2.9", payload: 30000, df: true}, superSize: 1380,
			reason: forwarder.TooBig, typ: 3, code: 4, mtu: 1400},
		{name: "no route", b: build{dst: "10.244.99.9", payload: 10}, reason: forwarder.NoRoute, typ: 3, code: 0},
		{name: "IPv6 no route", b: build{dst: "fd00:10:244:99::9", payload: 10}, reason: forwarder.NoRoute, typ: 1,
			code: 0, v6: true},
		{name: "ICMP error is not answered", b: build{dst: "10.244.99.9", proto: protoICMP, l4: append([]byte{3, 1, 0, 0,
			0, 0, 0, 0}, make([]byte, 28)...)},
			reason: forwarder.NoRoute, noResponse: true},
		{name: "later fragment is not answered", b: build{dst: "10.244.99.9", proto: protoUDP, l4: make([]byte, 100),
			fragment: 0x0010},
			reason: forwarder.NoRoute, noResponse: true},
		{name: "multicast is not answered", b: build{dst: "224.0.0.9", proto: protoUDP, payload: 10},
			reason: forwarder.Multicast, noResponse: true},
		{name: "spoofed source is not answered", b: build{src: "10.244.3.3", dst: "10.244.2.9", payload: 10},
			reason: forwarder.SourceNotLocal, noResponse: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, clusterConfig{nodes: 2, over: over, pathMTU: 1400})
			a := c.nodes[0]
			if tt.b.src == "" {
				tt.b.src = "10.244.1.5"
				if tt.v6 {
					tt.b.src = "fd00:10:244:1::5"
				}
			}
			p, m := tt.b.bytes(t), packet.Meta{}
			if tt.superSize > 0 {
				p, m = super(t, p, tt.superSize)
			}
			a.dev.Inject(p, m)
			a.waitDrop(t, tt.reason, 1)
			if tt.noResponse {
				a.nothing(t)
				return
			}
			got := a.next(t).Data
			icmp, from := got[20:], "10.244.1.1"
			if tt.v6 {
				icmp, from = got[40:], "fd00:10:244:1::1"
			}
			var i packet.Info
			if e := packet.Parse(got, &i); e != packet.OK {
				t.Fatal(e)
			}
			if i.Src.String() != from || i.Dst.String() != tt.b.src {
				t.Errorf("from %v to %v, want from %s to %s", i.Src, i.Dst, from, tt.b.src)
			}
			if icmp[0] != tt.typ || icmp[1] != tt.code {
				t.Errorf("type %d code %d, want %d and %d", icmp[0], icmp[1], tt.typ, tt.code)
			}
			mtu := int(binary.BigEndian.Uint16(icmp[6:]))
			if tt.mtu != 0 && mtu != tt.mtu {
				t.Errorf("MTU %d, want %d", mtu, tt.mtu)
			}
			c.nodes[1].nothing(t)
		})
	}
}

// TestICMPIsRateLimited sends a burst of packets without a route: no more errors than the bucket holds.
func TestICMPIsRateLimited(t *testing.T) {
	now := time.Unix(1000, 0)
	c := newCluster(t, clusterConfig{nodes: 1, now: func() time.Time { return now }})
	a := c.nodes[0]
	for range 200 {
		a.dev.Inject(build{src: "10.244.1.5", dst: "10.244.9.9", payload: 10}.bytes(t), packet.Meta{})
	}
	a.waitDrop(t, forwarder.NoRoute, 200)
	w := a.workers[0]
	if sent, limited := w.Counters.ICMPSent.Load(),
		w.Counters.ICMPLimited.Load(); sent != icmpBurst || limited != 200-icmpBurst {
		t.Errorf("%d errors sent and %d withheld, want %d and %d", sent, limited, icmpBurst, 200-icmpBurst)
	}
}

// TestFragments splits IPv4 without DF for a path that is too narrow, a lone packet and a superpacket.
func TestFragments(t *testing.T) { eachEncapsulation(t, testFragments) }

func testFragments(t *testing.T, over encapsulation) {
	c := newCluster(t, clusterConfig{nodes: 2, over: over, pathMTU: 1300})
	a, b := c.nodes[0], c.nodes[1]
	whole := build{src: "10.244.1.5", dst: "10.244.2.9", proto: protoUDP, payload: 1392, id: 5}.bytes(t)
	a.dev.Inject(bytes.Clone(whole), packet.Meta{})
	var got []byte
	for last := false; !last; {
		f := b.next(t).Data
		if len(f) > 1300 {
			t.Errorf("a fragment of %d bytes", len(f))
		}
		field := binary.BigEndian.Uint16(f[6:])
		if int(field&0x1fff)*8 != len(got) {
			t.Fatalf("fragment at %d, want %d", int(field&0x1fff)*8, len(got))
		}
		if id := binary.BigEndian.Uint16(f[4:]); id != 5 {
			t.Errorf("ID %d, want 5", id)
		}
		got = append(got, f[20:]...)
		last = field&0x2000 == 0
	}
	if !bytes.Equal(got, whole[20:]) {
		t.Error("the fragments do not make up the packet")
	}

	p, m := super(t, build{src: "10.244.1.5", dst: "10.244.2.9", payload: 4 * 1360, id: 100}.bytes(t), 1360)
	a.dev.Inject(p, m)
	ids := map[uint16]int{}
	for range 8 { // each of the four segments becomes two fragments
		f := b.next(t).Data
		ids[binary.BigEndian.Uint16(f[4:])]++
	}
	for id := uint16(100); id < 104; id++ {
		if ids[id] != 2 {
			t.Errorf("%d fragments with ID %d, want 2 of each: %v", ids[id], id, ids)
		}
	}
}

// TestClampsMSS lowers the MSS of a SYN to the path, at both ends, and leaves the checksum right.
func TestClampsMSS(t *testing.T) { eachEncapsulation(t, testClampsMSS) }

func testClampsMSS(t *testing.T, over encapsulation) {
	c := newCluster(t, clusterConfig{nodes: 2, over: over, pathMTU: 1300})
	c.nodes[0].dev.Inject(build{src: "10.244.1.5", dst: "10.244.2.9", flags: 0x02, mss: 1380}.bytes(t), packet.Meta{})
	got := c.nodes[1].next(t)
	checkTCP(t, got)
	if mss := binary.BigEndian.Uint16(got.Data[42:]); mss != 1260 {
		t.Errorf("MSS %d, want 1260", mss)
	}
	// The answering side alone knows of the narrow path.
	d := newCluster(t, clusterConfig{nodes: 2, over: over, pathMTU: 1450})
	spec := d.nodes[1].peers[0]
	narrow := *spec
	narrow.MTU = 1300
	d.nodes[1].publishPeers(t, []*forwarder.Peer{&narrow})
	d.nodes[0].dev.Inject(build{src: "10.244.1.5", dst: "10.244.2.9", flags: 0x12, mss: 1380}.bytes(t), packet.Meta{})
	got = d.nodes[1].next(t)
	checkTCP(t, got)
	if mss := binary.BigEndian.Uint16(got.Data[42:]); mss != 1260 {
		t.Errorf("MSS %d, want 1260", mss)
	}
}
