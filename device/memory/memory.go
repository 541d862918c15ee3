// Package memory is the in-memory twin of the kernel's TUN device: a device.Queue on one side, and on the other what
// the kernel would do, for tests to play: Inject puts a packet where the kernel would have routed one to the device,
// and what the forwarder writes goes to a function or a channel. Package netpod plays the kernel of a node with pods.
//
// Offloads can be missing from the start or break at run time, and the link can be down, as it happens to the real one.
//
// # Ownership and concurrency
//
// A Queue belongs to one worker, like every device.Queue, except for Close and SetNotify. All methods of a Device are
// safe for concurrent use. Inject copies its packet. The function given to OnWrite runs in the writing worker's
// goroutine and must not keep the packet.
package memory

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
)

const (
	flowSlots          = 1024 // as the kernel has
	defaultQueueLength = 500  // the kernel's, for a TUN device
	writtenLength      = 1024
	maxDatagrams       = 128 // UDP_MAX_SEGMENTS, of the newest kernels
)

// Config says what the device is like. The zero value is a device with one queue and all offloads.
type Config struct {
	Queues      int  // 0: 1
	QueueLength int  // superpackets that wait in each queue before Inject drops; 0: 500, as in the kernel
	NoTSO       bool // Write takes no TCP superpackets
	NoUSO       bool // Write takes no UDP superpackets
}

// Stats counts what happened, in superpackets.
type Stats struct {
	Injected uint64 // put into a queue
	Full     uint64 // dropped by Inject: the queue was full
	Written  uint64 // taken by Write
	Lost     uint64 // written, but nobody emptied Written's channel
}

// A Packet is one superpacket that was written to the device.
type Packet struct {
	Data  []byte
	Meta  packet.Meta
	Queue int // the queue's index
}

// A Device is the in-memory device.
type Device struct {
	queues  []*Queue
	takes   [packet.GSOUDP + 1]atomic.Bool
	broken  [packet.GSOUDP + 1]atomic.Bool
	down    atomic.Bool
	onWrite atomic.Pointer[func(p []byte, m packet.Meta)]
	written chan Packet
	flows   [flowSlots]atomic.Uint64 // 1<<63 | hash<<8 | queue of the flow that was written last among those of a slot

	injected, full, wrote, lost atomic.Uint64
}

// New makes a device.
func New(c Config) *Device {
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.QueueLength == 0 {
		c.QueueLength = defaultQueueLength
	}
	d := &Device{written: make(chan Packet, writtenLength)}
	for i := range c.Queues {
		d.queues = append(d.queues, &Queue{device: d, index: i, ring: make([]entry, c.QueueLength)})
	}
	d.takes[packet.GSONone].Store(true)
	d.takes[packet.GSOTCP4].Store(!c.NoTSO)
	d.takes[packet.GSOTCP6].Store(!c.NoTSO)
	d.takes[packet.GSOUDP].Store(!c.NoUSO)
	return d
}

// Queues are the device's queues, one for each worker.
func (d *Device) Queues() []*Queue { return d.queues }

// Inject puts a packet into the queue to which its flow's other direction was written last, or, before anything was, by
// its hash. It reports whether there was room: a full queue drops, as the kernel does. Metadata is passed on as it is,
// also when it lies.
func (d *Device) Inject(p []byte, m packet.Meta) bool {
	if len(p) > device.BufferSize-device.Headroom {
		return false
	}
	return d.queues[d.queueOf(flowHash(p))].put(p, m)
}

// learn notes the queue that a flow is written to.
func (d *Device) learn(hash uint32, queue int) {
	d.flows[hash%flowSlots].Store(1<<63 | uint64(hash)<<8 | uint64(queue))
}

// queueOf is the queue of a flow. The kernel forgets what it has learnt after three seconds; this one does not.
func (d *Device) queueOf(hash uint32) int {
	if f := d.flows[hash%flowSlots].Load(); f>>8 == 1<<55|uint64(hash) {
		return int(f & 0xff)
	}
	return int(hash % uint32(len(d.queues)))
}

// OnWrite sets the function that gets what is written, in the place of the channel of Written. p is only valid during
// the call. nil: the channel again.
func (d *Device) OnWrite(f func(p []byte, m packet.Meta)) {
	if f == nil {
		d.onWrite.Store(nil)
		return
	}
	d.onWrite.Store(&f)
}

// Written delivers copies of what is written while no OnWrite function is set. The channel is bounded; what finds it
// full is lost and counted. It is never closed.
func (d *Device) Written() <-chan Packet { return d.written }

// SetDown takes the link down or up: while it is down, writes are device.ErrDown and nothing is injected.
func (d *Device) SetDown(down bool) { d.down.Store(down) }

// Break makes the next Write of a superpacket of type t fail with device.ErrNotTaken and switch the type off, as a
// kernel does whose offload turns out to be broken.
func (d *Device) Break(t packet.GSOType) { d.broken[t].Store(true) }

