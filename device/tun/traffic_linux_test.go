package tun

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
	"unsafe"

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
		p, err := poll.New(q.FD())
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
	return m.read, m.longest
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

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16)
	}
	return b
}

// transferTCP sends n bytes over a connection to peer, which the mirror brings back to a listener on own.
func transferTCP(t *testing.T, own, peer netip.Addr, n int) {
	t.Helper()
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	got := make(chan error, 1)
	data := pattern(n)
	go func() {
		got <- func() error {
			c, err := listener.Accept()
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				return err
			}
			h := sha256.New()
			if m, err := io.Copy(h, c); err != nil || m != int64(n) {
				return fmt.Errorf("received %d bytes of %d: %w", m, n, err)
			}
			if [sha256.Size]byte(h.Sum(nil)) != sha256.Sum256(data) {
				return errors.New("what was received is not what was sent")
			}
			return nil
		}()
	}()
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(peer, port)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// The kernel's own TCP makes superpackets, which are read and written back, in one piece, in pieces, and in more pieces
// than one system call takes; its other end accepts them.
func TestTCPSuperpackets(t *testing.T) {
	const n = 8 << 20
	for _, c := range []struct {
		name string
		cfg  Config
		o    mirrorOptions
	}{
		{"one piece", Config{}, mirrorOptions{}},
		{"pieces of 1448 bytes", Config{}, mirrorOptions{piece: 1448}},
		{"more than 1024 pieces", Config{}, mirrorOptions{piece: 40}}, // also cuts through headers
		{"no TSO", Config{TSO: Off}, mirrorOptions{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			enterFreshNetns(t)
			c.cfg.MTU = 1420
			d := open(t, c.cfg)
			up(t, d.Name())
			m := newMirror(t, d, c.o)
			transferTCP(t, own4, peer4, n)
			transferTCP(t, own6, peer6, n)
			read, longest := m.check(t)
			t.Logf("read by type: %v, longest: %v", read, longest)
			for _, typ := range []packet.GSOType{packet.GSOTCP4, packet.GSOTCP6} {
				if on := c.cfg.TSO == Auto; on != (read[typ] > 0) || on != (longest[typ] > 32<<10) {
					t.Errorf("type %d: read %d superpackets of up to %d bytes", typ, read[typ], longest[typ])
				}
			}
			for _, s := range d.Offloads() {
				if s.Name == "tun-tso" && s.Enabled != (c.cfg.TSO == Auto) {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// A UDP socket sends with UDP_SEGMENT; the superpacket comes out of the device whole, and back in.
func TestUDPSuperpackets(t *testing.T) {
	const size, count = 1000, 40
	for _, c := range []struct {
		name      string
		uso       Mode
		own, peer netip.Addr
	}{
		{"IPv4", Auto, own4, peer4}, {"IPv6", Auto, own6, peer6},
		{"IPv4, USO off", Off, own4, peer4}, {"IPv6, USO off", Off, own6, peer6},
	} {
		t.Run(c.name, func(t *testing.T) {
			enterFreshNetns(t)
			d := open(t, Config{USO: c.uso, MTU: 1420})
			up(t, d.Name())
			m := newMirror(t, d, mirrorOptions{piece: 500})
			recv, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.own, 0)))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = recv.Close() }()
			port := recv.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			send, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.peer, port)))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = send.Close() }()
			setSegmentSize(t, send, size)
			data := pattern(size*count - 300) // the last datagram is shorter
			if _, err := send.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := recv.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			var got []byte
			buf := make([]byte, 2000)
			for len(got) < len(data) {
				n, err := recv.Read(buf)
				if err != nil {
					t.Fatalf("after %d bytes: %v; mirror: %+v", len(got), err, m)
				}
				if n != size && len(got)+n != len(data) {
					t.Errorf("a datagram of %d bytes at %d", n, len(got))
				}
				got = append(got, buf[:n]...)
			}
			if !bytes.Equal(got, data) {
				t.Error("what was received is not what was sent")
			}
			read, longest := m.check(t)
			t.Logf("read by type: %v, longest: %v", read, longest)
			if c.uso == Auto && (read[packet.GSOUDP] != 1 || longest[packet.GSOUDP] < len(data)) {
				t.Errorf("read %d superpackets of up to %d bytes, want 1 of more than %d", read[packet.GSOUDP],
					longest[packet.GSOUDP], len(data))
			}
			if c.uso == Off && (read[packet.GSOUDP] != 0 || read[packet.GSONone] < count) {
				t.Errorf("read %v, want %d lone packets", read, count)
			}
		})
	}
}

func setSegmentSize(t *testing.T, c *net.UDPConn, size int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		sockErr = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
	}); err != nil || sockErr != nil {
		t.Fatal(err, sockErr)
	}
}

// Flows spread over the queues, and every queue works.
func TestMultiQueue(t *testing.T) {
	enterFreshNetns(t)
	d := open(t, Config{Queues: 4, MTU: 1420})
	up(t, d.Name())
	m := newMirror(t, d, mirrorOptions{})
	for range 12 {
		transferTCP(t, own4, peer4, 100_000)
		transferTCP(t, own6, peer6, 100_000)
	}
	m.check(t)
	if len(m.queues) < 2 {
		t.Errorf("24 flows used %d of 4 queues: %v", len(m.queues), m.queues)
	}
}

