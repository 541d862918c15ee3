package e2e_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// nodeLanes is how many lanes a node has; buckets is how many flows it tells apart when it steers them.
const nodeLanes, buckets = 16, 1024

// TestQuietFlowLeavesBusyLane has an echo in the lane of a large transfer. Both nodes have to find another lane for it,
// keep it there, and take it home when the transfer is over. The lanes are read off the underlay.
func TestQuietFlowLeavesBusyLane(t *testing.T) {
	t.Run("vxlan", func(t *testing.T) {
		c := newCluster(t, lab.Options{})
		c.quietFlowLeaves(c.node("a"), c.node("b"), echoFrames{
			overhead: vxlanHeaders + 20 + 8, // and IPv4, UDP
			// Lane i sends from a port that is i modulo their number.
			lane: func(udp []byte) int { return int(binary.BigEndian.Uint16(udp)) % nodeLanes },
			is:   func(message []byte) bool { return message[vxlanHeaders+9] == protoUDP },
		})
	})
	t.Run("wireguard", func(t *testing.T) {
		c := newEncrypted(t, "steer")
		c.quietFlowLeaves(c.encrypted("a"), c.encrypted("b"), echoFrames{
			overhead: 32 + 20 + 8 + 7, // WireGuard, IPv4, UDP, padding to 16
			// The lowest byte of the receiver index, in front of which is the message's type.
			lane: func(udp []byte) int { return int(udp[8+4]) % nodeLanes },
			is:   func(message []byte) bool { return message[0] == 4 }, // data, and no piece of a superframe
		})
	})
}

// vxlanHeaders is the length of the headers of VXLAN and Ethernet.
const vxlanHeaders = 8 + 14

// echoPayload is so large that an echo can be told from all else by its length.
const echoPayload = 333

// echoFrames says what an echo's frames are like.
type echoFrames struct {
	overhead int // bytes, from the outer UDP header to the payload, and behind it
	lane     func(udp []byte) int
	is       func(message []byte) bool
}

func (c *cluster) quietFlowLeaves(a, b *lab.Node, frames echoFrames) {
	c.t.Helper()
	for _, n := range []*lab.Node{a, b} {
		n.Settings.Express = "auto"
	}
	c.configure()
	c.up(a, b)
	from, to := c.pod(a, "1"), c.pod(b, "1")
	e := c.startEcho(between(from, to, 4))
	stop := c.transferBeside(from, to, e)

	filter := "udp and udp[4:2] == " + strconv.Itoa(8+frames.overhead+echoPayload)
	nodes := []*lab.Node{a, b}
	tries := 0
	lanes := func(check func(n *lab.Node, last []int) error) {
		c.t.Helper()
		c.within(40*time.Second, func() (err error) {
			tries++
			d := c.dumpOf(a.NS, fmt.Sprintf("echo%d", tries), "eth0", "-s", "96", filter)
			e.more(10)
			d.stop()
			for _, n := range nodes {
				if last := c.lastLanes(d, n, frames); len(last) == 5 {
					err = errors.Join(err, check(n, last))
				} else { // it leaves together with messages of the transfer's
					err = errors.Join(err, fmt.Errorf("%w: node %s sent the echo alone in lanes %v", errNotYet, n.Name, last))
				}
			}
			return err
		})
	}
	lanes(func(n *lab.Node, last []int) error {
		if last[0] == e.home || last[0] != last[len(last)-1] {
			return fmt.Errorf("%w: node %s sends the echo in lanes %v, the transfer's is %d: %+v", errNotYet, n.Name, last,
				e.home, ask[api.Status](c, n, "status").Workers)
		}
		return nil
	})
	for _, n := range nodes {
		if c.flowsMoved(n) == 0 {
			c.t.Errorf("node %s counts no flow that moved", n.Name)
		}
	}
	stop()
	lanes(func(n *lab.Node, last []int) error {
		if last[0] != e.home {
			return fmt.Errorf("%w: node %s sends the echo in lanes %v after the transfer, its home is %d", errNotYet, n.Name,
				last, e.home)
		}
		return nil
	})
}

