package worker

import (
	"context"
	"net/netip"
	"testing"
	"time"

	devmem "github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/forwarder"
	"github.com/warren-net/warren/forwarder/packet"
)

// A crowd is the Waiter and the Thread of a worker on a machine of its own time: packets come by the clock, and others
// keep the thread from running for a share of it. After a wake-up the clock has moved by step.
type crowd struct {
	t       *testing.T
	clock   time.Time
	end     time.Time
	stop    func()
	step    time.Duration
	queue   *devmem.Device
	packet  []byte
	meta    packet.Meta
	every   time.Duration // a packet comes
	last    time.Time
	empty   bool // the waits end without anything
	share   float64
	unsaid  bool // the kernel does not say
	asked   int
	sampled time.Time
	delayed time.Duration
	pauses  []time.Duration
}

func (c *crowd) now() time.Time { return c.clock }

func (c *crowd) Delayed() (time.Duration, bool) {
	c.asked++
	c.count()
	return c.delayed, !c.unsaid
}

// count adds up until now, after which share may change.
func (c *crowd) count() {
	c.delayed += time.Duration(c.share * float64(c.clock.Sub(c.sampled)))
	c.sampled = c.clock
}

func (c *crowd) Pause(d time.Duration) {
	c.pauses = append(c.pauses, d)
	c.clock = c.clock.Add(d)
}

func (c *crowd) Wait(timeout time.Duration) (Ready, error) {
	if timeout == 0 {
		return Ready{}, nil
	}
	if c.clock.After(c.end) {
		c.stop()
	}
	c.clock = c.clock.Add(c.step)
	if c.empty {
		return Ready{}, nil
	}
	for ; c.clock.Sub(c.last) >= c.every; c.last = c.last.Add(c.every) {
		if !c.queue.Inject(c.packet, c.meta) {
			c.t.Fatal("the queue is full")
		}
	}
	return Ready{Queues: 1}, nil
}

func (c *crowd) Wake() {}

func (c *crowd) Watch(int, bool) error { return nil }

func (c *crowd) Used() time.Duration { return 0 }

func (c *crowd) Prefer() error { return nil }

// run runs a worker in the crowd for so long, and returns its pauses.
func (c *crowd) run(t *testing.T, long time.Duration) (*Worker, []time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.t, c.stop, c.step = t, cancel, 5*time.Microsecond
	c.clock = time.Unix(1000, 0)
	c.last, c.sampled, c.end = c.clock, c.clock, c.clock.Add(long)
	c.queue = devmem.New(devmem.Config{})
	s, err := forwarder.Build(forwarder.Spec{
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
	})
	if err != nil {
		t.Fatal(err)
	}
	var table forwarder.Table
	table.Store(s)
	w := New(Config{Lanes: []Lane{{Queue: c.queue.Queues()[0]}}, Waiter: c, Thread: c, Moderate: true,
		Table: &table, Now: c.now})
	if err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := w.Counters.Pauses.Load(); got != uint64(len(c.pauses)) {
		t.Errorf("%d pauses are counted, there were %d", got, len(c.pauses))
	}
	return w, c.pauses
}

// to nobody, as the worker's other work is no matter here.
func datagram(t *testing.T, size int) []byte {
	t.Helper()
	return build{src: "10.244.1.9", dst: "10.244.9.9", proto: protoUDP, payload: size - 28}.bytes(t)
}