// The reason why a device that is down can be asked whether the kernel takes a superpacket.
func TestKernelChecksHeaderBeforeLinkState(t *testing.T) {
	enterFreshNetns(t)
	d := open(t, Config{}) // down
	fd := d.Queues()[0].FD()
	for _, p := range probes() {
		shape, err := device.Inspect(p.meta, [][]byte{p.packet})
		if err != nil {
			t.Fatal(err)
		}
		var h [vnetLen]byte
		encode(&h, p.meta, shape)
		if _, err := unix.Write(fd, append(h[:], p.packet...)); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v, want EIO", p.name, err)
		}
		h[1] = 0x7e // a type that no kernel knows
		if _, err := unix.Write(fd, append(h[:], p.packet...)); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s, unknown type: %v, want EINVAL", p.name, err)
		}
	}
}

// A USO superpacket with more datagrams than any kernel takes is the caller's to cut.
func TestTooManyDatagrams(t *testing.T) {
	enterFreshNetns(t)
	d := open(t, Config{})
	up(t, d.Name())
	q := d.Queues()[0]
	m := packet.Meta{Type: packet.GSOUDP, NeedsChecksum: true, SegmentSize: 10, ChecksumStart: 20, ChecksumOffset: 6}
	for segments, want := range map[int]error{64: nil, 129: device.ErrNotTaken} {
		p := make([]byte, 28+10*segments)
		copy(p, probes()[2].packet[:28])
		if err := q.Write(m, [][]byte{p}); !errors.Is(err, want) || !q.Takes(packet.GSOUDP) {
			t.Errorf("%d datagrams: %v, want %v", segments, err, want)
		}
	}
}

// The kernel tells pollers that the device is gone.
func TestPollSeesDeletion(t *testing.T) {
	enterFreshNetns(t)
	d := open(t, Config{})
	p, err := poll.New(d.Queues()[0].FD())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if ready, _, err := p.Wait(10 * time.Millisecond); ready != 0 || err != nil {
		t.Errorf("idle device: ready %b, %v", ready, err)
	}
	if err := netlink.LinkDel(link(t, d.Name())); err != nil {
		t.Fatal(err)
	}
	if ready, _, err := p.Wait(5 * time.Second); ready != 1 || err != nil {
		t.Errorf("deleted device: ready %b, %v; want 1", ready, err)
	}
}

func TestNoAllocations(t *testing.T) {
	enterFreshNetns(t)
	d := open(t, Config{MTU: 1420})
	up(t, d.Name())
	q := d.Queues()[0]
	buf := make([]byte, device.BufferSize)
	big := probes()[0]
	pieces := cut(nil, append(big.packet, make([]byte, 20_000)...), 10) // more than 1024
	_ = q.Write(big.meta, pieces)                                       // grows the tail
	for name, f := range map[string]func() error{
		"read nothing": func() error { _, _, err := q.Read(buf); return ignore(err, device.ErrWouldBlock) },
		"write":        func() error { return q.Write(packet.Meta{}, pieces[:20]) },
		"write big":    func() error { return q.Write(big.meta, pieces) },
	} {
		var err error
		if n := testing.AllocsPerRun(100, func() { err = errors.Join(err, f()) }); n != 0 || err != nil {
			t.Errorf("%s: %v allocations, want 0 (%v)", name, n, err)
		}
	}
	sender, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(peer4, 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sender.Close() }()
	for range 102 {
		if _, err := sender.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _, err = q.Read(buf) }); n != 0 || err != nil {
		t.Errorf("read: %v allocations, want 0 (%v)", n, err)
	}
}

func ignore(err, which error) error {
	if errors.Is(err, which) {
		return nil
	}
	return err
}

func BenchmarkWrite(b *testing.B) {
	enterFreshNetns(b)
	d := open(b, Config{MTU: 1420})
	up(b, d.Name())
	q := d.Queues()[0]
	p := probes()[0]
	b.Run("lone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = q.Write(packet.Meta{}, [][]byte{p.packet})
		}
	})
	b.Run("64KiB in 46 pieces", func(b *testing.B) {
		m := p.meta
		m.SegmentSize = 1400
		pieces := cut(nil, append(p.packet, make([]byte, 64000)...), 1400)
		b.ReportAllocs()
		b.SetBytes(64000)
		for b.Loop() {
			_ = q.Write(m, pieces)
		}
	})
}

// The iovecs of a queue refer to nothing of the caller's once Write has returned.
func TestWriteKeepsNothing(t *testing.T) {
	enterFreshNetns(t)
	d := open(t, Config{})
	q := d.Queues()[0]
	_ = q.Write(packet.Meta{}, cut(nil, probes()[0].packet, 7))
	for i := range q.iovecs {
		if unsafe.Pointer(q.iovecs[i].Base) != nil {
			t.Fatalf("iovec %d still refers to memory", i)
		}
	}
}
