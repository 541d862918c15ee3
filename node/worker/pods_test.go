package worker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	devmem "github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/device/memory/netpod"
	"github.com/warren-net/warren/forwarder"
	tunmem "github.com/warren-net/warren/tunnel/memory"
)

// withPods puts a gVisor stack as pod .9 behind each node's device, and as many more on the first node as told.
func withPods(t testing.TB, c *testCluster, mtu int, offload netpod.Offload) []*netpod.Pod {
	t.Helper()
	var pods []*netpod.Pod
	for k, n := range c.nodes {
		h := netpod.NewHost(n.dev)
		t.Cleanup(h.Close)
		for _, last := range []int{9, 10} {
			p, err := h.AddPod(netpod.PodConfig{Name: fmt.Sprintf("%s.%d", n.name, last), MTU: mtu, Offload: offload,
				Addresses: []netip.Addr{
					netip.MustParseAddr(fmt.Sprintf("10.244.%d.%d", k+1, last)),
					netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%d::%d", k+1, last)),
				}})
			if err != nil {
				t.Fatal(err)
			}
			pods = append(pods, p)
		}
		t.Cleanup(func() {
			s := h.Stats()
			if s.BadHeader+s.BadOffload+s.TooBig+s.NoPod+s.Expired > 0 {
				t.Errorf("%s wrote packets that no kernel would take: %+v, last: %v", n.name, s, h.LastBad())
			}
		})
	}
	t.Cleanup(func() {
		for _, p := range pods {
			if b, m := p.BadChecksums(), p.Malformed(); b+m > 0 {
				t.Errorf("%s received %d packets with a bad checksum and %d malformed ones", p.Name(), b, m)
			}
		}
	})
	return pods
}

