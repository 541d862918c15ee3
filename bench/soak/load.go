package soak

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// A task goes on until the load is to end or the context has ended.
type task func(ctx context.Context)

// between is the path from one pod to another.
func between(from, to *lab.Pod, family int) lab.Path {
	return lab.Path{From: from.NS, To: to.NS, Addr: to.Address(family)}
}

// Rates of the streams, in bytes per second. All together come to some 80 Mbit/s.
const (
	slow   = 500_000
	medium = 1_000_000
	fast   = 1_500_000
)

// load lists the traffic. What goes to the killed node has to live through its kills.
func (r *run) load() []task {
	a, b, c := r.pods[first], r.pods[second], r.pods[killed]
	const whole = 0
	return []task{
		r.stream("TCP a to b, IPv4, one connection", between(a, b, 4), lab.TransferOptions{BytesPerSecond: fast}, whole),
		r.stream("TCP b to a, IPv6, one connection", between(b, a, 6), lab.TransferOptions{BytesPerSecond: fast}, whole),
		r.stream("TCP a to c, IPv4, one connection", between(a, c, 4), lab.TransferOptions{BytesPerSecond: slow}, whole),
		r.stream("TCP c to a, IPv6", between(c, a, 6), lab.TransferOptions{BytesPerSecond: slow}, 30*time.Second),
		r.stream("TCP a to b, IPv6", between(a, b, 6), lab.TransferOptions{BytesPerSecond: medium}, 20*time.Second),
		r.stream("TCP b to c, IPv4", between(b, c, 4), lab.TransferOptions{BytesPerSecond: slow}, 15*time.Second),
		r.stream("TCP on one node, IPv4", between(a, r.beside, 4), lab.TransferOptions{BytesPerSecond: medium},
			20*time.Second),
		r.stream("TCP on one node, IPv6", between(r.beside, a, 6), lab.TransferOptions{BytesPerSecond: medium},
			25*time.Second),
		r.bursts(),
		r.echo("interactive TCP a to b", between(a, b, 4)),
		r.echo("interactive TCP b to c", between(b, c, 6)),
		r.connections(),
		r.pings(),
		r.datagrams("UDP a to b, 64 bytes", between(a, b, 4), datagrams{size: 64, batch: 1, every: 5 * time.Millisecond}),
		r.datagrams("UDP b to a, 1372 bytes", between(b, a, 6), datagrams{size: 1372, batch: 1,
			every: 10 * time.Millisecond}),
		r.datagrams("UDP a to b, 1100 bytes, cut by the kernel", between(a, b, 6), datagrams{size: 1100, batch: 20, cut: true,
			every: 250 * time.Millisecond}),
		r.datagrams("UDP b to a, 8000 bytes, fragmented", between(b, a, 4), datagrams{size: 8000, batch: 1,
			every: 200 * time.Millisecond}),
		r.datagrams("UDP b to c, 300 bytes", between(b, c, 4), datagrams{size: 300, batch: 1, every: 20 * time.Millisecond,
			mayLose: true}),
		r.datagrams("UDP on one node, 900 bytes", between(a, r.beside, 6), datagrams{size: 900, batch: 1,
			every: 20 * time.Millisecond}),
	}
}

// stream sends over TCP at a rate and compares what arrived, in a new connection after each chapter, or over one
// connection to the end.
func (r *run) stream(name string, p lab.Path, o lab.TransferOptions, chapter time.Duration) task {
	t := r.tally(name)
	if chapter == 0 {
		chapter = r.Duration * 2
	}
	return func(ctx context.Context) {
		for more := true; more && ctx.Err() == nil; {
			transfer, err := lab.StartTransfer(ctx, p, o)
			if err != nil {
				r.broke(ctx, name, err)
				more = r.pause(ctx, time.Second)
				continue
			}
			more = r.pause(ctx, chapter)
			transfer.Finish()
			result, err := transfer.Wait()
			if err != nil {
				r.broke(ctx, name, err)
				continue
			}
			t.add(result.Bytes, result.LongestStall)
		}
	}
}

