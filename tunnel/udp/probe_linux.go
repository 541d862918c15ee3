package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// A trial is datagrams that a node sends to itself to find out what the kernel makes of them.
type trial struct {
	datagrams [][]byte
	gso, gro  bool
}

// A trier sends a trial from one of the node's addresses to the same one and returns what arrived.
type trier func(netip.Addr, trial) (arrived [][]byte, err error)

const (
	// probeSegment and probeLast are the bytes of the datagrams that are tried: several equal ones and a shorter one, as
	// the pieces of a superpacket are. The larger fits the smallest MTU of IPv6 with all headers.
	probeSegment = 1200
	probeLast    = 700
	probeCount   = 4

	// probeWait is how long what is missing is waited for. What a node sends to itself has arrived when the send returns.
	probeWait = 50 * time.Millisecond
)

// probe tries the offloads that c allows, and returns why one must not be used, or "". Nothing can be told, and the
// offload is used, where the node does not get even a plain datagram from itself: loopback is down, or filtered.
//
// What it finds is a kernel that changes, loses or joins wrongly what an offload carries. What only a network card or
// its driver does wrong it cannot see, as loopback has neither.
func probe(c Config, try trier) (gso, gro string) {
	addrs := c.Addrs
	if len(addrs) == 0 {
		addrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	datagrams := probeDatagrams()
	for _, addr := range addrs {
		once := func(what string, t trial) string {
			t.datagrams = datagrams
			arrived, err := try(addr, t)
			if err == nil {
				err = same(datagrams, arrived)
			}
			if err == nil {
				return ""
			}
			return fmt.Sprintf("%s, tried from %s to itself: %v", what, addr, err)
		}
		plain := func() bool { return once("plain", trial{}) == "" }
		// compare says what went wrong in a trial, twice while plain datagrams arrive: a busy or stolen processor may keep
		// some of them for longer than probeWait.
		compare := func(what string, t trial) string {
			if once(what, t) == "" || !plain() {
				return ""
			}
			return once(what, t)
		}
		if !plain() {
			continue
		}
		if c.GSO == Auto && gso == "" {
			gso = compare("datagrams sent as one", trial{gso: true})
		}
		if c.GRO == Auto && gro == "" {
			gro = compare("datagrams received as one", trial{gso: c.GSO == Auto && gso == "", gro: true})
		}
	}
	return gso, gro
}

// probeDatagrams differ from each other in every byte.
func probeDatagrams() [][]byte {
	datagrams := make([][]byte, probeCount)
	for i := range datagrams {
		datagrams[i] = make([]byte, probeSegment)
		for j := range datagrams[i] {
			datagrams[i][j] = byte(j*31 + j>>8 + i*67)
		}
	}
	datagrams[probeCount-1] = datagrams[probeCount-1][:probeLast]
	return datagrams
}

func same(sent, arrived [][]byte) error {
	for i, d := range arrived {
		switch {
		case i >= len(sent):
			return fmt.Errorf("%d datagrams arrived where %d were sent", len(arrived), len(sent))
		case len(d) != len(sent[i]):
			return fmt.Errorf("datagram %d arrived with %d bytes in place of %d", i+1, len(d), len(sent[i]))
		case !bytes.Equal(d, sent[i]):
			return fmt.Errorf("datagram %d arrived changed, or in another's place", i+1)
		}
	}
	if len(arrived) < len(sent) {
		return fmt.Errorf("%d of %d datagrams arrived", len(arrived), len(sent))
	}
	return nil
}

// tryLoopback is the trier that uses the kernel.
func tryLoopback(addr netip.Addr, t trial) (arrived [][]byte, err error) {
	var ends [2]int // sends, receives
	var at [2]unix.Sockaddr
	for i := range ends {
		if ends[i], err = newUDP(addr); err != nil {
			return nil, err
		}
		defer unix.Close(ends[i])
		if _, err = bind(ends[i], netip.AddrPortFrom(addr, 0)); err != nil {
			return nil, err
		}
		if at[i], err = unix.Getsockname(ends[i]); err != nil {
			return nil, fmt.Errorf("reading the port bound to: %w", err)
		}
	}
	// Only what the other end sent is to be seen.
	if err := errors.Join(unix.Connect(ends[1], at[0]), unix.Connect(ends[0], at[1])); err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	if t.gro {
		if err := unix.SetsockoptInt(ends[1], unix.SOL_UDP, unix.UDP_GRO, 1); err != nil {
			return nil, fmt.Errorf("setting UDP_GRO: %w", err)
		}
	}
	messages := t.datagrams
	if t.gso {
		if err := unix.SetsockoptInt(ends[0], unix.SOL_UDP, unix.UDP_SEGMENT, len(t.datagrams[0])); err != nil {
			return nil, fmt.Errorf("setting UDP_SEGMENT: %w", err)
		}
		messages = [][]byte{bytes.Join(t.datagrams, nil)}
	}
	for _, m := range messages {
		if _, err := unix.Write(ends[0], m); err != nil {
			return nil, fmt.Errorf("sending: %w", err)
		}
	}
	return collect(ends[1], len(t.datagrams))
}

// collect receives until so many datagrams have arrived, and none follows at once, or nothing came for probeWait.
func collect(fd, count int) (arrived [][]byte, err error) {
	buffer, oob := make([]byte, 1<<16), make([]byte, controlSize)
	for {
		wait := probeWait
		if len(arrived) >= count {
			wait = 0
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n == 0 || err != nil {
			return arrived, err
		}
		n, oobn, _, _, err := unix.Recvmsg(fd, buffer, oob, unix.MSG_DONTWAIT)
		if err != nil {
			return arrived, fmt.Errorf("receiving: %w", err)
		}
		size, err := groSize(oob[:oobn])
		if err != nil {
			return arrived, err
		}
		for rest := bytes.Clone(buffer[:n]); ; {
			if size == 0 || len(rest) <= size {
				arrived = append(arrived, rest)
				break
			}
			arrived, rest = append(arrived, rest[:size]), rest[size:]
		}
	}
}

// groSize is the size of the datagrams that were received as one; 0 for a lone one.
func groSize(oob []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, fmt.Errorf("reading control messages: %w", err)
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_UDP && m.Header.Type == unix.UDP_GRO && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data)), nil
		}
	}
	return 0, nil
}
