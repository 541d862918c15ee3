package udp

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/bpf"

	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// TestKernelSteersByInnerFlow sends datagrams of many inner flows, both directions of each, from one outer flow: each
// has to reach the socket that packet.FlowHash names.
func TestKernelSteersByInnerFlow(t *testing.T) {
	const workers = 4
	program, err := vxlan.Steer(workers)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddr("127.0.0.1")
	group, err := OpenGroup(workers, Config{Addrs: []netip.Addr{at}, Steer: program})
	if err != nil {
		t.Fatal(err)
	}
	sender, err := Open(Config{Addrs: []netip.Addr{at}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range append(group, sender) {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	if o := group[0].Offloads(); len(o) != 3 || o[2].Name != "udp-steering" || !o[2].Enabled {
		t.Fatalf("offloads: %+v", o)
	}
	header := vxlan.NewHeader(1, [6]byte{2}, [6]byte{4}, vxlan.EtherTypeIPv4)
	to := netip.AddrPortFrom(at, group[0].Port())
	const flows = 64
	for flow := range flows {
		for _, back := range []bool{false, true} {
			p := make([]byte, 40)
			p[0], p[3], p[9], p[32] = 0x45, 40, 6, 0x50
			copy(p[12:], []byte{10, 244, 1, 5, 10, 244, 2, byte(flow)})
			copy(p[20:], []byte{0x9c, byte(flow), 0, 80})
			if back {
				copy(p[12:], []byte{10, 244, 2, byte(flow), 10, 244, 1, 5})
				copy(p[20:], []byte{0, 80, 0x9c, byte(flow)})
			}
			var o tunnel.Outbound
			o.Append(tunnel.Send{To: to}, header[:], p)
			if r, err := sender.Send(&o); err != nil || r.Sent != 1 {
				t.Fatal(r, err)
			}
		}
	}
	in := tunnel.NewInbound(16)
	got := 0
	for deadline := time.Now().Add(5 * time.Second); got < 2*flows && time.Now().Before(deadline); {
		for w, s := range group {
			if err := s.Receive(in); err != nil {
				t.Fatal(err)
			}
			for _, slot := range in.Slots[:in.N] {
				for d := slot.Buf[:slot.N]; len(d) > 0; d = d[slot.SegmentSize:] {
					var i packet.Info
					if e := packet.Parse(d[vxlan.HeaderLen:slot.SegmentSize], &i); e != packet.OK {
						t.Fatal(e)
					}
					if want := int(i.FlowHash()) % workers; want != w {
						t.Errorf("%v:%d to %v:%d reached socket %d, want %d", i.Src, i.SrcPort, i.Dst, i.DstPort, w, want)
					}
					got++
				}
			}
		}
	}
	if got != 2*flows {
		t.Errorf("%d datagrams arrived, want %d", got, 2*flows)
	}
}

// TestRefusedSteeringIsSaid gives the kernel a program that it cannot take.
func TestRefusedSteeringIsSaid(t *testing.T) {
	group, err := OpenGroup(2, Config{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		Steer: []bpf.RawInstruction{{Op: 0xffff}}})
	if err != nil {
		t.Fatal(err)
	}
	defer group[0].Close()
	defer group[1].Close()
	if o := group[1].Offloads(); len(o) != 3 || o[2].Enabled || o[2].Reason == "" {
		t.Errorf("offloads: %+v", o)
	}
}