// transfer sends size random bytes from one pod to the other over TCP and back the hash.
func transfer(from, to *netpod.Pod, addr netip.Addr, size int64) error {
	l, err := to.ListenTCP(netip.AddrPortFrom(addr, 0))
	if err != nil {
		return err
	}
	defer l.Close()
	received := make(chan error, 1)
	var got [32]byte
	go func() {
		received <- func() error {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			defer conn.Close()
			h := sha256.New()
			n, err := io.Copy(h, conn)
			if err == nil && n != size {
				err = fmt.Errorf("%d bytes arrived, want %d", n, size)
			}
			h.Sum(got[:0])
			return err
		}()
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	conn, err := from.DialTCP(ctx, netip.AddrPortFrom(addr, port))
	if err != nil {
		return fmt.Errorf("dial %v: %w", addr, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(90 * time.Second)); err != nil {
		return err
	}
	h := sha256.New()
	data := io.LimitReader(rand.NewChaCha8([32]byte{byte(size)}), size)
	if _, err := io.Copy(conn, io.TeeReader(data, h)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	select {
	case err = <-received:
	case <-ctx.Done():
		err = errors.New("the receiver did not end in time")
	}
	if err == nil && string(h.Sum(nil)) != string(got[:]) {
		err = errors.New("the hash does not match")
	}
	return err
}

// TestTransfers moves real TCP through two and three nodes under every kind of impairment.
func TestTransfers(t *testing.T) { eachEncapsulation(t, testTransfers) }

func testTransfers(t *testing.T, over encapsulation) {
	const mib = 1 << 20
	for _, tt := range []struct {
		name    string
		nodes   int
		queues  int
		lanes   int
		express bool
		network tunmem.Config
		device  devmem.Config
		offload netpod.Offload
		v6      bool
		size    int64
	}{
		{name: "clean", nodes: 2, size: 32 * mib},
		{name: "clean, IPv6 underlay", nodes: 2, size: 8 * mib, v6: true},
		{name: "three nodes, two queues", nodes: 3, queues: 2, size: 8 * mib},
		{name: "one worker with four lanes", nodes: 2, queues: 4, lanes: 4, size: 8 * mib},
		{name: "two workers with two lanes each", nodes: 3, queues: 4, lanes: 2, size: 8 * mib},
		{name: "express", nodes: 3, queues: 8, lanes: 4, express: true, size: 8 * mib},
		{name: "no offloads at all", nodes: 2, size: 8 * mib, offload: netpod.OffloadNone,
			device: devmem.Config{NoTSO: true, NoUSO: true}, network: tunmem.Config{NoGSO: true, NoGRO: true}},
		{name: "pods without segmentation offload", nodes: 2, size: 8 * mib, offload: netpod.OffloadChecksum},
		{name: "loss", nodes: 2, size: 2 * mib, network: tunmem.Config{Seed: 1, Loss: 0.01}},
		{name: "reordering", nodes: 2, size: 4 * mib, network: tunmem.Config{Seed: 2, Reorder: 0.05}},
		{name: "duplication", nodes: 2, size: 4 * mib, network: tunmem.Config{Seed: 3, Duplicate: 0.05}},
		{name: "all of it, three nodes", nodes: 3, queues: 2, size: mib,
			network: tunmem.Config{Seed: 4, Loss: 0.005, Reorder: 0.02, Duplicate: 0.02}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, clusterConfig{nodes: tt.nodes, over: over, queues: tt.queues, lanes: tt.lanes,
				express: tt.express, network: tt.network, device: tt.device, v6: tt.v6})
			if over.encrypted {
				tt.size /= 4 // the way is the same, and the race detector takes its time
			}
			pods := withPods(t, c, 1420, tt.offload)
			var wg sync.WaitGroup
			run := func(from, to *netpod.Pod, family int) {
				wg.Go(func() {
					if err := transfer(from, to, to.Addresses()[family], tt.size); err != nil {
						t.Errorf("%s to %s at %v: %v", from.Name(), to.Name(), to.Addresses()[family], err)
					}
				})
			}
			run(pods[0], pods[2], 0)           // node 1 to node 2
			run(pods[2], pods[0], 1)           // and back, IPv6
			run(pods[0], pods[1], 0)           // on one node
			run(pods[len(pods)-1], pods[1], 1) // the last node to node 1
			wg.Wait()
			for _, n := range c.nodes {
				for r, count := range n.allDrops() {
					if r == forwarder.Replayed.Name() && tt.network.Duplicate > 0 {
						continue // what came twice is taken once
					}
					if r == forwarder.LostPieces.Name() && tt.network.Loss > 0 {
						continue
					}
					t.Errorf("%s dropped %d packets: %s", n.name, count, r)
				}
			}
		})
	}
}

// TestPathNarrowerThanPods lets TCP find out: pods with an MTU of 1420 over paths that carry 1280.
func TestPathNarrowerThanPods(t *testing.T) { eachEncapsulation(t, testPathNarrowerThanPods) }

func testPathNarrowerThanPods(t *testing.T, over encapsulation) {
	c := newCluster(t, clusterConfig{nodes: 2, over: over, pathMTU: 1280,
		network: tunmem.Config{MTU: 1280 + overhead(over)}})
	pods := withPods(t, c, 1420, netpod.OffloadFull)
	for family := range 2 {
		if err := transfer(pods[0], pods[2], pods[2].Addresses()[family], 4<<20); err != nil {
			t.Error(err)
		}
	}
	if n := c.nodes[0].drops(forwarder.SendTooBig); n > 0 {
		t.Errorf("%d packets too big for the underlay were sent", n)
	}
}

// TestPathShrinks narrows a path in the middle of a transfer: a snapshot with the new MTU, and TCP goes on.
func TestPathShrinks(t *testing.T) {
	c := newCluster(t, clusterConfig{nodes: 2})
	pods := withPods(t, c, 1420, netpod.OffloadFull)
	done := make(chan error, 1)
	go func() { done <- transfer(pods[0], pods[2], pods[2].Addresses()[0], 24<<20) }()
	for c.nodes[0].workers[0].Counters.SegmentsOut.Load() < 2000 {
		time.Sleep(time.Millisecond)
	}
	c.net.SetMTU(1350)
	for _, n := range c.nodes {
		n.publish(t, c.nodes, clusterConfig{queues: 1, pathMTU: 1300})
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPing checks what is neither TCP nor UDP, with and without IPv4 fragments.
func TestPing(t *testing.T) { eachEncapsulation(t, testPing) }

func testPing(t *testing.T, over encapsulation) {
	c := newCluster(t, clusterConfig{nodes: 2, over: over})
	pods := withPods(t, c, 1420, netpod.OffloadFull)
	for _, to := range pods[2].Addresses() {
		for _, payload := range []int{0, 56, 1372, 4000} {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if err := pods[0].Ping(ctx, to, payload); err != nil {
				t.Errorf("ping %v with %d bytes: %v", to, payload, err)
			}
			cancel()
		}
	}
}

// TestUDPBatches sends what UDP_SEGMENT sends; every datagram has to arrive as it left, in order.
func TestUDPBatches(t *testing.T) { eachEncapsulation(t, testUDPBatches) }

func testUDPBatches(t *testing.T, over encapsulation) {
	c := newCluster(t, clusterConfig{nodes: 2, over: over})
	pods := withPods(t, c, 1420, netpod.OffloadFull)
	to := netip.AddrPortFrom(pods[2].Addresses()[0], 7000)
	conn, err := pods[2].ListenUDP(to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	payload := make([]byte, 20*1000+333)
	for k := range payload {
		payload[k] = byte(k / 1000)
	}
	if err := pods[0].SendUDPBatch(netpod.UDPBatch{From: 7001, To: to, Payload: payload, Size: 1000}); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	for k := range 21 {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("datagram %d: %v", k, err)
		}
		want := payload[k*1000 : min((k+1)*1000, len(payload))]
		if string(buf[:n]) != string(want) {
			t.Errorf("datagram %d arrived as %d bytes of %d, want %d of %d", k, n, buf[0], len(want), want[0])
		}
	}
}
