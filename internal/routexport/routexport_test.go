package routexport_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/routexport"
)

func nodes() []routexport.Node {
	a, p := netip.MustParseAddr, netip.MustParsePrefix
	return []routexport.Node{
		{Name: "b", Addresses: []netip.Addr{a("192.0.2.2"), a("2001:db8::2")},
			PodCIDRs: []netip.Prefix{p("10.244.2.0/24"), p("fd00:10:244:2::/64")}},
		{Name: "a", Addresses: []netip.Addr{a("192.0.2.1")},
			PodCIDRs: []netip.Prefix{p("10.244.1.0/24"), p("fd00:10:244:1::/64")}},
		{Name: "c\n", Addresses: []netip.Addr{a("2001:db8::3")}, PodCIDRs: []netip.Prefix{p("10.244.3.0/24")}},
	}
}

func TestWrite(t *testing.T) {
	for format, want := range map[routexport.Format]string{
		routexport.IP: `set -e
ip route replace 10.244.1.0/24 via 192.0.2.1 proto static # a
ip route replace 10.244.2.0/24 via 192.0.2.2 proto static # b
ip route replace 10.244.3.0/24 via inet6 2001:db8::3 proto static # c?
ip -6 route replace fd00:10:244:2::/64 via 2001:db8::2 proto static # b
`,
		routexport.BIRD: `protocol static warren4 {
	ipv4;
	route 10.244.1.0/24 via 192.0.2.1; # a
	route 10.244.2.0/24 via 192.0.2.2; # b
	route 10.244.3.0/24 via 2001:db8::3; # c?
}
protocol static warren6 {
	ipv6;
	route fd00:10:244:2::/64 via 2001:db8::2; # b
}
`,
		routexport.FRR: `! a
ip route 10.244.1.0/24 192.0.2.1
! b
ip route 10.244.2.0/24 192.0.2.2
! b
ipv6 route fd00:10:244:2::/64 2001:db8::2
`,
	} {
		got, leftOut, err := routexport.Write(format, nodes())
		if err != nil || !strings.HasSuffix(got, want) {
			t.Errorf("%s: %v\ngot:\n%s\nwant:\n%s", format, err, got, want)
		}
		wantOut := []string{"fd00:10:244:1::/64 of node a is left out: a route to it needs an IPv6 address of the node"}
		if format == routexport.FRR {
			wantOut = append(wantOut, "10.244.3.0/24 of node c? is left out: a route to it needs an IPv4 address of the node")
		}
		if !slices.Equal(leftOut, wantOut) {
			t.Errorf("%s: left out %q, want %q", format, leftOut, wantOut)
		}
	}
}

func TestWriteRefusesFormat(t *testing.T) {
	if _, _, err := routexport.Write("cisco", nodes()); err == nil || !strings.Contains(err.Error(), "ip, bird, frr") {
		t.Error(err)
	}
}
