package wireguard

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/warren-net/warren/tunnel"
)

// A Waiter blocks until the control socket may have something, or until Wake.
type Waiter interface {
	// Wait returns after at most timeout. It may return early.
	Wait(timeout time.Duration) error
	// Wake makes the current or the next Wait return. Safe for concurrent use.
	Wake()
}

const (
	controlSlots = 64   // messages in a receive
	controlSlot  = 2048 // bytes; what is longer, as one or joined by GRO, is no handshake, and is thrown away
	idleWait     = time.Minute
	// Who was at work for workMost in a workWindow rests as long, and is under load when it was for handshakes. Fewer than
	// workLeast messages don't take so long: then the goroutine was without a processor.
	workLeast  = 2 * loadMark
	workWindow = 100 * time.Millisecond
	workMost   = workWindow / 2
)

// Run answers handshakes, begins them and keeps the timers until ctx ends (and returns nil) or the socket is gone. The
// socket is Run's own. It takes at most half of a processor for what comes to it: what comes while it rests and finds
// the socket full is lost, and costs nothing.
func (t *Tunnel) Run(ctx context.Context, socket tunnel.Socket, waiter Waiter) error {
	t.handMu.Lock()
	t.wake = waiter.Wake
	t.handMu.Unlock()
	t.limiter.Init()
	defer t.limiter.Close()
	stop := context.AfterFunc(ctx, waiter.Wake)
	defer stop()
	in := &tunnel.Inbound{Slots: make([]tunnel.Datagrams, controlSlots)}
	for k := range in.Slots {
		in.Slots[k].Buf = make([]byte, controlSlot)
	}
	var events []tunnel.PathEvent
	var work meter
	for ticked, wait := int64(0), time.Duration(0); ctx.Err() == nil; {
		if err := waiter.Wait(wait); err != nil {
			return fmt.Errorf("wireguard: wait: %w", err)
		}
		begin := t.config.Now()
		if err := socket.Receive(in); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("wireguard: receive: %w", err)
		}
		active := t.round(in, begin, &ticked)
		verified := t.verified // of this goroutine alone
		if _, err := socket.Send(&t.out); err != nil && ctx.Err() == nil {
			return fmt.Errorf("wireguard: send: %w", err)
		}
		t.out.Reset()
		if events = socket.PathEvents(events[:0]); len(events) > 0 && t.config.PathEvents != nil {
			t.config.PathEvents(events)
		}
		d, load := work.add(worked{begin, t.config.Now(), in.N, verified})
		if load {
			t.mu.Lock()
			t.loadedAt = begin
			t.mu.Unlock()
		}
		if d > 0 {
			rest(ctx, d)
		}
		switch {
		case in.N == len(in.Slots): // the socket may hold more without showing it
			wait = 0
		case active:
			wait = tickTime
		default:
			wait = idleWait
		}
	}
	return nil
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// A worked is what a round did.
type worked struct {
	from, to int64
	messages int // all that came to the control socket
	verified int // handshake messages with a right first MAC
}

// A meter sums up work.
type meter struct {
	window, busy       int64
	messages, verified int
}

// add notes that there was work, and returns for how long to rest after it, and whether it was the load of handshakes.
func (m *meter) add(w worked) (time.Duration, bool) {
	if w.from-m.window >= int64(workWindow) {
		*m = meter{window: w.from}
	}
	m.busy += w.to - w.from
	m.messages += w.messages
	m.verified += w.verified
	if m.busy < int64(workMost) || m.messages < workLeast {
		return 0, false
	}
	d, load := min(time.Duration(m.busy), workWindow), m.verified >= workLeast
	*m = meter{}
	return d, load
}

// round handles what has come, and the timers when it is time. Messages to send are in t.out then. It reports whether
// a timer runs.
func (t *Tunnel) round(in *tunnel.Inbound, now int64, ticked *int64) (active bool) {
	t.handMu.Lock()
	handed, wanting := t.handed, t.wanting
	t.handed, t.wanting = nil, nil
	t.handMu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now, t.verified = now, 0
	for k := range in.Slots[:in.N] {
		t.each(&in.Slots[k])
	}
	for k := range handed {
		t.handle(handed[k].msg[:handed[k].len], handed[k].from)
	}
	for _, p := range wanting {
		t.offer(p)
		t.satisfy(p)
	}
	active = true
	if now-*ticked >= int64(tickTime) || now < *ticked {
		*ticked = now
		active = t.tick()
	}
	return active
}

// each handles every datagram of a slot.
func (t *Tunnel) each(s *tunnel.Datagrams) {
	size := s.SegmentSize
	if size <= 0 {
		size = max(s.N, 1)
	}
	for rest := s.Buf[:s.N]; len(rest) > 0; {
		msg := rest[:min(size, len(rest))]
		rest = rest[len(msg):]
		t.handle(msg, s.From)
	}
}

// transmit puts a message into the batch that leaves at the end of the round. ECN and DSCP stay zero.
func (t *Tunnel) transmit(msg []byte, to netip.AddrPort) {
	t.out.Append(tunnel.Send{To: to}, msg, nil)
}
