package lab

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// blockSize is the number of bytes that a transfer writes and hashes at once.
const blockSize = 256 << 10

// A Transfer is a TCP transfer that runs: the sender hashes what it writes, the receiver what it reads.
type Transfer struct {
	finish   func()
	finished chan struct{}
	sent     chan sentResult
	received chan receivedResult
	start    time.Time
}

// TransferResult is what a transfer that arrived complete and unchanged has to tell.
type TransferResult struct {
	Bytes        int64
	Took         time.Duration
	LongestStall time.Duration // between two reads of the receiver
	SHA256       [sha256.Size]byte
}

// BitsPerSecond is the goodput.
func (r TransferResult) BitsPerSecond() float64 { return float64(r.Bytes*8) / r.Took.Seconds() }

type sentResult struct {
	bytes int64
	sum   [sha256.Size]byte
	err   error
}

type receivedResult struct {
	sentResult
	longest time.Duration
}

// TransferOptions say how much is sent and how fast. The zero value sends until Finish, as fast as it goes.
type TransferOptions struct {
	Bytes          int64
	BytesPerSecond int64 // 0: as fast as it goes; then a stall may also be a full queue somewhere, not a gap
	// ReceiveBuffer is the receiver's SO_RCVBUF, which bounds how much is on its way to twice that many bytes (tcp(7)).
	// 0: the kernel's choice, by which TCP sends ever more until a queue is full and drops some.
	ReceiveBuffer int
}

// StartTransfer begins to send random bytes.
func StartTransfer(ctx context.Context, p Path, o TransferOptions) (*Transfer, error) {
	client, server, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	if o.ReceiveBuffer > 0 {
		if err := server.SetReadBuffer(o.ReceiveBuffer); err != nil {
			return nil, errors.Join(err, client.Close(), server.Close())
		}
	}
	t := &Transfer{
		finished: make(chan struct{}),
		sent:     make(chan sentResult, 1),
		received: make(chan receivedResult, 1),
		start:    time.Now(),
	}
	t.finish = sync.OnceFunc(func() { close(t.finished) })
	go func() { t.sent <- t.send(client, o) }()
	go func() { t.received <- receive(server) }()
	return t, nil
}

// send writes blocks that differ in their first bytes, so that a block lost, repeated or moved changes the hash.
func (t *Transfer) send(conn *net.TCPConn, o TransferOptions) (r sentResult) {
	defer func() { r.err = errors.Join(r.err, closed(conn)) }()
	block := transferBlock()
	h := sha256.New()
	for o.Bytes == 0 || r.bytes < o.Bytes {
		if t.pause(o, r.bytes) {
			break
		}
		binary.BigEndian.PutUint64(block, uint64(r.bytes))
		piece := block
		if left := o.Bytes - r.bytes; o.Bytes > 0 && left < blockSize {
			piece = block[:left]
		}
		if _, r.err = conn.Write(piece); r.err != nil {
			return r
		}
		h.Write(piece)
		r.bytes += int64(len(piece))
	}
	r.sum = sum(h)
	r.err = conn.CloseWrite()
	if r.err == nil {
		// Closing now would leave bytes unsent to a reset: wait for the receiver's end.
		_, r.err = conn.Read(block[:1])
		if errors.Is(r.err, io.EOF) {
			r.err = nil
		}
	}
	return r
}

// transferBlock is what every block of every transfer holds behind its first 8 bytes.
func transferBlock() []byte {
	block := make([]byte, blockSize)
	_, _ = rand.NewChaCha8([32]byte{}).Read(block) // never fails (math/rand/v2)
	return block
}

// pause waits until the rate allows to go on after so many bytes, and reports whether Finish came instead.
func (t *Transfer) pause(o TransferOptions, sent int64) (finished bool) {
	var due time.Time // already
	if o.BytesPerSecond > 0 {
		due = t.start.Add(time.Duration(float64(sent) / float64(o.BytesPerSecond) * float64(time.Second)))
	}
	select {
	case <-t.finished:
		return true
	case <-time.After(time.Until(due)):
		return false
	}
}

func receive(conn *net.TCPConn) (r receivedResult) {
	defer func() { r.err = errors.Join(r.err, closed(conn)) }()
	h := sha256.New()
	buf := make([]byte, blockSize)
	for last := time.Now(); ; {
		n, err := conn.Read(buf)
		now := time.Now()
		r.longest, last = max(r.longest, now.Sub(last)), now
		h.Write(buf[:n])
		r.bytes += int64(n)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				r.err = err
			}
			r.sum = sum(h)
			return r
		}
	}
}

// closed closes a connection that the end of the context may have closed before.
func closed(conn net.Conn) error {
	if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func sum(h hash.Hash) (s [sha256.Size]byte) {
	h.Sum(s[:0])
	return s
}

// Finish ends a transfer without a fixed length at the next block.
func (t *Transfer) Finish() { t.finish() }

// Wait waits for the end of the transfer and compares both hashes.
func (t *Transfer) Wait() (TransferResult, error) {
	received := <-t.received
	took := time.Since(t.start)
	sent := <-t.sent
	if err := errors.Join(sent.err, received.err); err != nil {
		return TransferResult{}, fmt.Errorf("transfer broke after %d bytes sent and %d received: %w",
			sent.bytes, received.bytes, err)
	}
	if sent.bytes != received.bytes || sent.sum != received.sum {
		return TransferResult{}, fmt.Errorf("transfer arrived changed: sent %d bytes with SHA-256 %x, received %d with %x",
			sent.bytes, sent.sum, received.bytes, received.sum)
	}
	return TransferResult{
		Bytes: sent.bytes, Took: took, LongestStall: received.longest, SHA256: sent.sum,
	}, nil
}
