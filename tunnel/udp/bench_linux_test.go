package udp

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/warren-net/warren/tunnel"
)

// BenchmarkVeth moves superpackets of 45 datagrams over a veth pair into the peer's socket and out of it again.
func BenchmarkVeth(b *testing.B) {
	for _, pieces := range []string{"90 pieces", "one piece"} {
		for _, gso := range []Mode{Auto, Off} {
			b.Run(fmt.Sprintf("%s/gso=%v", pieces, gso), func(b *testing.B) {
				one, two := newPair(b)
				from, to := one.open(Config{Port: tunnelPort, GSO: gso}), two.open(Config{Port: tunnelPort})
				l := load{to: netip.AddrPortFrom(b4, tunnelPort), total: 45 * 1450, segment: 1450}
				var o tunnel.Outbound
				l.add(&o)
				if pieces == "one piece" {
					o = tunnel.Outbound{Sends: o.Sends, Pieces: [][]byte{make([]byte, l.total)}}
					o.Sends[0].N = 1
				}
				in := tunnel.NewInbound(64)
				b.ReportAllocs()
				b.SetBytes(int64(l.total))
				for b.Loop() {
					if res, err := from.Send(&o); err != nil || res.Sent != 1 {
						b.Fatalf("%+v, %v", res, err)
					}
					for got := 0; got < l.total; {
						if err := to.Receive(in); err != nil {
							b.Fatal(err)
						}
						for _, slot := range in.Slots[:in.N] {
							got += slot.N
						}
						if in.N == 0 {
							b.Fatalf("%d of %d bytes received", got, l.total)
						}
					}
				}
			})
		}
	}
}
