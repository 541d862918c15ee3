package worker

import (
	"time"

	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
)

// The rate of ICMP errors per worker. RFC 4443, 2.4 (f) asks for a token bucket and suggests 10 a second for a small
// host; a router that serves a node of pods needs more, and Linux allows 1,000 a second with bursts of 50
// (net.ipv4.icmp_msgs_per_sec, icmp_msgs_burst).
const (
	icmpPerSecond = 1000
	icmpBurst     = 50
)

// icmpLimit is a token bucket. The worker owns it, so it needs no lock.
type icmpLimit struct {
	tokens float64
	last   time.Time
}

func (l *icmpLimit) allow(now time.Time) bool {
	if l.last.IsZero() {
		l.tokens = icmpBurst
	} else if d := now.Sub(l.last).Seconds(); d > 0 {
		l.tokens = min(icmpBurst, l.tokens+d*icmpPerSecond)
	}
	l.last = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}

// reject answers a dropped packet of the device with an ICMP error from the gateway address.
func (w *Worker) reject(p []byte, m packet.Meta, d *forwarder.Decision) error {
	from := w.snap.Gateway(w.info.Version)
	if !from.IsValid() {
		return nil
	}
	e := packet.ICMPError{Reject: d.Reject, MTU: d.MTU, From: from, Meta: m}
	msg, ok := packet.AppendICMPError(w.scratch[:0], e, p, &w.info)
	if !ok {
		return nil
	}
	w.scratch = msg
	if !w.icmp.allow(w.Now()) {
		w.Counters.ICMPLimited.Add(1)
		return nil
	}
	w.Counters.ICMPSent.Add(1)
	w.iovecs = append(w.iovecs[:0], msg)
	return w.deliver(w.lane.Queue, packet.Meta{}, w.iovecs, 1)
}
