package worker

import "time"

// A Thread is the operating system's thread of a worker that keeps to it (Config.LockThread), and is used on it alone.
type Thread interface {
	// Delayed is for how long in all the thread could have run and others did; ok is false where the kernel does not say.
	Delayed() (d time.Duration, ok bool)
	// Pause sleeps for about d, less when the Go runtime wants something.
	Pause(d time.Duration)
	// Used is how long the thread ran in all.
	Used() time.Duration
	// Prefer has the thread run as soon as it has something to do. After an error it does so as far as the process may
	// ask for that.
	Prefer() error
}

// What a worker needs to pause, and how long it does.
const (
	// longestPause is what a packet may wait for others at one worker, and leastPause what is worth a sleep.
	longestPause = 200 * time.Microsecond
	leastPause   = 20 * time.Microsecond
	// leastGain is how many packets a pause has to bring. Fewer are worth no wait: those of a few connections that each
	// wait for an answer come at once, or never.
	leastGain = 16
	// shortage is the share of the time that a thread has to be kept from running for processors to be short.
	shortage = 0.1
	// rateWindow and delayWindow are how often both are looked at.
	rateWindow  = 2 * time.Millisecond
	delayWindow = 16 * time.Millisecond
)

// A moderation has a worker pause before it waits, where many small packets come and processors are short: it sleeps
// for a moment though there may be something, as adaptive interrupt moderation has network cards do. Without, a thread
// is woken for one packet, in front of whoever makes the next ones: on two processors half of all time went to that
// (docs/performance.md has figures).
//
// Where a worker runs whenever it wants to, it never pauses: then a pause would bring nothing that counts, and every
// packet would wait. Superpackets bring enough for each wake-up by themselves. Whatever is read counts, also what is
// dropped then: a pod, or who reaches a tunnel's port, can have all flows of a worker wait by a flood that is large
// enough, which costs these more than the pauses do.
type moderation struct {
	thread Thread        // nil: no pauses, and nobody asks
	each   time.Duration // from one wake-up to the next; 0: no pauses now
	woken  time.Time     // the last time, for something

	since   time.Time // of the window
	packets uint64    // until then
	bytes   uint64

	sampled time.Time
	delayed time.Duration // until then
	short   float64       // the share of the time that the thread was kept from running, as of late
}

// before is asked right before the worker waits, with how many packets and bytes it has moved since it began. The
// result is how long it is to pause; 0: not at all.
func (m *moderation) before(now time.Time, packets, bytes uint64) time.Duration {
	if window := now.Sub(m.since); window >= rateWindow {
		m.each = pauseFor(window, packets-m.packets, bytes-m.bytes)
		if m.each > 0 && m.measure(now) <= shortage {
			m.each = 0
		}
		m.since, m.packets, m.bytes = now, packets, bytes
	}
	if pause := m.each - now.Sub(m.woken); pause >= leastPause {
		return pause
	}
	return 0
}

// after is told when a wait is over because there is something.
func (m *moderation) after(now time.Time) { m.woken = now }

// pauseFor is how long it takes until a turn's work has come, as packets and bytes came in the window; 0: too long, or
// for too little.
func pauseFor(window time.Duration, packets, bytes uint64) time.Duration {
	const longAgo = time.Second // such a window says nothing, and the product below would not fit
	if packets == 0 || window > longAgo {
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
	const memory = 4 * delayWindow
	if past < memory {
		m.short += (float64(delayed-m.delayed)/float64(past) - m.short) * float64(past) / float64(memory)
	} else {
		m.short = 0 // nobody has asked meanwhile, so how it is now has yet to be seen
	}
	m.sampled, m.delayed = now, delayed
	return m.short
}
