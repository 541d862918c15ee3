package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// dialWait bounds one attempt to connect.
const dialWait = 5 * time.Second

// Listen opens a TCP listener in the namespace, on a port of the kernel's choice. A socket stays in the namespace
// where it was opened, so it is used from any goroutine.
func (ns *NS) Listen(addr netip.Addr) (*net.TCPListener, error) {
	var ln *net.TCPListener
	err := ns.Do(func() (err error) {
		ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening on %s in %s: %w", addr, ns.Name, err)
	}
	return ln, nil
}

// Dial connects from the namespace.
func (ns *NS) Dial(ctx context.Context, to string) (*net.TCPConn, error) {
	var conn net.Conn
	err := ns.Do(func() (err error) {
		d := net.Dialer{Timeout: dialWait}
		conn, err = d.DialContext(ctx, "tcp", to)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connecting from %s: %w", ns.Name, err)
	}
	return conn.(*net.TCPConn), nil
}

// A Path is a connection to be made: from one namespace to an address in another.
type Path struct {
	From, To *NS
	Addr     netip.Addr // of To
}

// connect makes the connection of a path; both ends close when ctx ends.
func (p Path) connect(ctx context.Context) (client, server *net.TCPConn, err error) {
	ln, err := p.To.Listen(p.Addr)
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if client, err = p.From.Dial(ctx, ln.Addr().String()); err != nil {
		return nil, nil, err
	}
	_ = ln.SetDeadline(time.Now().Add(dialWait))
	if server, err = ln.AcceptTCP(); err != nil {
		_ = client.Close()
		return nil, nil, fmt.Errorf("accepting on %s in %s: %w", ln.Addr(), p.To.Name, err)
	}
	context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})
	return client, server, nil
}

// SourceSeen makes a TCP connection and returns the source address that its far end sees.
func (p Path) SourceSeen(ctx context.Context) (netip.Addr, error) {
	client, server, err := p.connect(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	defer client.Close()
	defer server.Close()
	return server.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), nil
}

// SourceSeenUDP sends a datagram, waits for its answer and returns the source address that the far end saw.
func (p Path) SourceSeenUDP(ctx context.Context) (netip.Addr, error) {
	network := "udp4"
	if p.Addr.Is6() {
		network = "udp6"
	}
	var server *net.UDPConn
	err := p.To.Do(func() (err error) {
		server, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, 0)))
		return err
	})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("listening on %s in %s: %w", p.Addr, p.To.Name, err)
	}
	defer server.Close()
	var client *net.UDPConn
	err = p.From.Do(func() (err error) {
		client, err = net.DialUDP(network, nil, server.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("UDP socket in %s: %w", p.From.Name, err)
	}
	defer client.Close()
	deadline := time.Now().Add(dialWait)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = server.SetDeadline(deadline)
	_ = client.SetDeadline(deadline)
	const question, answer = "who am I?", "you are"
	if _, err := client.Write([]byte(question)); err != nil {
		return netip.Addr{}, fmt.Errorf("sending a datagram from %s: %w", p.From.Name, err)
	}
	buf := make([]byte, 64)
	n, from, err := server.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != question {
		return netip.Addr{}, fmt.Errorf("datagram from %s to %s: got %q: %w", p.From.Name, p.To.Name, buf[:n], err)
	}
	if _, err := server.WriteToUDPAddrPort([]byte(answer), from); err != nil {
		return netip.Addr{}, fmt.Errorf("answering %s from %s: %w", from, p.To.Name, err)
	}
	if n, err = client.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), answer) {
		return netip.Addr{}, fmt.Errorf("answer from %s to %s: got %q: %w", p.To.Name, p.From.Name, buf[:n], err)
	}
	return from.Addr().Unmap(), nil
}
