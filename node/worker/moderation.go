package worker

import "time"

// A Thread is the operating system's thread of a worker, from which alone it is used.
type Thread interface {
	// Delayed is for how long in all the thread could have run and others did; ok is false where the kernel does not say.
	Delayed() (d time.Duration, ok bool)
	// Pause sleeps for about d, less when the Go runtime wants something.
	Pause(d time.Duration)
}

// What a worker needs to pause, and how long it does.
const (
	// longestPause is what a packet may wait for others at one worker.
	longestPause = 200 * time.Microsecond
	// leastGain is how many packets a pause has to bring. Fewer are worth no wait: those of a few connections that each
	// wait for an answer come at once, or never.
	leastGain = 12
	// shortage is the share of the time that a thread has to be kept from running for processors to be short.
	shortage = 0.1
	// rateWindow and delayWindow are how often both are looked at.
	rateWindow  = 2 * time.Millisecond
	delayWindow = 16 * time.Millisecond
)

// A moderation has a worker pause before it waits, where many small packets come and processors are short: it sleeps
// for a moment though there may be something, as adaptive interrupt moderation has network cards do. Without, a thread
// is woken for one packet, in front of whoever makes the next ones: on two processors half of all time went to that.
// Datagrams of 1,400 bytes are 1.2 to 1.5 times as many with it.
//
// Where a worker runs whenever it wants to, it never pauses: then a pause would bring nothing that counts, and every
// packet would wait. Superpackets bring enough for each wake-up by themselves.
type moderation struct {
	thread Thread        // nil: no pauses
	each   time.Duration // from one wake-up to the next; 0: no pauses now
	woken  time.Time     // the last time

	since   time.Time // of the window
	packets uint64    // until then
	bytes   uint64

	sampled time.Time
	delayed time.Duration // until then
	short   float64       // the share of the time that the thread was kept from running, the last windows' mean
}

// before is asked right before the worker waits, with how many packets and bytes it has moved since it began. The
// result is how long it is to pause; 0: not at all.
func (m *moderation) before(now time.Time, packets, bytes uint64) time.Duration {
	if m.thread == nil {
		return 0
	}
	if window := now.Sub(m.since); window >= rateWindow {
		m.each = 0
		if m.measure(now) > shortage {
			m.each = pauseFor(window, packets-m.packets, bytes-m.bytes)
		}
		m.since, m.packets, m.bytes = now, packets, bytes
	}
	return max(0, m.each-now.Sub(m.woken))
}

// after is told when a wait is over.
func (m *moderation) after(now time.Time) { m.woken = now }

// pauseFor is how long it takes until a turn's work has come, as packets and bytes came in the window; 0: too long, or
// for too little.
func pauseFor(window time.Duration, packets, bytes uint64) time.Duration {
	if packets == 0 {
		return 0
	}
	pause := min(longestPause, window*queueBatch/time.Duration(packets))
	if bytes > 0 {
		pause = min(pause, window*queueBytes/time.Duration(bytes))
	}
	if uint64(pause)*packets < leastGain*uint64(window) {
		return 0
	}
	return pause
}

// measure is the share of the time that the thread was kept from running.
func (m *moderation) measure(now time.Time) float64 {
	past := now.Sub(m.sampled)
	if past < delayWindow {
		return m.short
	}
	delayed, ok := m.thread.Delayed()
	if !ok {
		m.thread = nil // nor will it later
		return 0
	}
	const longAgo = time.Second // what was the case before says nothing
	share := float64(delayed-m.delayed) / float64(past)
	if past > longAgo {
		m.short = 0
	} else {
		m.short += (share - m.short) / 4
	}
	m.sampled, m.delayed = now, delayed
	return m.short
}
