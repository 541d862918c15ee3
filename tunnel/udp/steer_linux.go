package udp

import (
	"fmt"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"
)

// steer has a classic BPF program say which Socket of the group gets what comes in: it returns the Socket's index. The
// program belongs to the kernel's group of SO_REUSEPORT sockets, of which there is one per address, in the order in
// which the sockets were bound. Where the kernel refuses it (before 4.6) the outer addresses and ports decide.
//
// UDP_SEGMENT and UDP_GRO join datagrams of one outer flow, which go to the socket of the first one.
func (g *group) steer(program []unix.SockFilter) {
	if g.size < 2 {
		return
	}
	state := new(offload)
	for _, fd := range g.sockets[0].receive {
		if err := attach(fd, program); err != nil {
			state.disable(err.Error())
		}
	}
	for _, s := range g.sockets {
		s.steering = state
	}
}

// What a classic BPF program reads. It begins behind the UDP header, but offsets from network on (SKF_NET_OFF) count
// from the IP header. A read beyond the end ends the program with 0.
const (
	network    = 1<<32 - 0x100000
	loadLength = unix.BPF_LD | unix.BPF_W | unix.BPF_LEN
	loadByte   = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
	loadHalf   = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
	modulo     = unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K
	ifEqual    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	ifAtLeast  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
)

// bySourcePort gives all that one lane of a peer sends to one of n sockets: that of the source port modulo n. The i-th
// of n lanes sends from a port of remainder i (sendPort), so between nodes with equally many lanes the same one has a
// flow at both ends, and its acknowledgements ride on the wake-ups of its data. With other numbers the choice is as
// good as the kernel's own.
//
// It has to be something of the outer flow, not of the inner one: the datagrams of several inner flows are joined, and
// chosen by the first one's, they would be scattered over several lanes, and reordered. Behind IP options the program
// takes something else for the port, which does no harm.
func bySourcePort(n int) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: loadByte, K: network},
		{Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: 4},
		{Code: ifEqual, K: 6, Jt: 2},
		{Code: loadHalf, K: network + 20},
		{Code: unix.BPF_JMP | unix.BPF_JA, K: 1},
		{Code: loadHalf, K: network + 40},
		{Code: modulo, K: uint32(n)},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
}

func attach(fd int, code []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &prog); err != nil {
		return fmt.Errorf("setting SO_ATTACH_REUSEPORT_CBPF: %w", err)
	}
	return nil
}

// sendPort looks for a port for the send sockets of the group's last Socket: of the remainder that steer is about, near
// one that the kernel chose. Whether it is free shows when it is bound to. 0, any port, is good enough for a lone one.
func (g *group) sendPort(addr netip.Addr) (uint16, error) {
	if g.size < 2 {
		return 0, nil
	}
	fd, err := newUDP(addr)
	if err != nil {
		return 0, err
	}
	free, err := bind(fd, netip.AddrPortFrom(addr, 0))
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr
	}
	if err != nil {
		return 0, err
	}
	return nearPort(free, g.size, len(g.sockets)-1, g.Reserved), nil
}

// nearPort is a port of the remainder, modulo size, near one that is free; not the reserved one.
func nearPort(free uint16, size, remainder int, reserved uint16) uint16 {
	port := int(free) - int(free)%size + remainder
	if port > math.MaxUint16 || port == int(reserved) {
		port -= size
	}
	return uint16(port)
}