// broke notes a failure of the network's, and not that everything is being taken down.
func (r *run) broke(ctx context.Context, name string, err error) {
	if ctx.Err() == nil || errors.Is(context.Cause(ctx), errLate) {
		r.fail("%s: %v", name, err)
	}
}

// bursts sends as fast as it goes for a moment: superpackets of full size, many at once. What is on its way fits a
// socket of the daemon's (1 MiB), however late the worker comes to it, so that a drop there would be a fault. Without
// such a bound TCP goes on until a socket is full, and learns by that how fast the path is.
func (r *run) bursts() task {
	const bytes, window, soon, every = 16 << 20, 256 << 10, time.Second, 10 * time.Second
	const name = "TCP bursts between a and b"
	t := r.tally(name)
	a, b := r.pods[first], r.pods[second]
	paths := []lab.Path{between(a, b, 4), between(b, a, 6), between(a, b, 6), between(b, a, 4)}
	return func(ctx context.Context) {
		for i, wait := 0, soon; r.pause(ctx, wait); i, wait = i+1, every {
			transfer, err := lab.StartTransfer(ctx, paths[i%len(paths)], lab.TransferOptions{
				Bytes: bytes, ReceiveBuffer: window,
			})
			if err == nil {
				var result lab.TransferResult
				if result, err = transfer.Wait(); err == nil {
					t.add(result.Bytes, result.LongestStall)
				}
			}
			if err != nil {
				r.broke(ctx, name, err)
			}
		}
	}
}

// echo keeps a connection with a few bytes every now and then.
func (r *run) echo(name string, p lab.Path) task {
	t := r.tally(name)
	return func(ctx context.Context) {
		e, err := lab.StartEcho(ctx, p, 20*time.Millisecond)
		if err != nil {
			r.broke(ctx, name, err)
			return
		}
		for more := true; more; {
			more = r.pause(ctx, time.Second)
			t.add(0, e.Longest())
		}
		if err := e.WaitAnswered(ctx); err != nil {
			r.broke(ctx, name, err)
		}
		if err := e.Stop(); err != nil {
			r.broke(ctx, name, err)
		}
	}
}

// connections opens new TCP connections and looks at the source that the far end sees.
func (r *run) connections() task {
	const every = 200 * time.Millisecond
	t := r.tally("new TCP connections")
	return func(ctx context.Context) {
		for i := 0; r.pause(ctx, every); i++ {
			from, to, family := r.pair(i)
			begin := time.Now()
			seen, err := between(from, to, family).SourceSeen(ctx)
			switch {
			case err == nil && seen != from.Address(family):
				err = fmt.Errorf("seen as %s instead of %s", seen, from.Address(family))
			case err != nil && r.trouble.met(to, begin), err != nil && r.trouble.met(from, begin):
				continue // the daemon of one of them was just killed
			}
			if err != nil {
				r.broke(ctx, fmt.Sprintf("connection from %s to %s", from.NS.Name, to.Address(family)), err)
				continue
			}
			t.add(0, time.Since(begin))
		}
	}
}

// pair goes round all pairs of nodes, in both directions and families.
func (r *run) pair(i int) (from, to *lab.Pod, family int) {
	family = 4 + 2*(i&1)
	i /= 2
	n := i % members
	return r.pods[n], r.pods[(n+1+i/members%(members-1))%members], family
}

// pings sends echo requests, small ones and some of full size.
func (r *run) pings() task {
	const every = time.Second
	t := r.tally("pings")
	return func(ctx context.Context) {
		for i := 0; r.pause(ctx, every); i++ {
			from, to, family := r.pair(i)
			how := lab.Ping{Count: 2}
			if i%4 == 3 {
				how.Payload, how.DontFragment = lab.PayloadFor(lab.DefaultMTU-80, to.Address(family)), true
			}
			begin := time.Now()
			rtt, err := from.NS.Ping(ctx, to.Address(family), how)
			if err != nil {
				if !r.trouble.met(to, begin) && !r.trouble.met(from, begin) {
					r.broke(ctx, "ping", err)
				}
				continue
			}
			t.add(0, rtt)
		}
	}
}
