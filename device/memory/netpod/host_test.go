package netpod

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/forwarder/packet"
)

// A reflector is the least forwarder: it writes back what it reads, so that pods of one host reach each other.
type reflector struct {
	spoil func(p []byte, m *packet.Meta) // changes what is written; may be nil

	mu      sync.Mutex
	read    map[packet.GSOType]int
	longest int
	partial int // lone packets with partial checksums
	refused error
}

func startReflector(t *testing.T, d *memory.Device, spoil func([]byte, *packet.Meta)) *reflector {
	t.Helper()
	r := &reflector{spoil: spoil, read: map[packet.GSOType]int{}}
	var wg sync.WaitGroup
	for _, q := range d.Queues() {
		wake := make(chan struct{}, 1)
		q.SetNotify(func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		})
		wg.Go(func() { r.run(q, wake) })
	}
	t.Cleanup(func() {
		_ = d.Close()
		wg.Wait()
	})
	return r
}

func (r *reflector) run(q *memory.Queue, wake chan struct{}) {
	buf := make([]byte, device.BufferSize)
	for {
		p, m, err := q.Read(buf)
		switch {
		case errors.Is(err, device.ErrClosed):
			return
		case errors.Is(err, device.ErrWouldBlock):
			<-wake
			continue
		}
		r.mu.Lock()
		r.read[m.Type]++
		r.longest = max(r.longest, len(p))
		if m.Type == packet.GSONone && m.NeedsChecksum {
			r.partial++
		}
		r.mu.Unlock()
		if r.spoil != nil {
			r.spoil(p, &m)
		}
		if err := q.Write(m, [][]byte{p[:20], p[20:]}); err != nil && !errors.Is(err, device.ErrClosed) {
			r.mu.Lock()
			r.refused = err
			r.mu.Unlock()
		}
	}
}

var (
	a4, b4 = netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.1.3")
	a6, b6 = netip.MustParseAddr("fd00:10:244:1::2"), netip.MustParseAddr("fd00:10:244:1::3")
)

// twoPods makes a host with two dual-stack pods and a reflector on two queues.
func twoPods(t *testing.T, o Offload, spoil func([]byte, *packet.Meta)) (a, b *Pod, r *reflector) {
	t.Helper()
	d := memory.New(memory.Config{Queues: 2, QueueLength: 4096}) // long enough to lose nothing
	h := NewHost(d)
	r = startReflector(t, d, spoil)
	t.Cleanup(h.Close) // before the reflector stops
	var pods []*Pod
	for i, addrs := range [][]netip.Addr{{a4, a6}, {b4, b6}} {
		p, err := h.AddPod(PodConfig{Name: fmt.Sprint("pod", i), Addresses: addrs, Offload: o})
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, p)
	}
	return pods[0], pods[1], r
}

// checkClean fails the test when anything was dropped or damaged.
func checkClean(t *testing.T, h *Host, pods ...*Pod) {
	t.Helper()
	s := h.Stats()
	if s.Expired+s.NoPod+s.TooBig+s.BadHeader+s.BadOffload != 0 {
		t.Errorf("%+v: %v", s, h.LastBad())
	}
	for _, p := range pods {
		if p.BadChecksums() != 0 || p.Malformed() != 0 {
			t.Errorf("pod %s: %d bad checksums, %d malformed", p.Name(), p.BadChecksums(), p.Malformed())
		}
	}
}

func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// transfer sends n bytes by TCP and compares the hash.
func transfer(from, to *Pod, at netip.Addr, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	l, err := to.ListenTCP(netip.AddrPortFrom(at, 5001))
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	data := make([]byte, n)
	for i := 0; i < n; i += copy(data[i:], data[:max(1, i-3)]) { // no period that a segment could have
		data[i] = byte(i)
	}
	received := make(chan error, 1)
	go func() {
		received <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
			defer stop()
			h := sha256.New()
			if m, err := io.Copy(h, c); err != nil || m != int64(n) {
				return fmt.Errorf("received %d bytes of %d: %w", m, n, err)
			}
			if [32]byte(h.Sum(nil)) != sha256.Sum256(data) {
				return errors.New("what was received is not what was sent")
			}
			return nil
		}()
	}()
	c, err := from.DialTCP(ctx, netip.AddrPortFrom(at, 5001))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.Write(data); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	return <-received
}

