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
	// loadMark is how many handshake messages in one receive mean that the node is under load: all that it takes, which
	// only those that came while it was busy can be.
	loadMark = controlSlots
	maxRest  = 20 * time.Millisecond
)

// Run answers handshakes, begins them and keeps the timers until ctx ends (and returns nil) or the socket is gone. The
// socket is Run's own. Under load it rests as long as it works, so that it takes at most half of a processor: what then
// finds the socket full is lost, and costs nothing.
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
		loaded, active := t.round(in, begin, &ticked)
		if _, err := socket.Send(&t.out); err != nil && ctx.Err() == nil {
			return fmt.Errorf("wireguard: send: %w", err)
		}
		t.out.Reset()
		if events = socket.PathEvents(events[:0]); len(events) > 0 && t.config.PathEvents != nil {
			t.config.PathEvents(events)
		}
		switch {
		case loaded:
			rest(ctx, min(time.Duration(t.config.Now()-begin), maxRest))
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

// round handles what has come, and the timers when it is time. Messages to send are in t.out then. It reports whether
// the node is under load, and whether a timer runs.
func (t *Tunnel) round(in *tunnel.Inbound, now int64, ticked *int64) (loaded, active bool) {
	t.handMu.Lock()
	handed, wanting := t.handed, t.wanting
	t.handed, t.wanting = nil, nil
	t.handMu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = now
	if in.N+len(handed) >= loadMark {
		loaded, t.loadedAt = true, now
	}
	for k := range in.Slots[:in.N] {
		t.each(&in.Slots[k])
	}
	for k := range handed {
		t.handle(handed[k].msg[:handed[k].len], handed[k].from)
	}
	for _, p := range wanting {
		t.satisfy(p)
	}
	active = true
	if now-*ticked >= int64(tickTime) || now < *ticked {
		*ticked = now
		active = t.tick()
	}
	return loaded, active
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
