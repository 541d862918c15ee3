package tun

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/internal/poll"
)

// The kernel is both ends of the connections here: it sends from its own address to one behind the device, and a mirror
// exchanges the two addresses of whatever it reads and writes it back, so that the peer seems to answer. Exchanging
// them changes no checksum, so the superpackets come back exactly as the kernel made them.
var (
	own4, peer4 = netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("10.244.1.2")
	own6, peer6 = netip.MustParseAddr("fd00:10:244:1::1"), netip.MustParseAddr("fd00:10:244:1::2")
)

// A mirror counts what it read, by type.
type mirror struct {
	mu       sync.Mutex
	read     map[packet.GSOType]int
	queues   map[int]int // packets by queue
	longest  map[packet.GSOType]int
	partial  int // packets whose checksum was left to the device
	writeErr error
}

// mirrorOptions say how the mirror writes.
type mirrorOptions struct {
	piece int // bytes per piece; 0: the packet in one piece
}

// newMirror starts a goroutine per queue, until the test ends.
func newMirror(t testing.TB, d *Device, o mirrorOptions) *mirror {
	t.Helper()
	m := &mirror{read: map[packet.GSOType]int{}, longest: map[packet.GSOType]int{}, queues: map[int]int{}}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var pollers []*poll.Poller
	for i, q := range d.Queues() {
		p, err := poll.New(poll.FD{FD: q.FD()})
		if err != nil {
			t.Fatal(err)
		}
		pollers = append(pollers, p)
		wg.Go(func() { m.run(stop, i, q, p, o) })
	}
	t.Cleanup(func() {
		close(stop)
		for _, p := range pollers {
			p.Wake()
		}
		wg.Wait()
		for _, p := range pollers {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return m
}

func (m *mirror) run(stop chan struct{}, index int, q *Queue, p *poll.Poller, o mirrorOptions) {
	buf := make([]byte, device.BufferSize)
	var pieces [][]byte
	for {
		b, meta, err := q.Read(buf)
		switch {
		case errors.Is(err, device.ErrWouldBlock):
			_, _, _ = p.Wait(-1)
		case err != nil:
			m.fail(err)
			return
		case exchange(b):
			m.mu.Lock()
			m.read[meta.Type]++
			m.queues[index]++
			m.longest[meta.Type] = max(m.longest[meta.Type], len(b))
			if meta.NeedsChecksum {
				m.partial++
			}
			m.mu.Unlock()
			pieces = cut(pieces[:0], b, o.piece)
			if err := q.Write(meta, pieces); err != nil {
				m.fail(fmt.Errorf("write %+v of %d bytes in %d pieces: %w", meta, len(b), len(pieces), err))
			}
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

func (m *mirror) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writeErr = errors.Join(m.writeErr, err)
}

// check returns what the mirror read, and fails the test when the device refused anything.
func (m *mirror) check(t *testing.T) (read, longest map[packet.GSOType]int) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writeErr != nil {
		t.Error(m.writeErr)
	}
	return maps.Clone(m.read), maps.Clone(m.longest)
}

// unsummed returns how many packets came with a checksum that was left to the device.
func (m *mirror) unsummed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.partial
}

// used returns how many packets each queue had.
func (m *mirror) used() map[int]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.queues)
}

// exchange exchanges source and destination of a packet to one of the peers; false: another packet.
func exchange(b []byte) bool {
	var src, dst []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && bytes.Equal(b[16:20], peer4.AsSlice()):
		src, dst = b[12:16], b[16:20]
	case len(b) >= 40 && b[0]>>4 == 6 && bytes.Equal(b[24:40], peer6.AsSlice()):
		src, dst = b[8:24], b[24:40]
	default:
		return false
	}
	for i := range src {
		src[i], dst[i] = dst[i], src[i]
	}
	return true
}

// cut divides b into pieces of n bytes, with an empty piece in between.
func cut(pieces [][]byte, b []byte, n int) [][]byte {
	for n > 0 && len(b) > n {
		pieces = append(pieces, b[:n], nil)
		b = b[n:]
	}
	return append(pieces, b)
}

// up gives the device its addresses and brings it up.
func up(t testing.TB, name string) {
	t.Helper()
	l := link(t, name)
	for _, a := range []*netlink.Addr{
		{IPNet: &net.IPNet{IP: own4.AsSlice(), Mask: net.CIDRMask(24, 32)}},
		{IPNet: &net.IPNet{IP: own6.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD},
	} {
		if err := netlink.AddrAdd(l, a); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	// The kernel adds the route that makes an IPv6 address receive from a work queue (addrconf_dad_work).
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(own6.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no local route to %v: %v, %v", own6, routes, err)
		}
	}
}
