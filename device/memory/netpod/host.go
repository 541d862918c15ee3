package netpod

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/warren-net/warren/device/memory"
	"github.com/warren-net/warren/forwarder/packet"
)

// Stats counts what the Host did with packets. Every counter but the first four is of drops that a correct forwarder
// does not cause.
type Stats struct {
	ToDevice     uint64 // superpackets that pods sent
	FromDevice   uint64 // superpackets that were written to the device
	Superpackets uint64 // of FromDevice: those with more than one segment
	Delivered    uint64 // packets that reached a pod

	QueueFull  uint64 // from a pod: the device's queue was full
	Expired    uint64 // either way: the hop limit ran out
	NoPod      uint64 // from the device: no pod has the destination
	TooBig     uint64 // from the device: longer than the pod's MTU
	BadHeader  uint64 // from the device: the IP header does not fit the packet
	BadOffload uint64 // from the device: the offload metadata does not fit the packet
}

// A Host is the kernel of one node.
type Host struct {
	dev *memory.Device

	mu     sync.RWMutex // guards pods; read-locked while a packet is delivered, so that a pod that is gone gets none
	pods   map[netip.Addr]*Pod
	closed bool

	toDevice, fromDevice, superpackets, delivered atomic.Uint64
	queueFull, expired, noPod, tooBig             atomic.Uint64
	badHeader, badOffload                         atomic.Uint64
	lastBad                                       atomic.Pointer[error]
}

// NewHost makes a host for a device and takes over what is written to it.
func NewHost(dev *memory.Device) *Host {
	h := &Host{dev: dev, pods: map[netip.Addr]*Pod{}}
	dev.OnWrite(h.fromQueue)
	return h
}

// Device is the device that the host stands behind.
func (h *Host) Device() *memory.Device { return h.dev }

// Stats returns the counters.
func (h *Host) Stats() Stats {
	return Stats{
		ToDevice: h.toDevice.Load(), FromDevice: h.fromDevice.Load(), Superpackets: h.superpackets.Load(),
		Delivered: h.delivered.Load(), QueueFull: h.queueFull.Load(), Expired: h.expired.Load(), NoPod: h.noPod.Load(),
		TooBig: h.tooBig.Load(), BadHeader: h.badHeader.Load(), BadOffload: h.badOffload.Load(),
	}
}

// LastBad is what was wrong with the last packet that was counted as BadHeader or BadOffload; nil: there was none.
func (h *Host) LastBad() error {
	if e := h.lastBad.Load(); e != nil {
		return *e
	}
	return nil
}

// Close closes all pods and waits for their goroutines. The device stays open.
func (h *Host) Close() {
	h.mu.Lock()
	h.closed = true
	pods := map[*Pod]bool{}
	for _, p := range h.pods {
		pods[p] = true
	}
	h.mu.Unlock()
	for p := range pods {
		p.Close()
	}
}

// add makes a pod reachable.
func (h *Host) add(p *Pod) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errors.New("netpod: host is closed")
	}
	for _, a := range p.addresses {
		if other := h.pods[a]; other != nil {
			return fmt.Errorf("netpod: address %v belongs to pod %s", a, other.name)
		}
	}
	for _, a := range p.addresses {
		h.pods[a] = p
	}
	return nil
}

// remove makes a pod unreachable. After it no packet is being delivered to the pod.
func (h *Host) remove(p *Pod) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range p.addresses {
		if h.pods[a] == p {
			delete(h.pods, a)
		}
	}
}

// toQueue takes a packet that a pod sent, which is the host's from now on.
func (h *Host) toQueue(p []byte, m packet.Meta) {
	if !hop(p) {
		h.expired.Add(1)
		return
	}
	h.toDevice.Add(1)
	if !h.dev.Inject(p, m) {
		h.queueFull.Add(1)
	}
}

// fromQueue takes a packet that was written to the device. p is only valid during the call.
func (h *Host) fromQueue(p []byte, m packet.Meta) {
	h.fromDevice.Add(1)
	if err := checkIP(p); err != nil {
		h.badHeader.Add(1)
		h.lastBad.Store(&err)
		return
	}
	if !hop(p) {
		h.expired.Add(1)
		return
	}
	segments, err := segment(p, m)
	if err != nil {
		h.badOffload.Add(1)
		h.lastBad.Store(&err)
		return
	}
	if len(segments) > 1 {
		h.superpackets.Add(1)
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	pod := h.pods[destination(p)]
	if pod == nil {
		h.noPod.Add(1)
		return
	}
	for _, s := range segments {
		if len(s) > pod.mtu {
			h.tooBig.Add(1)
			continue
		}
		h.delivered.Add(1)
		pod.link.deliver(s)
	}
}

// destination reads the destination address of a packet that checkIP accepted.
func destination(p []byte) netip.Addr {
	if p[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(p[16:20]))
	}
	return netip.AddrFrom16([16]byte(p[24:40]))
}
