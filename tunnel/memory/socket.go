package memory

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/warren-net/warren/tunnel"
)

// firstPort is the port that the first Socket of a Network sends from.
const firstPort = 49152

// errBadSend is LastError of a send that was not even tried.
var errBadSend = errors.New("send refused: its length, segment size, segments, pieces and address do not agree")

// A Socket is a tunnel.Socket on a Network.
type Socket struct {
	network *Network
	addrs   []netip.AddrPort // where it receives
	port    uint16           // that it sends from
	apart   bool             // every datagram is received by itself
	random  *rand.Rand
	queue   queue
	closed  atomic.Bool
	scratch []byte // the send under way, in one piece
	events  []tunnel.PathEvent
}

var _ tunnel.Socket = (*Socket)(nil)

func newSocket(n *Network, addrs []netip.AddrPort, index uint64) *Socket {
	return &Socket{
		network: n,
		addrs:   slices.Clone(addrs),
		port:    firstPort + uint16(index%(1<<16-firstPort)),
		random:  rand.New(rand.NewPCG(n.config.Seed, index)),
		queue:   queue{limit: n.config.Queue, hold: n.config.Hold, network: n},
	}
}

// SetNotify has f called whenever a datagram became readable, in the goroutine of the sender or of a timer; f must
// neither block nor call the Socket. It is called at once if something is readable already. nil: nobody is called.
func (s *Socket) SetNotify(f func()) {
	s.queue.mu.Lock()
	s.queue.notify = f
	now := s.queue.n > 0
	s.queue.mu.Unlock()
	if now && f != nil {
		f()
	}
}

// Send implements tunnel.Socket. A send with a datagram above the MTU is refused whole, as the kernel does with the
// device's MTU. Unlike the kernel's, a send may have any number of bytes and segments. The path event is queued
// before Send returns.
func (s *Socket) Send(o *tunnel.Outbound) (tunnel.SendResult, error) {
	var res tunnel.SendResult
	if s.closed.Load() {
		return res, net.ErrClosed
	}
	for i := range o.Sends {
		s.send(o, &o.Sends[i], &res)
	}
	if !s.network.config.NoGSO && len(o.Sends) > 0 {
		res.Syscalls = 1
	}
	return res, nil
}

func (s *Socket) send(o *tunnel.Outbound, send *tunnel.Send, res *tunnel.SendResult) {
	size, ok := s.gather(o, send)
	if !ok {
		res.Dropped++
		res.DroppedDatagrams += send.Segments
		res.LastError = errBadSend
		return
	}
	from, ok := s.source(send.To)
	if !ok {
		res.Dropped++
		res.DroppedDatagrams += send.Segments
		res.LastError = syscall.EAFNOSUPPORT
		return
	}
	headers := 20 + 8
	if send.To.Addr().Is6() {
		headers = 40 + 8
	}
	if mtu := int(s.network.mtu.Load()); size+headers > mtu || size > 65535-headers {
		res.TooBig++
		res.TooBigDatagrams += send.Segments
		res.LastError = tunnel.ErrTooBig
		e := tunnel.PathEvent{To: send.To.Addr(), MTU: mtu, Err: tunnel.ErrTooBig}
		if !slices.Contains(s.events, e) {
			s.events = append(s.events, e)
		}
		return
	}
	first := s.scratch[:min(size, len(s.scratch))]
	for rest := s.scratch; ; {
		part := rest[:min(size, len(rest))]
		if s.network.config.NoGSO || s.network.config.NoGRO {
			first = part // by itself
		}
		s.transmit(Datagram{From: from, To: send.To, TOS: send.TOS, Data: part}, first)
		if s.network.config.NoGSO {
			res.Syscalls++
		}
		if rest = rest[len(part):]; len(rest) == 0 {
			break
		}
	}
	res.Sent++
}

