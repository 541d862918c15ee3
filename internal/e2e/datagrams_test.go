package e2e_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
)

// datagrams sends datagrams of a size by one call each, cut by the kernel (UDP_SEGMENT), and wants every one to arrive
// with its bounds where they were.
func (c *cluster) datagrams(p lab.Path) {
	c.t.Helper()
	const size, count = 1100, 20
	server, client := c.udpPair(p)
	defer server.Close()
	defer client.Close()
	raw, err := client.SyscallConn()
	c.ok(err)
	var failed error
	c.ok(raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
	}))
	c.ok(failed)
	payload := make([]byte, size*count-300) // the last one is shorter
	for k := range payload {
		payload[k] = byte(k / size)
	}
	if _, err := client.Write(payload); err != nil {
		c.t.Errorf("%d datagrams from %s: %v", count, p.From.Name, err)
		return
	}
	want := slices.Collect(slices.Chunk(payload, size))
	got := receiveDatagrams(server, len(want))
	// Nothing promises their order, but one flow over one path has no reason to lose it.
	if !slices.EqualFunc(got, want, bytes.Equal) {
		arrived := make([]string, len(got))
		for k := range got {
			arrived[k] = fmt.Sprintf("%d:%d", got[k][0], len(got[k]))
		}
		c.t.Errorf("%d datagrams of %d bytes from %s to %s, the last of %d, arrived as %v (number:bytes)\n%s", count, size,
			p.From.Name, p.Addr, size-300, arrived, c.devices(p.From))
	}
}

// udpPair makes a connected UDP socket at the near end of a path and one that it is connected to at the far end.
func (c *cluster) udpPair(p lab.Path) (server, client *net.UDPConn) {
	c.t.Helper()
	c.ok(p.To.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, 0)))
		return err
	}))
	c.ok(p.From.Do(func() (err error) {
		client, err = net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
		return err
	}))
	return server, client
}

// receiveDatagrams reads so many datagrams, or what comes of them within two seconds.
func receiveDatagrams(conn *net.UDPConn, count int) [][]byte {
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	var got [][]byte
	for buf := make([]byte, 1<<16); len(got) < count; {
		n, err := conn.Read(buf)
		if err != nil {
			break
		}
		got = append(got, bytes.Clone(buf[:n]))
	}
	return got
}
