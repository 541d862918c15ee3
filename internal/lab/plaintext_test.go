package lab

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// header is an IP header with nothing behind it.
func header(from, to string) []byte {
	src, dst := netip.MustParseAddr(from), netip.MustParseAddr(to)
	b := []byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0}
	if src.Is6() {
		b = []byte{0x60, 0, 0, 0, 0, 0, 17, 64}
	}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	if src.Is4() {
		var sum uint32
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		binary.BigEndian.PutUint16(b[10:], ^uint16(sum%0xffff))
	}
	return b
}

func TestPlaintext(t *testing.T) {
	p := NewPlaintext()
	cipher := make([]byte, 1500)
	_, _ = rand.Read(cipher)
	outer := header("192.0.2.1", "192.0.2.2")
	inside := func(b []byte) []byte { return slices.Concat(outer, cipher[:100], b, cipher[:100]) }
	block := transferBlock()
	binary.BigEndian.PutUint64(block, 12345)
	for name, c := range map[string]struct {
		packet []byte
		want   bool
	}{
		"ciphertext":                    {slices.Concat(outer, cipher), false},
		"nothing":                       {nil, false},
		"between nodes, IPv6":           {header("2001:db8::1", "2001:db8::2"), false},
		"to a pod as it is":             {header("10.244.1.2", "10.244.2.2"), true},
		"between pods, encapsulated":    {inside(header("10.244.1.2", "10.244.2.2")), true},
		"between pods, IPv6":            {inside(header("fd00:10:244:1::2", "fd00:10:244:2::2")), true},
		"from a pod to a node":          {inside(header("10.244.1.2", "192.0.2.2")), true},
		"from a node to a pod, IPv6":    {inside(header("2001:db8::1", "fd00:10:244:2::2")), true},
		"addresses by chance":           {inside(append(header("10.244.1.2", "10.244.2.2")[:19], 3)), false},
		"a header that is cut":          {inside(header("10.244.1.2", "10.244.2.2"))[:135], false},
		"the beginning of a transfer":   {inside(block[:probeEvery+2*windowBytes]), true},
		"the end of a transfer's block": {inside(block[blockSize-probeEvery-2*windowBytes:]), true},
		"anywhere in a transfer":        {inside(block[77_777:][:probeEvery+2*windowBytes]), true},
	} {
		if got := p.In(c.packet); got != c.want {
			t.Errorf("%s: plaintext: %v, want %v", name, got, c.want)
		}
	}
}

// TestTapSeesPlaintext has a transfer cross the underlay, and wants each of its packets to be recognised.
func TestTapSeesPlaintext(t *testing.T) {
	l := ForTest(t, Options{Prefix: "tap"})
	ctx := testContext(t)
	a, err := l.AddNode("a")
	if err != nil {
		t.Fatal(err)
	}
	plain := NewPlaintext()
	var packets, data, recognised int
	tap, err := a.NS.Tap(underlayDevice, func(protocol uint16, packet []byte) {
		packets++
		if protocol == unix.ETH_P_IP && packet[9] == unix.IPPROTO_TCP && len(packet) > 500 {
			data++
			if plain.In(packet) {
				recognised++
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	tr, err := StartTransfer(ctx, Path{From: a.NS, To: l.Outside, Addr: OutsideV4()}, TransferOptions{Bytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := tap.Stop(); err != nil {
		t.Error(err)
	}
	if err := tap.Stop(); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if data < 50 || recognised != data || packets <= data {
		t.Errorf("%d packets, %d with data, %d of these recognised", packets, data, recognised)
	}
	if _, err := a.NS.Tap("nosuch0", nil); err == nil {
		t.Error("a tap at a device that does not exist")
	}
}
