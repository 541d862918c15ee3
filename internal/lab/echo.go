package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// An Echo is a TCP connection over which a small sequence number goes to and fro every few milliseconds, so that a gap
// in the network shows as the longest time without an answer. Its methods are safe for concurrent use.
type Echo struct {
	client, server *net.TCPConn
	stop           chan struct{}
	tasks          sync.WaitGroup

	mu       sync.Mutex
	sent     uint64 // last sequence number written
	answered uint64 // last one that came back
	last     time.Time
	longest  time.Duration
	err      error // the first one; nil while the connection lives
}

// StartEcho makes the connection and sends a number so often.
func StartEcho(ctx context.Context, p Path, every time.Duration) (*Echo, error) {
	client, server, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	e := &Echo{client: client, server: server, stop: make(chan struct{}), last: time.Now()}
	e.tasks.Go(func() { e.ask(every) })
	e.tasks.Go(func() { e.hear() })
	e.tasks.Go(func() {
		_, err := io.Copy(server, server)
		e.fail(err)
	})
	return e, nil
}

func (e *Echo) ask(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for seq := uint64(1); ; seq++ {
		select {
		case <-e.stop:
			return
		case <-tick.C:
		}
		e.mu.Lock()
		e.sent = seq
		e.mu.Unlock()
		if _, err := e.client.Write(binary.BigEndian.AppendUint64(nil, seq)); err != nil {
			e.fail(err)
			return
		}
	}
}

func (e *Echo) hear() {
	buf := make([]byte, 8)
	for {
		if _, err := io.ReadFull(e.client, buf); err != nil {
			e.fail(err)
			return
		}
		e.mu.Lock()
		e.answered = binary.BigEndian.Uint64(buf)
		e.measure()
		e.last = time.Now()
		e.mu.Unlock()
	}
}

// measure counts the silence up to now. The caller holds the lock.
func (e *Echo) measure() { e.longest = max(e.longest, time.Since(e.last)) }

func (e *Echo) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil && err != nil && !errors.Is(err, net.ErrClosed) {
		e.err = fmt.Errorf("the TCP connection broke: %w", err)
	}
}

// Mark begins a new measurement.
func (e *Echo) Mark() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.longest, e.last = 0, time.Now()
}

// Longest is the longest silence since Mark, the current one included.
func (e *Echo) Longest() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.measure()
	return e.longest
}

// WaitAnswered waits until a number that is sent from now on has come back: until the connection works.
func (e *Echo) WaitAnswered(ctx context.Context) error {
	e.mu.Lock()
	want := e.sent + 1
	e.mu.Unlock()
	for {
		e.mu.Lock()
		answered, err := e.answered, e.err
		e.mu.Unlock()
		if err != nil || answered >= want {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no answer to number %d on the TCP connection: %w", want, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// Stop ends the connection and returns an error when it broke before.
func (e *Echo) Stop() error {
	e.mu.Lock()
	err := e.err
	e.mu.Unlock()
	close(e.stop)
	_, _ = e.client.Close(), e.server.Close()
	e.tasks.Wait()
	return err
}
