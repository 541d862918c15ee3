package soak

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
)

// datagrams say what a flow over UDP sends.
type datagrams struct {
	size    int // bytes of payload, at least 8
	batch   int // datagrams at once
	cut     bool
	every   time.Duration // a batch
	mayLose bool          // because the receiver's daemon is killed
}

// lossTolerated is the share of datagrams that may be missing although nothing is overloaded: the machine has other
// things to do as well.
const lossTolerated = 0.002

// fill makes the datagram with a number: every byte of it follows from that.
func fill(b []byte, number uint64) {
	for i := range b {
		b[i] = byte(number>>3) + byte(i*31)
	}
	binary.BigEndian.PutUint64(b, number)
}

// datagrams sends numbered datagrams and wants each to arrive once and as it was.
func (r *run) datagrams(name string, p lab.Path, d datagrams) task {
	t := r.tally(name)
	return func(ctx context.Context) {
		server, client, err := udpPair(p, d)
		if err != nil {
			r.broke(ctx, name, err)
			return
		}
		defer client.Close()
		var received atomic.Int64
		done := make(chan error, 1)
		go func() { done <- receiveAll(server, d, &received) }()
		sent, err := r.sendAll(ctx, client, d)
		if err != nil {
			r.broke(ctx, name, err)
		}
		const late = time.Second
		_ = server.SetReadDeadline(time.Now().Add(late))
		if err := <-done; err != nil {
			r.broke(ctx, name, err)
		}
		got := received.Load()
		t.mu.Lock()
		t.done, t.bytes = int(got), got*int64(d.size)
		t.mu.Unlock()
		if lost := sent - got; ctx.Err() == nil &&
			(lost < 0 || !d.mayLose && float64(lost) > float64(sent)*lossTolerated || got == 0) {
			r.fail("%s: %d datagrams sent, %d received", name, sent, got)
		}
	}
}

func udpPair(p lab.Path, d datagrams) (server, client *net.UDPConn, err error) {
	err = p.To.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, 0)))
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("listening on %s: %w", p.Addr, err)
	}
	err = p.From.Do(func() (err error) {
		client, err = net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err == nil && d.cut {
		err = cutInto(client, d.size)
	}
	if err != nil {
		err = fmt.Errorf("UDP socket to %s: %w", p.Addr, errors.Join(err, server.Close()))
	}
	return server, client, err
}

// cutInto has the kernel cut what is written into datagrams of a size (UDP_SEGMENT, Linux 4.18).
func cutInto(conn *net.UDPConn, size int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
	})
	return errors.Join(err, failed)
}

// sendAll sends until the load is to end and returns how many datagrams it sent.
func (r *run) sendAll(ctx context.Context, conn *net.UDPConn, d datagrams) (sent int64, err error) {
	batch := make([]byte, d.batch*d.size)
	for r.pause(ctx, d.every) {
		for i := range d.batch {
			fill(batch[i*d.size:(i+1)*d.size], uint64(sent)+uint64(i))
		}
		if _, err := conn.Write(batch); err != nil {
			// What a killed daemon's host answers is told to the next send.
			if d.mayLose && errors.Is(err, unix.ECONNREFUSED) {
				continue
			}
			return sent, fmt.Errorf("sending: %w", err)
		}
		sent += int64(d.batch)
	}
	return sent, nil
}

// receiveAll counts until the deadline that is set at the end, and closes the socket.
func receiveAll(conn *net.UDPConn, d datagrams, received *atomic.Int64) error {
	defer conn.Close()
	buf, want := make([]byte, 1<<16), make([]byte, d.size)
	for {
		n, err := conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		if n != d.size {
			return fmt.Errorf("a datagram of %d bytes arrived instead of %d", n, d.size)
		}
		fill(want, binary.BigEndian.Uint64(buf))
		if !bytes.Equal(buf[:n], want) {
			return fmt.Errorf("datagram %d arrived changed", binary.BigEndian.Uint64(buf))
		}
		received.Add(1)
	}
}
