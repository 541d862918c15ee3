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

	"golang.org/x/sys/unix"
)

// A train is what one send carries: datagrams of one length that the kernel, or whoever receives them, cuts apart
// (UDP_SEGMENT, udp(7)).
const (
	trainDatagrams = 64
	trainBytes     = 65507
)

// Trains send datagrams from the place's own address and one port, ten times as many a second as a Sender.
type Trains struct {
	fd  int
	buf []byte
	oob []byte
}

// OpenTrains makes Trains in a place. The caller calls Close.
func OpenTrains(p Place, to netip.AddrPort) (*Trains, error) {
	s := &Trains{buf: make([]byte, trainBytes), oob: make([]byte, unix.CmsgSpace(2))}
	const level, kind = unix.SOL_UDP, unix.UDP_SEGMENT
	h := &unix.Cmsghdr{Level: level, Type: kind}
	h.SetLen(unix.CmsgLen(2))
	if _, err := binary.Encode(s.oob, binary.NativeEndian, h); err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	err := p.Do(func() (err error) {
		if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		a := &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
		if err := unix.Connect(s.fd, a); err != nil {
			return errors.Join(os.NewSyscallError("connect", err), unix.Close(s.fd))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("socket for trains: %w", err)
	}
	return s, nil
}

// Close closes the socket.
func (s *Trains) Close() error { return unix.Close(s.fd) }

// A TrainLoad is what Run sends.
type TrainLoad struct {
	Datagrams int
	// Size says how long the datagrams of the next train are: 1 to MaxPayload bytes.
	Size func() int
	// Fill makes datagram i of a train in msg, which holds what an earlier train had there.
	Fill func(i int, msg []byte)
}

// Run sends a load from a thread of its own, as fast as it can, and returns how many datagrams left and how long that
// took. That the context has ended is no error.
func (s *Trains) Run(ctx context.Context, l TrainLoad) (sent int, took time.Duration, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		begin := time.Now()
		for ctx.Err() == nil && sent < l.Datagrams && err == nil {
			var n int
			n, err = s.send(l)
			sent += n
		}
		took = time.Since(begin)
	}()
	<-done
	return sent, took, err
}

func (s *Trains) send(l TrainLoad) (int, error) {
	size := l.Size()
	n := min(trainDatagrams, trainBytes/size)
	for i := range n {
		l.Fill(i, s.buf[i*size:(i+1)*size])
	}
	binary.NativeEndian.PutUint16(s.oob[unix.CmsgLen(0):], uint16(size))
	_, err := unix.SendmsgN(s.fd, s.buf[:n*size], s.oob, nil, 0)
	// ICMP errors and queues that are full are a flood's daily bread.
	if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EINTR) {
		return 0, os.NewSyscallError("sendmsg", err)
	}
	return n, nil
}
