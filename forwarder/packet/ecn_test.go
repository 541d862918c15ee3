package packet

import (
	"bytes"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Figure 4 of RFC 6040, row by row.
func TestDecapECN(t *testing.T) {
	const (
		notECT, ect1, ect0, ce = 0, 1, 2, 3
		drop                   = 4
	)
	outers := [4]uint8{notECT, ect0, ect1, ce}
	rows := []struct {
		inner uint8
		want  [4]uint8
	}{
		{notECT, [4]uint8{notECT, notECT, notECT, drop}},
		{ect0, [4]uint8{ect0, ect0, ect1, ce}},
		{ect1, [4]uint8{ect1, ect1, ect1, ce}},
		{ce, [4]uint8{ce, ce, ce, ce}},
	}
	for _, row := range rows {
		for k, outer := range outers {
			// The inner DSCP stays, whatever the outer one says.
			for dscp := range uint8(64) {
				tos, dropped := DecapECN(dscp<<2|row.inner, ^dscp<<2|outer)
				if dropped != (row.want[k] == drop) {
					t.Errorf("inner %02b, outer %02b: drop %v", row.inner, outer, dropped)
				}
				if !dropped && tos != dscp<<2|row.want[k] {
					t.Errorf("inner %02b, outer %02b, DSCP %#x: %#x, want ECN %02b", row.inner, outer, dscp, tos, row.want[k])
				}
			}
		}
	}
}

// What is encapsulated and comes through unmarked is what it was.
func TestEncapDecap(t *testing.T) {
	for tos := range 256 {
		outer := EncapTOS(uint8(tos))
		if outer != uint8(tos) {
			t.Errorf("outer %#x for inner %#x: RFC 6040's normal mode and RFC 2983's uniform model copy", outer, tos)
		}
		if got, drop := DecapECN(uint8(tos), outer); drop || got != uint8(tos) {
			t.Errorf("%#x became %#x (drop %v)", tos, got, drop)
		}
	}
}

func TestSetTOS(t *testing.T) {
	for _, spec := range []ipSpec{
		{proto: 17, data: udpData(4)},
		{proto: 6, options: []byte{1, 1, 1, 1}, data: tcpData(0x10, nil, 1)},
		{v6: true, proto: 17, data: udpData(4)},
	} {
		for from := range 256 {
			for to := range 256 {
				spec.tos = uint8(to)
				want := spec.build()
				spec.tos = uint8(from)
				p := spec.build()
				i := infoOf(p)
				SetTOS(p, i, uint8(to))
				if i.TOS != uint8(to) {
					t.Fatalf("Info.TOS %#x after setting %#x", i.TOS, to)
				}
				if !bytes.Equal(p, want) {
					t.Fatalf("%#x to %#x:\n got %x\nwant %x", from, to, p, want)
				}
			}
		}
	}
}

// A header that was damaged must not be made right on the way.
func TestSetTOSKeepsBadChecksum(t *testing.T) {
	p := ipSpec{proto: 17, data: udpData(4)}.build()
	p[8]-- // TTL
	SetTOS(p, infoOf(p), 3)
	if header.IPv4(p).IsChecksumValid() {
		t.Error("a wrong header checksum became right")
	}
	before := bytes.Clone(p)
	for n := range 12 {
		SetTOS(p[:n:n], &Info{Version: 4}, 1)
	}
	if !bytes.Equal(p, before) {
		t.Error("SetTOS changed a packet too short for it")
	}
}

func TestECNAllocates(t *testing.T) {
	p := ipSpec{proto: 17, data: udpData(4)}.build()
	i := infoOf(p)
	n := testing.AllocsPerRun(100, func() {
		tos, _ := DecapECN(i.TOS^2, EncapTOS(3))
		SetTOS(p, i, tos)
	})
	if n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

func BenchmarkSetTOS(b *testing.B) {
	p := ipSpec{proto: 17, data: udpData(4)}.build()
	i := infoOf(p)
	b.ReportAllocs()
	for b.Loop() {
		SetTOS(p, i, i.TOS^3)
	}
}