// Stats returns the counters.
func (d *Device) Stats() Stats {
	return Stats{Injected: d.injected.Load(), Full: d.full.Load(), Written: d.wrote.Load(), Lost: d.lost.Load()}
}

// Offloads reports the offloads as device/tun does.
func (d *Device) Offloads() []device.OffloadState {
	state := func(name string, types ...packet.GSOType) device.OffloadState {
		s := device.OffloadState{Name: name, Enabled: true}
		for _, t := range types {
			if !d.takes[t].Load() {
				s.Enabled, s.Reason = false, "switched off by the test"
			}
		}
		return s
	}
	return []device.OffloadState{
		state("tun-checksum"), state("tun-tso", packet.GSOTCP4, packet.GSOTCP6), state("tun-uso", packet.GSOUDP),
	}
}

// Close closes all queues, as the deletion of a kernel device does.
func (d *Device) Close() error {
	for _, q := range d.queues {
		_ = q.Close() // never fails
	}
	return nil
}

// deliver hands on what was written.
func (d *Device) deliver(p []byte, m packet.Meta, queue int) {
	d.wrote.Add(1)
	if f := d.onWrite.Load(); f != nil {
		(*f)(p, m)
		return
	}
	select {
	case d.written <- Packet{Data: append([]byte(nil), p...), Meta: m, Queue: queue}:
	default:
		d.lost.Add(1)
	}
}

// An entry is one superpacket in a queue; its buffer is used again.
type entry struct {
	data []byte
	meta packet.Meta
}

// A Queue is one queue of a Device. It implements device.Queue.
type Queue struct {
	device *Device
	index  int
	notify atomic.Pointer[func()]
	write  []byte // the pieces of a Write, joined
	of     *Queue // that it is another handle of; nil: none

	mu      sync.Mutex // guards what follows
	ring    []entry
	head, n int
	closed  bool
}

// SetNotify sets the function that is called whenever the queue has become readable or closed, from the goroutine of
// whoever did that. It must not block and must not call the queue. nil: none.
func (q *Queue) SetNotify(f func()) {
	if f == nil {
		q.notify.Store(nil)
		return
	}
	q.notify.Store(&f)
}

// put appends a copy of p.
func (q *Queue) put(p []byte, m packet.Meta) bool {
	if q.device.down.Load() {
		return false
	}
	q.mu.Lock()
	ok := !q.closed && q.n < len(q.ring)
	if ok {
		e := &q.ring[(q.head+q.n)%len(q.ring)]
		e.data, e.meta = append(e.data[:0], p...), m
		q.n++
		q.device.injected.Add(1)
	} else {
		q.device.full.Add(1)
	}
	q.mu.Unlock()
	if ok {
		q.ready()
	}
	return ok
}

func (q *Queue) ready() {
	if f := q.notify.Load(); f != nil {
		(*f)()
	}
}

// Len is the number of superpackets that wait to be read.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}

// Read implements device.Queue.
func (q *Queue) Read(buf []byte) ([]byte, packet.Meta, error) {
	if len(buf) < device.BufferSize {
		return nil, packet.Meta{}, fmt.Errorf("memory: read buffer of %d bytes, need %d", len(buf), device.BufferSize)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return nil, packet.Meta{}, device.ErrClosed
	case q.n == 0:
		return nil, packet.Meta{}, device.ErrWouldBlock
	}
	e := &q.ring[q.head]
	q.head, q.n = (q.head+1)%len(q.ring), q.n-1
	n := device.Headroom + copy(buf[device.Headroom:], e.data)
	return buf[device.Headroom:n], e.meta, nil
}

// Share makes another handle of the same queue, for another worker to write to.
func (q *Queue) Share() *Queue { return &Queue{device: q.device, index: q.index, of: q} }

// Write implements device.Queue. It refuses what device/tun refuses.
func (q *Queue) Write(m packet.Meta, pieces [][]byte) error {
	d := q.device
	shape, err := device.Inspect(m, pieces)
	if err != nil {
		return err
	}
	if !q.Takes(m.Type) || m.Type == packet.GSOUDP && shape.Segments > maxDatagrams {
		return device.ErrNotTaken
	}
	if d.broken[m.Type].Load() {
		d.takes[m.Type].Store(false)
		return device.ErrNotTaken
	}
	own := q
	if q.of != nil {
		own = q.of
	}
	own.mu.Lock()
	closed := own.closed
	own.mu.Unlock()
	switch {
	case closed:
		return device.ErrClosed
	case d.down.Load():
		return device.ErrDown
	}
	q.write = q.write[:0]
	for _, p := range pieces {
		q.write = append(q.write, p...)
	}
	d.learn(flowHash(q.write), q.index)
	d.deliver(q.write, m, q.index)
	return nil
}

// Takes implements device.Queue.
func (q *Queue) Takes(t packet.GSOType) bool { return t <= packet.GSOUDP && q.device.takes[t].Load() }

// Close implements device.Queue. What is still queued is dropped.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closed, q.n = true, 0
	q.mu.Unlock()
	q.ready()
	return nil
}