func (c *cluster) flowsMoved(n *lab.Node) (moved uint64) {
	c.t.Helper()
	for _, w := range ask[api.Status](c, n, "status").Workers {
		moved += w.FlowsMoved
	}
	return moved
}

// lastLanes are the lanes of the last five echoes that a node sent in frames of their own.
func (c *cluster) lastLanes(d *dump, from *lab.Node, frames echoFrames) (lanes []int) {
	c.t.Helper()
	const ethernet, ipv4 = 14, 20
	for _, f := range c.readPcap(d.file) {
		if p := parseIP(f[ethernet:]); p != nil && p.src == from.V4 && frames.is(p.payload) {
			lanes = append(lanes, frames.lane(f[ethernet+ipv4:]))
		}
	}
	return lanes[max(0, len(lanes)-5):]
}

// An echo is a flow of small datagrams, each sent when the one before was answered.
type echo struct {
	c    *cluster
	flow uint32 // its hash
	home int    // the lane that follows
	done atomic.Int64
}

// startEcho has datagrams go to and fro, 10 ms after each other.
func (c *cluster) startEcho(p lab.Path) *echo {
	c.t.Helper()
	server, client := c.udpPair(p)
	e := &echo{c: c, flow: hashOf(client.LocalAddr(), server.LocalAddr())}
	e.home = int(e.flow % nodeLanes)
	stopped := make(chan struct{})
	var asking, answering sync.WaitGroup
	answering.Go(func() {
		for buf := make([]byte, 2*echoPayload); ; {
			n, from, err := server.ReadFromUDP(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDP(buf[:n], from)
		}
	})
	asking.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for buf := make([]byte, echoPayload); ; {
			select {
			case <-stopped:
				return
			case <-tick.C:
			}
			_, _ = client.Write(buf)
			_ = client.SetReadDeadline(time.Now().Add(time.Second)) // full queues drop some
			if _, err := client.Read(buf); err == nil {
				e.done.Add(1)
			}
		}
	})
	c.t.Cleanup(func() {
		close(stopped)
		asking.Wait()
		_ = server.Close()
		answering.Wait()
		_ = client.Close()
	})
	return e
}

// more waits for so many more answers.
func (e *echo) more(n int64) {
	e.c.t.Helper()
	want := e.done.Load() + n
	e.c.eventually(func() error {
		if got := e.done.Load(); got < want {
			return fmt.Errorf("%w: %d echoes were answered, want %d", errNotYet, got, want)
		}
		return nil
	})
}

// transferBeside sends as fast as TCP can in the lane of an echo, until it is stopped.
func (c *cluster) transferBeside(from, to *lab.Pod, e *echo) (stop func()) {
	c.t.Helper()
	l, err := to.NS.Listen(to.V4)
	c.ok(err)
	var sender net.Conn
	const firstPort = 20000
	local := net.TCPAddrFromAddrPort(netip.AddrPortFrom(from.V4, firstPort))
	for ; ; local.Port++ {
		if hash := hashOf(local, l.Addr()); hash%nodeLanes == e.flow%nodeLanes && hash%buckets != e.flow%buckets {
			break
		}
	}
	c.ok(from.NS.Do(func() (err error) {
		sender, err = (&net.Dialer{LocalAddr: local}).DialContext(c.ctx, "tcp", l.Addr().String())
		return err
	}))
	receiver, err := l.Accept()
	c.ok(err)
	var ends sync.WaitGroup
	ends.Go(func() {
		for buf := make([]byte, 128<<10); ; {
			if _, err := sender.Write(buf); err != nil {
				return
			}
		}
	})
	ends.Go(func() { _, _ = io.Copy(io.Discard, receiver) })
	stop = sync.OnceFunc(func() {
		_ = errors.Join(sender.Close(), receiver.Close(), l.Close())
		ends.Wait()
	})
	c.t.Cleanup(stop)
	return stop
}

func hashOf(a, b net.Addr) uint32 {
	x, y := netip.MustParseAddrPort(a.String()), netip.MustParseAddrPort(b.String())
	i := packet.Info{Version: 4, Src: x.Addr(), Dst: y.Addr(), SrcPort: x.Port(), DstPort: y.Port(),
		Flags: packet.HasPorts}
	return i.FlowHash()
}