func TestTCP(t *testing.T) {
	for name, o := range map[string]Offload{"full": OffloadFull, "checksum": OffloadChecksum, "none": OffloadNone} {
		n := 20_000_000
		if o == OffloadChecksum {
			n /= 10 // between the two others, so that less is enough
		}
		t.Run(name, func(t *testing.T) {
			a, b, r := twoPods(t, o, nil)
			for _, at := range []netip.Addr{b4, b6} {
				start := time.Now()
				if err := transfer(a, b, at, n); err != nil {
					t.Fatalf("to %v: %v", at, err)
				}
				t.Logf("to %v: %d MB in %v", at, n/1_000_000, time.Since(start))
			}
			checkClean(t, a.host, a, b)
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Logf("read by type %v, longest %d, lone with partial checksum %d; %+v", r.read, r.longest, r.partial,
				a.host.Stats())
			if r.refused != nil {
				t.Error(r.refused)
			}
			super := r.read[packet.GSOTCP4] > 0 && r.read[packet.GSOTCP6] > 0 && r.longest > 60_000
			if super != (o == OffloadFull) || r.partial > 0 != (o != OffloadNone) || o != OffloadFull && r.longest > 1420 {
				t.Errorf("wrong form: types %v, longest %d, partial %d", r.read, r.longest, r.partial)
			}
		})
	}
}

func TestPing(t *testing.T) {
	a, b, _ := twoPods(t, OffloadFull, nil)
	for _, size := range []int{0, 1, 56, 1420 - 48, 4000} { // the last one in fragments
		for _, to := range []netip.Addr{b4, b6} {
			if err := a.Ping(timeout(t, 10*time.Second), to, size); err != nil {
				t.Error(err)
			}
		}
	}
	if err := a.Ping(timeout(t, 50*time.Millisecond), netip.MustParseAddr("10.244.1.99"), 10); err == nil ||
		!errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ping to nobody: %v", err)
	}
	if s := a.host.Stats(); s.NoPod != 1 {
		t.Errorf("%+v, want one packet to no pod", s)
	}
	if a.BadChecksums()+b.BadChecksums() != 0 {
		t.Error("bad checksums")
	}
}

func TestUDP(t *testing.T) {
	for _, o := range []Offload{OffloadFull, OffloadChecksum, OffloadNone} {
		t.Run(fmt.Sprint(o), func(t *testing.T) {
			a, b, r := twoPods(t, o, nil)
			for _, at := range []netip.Addr{b4, b6} {
				server, err := b.ListenUDP(netip.AddrPortFrom(at, 53))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = server.Close() }()
				client, err := a.DialUDP(netip.AddrPortFrom(at, 53))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = client.Close() }()
				_ = server.SetDeadline(time.Now().Add(10 * time.Second))
				_ = client.SetDeadline(time.Now().Add(10 * time.Second))
				echo(t, client, server, 1300)
				echo(t, client, server, 5000) // in fragments
				batch(t, a, server, at)
			}
			checkClean(t, a.host, a, b)
			if got := r.read[packet.GSOUDP]; got != map[Offload]int{OffloadFull: 2}[o] {
				t.Errorf("%d USO superpackets", got)
			}
		})
	}
}

// echo sends n bytes there and back.
func echo(t *testing.T, client, server *gonet.UDPConn, n int) {
	t.Helper()
	out, in := bytes.Repeat([]byte("warren"), n/6+1)[:n], make([]byte, n+1)
	if _, err := client.Write(out); err != nil {
		t.Fatal(err)
	}
	got, from, err := server.ReadFrom(in)
	if err != nil || !bytes.Equal(in[:got], out) {
		t.Fatalf("server got %d bytes, %v", got, err)
	}
	if _, err := server.WriteTo(in[:got], from); err != nil {
		t.Fatal(err)
	}
	if got, err = client.Read(in); err != nil || !bytes.Equal(in[:got], out) {
		t.Fatalf("client got %d bytes, %v", got, err)
	}
}