func TestModeration(t *testing.T) {
	const long = 100 * time.Millisecond
	large, meta := super(t, build{src: "10.244.1.9", dst: "10.244.9.9", payload: 60000}.bytes(t), 1400)
	for _, c := range []struct {
		name    string
		crowd   crowd
		longest time.Duration // 0: no pause
	}{
		{"datagrams, processors short",
			crowd{share: 0.3, every: 8 * time.Microsecond, packet: datagram(t, 1400)}, longestPause},
		{"small datagrams, processors short",
			crowd{share: 0.3, every: 2 * time.Microsecond, packet: datagram(t, 92)}, queueBatch * 2 * time.Microsecond},
		{"datagrams, a processor for each",
			crowd{share: 0.02, every: 8 * time.Microsecond, packet: datagram(t, 1400)}, 0},
		{"superpackets, processors short",
			crowd{share: 0.3, every: 8 * time.Microsecond, packet: large, meta: meta}, 0},
		{"few packets, processors short",
			crowd{share: 0.3, every: 20 * time.Microsecond, packet: datagram(t, 100)}, 0},
	} {
		w, pauses := c.crowd.run(t, long)
		if read := w.Counters.QueueReads.Load(); read < uint64(long/c.crowd.every)*9/10 {
			t.Errorf("%s: %d packets were read", c.name, read)
		}
		if c.longest == 0 {
			if len(pauses) > 0 {
				t.Errorf("%s: %d pauses, of %v and so on", c.name, len(pauses), pauses[0])
			}
			continue
		}
		if len(pauses) < int(long/longestPause)/2 {
			t.Errorf("%s: %d pauses", c.name, len(pauses))
		}
		for _, p := range pauses {
			if p < leastPause || p > longestPause || p > c.longest*11/10 {
				t.Errorf("%s: a pause of %v", c.name, p)
			}
		}
	}
}

// TestModerationOfNothing: who was woken for nothing waits at once again, whatever there was before.
func TestModerationOfNothing(t *testing.T) {
	c := crowd{share: 0.3, every: 8 * time.Microsecond, packet: datagram(t, 1400), empty: true}
	m := moderation{thread: &c, each: longestPause, since: time.Unix(1000, 0)}
	w := New(Config{Lanes: []Lane{{}}, Waiter: &c, Thread: &c, Moderate: true, Now: c.now})
	w.rests = m
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.t, c.stop, c.step = t, cancel, 5*time.Microsecond
	c.clock = m.since.Add(time.Millisecond)
	c.end = m.since.Add(rateWindow)
	if err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if len(c.pauses) > 0 {
		t.Errorf("%d pauses", len(c.pauses))
	}
}

// TestModerationEnds: pauses end with the packets at once, and with the shortage soon.
func TestModerationEnds(t *testing.T) {
	c := crowd{clock: time.Unix(1000, 0), sampled: time.Unix(1000, 0), share: 0.5}
	m := moderation{thread: &c}
	var packets uint64
	pausing := func(perMs uint64, long time.Duration) bool {
		for range long / time.Millisecond {
			c.clock = c.clock.Add(time.Millisecond)
			packets += perMs
			m.before(c.clock, packets, packets*1000)
			m.after(c.clock)
		}
		return m.each > 0
	}
	if !pausing(100, 100*time.Millisecond) {
		t.Error("no pause while processors are short")
	}
	if pausing(2, 4*time.Millisecond) {
		t.Error("a pause for two packets a millisecond")
	}
	if !pausing(100, 4*time.Millisecond) {
		t.Error("no pause when packets come again")
	}
	c.count()
	c.share = 0
	if !pausing(100, 20*time.Millisecond) {
		t.Error("one moment without a shortage ends the pauses")
	}
	if pausing(100, 200*time.Millisecond) {
		t.Error("pauses where the thread runs whenever it wants to")
	}
	c.count()
	c.share = 0.5
	pausing(0, 10*time.Second)
	c.count()
	c.share = 0
	pausing(0, 10*time.Second)
	if pausing(100, 10*time.Millisecond) {
		t.Error("pauses for what was ten seconds ago")
	}
}

// TestModerationUnsaid: a kernel that does not say how long threads wait is not asked again and again.
func TestModerationUnsaid(t *testing.T) {
	c := crowd{share: 0.5, unsaid: true, every: 8 * time.Microsecond, packet: datagram(t, 1400)}
	if _, pauses := c.run(t, 100*time.Millisecond); len(pauses) > 0 || c.asked != 1 {
		t.Errorf("%d pauses, asked %d times", len(pauses), c.asked)
	}
}
