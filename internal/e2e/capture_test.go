package e2e_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
)

// A capture counts the packets that pass a device and match, in both directions.
type capture struct {
	c     *cluster
	where string
	match func(*pkt) bool
	fd    int
	ended atomic.Bool
	done  chan struct{}

	mu    sync.Mutex
	count int   // packets that match
	first []pkt // the first of them
	err   error
}

// keepPackets is how many matching packets are kept to be shown.
const keepPackets = 200

// capture begins to listen at a device. The capture ends with the test at the latest.
func (c *cluster) capture(ns *lab.NS, device string, match func(*pkt) bool) *capture {
	c.t.Helper()
	k := &capture{c: c, where: ns.Name + " " + device, match: match, done: make(chan struct{})}
	c.ok(ns.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		// SOCK_DGRAM: what the device puts before the IP packet (nothing, for a TUN) is left out.
		k.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		const buffer = 32 << 20
		return errors.Join(
			unix.SetsockoptInt(k.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
			unix.SetsockoptTimeval(k.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}),
			unix.Bind(k.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index}),
		)
	}))
	go k.read()
	c.t.Cleanup(func() { k.stop() })
	return k
}

// htons has v's bytes in the order of the network.
func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }

func (k *capture) read() {
	defer close(k.done)
	buf := make([]byte, 256) // headers, and those of what they carry
	for {
		n, from, err := unix.Recvfrom(k.fd, buf, 0)
		switch {
		case err == nil:
			k.note(buf[:n], from)
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENETDOWN):
			k.mu.Lock()
			k.err = err
			k.mu.Unlock()
			return
		case k.ended.Load() && errors.Is(err, unix.EAGAIN): // all that had come was read
			return
		}
	}
}

func (k *capture) note(b []byte, from unix.Sockaddr) {
	var p *pkt
	ll, ok := from.(*unix.SockaddrLinklayer)
	switch {
	case ok && ll.Protocol == htons(unix.ETH_P_ARP):
		p = parseARP(b)
	case ok && (ll.Protocol == htons(unix.ETH_P_IP) || ll.Protocol == htons(unix.ETH_P_IPV6)):
		p = parseIP(b)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if p == nil || !k.match(p) {
		return
	}
	if k.count++; len(k.first) < keepPackets {
		// The buffer is used again; nobody looks at a payload later.
		p.payload = nil
		k.first = append(k.first, *p)
	}
}

// so is what matched so far.
func (k *capture) so() (int, []pkt) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.count, k.first
}

// stop ends the capture, after all that had arrived, and returns the number of packets that matched.
func (k *capture) stop() int {
	k.c.t.Helper()
	if !k.ended.Swap(true) {
		<-k.done
		stats, err := unix.GetsockoptTpacketStats(k.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err = errors.Join(k.err, err, unix.Close(k.fd)); err != nil {
			k.c.t.Errorf("capture at %s: %v", k.where, err)
		} else if stats.Drops > 0 {
			k.c.t.Errorf("capture at %s lost %d packets", k.where, stats.Drops)
		}
	}
	n, _ := k.so()
	return n
}

// nothing ends the capture and wants it to have seen nothing that matches.
func (k *capture) nothing(what string) {
	k.c.t.Helper()
	k.atMost(0, what)
}

func (k *capture) atMost(most int, what string) {
	k.c.t.Helper()
	if n := k.stop(); n > most {
		k.c.t.Errorf("%s: %d packets at %s, want at most %d:\n  %s", what, n, k.where, most, k.show())
	}
}

// some waits until the capture saw at least one packet that matches.
func (k *capture) some(what string) {
	k.c.t.Helper()
	k.c.eventually(func() error {
		if n, _ := k.so(); n == 0 {
			return fmt.Errorf("%w: %s: no such packet at %s", errNotYet, what, k.where)
		}
		return nil
	})
}

func (k *capture) show() string {
	_, first := k.so()
	lines := make([]string, 0, len(first))
	for i := range first[:min(len(first), 12)] {
		lines = append(lines, first[i].String())
	}
	return strings.Join(lines, "\n  ")
}

// clusterCIDRs hold every pod of a lab.
func clusterCIDRs() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
}

// bare matches packets that name a pod's address outside VXLAN: in their header, in what an ICMP error quotes, or in
// what ARP and neighbour discovery ask for.
func bare(p *pkt) bool {
	for _, a := range p.addresses() {
		for _, c := range clusterCIDRs() {
			if a.IsValid() && c.Contains(a) {
				return true
			}
		}
	}
	return false
}

// quiet is how long a test waits for what must not come.
const quiet = 200 * time.Millisecond