// batch sends a USO superpacket of 10 datagrams and receives them.
func batch(t *testing.T, from *Pod, server *gonet.UDPConn, at netip.Addr) {
	t.Helper()
	data := make([]byte, 9*1000+500)
	for i := range data {
		data[i] = byte(i * 13)
	}
	b := UDPBatch{From: 7777, To: netip.AddrPortFrom(at, 53), Payload: data, Size: 1000}
	if err := from.SendUDPBatch(b); err != nil {
		t.Fatal(err)
	}
	var got []byte
	buf := make([]byte, 2000)
	for range 10 {
		n, _, err := server.ReadFrom(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, data) {
		t.Error("the datagrams are not what was sent")
	}
	b.Size = 0
	if err := from.SendUDPBatch(b); err == nil {
		t.Error("a batch of empty datagrams: no error")
	}
}

// What a broken forwarder does to packets is noticed.
func TestDamageIsNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(p []byte, m *packet.Meta)
		seen  func(a, b *Pod) uint64
	}{
		"payload": {
			func(p []byte, m *packet.Meta) { p[len(p)-1]++; m.NeedsChecksum = false },
			func(_, b *Pod) uint64 { return b.BadChecksums() },
		},
		"pseudo header sum": {
			func(p []byte, m *packet.Meta) { p[m.ChecksumStart+m.ChecksumOffset]++ },
			func(_, b *Pod) uint64 { return b.BadChecksums() },
		},
		"payload, no socket": {
			func(p []byte, m *packet.Meta) { p[22]++; m.NeedsChecksum = false },
			func(_, b *Pod) uint64 { return b.Malformed() },
		},
		"IPv4 header": {
			func(p []byte, _ *packet.Meta) { p[1]++ },
			func(a, _ *Pod) uint64 { return a.host.Stats().BadHeader },
		},
		"hop limit": {
			func(p []byte, _ *packet.Meta) { p[8] = 1; setIPv4Checksum(p) },
			func(a, _ *Pod) uint64 { return a.host.Stats().Expired },
		},
		"metadata": {
			func(p []byte, m *packet.Meta) {
				m.Type, m.SegmentSize = packet.GSOTCP4, 5
				p[9] = 17
				setIPv4Checksum(p)
			},
			func(a, _ *Pod) uint64 { return a.host.Stats().BadOffload },
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, _ := twoPods(t, OffloadFull, c.spoil)
			l, err := b.ListenTCP(netip.AddrPortFrom(b4, 80))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			if conn, err := a.DialTCP(timeout(t, 100*time.Millisecond), netip.AddrPortFrom(b4, 80)); err == nil {
				_ = conn.Close()
				t.Error("connected in spite of the damage")
			}
			if c.seen(a, b) == 0 {
				t.Errorf("not noticed: %+v", a.host.Stats())
			}
		})
	}
}

func TestTooBigForPod(t *testing.T) {
	d := memory.New(memory.Config{})
	h := NewHost(d)
	startReflector(t, d, nil)
	t.Cleanup(h.Close)
	a, err := h.AddPod(PodConfig{Name: "a", Addresses: []netip.Addr{a4}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := h.AddPod(PodConfig{Name: "b", Addresses: []netip.Addr{b4}, MTU: 1000})
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(b4, 2)
	if _, err := b.ListenUDP(to); err != nil { // or b would answer with ICMP errors
		t.Fatal(err)
	}
	for _, size := range []int{900, 1300} {
		if err := a.SendUDPBatch(UDPBatch{From: 1, To: to, Payload: make([]byte, 3*size), Size: size}); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(5 * time.Second); h.Stats().FromDevice < 2 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	h.Close()
	if s := h.Stats(); s.TooBig != 3 || s.Delivered != 3 || s.Superpackets != 2 {
		t.Errorf("%+v, want 3 packets delivered and 3 too big", s)
	}
}

func TestAddPodRefuses(t *testing.T) {
	h := NewHost(memory.New(memory.Config{}))
	if _, err := h.AddPod(PodConfig{Name: "none"}); err == nil {
		t.Error("no address: no error")
	}
	a, err := h.AddPod(PodConfig{Name: "a", Addresses: []netip.Addr{a4}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.AddPod(PodConfig{Name: "b", Addresses: []netip.Addr{b4, a4}}); err == nil {
		t.Error("address twice: no error")
	}
	if err := a.SendUDPBatch(UDPBatch{To: netip.AddrPortFrom(b6, 1), Payload: []byte{1}, Size: 1}); err == nil {
		t.Error("IPv6 from an IPv4 pod: no error")
	}
	a.Close()
	a.Close()
	if b, err := h.AddPod(PodConfig{Name: "b", Addresses: []netip.Addr{a4}}); err != nil {
		t.Errorf("the address of a closed pod: %v", err)
	} else {
		defer b.Close()
	}
	h.Close()
	if _, err := h.AddPod(PodConfig{Name: "late", Addresses: []netip.Addr{b4}}); err == nil {
		t.Error("closed host: no error")
	}
}

// Close ends every goroutine, also with connections open.
func TestNoLeak(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		t.Run("", func(t *testing.T) {
			a, b, _ := twoPods(t, OffloadFull, nil)
			l, err := b.ListenTCP(netip.AddrPortFrom(b4, 80))
			if err != nil {
				t.Fatal(err)
			}
			c, err := a.DialTCP(timeout(t, 10*time.Second), netip.AddrPortFrom(b4, 80))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(make([]byte, 1<<20)); err != nil { // nobody reads it
				t.Fatal(err)
			}
			_ = l
		})
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		}
	}
}
