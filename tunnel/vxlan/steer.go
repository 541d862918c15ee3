package vxlan

import (
	"fmt"

	"golang.org/x/net/bpf"

	"github.com/warren-net/warren/forwarder/packet"
)

// Steer is a classic BPF program (SO_ATTACH_REUSEPORT_CBPF, Linux 4.6) that gives a VXLAN datagram to one of so many
// workers' sockets by the flow of its inner packet: packet.Info.FlowHash modulo workers, both directions alike.
//
// Why: the kernel hands a flow that leaves through the TUN to the queue through which the flow's other direction came
// in last. Without steering the outer ports decide which worker receives, each end moves the other's flow, and where
// the two do not settle a flow changes its worker with every round trip: TCP then sees its segments reordered for as
// long as it lasts (measured: 10,000 retransmits a second with two workers).
func Steer(workers int) ([]bpf.RawInstruction, error) {
	if workers < 1 {
		return nil, fmt.Errorf("steering to %d workers: at least one is needed", workers)
	}
	const (
		ip      = HeaderLen // offset of the inner IP header
		mix     = "mix"
		tcp     = 6
		udp     = 17
		scratch = 0
	)
	var p program
	word := func(at uint32) { // xor the word at this offset into the scratch register
		p.add(bpf.LoadAbsolute{Off: at, Size: 4}, bpf.TAX{}, bpf.LoadScratch{Dst: bpf.RegA, N: scratch},
			bpf.ALUOpX{Op: bpf.ALUOpXor}, bpf.StoreScratch{Src: bpf.RegA, N: scratch})
	}
	ports := func(at uint32) {
		p.add(bpf.LoadAbsolute{Off: at, Size: 2}, bpf.TAX{}, bpf.LoadAbsolute{Off: at + 2, Size: 2},
			bpf.ALUOpX{Op: bpf.ALUOpXor}, bpf.TAX{}, bpf.LoadScratch{Dst: bpf.RegA, N: scratch},
			bpf.ALUOpX{Op: bpf.ALUOpXor}, bpf.StoreScratch{Src: bpf.RegA, N: scratch})
	}
	p.add(bpf.LoadConstant{Dst: bpf.RegA, Val: 0}, bpf.StoreScratch{Src: bpf.RegA, N: scratch})
	p.add(bpf.LoadAbsolute{Off: offsetTyp, Size: 2})
	p.jump(bpf.JumpEqual, EtherTypeIPv6, "v6", "")
	p.jump(bpf.JumpEqual, EtherTypeIPv4, "", mix)

	word(ip + 12)
	word(ip + 16)
	p.add(bpf.LoadAbsolute{Off: ip, Size: 1})
	p.jump(bpf.JumpEqual, 0x45, "", mix) // options move the ports
	p.add(bpf.LoadAbsolute{Off: ip + 6, Size: 2})
	p.jump(bpf.JumpBitsSet, 0x3fff, mix, "") // more fragments, or an offset
	p.add(bpf.LoadAbsolute{Off: ip + 9, Size: 1})
	p.jump(bpf.JumpEqual, tcp, "ports4", "")
	p.jump(bpf.JumpEqual, udp, "", mix)
	p.label("ports4")
	ports(ip + 20)
	p.always(mix)

	p.label("v6")
	for at := uint32(ip + 8); at < ip+40; at += 4 {
		word(at)
	}
	p.add(bpf.LoadAbsolute{Off: ip + 6, Size: 1})
	p.jump(bpf.JumpEqual, tcp, "ports6", "")
	p.jump(bpf.JumpEqual, udp, "", mix)
	p.label("ports6")
	ports(ip + 40)

	p.label(mix)
	p.add(bpf.LoadScratch{Dst: bpf.RegA, N: scratch}, bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: packet.FlowHashFactor},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16}, bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(workers)},
		bpf.RetA{})
	return p.assemble()
}

// A program is BPF code whose jumps name labels, as counting instructions by hand goes wrong.
type program struct {
	code   []bpf.Instruction
	labels map[string]int
	jumps  map[int][2]string // by instruction: label if true, label if false; "" is the next instruction
}

func (p *program) add(code ...bpf.Instruction) { p.code = append(p.code, code...) }

func (p *program) label(name string) {
	if p.labels == nil {
		p.labels = map[string]int{}
	}
	p.labels[name] = len(p.code)
}

// jump compares the accumulator with v.
func (p *program) jump(cond bpf.JumpTest, v uint32, yes, no string) {
	if p.jumps == nil {
		p.jumps = map[int][2]string{}
	}
	p.jumps[len(p.code)] = [2]string{yes, no}
	p.add(bpf.JumpIf{Cond: cond, Val: v})
}

// always jumps to a label: zero and not zero are both a jump there.
func (p *program) always(to string) { p.jump(bpf.JumpEqual, 0, to, to) }

func (p *program) assemble() ([]bpf.RawInstruction, error) {
	for at, names := range p.jumps {
		j := p.code[at].(bpf.JumpIf)
		for k, name := range names {
			if name == "" {
				continue
			}
			skip := p.labels[name] - at - 1
			if skip < 0 || skip > 255 {
				return nil, fmt.Errorf("jump from %d to %s is %d instructions long", at, name, skip)
			}
			if k == 0 {
				j.SkipTrue = uint8(skip)
			} else {
				j.SkipFalse = uint8(skip)
			}
		}
		p.code[at] = j
	}
	return bpf.Assemble(p.code)
}
