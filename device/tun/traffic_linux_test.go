package tun

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/internal/poll"
)

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
		{"no checksums", Config{Checksum: Off}, mirrorOptions{}},
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
			if partial := m.unsummed(); (partial == 0) != (c.cfg.Checksum == Off) {
				t.Errorf("%d packets had their checksum left to the device", partial)
			}
			on := c.cfg.TSO == Auto && c.cfg.Checksum == Auto
			for _, typ := range []packet.GSOType{packet.GSOTCP4, packet.GSOTCP6} {
				if on != (read[typ] > 0) || on != (longest[typ] > 32<<10) {
					t.Errorf("type %d: read %d superpackets of up to %d bytes", typ, read[typ], longest[typ])
				}
			}
			for _, s := range d.Offloads() {
				if s.Name == "tun-tso" && s.Enabled != on {
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
	if used := m.used(); len(used) < 2 {
		t.Errorf("24 flows used %d of 4 queues: %v", len(used), used)
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
	p, err := poll.New(poll.FD{FD: d.Queues()[0].FD()})
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
