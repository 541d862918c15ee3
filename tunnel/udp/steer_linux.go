package udp

import (
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// steer gives the group's datagrams to its sockets by Config.Steer. The program belongs to the kernel's group of
// SO_REUSEPORT sockets, of which there is one per address, in the order in which the sockets were bound.
func (g *group) steer() {
	if g.workers < 2 || len(g.Steer) == 0 {
		return
	}
	state := new(offload)
	for _, fd := range g.sockets[0].receive {
		if err := attach(fd, g.Steer); err != nil {
			state.disable(err.Error())
		}
	}
	for _, s := range g.sockets {
		s.steering = state
	}
}

func attach(fd int, program []bpf.RawInstruction) error {
	code := make([]unix.SockFilter, len(program))
	for i, in := range program {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &prog); err != nil {
		return fmt.Errorf("setting SO_ATTACH_REUSEPORT_CBPF: %w", err)
	}
	return nil
}
