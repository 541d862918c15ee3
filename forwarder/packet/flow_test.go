package packet

import (
	"math/rand/v2"
	"testing"
)

// TestFlowHash holds the hash to its purpose: both directions and all fragments of a flow agree, flows spread.
func TestFlowHash(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	const queues, packets = 8, 8000
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			seen := make([]int, queues)
			for range packets {
				s := naiveSpec{v6: v6, udp: udp, flags: tcpACK, host: byte(rnd.Uint32()), sport: uint16(rnd.Uint32()),
					payload: make([]byte, 40)}
				i := *parsed(t, s.build())
				h := i.FlowHash()
				seen[h%queues]++
				back := i
				back.Src, back.Dst, back.SrcPort, back.DstPort = i.Dst, i.Src, i.DstPort, i.SrcPort
				if back.FlowHash() != h {
					t.Fatalf("the two directions of %v:%d to %v:%d differ", i.Src, i.SrcPort, i.Dst, i.DstPort)
				}
				first, later := i, i
				first.Flags |= Fragment
				later.Flags = later.Flags&^HasPorts | Fragment | LaterFragment
				later.SrcPort, later.DstPort = 0, 0
				if first.FlowHash() != later.FlowHash() {
					t.Fatal("the fragments of a packet differ")
				}
			}
			for q, n := range seen {
				if n < packets/queues/2 {
					t.Errorf("IPv6 %v, UDP %v: queue %d gets %d of %d flows", v6, udp, q, n, packets)
				}
			}
		}
	}
}
