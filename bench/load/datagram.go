package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxDatagrams is how many datagrams one probe sends at most.
const MaxDatagrams = 8 << 20

const (
	batch = 64 // datagrams per system call

	// headerSize is what a datagram begins with: the number of its probe, and its own in it.
	headerSize = 16

	// receiveBuffer, in bytes, is large enough for the receiver's thread to be off its processor for a while, and small
	// enough not to hide a rate that it can't keep up with. The kernel doubles it, for its own account.
	receiveBuffer = 4 << 20

	// settle is how long after the last datagram others may still arrive and count.
	settle = 50 * time.Millisecond
)

// Datagrams are two UDP sockets, one at each end of a route.
type Datagrams struct {
	size       int
	send, recv int
	probes     uint64
	seen       []uint64 // bits: datagrams of this probe that have arrived
}

// OpenDatagrams opens the sockets for datagrams of size bytes of payload, 16 at least. The caller calls Close.
func OpenDatagrams(r Route, size int) (*Datagrams, error) {
	if size < headerSize {
		return nil, fmt.Errorf("datagrams of %d bytes: they need %d at least", size, headerSize)
	}
	d := &Datagrams{size: size, seen: make([]uint64, MaxDatagrams/64)}
	var err error
	d.recv, err = open(r.To, unix.SOCK_DGRAM, func(fd int) error {
		// Beyond the machine's limit where that is allowed, up to it otherwise.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			if err := setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
				return err
			}
		}
		wait := unix.NsecToTimeval(int64(patience))
		err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
		return errors.Join(os.NewSyscallError("setsockopt", err), r.bind(fd))
	})
	if err != nil {
		return nil, fmt.Errorf("receiver of datagrams: %w", err)
	}
	port, err := portOf(d.recv)
	if err == nil {
		d.send, err = open(r.From, unix.SOCK_DGRAM, func(fd int) error {
			return os.NewSyscallError("connect", unix.Connect(fd, r.sockaddr(port)))
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sender of datagrams: %w", err), unix.Close(d.recv))
	}
	return d, nil
}

// Close closes the sockets.
func (d *Datagrams) Close() error { return errors.Join(unix.Close(d.send), unix.Close(d.recv)) }

// An Offer is what a probe sends.
type Offer struct {
	Rate float64 // datagrams per second; 0: as many as the sender can
	Time time.Duration
}

// An Outcome is what became of an offer.
type Outcome struct {
	Sent, Received int           // datagrams; one that arrives twice counts once
	Took           time.Duration // to send them
}

// Offered is the rate that was really sent, in datagrams per second.
func (o Outcome) Offered() float64 { return float64(o.Sent) / o.Took.Seconds() }

// Rate is the rate that arrived, in datagrams per second.
func (o Outcome) Rate() float64 { return float64(o.Received) / o.Took.Seconds() }

// Loss is the share of what was sent that did not arrive.
func (o Outcome) Loss() float64 {
	if o.Sent == 0 {
		return 1
	}
	return 1 - float64(o.Received)/float64(o.Sent)
}

// Probe sends an offer and counts at the receiver what arrives while it does, and for a moment after.
func (d *Datagrams) Probe(ctx context.Context, o Offer) (Outcome, error) {
	d.probes++
	clear(d.seen)
	var out Outcome
	var end atomic.Int64 // of receiving, in Unix nanoseconds; 0: not known yet
	received := onThread(func() (err error) {
		out.Received, err = d.receive(ctx, &end)
		return err
	})
	sent := onThread(func() (err error) {
		out.Sent, out.Took, err = d.transmit(ctx, o)
		return err
	})
	err := <-sent
	end.Store(time.Now().Add(settle).UnixNano())
	return out, errors.Join(err, <-received, ctx.Err())
}

// mmsghdr is the kernel's struct of the same name (recvmmsg(2)); Go pads it to the alignment of Hdr as C does.
type mmsghdr struct {
	Hdr unix.Msghdr
	Len uint32
}

// messages makes a batch of buffers, and the headers that sendmmsg and recvmmsg take for them.
func messages(size int) (buffers [][]byte, headers []mmsghdr) {
	headers = make([]mmsghdr, batch)
	for i := range headers {
		b := make([]byte, size)
		v := &unix.Iovec{Base: &b[0]}
		v.SetLen(size)
		headers[i].Hdr.Iov = v
		headers[i].Hdr.SetIovlen(1)
		buffers = append(buffers, b)
	}
	return buffers, headers
}

func transfer(call uintptr, fd int, headers []mmsghdr, flags uintptr) (int, error) {
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&headers[0])), uintptr(len(headers)), flags,
		0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

