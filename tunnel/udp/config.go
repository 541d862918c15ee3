// Package udp is the kernel's UDP as an underlay: the tunnel.Socket that real nodes use, on Linux.
//
// A Socket is one lane's (see node/worker): per address a receive socket on the tunnel's port, which shares that port
// with the other lanes' (SO_REUSEPORT), and per family a send socket. There are two forms of a group of Sockets:
//
//   - OpenGroup is for encapsulations whose peers know each other by address alone (vxlan). A Socket sends from a port
//     of its own, so that each lane is a flow of its own to the peer's receive-side scaling and to its SO_REUSEPORT
//     group, where the source port chooses the lane.
//   - OpenWireGuard is for wireguard, whose peers answer to where a datagram came from. All Sockets send from the port
//     that they receive on: the send socket of a family is the receive socket of its first address. What a message says
//     chooses the lane, and a Socket beside the lanes' receives what is no data.
//
// IPv4 and IPv6 have separate sockets, not one dual-stack socket with mapped addresses: on a host whose kernel has no
// IPv6 the IPv4 half goes on working, path MTU discovery and TOS are options of the family anyway, and an underlay
// address never has two forms.
//
// # Terms
//
//   - A datagram is one UDP payload as it crosses the wire.
//   - A message is what one element of sendmmsg carries: one datagram, or several equal ones that the kernel or the
//     network card cuts (UDP_SEGMENT, "GSO"). A tunnel.Send becomes one message where the kernel's limits allow it.
//     What WireGuard calls a message is one datagram.
//
// # Offloads
//
// OpenGroup sends itself a few datagrams in one send, and receives some in one go, and compares what arrives: kernels
// have shipped offloads that change datagrams. What is changed, lost or refused there switches the offload off for
// good. Where loopback is down or filtered, as plain datagrams show, nothing can be told and the offload is used. What
// counts in the end is the device towards the peer. What it refuses shows at a real send, which is repeated without the
// offload: EIO (a device that can't fill in checksums; an IPsec policy) switches GSO off for good. EMSGSIZE, and the
// EINVAL that older kernels return in its place, is news of the path MTU and leaves GSO on.
//
// # Ownership and concurrency
//
// A Socket belongs to one worker, except for Offloads, LocalPort, FDs, Buffers and Close, which are safe for concurrent
// use. Descriptors are raw and non-blocking, out of reach of the runtime's poller: the worker waits on FDs itself,
// together with its TUN queue. Send refers to the batch's pieces only until it returns.
//
// A descriptor that is sent from is ready also when the kernel has an error for it. A Receive that then finds nothing
// takes the errors away, and PathEvents hands them out later; so a worker that calls Receive for whatever is ready does
// not spin.
package udp

import (
	"fmt"
	"net/netip"
	"time"
)

// Mode says whether an offload is used.
type Mode uint8

// Auto uses the offload where the kernel has it and it works; Off never tries.
const (
	Auto Mode = iota
	Off
)

// ParseMode reads a mode as the configuration file writes it: "auto", "off", or nothing for auto.
func ParseMode(s string) (Mode, error) {
	switch s {
	case "", "auto":
		return Auto, nil
	case "off":
		return Off, nil
	}
	return Auto, fmt.Errorf("offload mode %q: use auto or off", s)
}

// String returns the mode as the configuration file writes it.
func (m Mode) String() string {
	if m == Off {
		return "off"
	}
	return "auto"
}

// Defaults of a Config. A larger buffer is a longer queue and nothing more: with 4 MiB an echo beside four TCP streams
// (cubic) took 10 ms in place of 3, at the same rate; with 256 KiB it took 1 ms, but five times as much was sent twice.
const (
	DefaultBuffer   = 1 << 20 // bytes
	DefaultSendWait = 2 * time.Millisecond
)

// Config is what Open needs to know. The zero value is good for tests: a port that the kernel chooses, all addresses.
type Config struct {
	// Port is the tunnel's UDP port, where peers send to. 0: the kernel chooses one; see Socket.Port.
	Port uint16

	// Addrs are the own underlay addresses, without zone: datagrams are received there only, and leave from the first
	// one of their family, so that peers recognise them whatever the route prefers. Empty: all addresses and both
	// families, as far as the host has them, and the route's source address.
	Addrs []netip.Addr

	GSO, GRO Mode

	// Reserved is a port that is not sent from, as another tunnel of this node is to have it; 0: none.
	Reserved uint16

	// SocketBuffer is how many bytes may wait in each socket, in either direction. 0: DefaultBuffer. Without
	// CAP_NET_ADMIN the kernel grants no more than net.core.rmem_max and wmem_max; see Socket.Buffers.
	SocketBuffer int

	// SendWait bounds the time that one Send call waits for room in a full send buffer. 0: DefaultSendWait.
	SendWait time.Duration
}
