// Package roundtrip measures how long packets take to other hosts and back: by ICMP echo (RFC 792, RFC 4443), which
// every kernel answers, so that it goes for all encapsulations alike.
package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// rounds is how often each host is asked. The first packet to a host may wait for keys and neighbours, so the shortest
// time counts.
const rounds = 3

// Measure asks all hosts at once and returns the shortest round trip of each one that answered before ctx ended or the
// wait for a round was over. It needs the capability CAP_NET_RAW.
func Measure(ctx context.Context, hosts []netip.Addr, wait time.Duration) (map[netip.Addr]time.Duration, error) {
	best := map[netip.Addr]time.Duration{}
	var errs []error
	for _, f := range families() {
		var mine []netip.Addr
		for _, a := range hosts {
			if a.Is4() == f.is4 {
				mine = append(mine, a)
			}
		}
		if len(mine) == 0 {
			continue
		}
		if err := f.measure(ctx, mine, wait, best); err != nil {
			errs = append(errs, fmt.Errorf("round trip: %w", err))
		}
	}
	return best, errors.Join(errs...)
}

// A family is one version of ICMP.
type family struct {
	network, any  string
	is4           bool
	request, echo icmp.Type
	protocol      int // IANA's number
}

func families() []family {
	return []family{
		{"ip4:icmp", "0.0.0.0", true, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, 1},
		{"ip6:ipv6-icmp", "::", false, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58},
	}
}

func (f family) measure(
	ctx context.Context, hosts []netip.Addr, wait time.Duration, best map[netip.Addr]time.Duration,
) error {
	conn, err := icmp.ListenPacket(f.network, f.any)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	r := &round{family: f, conn: conn, id: rand.IntN(1 << 16), sent: map[netip.Addr]time.Time{}, best: best}
	for seq := range rounds {
		if ctx.Err() != nil {
			return nil
		}
		if err := r.run(hosts, seq, wait); err != nil {
			return err
		}
	}
	return nil
}

// A round is one echo to every host.
type round struct {
	family
	conn *icmp.PacketConn
	id   int // of the echoes: others on this host may ping as well
	seq  int

	mu   sync.Mutex
	sent map[netip.Addr]time.Time // and not yet answered
	best map[netip.Addr]time.Duration
}

func (r *round) run(hosts []netip.Addr, seq int, wait time.Duration) error {
	r.mu.Lock()
	r.seq = seq
	clear(r.sent)
	for _, a := range hosts {
		r.sent[a] = time.Time{}
	}
	r.mu.Unlock()
	if err := r.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- r.listen() }()
	for _, a := range hosts {
		if err := r.ask(a); err != nil {
			continue // no way to it: it does not answer
		}
	}
	return <-done
}

// ask sends an echo request.
func (r *round) ask(a netip.Addr) error {
	m := icmp.Message{Type: r.request, Body: &icmp.Echo{ID: r.id, Seq: r.seq, Data: make([]byte, 8)}}
	packet, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.sent[a] = time.Now()
	r.mu.Unlock()
	_, err = r.conn.WriteTo(packet, &net.IPAddr{IP: a.AsSlice()})
	return err
}

// listen takes answers until all have come or the time is over.
func (r *round) listen() error {
	buf := make([]byte, 1500)
	for {
		n, from, err := r.conn.ReadFrom(buf)
		now := time.Now()
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return nil
		}
		if err != nil {
			return err
		}
		ip, ok := from.(*net.IPAddr)
		if !ok {
			continue
		}
		a, _ := netip.AddrFromSlice(ip.IP)
		m, err := icmp.ParseMessage(r.protocol, buf[:n])
		if err != nil || m.Type != r.echo {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok && echo.ID == r.id && echo.Seq == r.seq && r.heard(a.Unmap(), now) {
			return nil
		}
	}
}

// heard notes an answer, and reports whether it was the last one.
func (r *round) heard(a netip.Addr, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, asked := r.sent[a]
	if !asked || at.IsZero() {
		return false
	}
	delete(r.sent, a)
	if took := now.Sub(at); r.best[a] == 0 || took < r.best[a] {
		r.best[a] = took
	}
	return len(r.sent) == 0
}