const (
	// burst is how many datagrams are due before a paced sender wakes up for them, at most.
	burst = 32
	// idle is the longest that a paced sender sleeps: at low rates it sends fewer at a time.
	idle = time.Millisecond
	// arrears is how far a paced sender may fall behind before it gives up what it owes: making up for more would be a
	// burst that nobody asked for. What it really sent is counted.
	arrears = 2 * time.Millisecond
)

// transmit sends the offer.
func (d *Datagrams) transmit(ctx context.Context, o Offer) (sent int, took time.Duration, err error) {
	// The default slack of a timer, 50 µs, is as long as several bursts.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return 0, 0, os.NewSyscallError("prctl", err)
	}
	buffers, headers := messages(d.size)
	begin := time.Now()
	paced, lost := begin, 0 // what is due counts from paced, and from the number lost
	for {
		now := time.Now()
		took = now.Sub(begin)
		if took >= o.Time || sent >= MaxDatagrams || ctx.Err() != nil {
			return sent, took, nil
		}
		n := batch
		if o.Rate > 0 {
			due := int(now.Sub(paced).Seconds()*o.Rate) + 1 - (sent - lost)
			if due <= 0 {
				wait := min(time.Duration(min(burst, o.Rate)/o.Rate*float64(time.Second)), idle)
				ts := unix.NsecToTimespec(int64(min(wait, o.Time-took)))
				_ = unix.Nanosleep(&ts, nil) // cut short by a signal, it is looked at the clock again
				continue
			}
			if float64(due) > max(arrears.Seconds()*o.Rate, batch) {
				paced, lost, due = now, sent, 1
			}
			n = min(n, due)
		}
		n = min(n, MaxDatagrams-sent)
		for i := range n {
			binary.NativeEndian.PutUint64(buffers[i], d.probes)
			binary.NativeEndian.PutUint64(buffers[i][8:], uint64(sent+i))
		}
		n, err := transfer(unix.SYS_SENDMMSG, d.send, headers[:n], 0)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			n = 1 // dropped on this host: sent, and lost
		case err != nil && !again(err):
			return sent, took, os.NewSyscallError("sendmmsg", err)
		}
		sent += n
	}
}

// receive counts the datagrams of this probe until the end.
func (d *Datagrams) receive(ctx context.Context, end *atomic.Int64) (received int, err error) {
	buffers, headers := messages(d.size + 1)
	for {
		if e := end.Load(); e != 0 && time.Now().UnixNano() > e || ctx.Err() != nil {
			return received, nil
		}
		n, err := transfer(unix.SYS_RECVMMSG, d.recv, headers, unix.MSG_WAITFORONE)
		if err != nil && !again(err) {
			return received, os.NewSyscallError("recvmmsg", err)
		}
		for i := range n {
			seq := binary.NativeEndian.Uint64(buffers[i][8:])
			if int(headers[i].Len) != d.size || binary.NativeEndian.Uint64(buffers[i]) != d.probes || seq >= MaxDatagrams {
				continue
			}
			word, bit := &d.seen[seq/64], uint64(1)<<(seq%64)
			if *word&bit == 0 {
				*word |= bit
				received++
			}
		}
	}
}
