package packet

import (
	"net/netip"
	"testing"
)

func TestAddrWords(t *testing.T) {
	for _, tt := range []struct {
		addr   string
		hi, lo uint64
	}{
		{"10.244.1.5", 0x0af4010500000000, 0},
		{"255.255.255.255", 0xffffffff00000000, 0},
		{"fd00:10:244:1::5", 0xfd00001002440001, 5},
		{"1:203:405:607:809:a0b:c0d:e0f", 0x0001020304050607, 0x08090a0b0c0d0e0f},
		{"::ffff:10.244.1.5", 0, 0xffff0af40105},
		{"fe80::1%eth0", 0xfe80000000000000, 1},
	} {
		if hi, lo := AddrWords(netip.MustParseAddr(tt.addr)); hi != tt.hi || lo != tt.lo {
			t.Errorf("%s: %016x %016x, want %016x %016x", tt.addr, hi, lo, tt.hi, tt.lo)
		}
	}
	if hi, lo := AddrWords(netip.Addr{}); hi != 0 || lo != 0 {
		t.Errorf("the zero address: %x %x", hi, lo)
	}
	a := netip.MustParseAddr("fd00::1")
	if n := testing.AllocsPerRun(100, func() { AddrWords(a) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
