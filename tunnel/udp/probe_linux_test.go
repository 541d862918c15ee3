package udp

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestProbeFindsNothingWrongHere(t *testing.T) {
	for _, addrs := range [][]netip.Addr{nil, {netip.MustParseAddr("127.0.0.1")}} {
		if gso, gro := probe(Config{Addrs: addrs}, tryLoopback); gso != "" || gro != "" {
			t.Errorf("%v: GSO %q, GRO %q", addrs, gso, gro)
		}
	}
}

// TestTryLoopback: the trial really uses what it tries.
func TestTryLoopback(t *testing.T) {
	addr := netip.MustParseAddr("127.0.0.1")
	for _, x := range []trial{{}, {gso: true}, {gso: true, gro: true}, {gro: true}} {
		x.datagrams = probeDatagrams()
		arrived, err := tryLoopback(addr, x)
		if err != nil {
			t.Fatalf("GSO %v, GRO %v: %v", x.gso, x.gro, err)
		}
		if err := same(x.datagrams, arrived); err != nil {
			t.Errorf("GSO %v, GRO %v: %v", x.gso, x.gro, err)
		}
	}
	// Unequal pieces are cut as if all had the first one's size: so it is the kernel that cuts.
	odd := trial{datagrams: [][]byte{make([]byte, 500), make([]byte, 700)}, gso: true}
	arrived, err := tryLoopback(addr, odd)
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for _, d := range arrived {
		sizes = append(sizes, len(d))
	}
	if !slices.Equal(sizes, []int{500, 500, 200}) {
		t.Errorf("1,200 bytes cut after every 500th arrived as %v", sizes)
	}
}

// TestProbeOfBrokenKernels has kernels that are not at hand do what kernels have done.
func TestProbeOfBrokenKernels(t *testing.T) {
	good := func(_ netip.Addr, x trial) ([][]byte, error) {
		var arrived [][]byte
		for _, d := range x.datagrams {
			arrived = append(arrived, bytes.Clone(d))
		}
		return arrived, nil
	}
	// broken is a kernel that does this to what is sent as one, or received as one.
	broken := func(gso, gro bool, damage func([][]byte) ([][]byte, error)) trier {
		return func(a netip.Addr, x trial) ([][]byte, error) {
			arrived, err := good(a, x)
			if gso && x.gso || gro && x.gro {
				return damage(arrived)
			}
			return arrived, err
		}
	}
	swap := func(d [][]byte) ([][]byte, error) { d[0], d[1] = d[1], d[0]; return d, nil }
	flip := func(d [][]byte) ([][]byte, error) { d[2][probeSegment-1] ^= 1; return d, nil }
	merge := func(d [][]byte) ([][]byte, error) { return [][]byte{bytes.Join(d, nil)}, nil }
	lose := func(d [][]byte) ([][]byte, error) { return d[:3], nil }
	twice := func(d [][]byte) ([][]byte, error) { return append(d, d[3]), nil }
	refuse := func([][]byte) ([][]byte, error) { return nil, errors.New("protocol not available") }
	nothing := func(netip.Addr, trial) ([][]byte, error) { return nil, nil }
	for _, x := range []struct {
		name     string
		config   Config
		kernel   trier
		gso, gro string // in the reason; "": stays on
	}{
		{"sound", Config{}, good, "", ""},
		{"swaps", Config{}, broken(true, false, swap), "datagram 1 arrived changed, or in another's place", ""},
		{"changes a byte", Config{}, broken(true, false, flip), "datagram 3 arrived changed", ""},
		{"does not cut", Config{}, broken(true, false, merge), "arrived with 4300 bytes in place of 1200", ""},
		{"loses", Config{}, broken(true, false, lose), "3 of 4 datagrams arrived", ""},
		{"refuses", Config{}, broken(true, false, refuse), "protocol not available", ""},
		{"joins wrongly", Config{}, broken(false, true, merge), "", "received as one"},
		{"doubles", Config{}, broken(false, true, twice), "", "5 datagrams arrived where 4 were sent"},
		{"off already", Config{GSO: Off, GRO: Off}, broken(true, true, flip), "", ""},
		{"loopback is down", Config{}, nothing, "", ""},
	} {
		gso, gro := probe(x.config, x.kernel)
		for _, y := range []struct{ what, got, want string }{{"GSO", gso, x.gso}, {"GRO", gro, x.gro}} {
			if (y.got == "") != (y.want == "") || !strings.Contains(y.got, y.want) {
				t.Errorf("%s: %s off because of %q, want %q", x.name, y.what, y.got, y.want)
			}
		}
	}
}

// TestBrokenKernelOpens: sockets of a kernel that fails the probe come up without what failed, and say why.
func TestBrokenKernelOpens(t *testing.T) {
	swaps := func(addr netip.Addr, x trial) ([][]byte, error) {
		arrived, err := tryLoopback(addr, x)
		if x.gso && len(arrived) > 1 {
			arrived[0], arrived[1] = arrived[1], arrived[0]
		}
		return arrived, err
	}
	group, err := openGroup(2, Config{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, swaps)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range group {
		defer s.Close()
		for _, o := range s.Offloads() {
			if o.Name == "udp-gso" && (o.Enabled || !strings.Contains(o.Reason, "tried from 127.0.0.1 to itself")) ||
				o.Name == "udp-gro" && !o.Enabled {
				t.Errorf("%+v", o)
			}
		}
	}
}
