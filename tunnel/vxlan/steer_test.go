package vxlan

import (
	"math/rand/v2"
	"testing"

	"golang.org/x/net/bpf"

	"github.com/warren-net/warren/forwarder/packet"
)

// steerVM runs the program as the kernel would.
func steerVM(t testing.TB, workers int) *bpf.VM {
	t.Helper()
	raw, err := Steer(workers)
	if err != nil {
		t.Fatal(err)
	}
	code, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the program does not disassemble")
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// randomPacket is an IP packet of some kind: TCP, UDP, ICMP, options, fragments.
func randomPacket(rnd *rand.Rand) []byte {
	p := make([]byte, 120)
	for k := range p {
		p[k] = byte(rnd.Uint32())
	}
	proto := []byte{6, 17, 1, 58, 132}[rnd.IntN(5)]
	if rnd.IntN(2) == 0 {
		p[0] = 0x45
		if rnd.IntN(5) == 0 {
			p[0] = 0x46
		}
		p[2], p[3], p[9] = 0, byte(len(p)), proto
		p[6], p[7] = 0x40, 0
		if rnd.IntN(5) == 0 {
			p[6], p[7] = []byte{0x20, 0x00}[rnd.IntN(2)], byte(1+rnd.IntN(9))
		}
		p[int(p[0]&15)*4+12] = 0x50 // TCP data offset
		p[24], p[25] = 0, 100       // UDP length
		return p
	}
	p[0], p[4], p[5], p[6] = 0x60, 0, byte(len(p)-40), proto
	if rnd.IntN(5) == 0 {
		p[6], p[40], p[41] = 60, proto, 0 // destination options
		copy(p[42:], []byte{1, 4, 0, 0, 0, 0})
	}
	p[52] = 0x50
	return p
}

// TestSteerIsFlowHash holds the kernel's program to the worker's function.
func TestSteerIsFlowHash(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for _, workers := range []int{1, 2, 3, 8} {
		vm := steerVM(t, workers)
		seen := make([]int, workers)
		parsed := 0
		for range 20000 {
			p := randomPacket(rnd)
			var i packet.Info
			if packet.Parse(p, &i) != packet.OK {
				continue
			}
			parsed++
			typ := uint16(EtherTypeIPv4)
			if i.Version == 6 {
				typ = EtherTypeIPv6
			}
			h := NewHeader(1, [6]byte{2}, [6]byte{4}, typ)
			got, err := vm.Run(append(h[:], p...))
			if err != nil {
				t.Fatal(err)
			}
			if want := int(i.FlowHash()) % workers; got != want {
				t.Fatalf("%d workers: the program says %d, FlowHash %d, for %x", workers, got, want, p[:60])
			}
			seen[got]++
			back := i
			back.Src, back.Dst, back.SrcPort, back.DstPort = i.Dst, i.Src, i.DstPort, i.SrcPort
			if back.FlowHash() != i.FlowHash() {
				t.Fatal("the two directions differ")
			}
		}
		for w, n := range seen {
			if n < parsed/workers/2 {
				t.Errorf("%d workers: worker %d gets %d of %d", workers, w, n, parsed)
			}
		}
	}
}

func TestSteerTakesAnything(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 10))
	vm := steerVM(t, 4)
	for range 5000 {
		p := make([]byte, rnd.IntN(100))
		for k := range p {
			p[k] = byte(rnd.Uint32())
		}
		if got, err := vm.Run(p); err != nil || got < 0 || got > 3 {
			t.Fatalf("%d, %v for %x", got, err, p)
		}
	}
	if _, err := Steer(0); err == nil {
		t.Error("no workers are accepted")
	}
}
