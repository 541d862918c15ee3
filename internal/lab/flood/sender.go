package flood

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batch = 64 // datagrams per system call

	ipHeader, udpHeader = 20, 8
	// MaxPayload is how many bytes of payload a datagram of a Sender has at most: it is never fragmented.
	MaxPayload = 1500 - ipHeader - udpHeader

	sendBuffer = 4 << 20 // bytes: what waits for its turn on a device is no reason to sleep
)

// A Datagram is UDP over IPv4.
type Datagram struct {
	From, To netip.AddrPort
	Payload  []byte
}

// A Place is where a socket is opened, like a network namespace: Do runs f inside it, on one thread.
type Place interface{ Do(f func() error) error }

// mmsghdr is the kernel's struct of the same name (sendmmsg(2)); Go pads it to the alignment of Hdr as C does.
type mmsghdr struct {
	Hdr unix.Msghdr
	Len uint32
}

// A Sender sends datagrams whose IP headers it makes itself.
type Sender struct {
	fd      int
	packets [batch][]byte // each of a whole packet's size
	iovs    [batch]unix.Iovec
	to      [batch]unix.RawSockaddrInet4
	headers [batch]mmsghdr
}

// Open makes a Sender in a place, which needs CAP_NET_RAW there. The caller calls Close.
func Open(p Place) (*Sender, error) {
	s := &Sender{}
	err := p.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // with IP_HDRINCL
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer); err != nil {
		return nil, errors.Join(os.NewSyscallError("setsockopt", err), unix.Close(s.fd))
	}
	for i := range s.packets {
		s.packets[i] = make([]byte, ipHeader+udpHeader+MaxPayload)
		s.iovs[i].Base = &s.packets[i][0]
		h := &s.headers[i].Hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&s.to[i])), unix.SizeofSockaddrInet4
		h.Iov = &s.iovs[i]
		h.SetIovlen(1)
	}
	return s, nil
}

// Close closes the socket.
func (s *Sender) Close() error { return unix.Close(s.fd) }

// put makes packet i of the batch. The kernel fills in the packet's length, its identification and its checksum
// (raw(7)); UDP's checksum is left out (RFC 768).
func (s *Sender) put(i int, d *Datagram) {
	n := udpHeader + copy(s.packets[i][ipHeader+udpHeader:], d.Payload)
	p := s.packets[i][:ipHeader+n]
	from, to := d.From.Addr().As4(), d.To.Addr().As4()
	clear(p[:ipHeader+udpHeader])
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	copy(p[12:], from[:])
	copy(p[16:], to[:])
	udp := p[ipHeader:]
	binary.BigEndian.PutUint16(udp, d.From.Port())
	binary.BigEndian.PutUint16(udp[2:], d.To.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(n))
	s.to[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to}
	s.iovs[i].SetLen(len(p))
}

// flush sends the first n packets of the batch and returns how many it could. What this host drops counts as sent.
func (s *Sender) flush(n int) (int, error) {
	sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.headers[0])), uintptr(n),
		0, 0, 0)
	switch errno {
	case 0:
		return int(sent), nil
	case unix.ENOBUFS:
		return 1, nil
	case unix.EINTR, unix.EAGAIN:
		return 0, nil
	}
	return 0, os.NewSyscallError("sendmmsg", errno)
}

// A Load is what Run sends.
type Load struct {
	Datagrams int     // 0: until the context ends
	Rate      float64 // datagrams per second; 0: as many as the sender can
	// Next says what is sent next, in a Datagram that holds what it was told before.
	Next func(d *Datagram)
}

const (
	// idle is how long a paced sender sleeps between its bursts.
	idle = time.Millisecond
	// arrears is how far a paced sender may fall behind before it gives up what it owes: making up for more would be a
	// burst that nobody asked for.
	arrears = 20 * time.Millisecond
)

// Run sends a load from a thread of its own, and returns how many datagrams left and how long that took. That the
// context has ended is no error.
func (s *Sender) Run(ctx context.Context, l Load) (sent int, took time.Duration, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with its timer slack
		begin := time.Now()
		sent, err = s.run(ctx, l, begin)
		took = time.Since(begin)
	}()
	<-done
	return sent, took, err
}

func (s *Sender) run(ctx context.Context, l Load, begin time.Time) (sent int, err error) {
	// The default slack of a timer is 50 µs.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return 0, os.NewSyscallError("prctl", err)
	}
	var d Datagram
	owed := 0.0 // datagrams that are due
	for last := begin; ctx.Err() == nil && (l.Datagrams == 0 || sent < l.Datagrams); {
		n := batch
		if l.Rate > 0 {
			now := time.Now()
			owed = min(owed+now.Sub(last).Seconds()*l.Rate, max(arrears.Seconds()*l.Rate, 1))
			last = now
			if owed < 1 {
				ts := unix.NsecToTimespec(int64(idle))
				_ = unix.Nanosleep(&ts, nil) // cut short by a signal, it is looked at the clock again
				continue
			}
			n = min(n, int(owed))
		}
		if l.Datagrams > 0 {
			n = min(n, l.Datagrams-sent)
		}
		for i := range n {
			l.Next(&d)
			s.put(i, &d)
		}
		if n, err = s.flush(n); err != nil {
			return sent, err
		}
		sent += n
		owed -= float64(n)
	}
	return sent, nil
}
