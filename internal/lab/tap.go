package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapBytes is how much of a packet a Tap shows: all of one that fits a wire of 1,500 bytes, the beginning of others.
const tapBytes = 2048

// A Tap sees the packets that cross a device, in both directions. Its methods are safe for concurrent use.
type Tap struct {
	where string
	fd    int
	see   func(protocol uint16, packet []byte)
	ended atomic.Bool
	done  chan struct{}
	err   error // valid once done is closed
}

// Tap begins to listen at a device of the namespace. See is called for one packet after the other, with the number of
// its protocol (ETH_P_IP, …) and its bytes from the header of that protocol on, which it must not keep.
func (ns *NS) Tap(device string, see func(protocol uint16, packet []byte)) (*Tap, error) {
	t := &Tap{where: ns.Name + " " + device, see: see, done: make(chan struct{})}
	if err := ns.Do(func() error { return t.listen(device) }); err != nil {
		return nil, fmt.Errorf("listening at %s: %w", t.where, err)
	}
	go t.read()
	return t, nil
}

func (t *Tap) listen(device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	// SOCK_DGRAM: what the device puts before the packet (nothing, for a TUN) is left out.
	t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(hostToNetwork(unix.ETH_P_ALL)))
	if err != nil {
		return err
	}
	const buffer = 32 << 20
	err = errors.Join(
		unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
		unix.SetsockoptTimeval(t.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}),
		unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: hostToNetwork(unix.ETH_P_ALL), Ifindex: link.Attrs().Index}),
	)
	if err != nil {
		return errors.Join(err, unix.Close(t.fd))
	}
	return nil
}

// hostToNetwork has v's bytes in the order of the network, and back.
func hostToNetwork(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func (t *Tap) read() {
	defer close(t.done)
	buf := make([]byte, tapBytes)
	for {
		n, from, err := unix.Recvfrom(t.fd, buf, 0)
		switch {
		case err == nil:
			if ll, ok := from.(*unix.SockaddrLinklayer); ok {
				t.see(hostToNetwork(ll.Protocol), buf[:n])
			}
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENETDOWN):
			t.err = err
			return
		case t.ended.Load() && errors.Is(err, unix.EAGAIN): // all that had come was read
			return
		}
	}
}

// Stop ends the tap, after all that had arrived was seen. It is an error when a packet was lost: then nobody knows what
// there was. A second call does nothing.
func (t *Tap) Stop() error {
	if t.ended.Swap(true) {
		return nil
	}
	// Where packets come all the time, reading would not come to an end.
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	filter := unix.SockFprog{Len: uint16(len(nothing)), Filter: &nothing[0]}
	filterErr := unix.SetsockoptSockFprog(t.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &filter)
	<-t.done
	stats, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && stats.Drops > 0 {
		err = fmt.Errorf("%d packets were lost", stats.Drops)
	}
	if err = errors.Join(filterErr, t.err, err, unix.Close(t.fd)); err != nil {
		return fmt.Errorf("capture at %s: %w", t.where, err)
	}
	return nil
}