// gather copies the send's pieces into scratch, and returns the size in bytes of its datagrams. ok is false when the
// send does not describe them rightly: in a test that is a bug of the sender.
func (s *Socket) gather(o *tunnel.Outbound, send *tunnel.Send) (size int, ok bool) {
	if send.First < 0 || send.N < 0 || send.N > len(o.Pieces)-send.First || send.SegmentSize < 0 ||
		!send.To.IsValid() || send.To.Port() == 0 || send.To.Addr().Is4In6() {
		return 0, false
	}
	s.scratch = s.scratch[:0]
	for _, p := range o.Pieces[send.First : send.First+send.N] {
		s.scratch = append(s.scratch, p...)
	}
	size, segments := len(s.scratch), 1
	if send.SegmentSize > 0 && send.SegmentSize < size {
		segments = (size + send.SegmentSize - 1) / send.SegmentSize
		size = send.SegmentSize
	}
	return size, len(s.scratch) == send.Len && send.Segments == segments
}

// source is the address that datagrams to to come from.
func (s *Socket) source(to netip.AddrPort) (netip.AddrPort, bool) {
	for _, a := range s.addrs {
		if a.Addr().Is4() == to.Addr().Is4() {
			return netip.AddrPortFrom(a.Addr(), s.port), true
		}
	}
	return netip.AddrPort{}, false
}

// transmit does to one datagram what a network does. first is the one that it is joined to, if not d itself.
func (s *Socket) transmit(d Datagram, first []byte) {
	n := s.network
	n.stats.sent.Add(1)
	if n.config.Tap != nil {
		n.config.Tap(d)
	}
	// Always the same draws, so that one rate does not change what another one hits.
	loss, twice, late := s.random.Float64(), s.random.Float64(), s.random.Float64()
	depth := 1 + s.random.IntN(n.config.ReorderDepth)
	if loss < n.config.Loss || n.config.Drop != nil && n.config.Drop(d) {
		n.stats.lost.Add(1)
		return
	}
	to := n.receiver(d.From, d.To, first)
	if to == nil {
		n.stats.noReceiver.Add(1)
		return
	}
	q := queued{from: d.From, tos: d.TOS, data: d.Data}
	if twice < n.config.Duplicate {
		n.stats.duplicated.Add(1)
		to.queue.put(q, 0)
	}
	if late >= n.config.Reorder {
		depth = 0
	} else {
		n.stats.reordered.Add(1)
	}
	to.queue.put(q, depth)
}

// Receive implements tunnel.Socket.
func (s *Socket) Receive(in *tunnel.Inbound) error {
	in.N = 0
	if s.closed.Load() {
		return net.ErrClosed
	}
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	join := !s.network.config.NoGRO && !s.apart
	for in.N < len(in.Slots) && s.queue.fill(&in.Slots[in.N], join) {
		in.N++
	}
	return nil
}

// PathEvents implements tunnel.Socket. Equal events appear once.
func (s *Socket) PathEvents(dst []tunnel.PathEvent) []tunnel.PathEvent {
	dst = append(dst, s.events...)
	s.events = s.events[:0]
	return dst
}

// Offloads reports the states of "udp-gso" and "udp-gro", as the configuration of the network has them.
func (s *Socket) Offloads() []tunnel.OffloadState {
	states := []tunnel.OffloadState{{Name: "udp-gso", Enabled: true}, {Name: "udp-gro", Enabled: true}}
	for i, off := range []bool{s.network.config.NoGSO, s.network.config.NoGRO} {
		if off {
			states[i] = tunnel.OffloadState{Name: states[i].Name, Reason: "configuration"}
		}
	}
	return states
}

// LocalPort is the port that the socket's datagrams come from.
func (s *Socket) LocalPort() uint16 { return s.port }

// Close takes the socket off the network. What is queued is lost; Send and Receive return net.ErrClosed.
func (s *Socket) Close() error {
	if !s.closed.Swap(true) {
		s.network.remove(s)
		s.queue.close()
	}
	return nil
}
