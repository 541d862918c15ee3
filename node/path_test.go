package node_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/warren-net/warren/forwarder/packet"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// udpPorts lists the UDP ports that are bound in the node's namespace.
func (c *cluster) udpPorts(n *lab.Node) []uint16 {
	c.t.Helper()
	out, err := n.NS.Run(c.ctx, "ss", "-H", "-u", "-a", "-n", "-4")
	c.ok(err)
	seen := map[uint16]bool{}
	var ports []uint16
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			c.t.Fatalf("unknown form: %q", line)
		}
		var port uint16
		if _, err := fmt.Sscanf(fields[3][strings.LastIndexByte(fields[3], ':')+1:], "%d", &port); err != nil {
			c.t.Fatalf("%q: %v", line, err)
		}
		if !seen[port] {
			seen[port] = true
			ports = append(ports, port)
		}
	}
	return ports
}

// fragNeeded is an ICMP message (RFC 792, with RFC 1191's MTU) about a datagram from one node's port to the other.
func fragNeeded(from, to *lab.Node, port uint16, mtu int) []byte {
	m := make([]byte, 8+20+8)
	m[0], m[1] = 3, 4
	binary.BigEndian.PutUint16(m[6:], uint16(mtu))
	ip := m[8:]
	ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, 17
	binary.BigEndian.PutUint16(ip[2:], 1500)
	copy(ip[12:], from.V4.AsSlice())
	copy(ip[16:], to.V4.AsSlice())
	binary.BigEndian.PutUint16(ip[20:], port)
	binary.BigEndian.PutUint16(ip[22:], 4789)
	binary.BigEndian.PutUint16(ip[24:], 1480)
	sum := uint32(0)
	for i := 0; i < len(m); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(m[i:]))
	}
	for sum > packet.MaxPacket {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(m[2:], ^uint16(sum))
	return m
}

// TestPathMTUIsLearned has a router of the underlay say that a path is narrow, and looks at what pods are told.
func TestPathMTUIsLearned(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	c.ok(b.NS.Do(func() error {
		conn, err := net.ListenPacket("ip4:icmp", b.V4.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, port := range c.udpPorts(a) {
			if _, err := conn.WriteTo(fragNeeded(a, b, port, 1400), &net.IPAddr{IP: a.V4.AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	}))
	c.eventually(func() error {
		p, s := ask[[]api.Peer](c, a, "peers"), c.status(a)
		if p[0].MTU != 1350 || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "the path to peer b") {
			return fmt.Errorf("%w: MTU %d, %q", errNotYet, p[0].MTU, s.Warnings)
		}
		return nil
	})
	// A packet that is too big is answered from the gateway, with that MTU.
	_, err := a.NS.Run(c.ctx, "ping", "-c1", "-W1", "-M", "do", "-s", "1360",
		"-I", a.PodCIDRs[0].Addr().Next().String(), b.PodCIDRs[0].Addr().Next().String())
	if err == nil || !strings.Contains(err.Error(), "mtu = 1350") && !strings.Contains(err.Error(), "mtu=1350") {
		t.Errorf("a ping of 1388 bytes: %v", err)
	}
	c.ping(a, b) // small ones pass
}
