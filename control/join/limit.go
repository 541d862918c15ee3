package join

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// How often one may ask: all together, one address, and one that failed to prove its token.
const (
	perSecond    = 50
	failsAllowed = 10
	failWindow   = time.Minute
	maxAddresses = 4096
	maxConns     = 256
)

// A limiter bounds what strangers can make a member do. Secrets are not to be guessed at any rate; this keeps the log
// and the processor from being somebody else's.
type limiter struct {
	now func() time.Time

	mu     sync.Mutex
	second int64
	count  int
	fails  map[string]*fails
}

type fails struct {
	since time.Time
	count int
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, fails: map[string]*fails{}}
}

// allow reports whether the address may ask now.
func (l *limiter) allow(from string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if s := now.Unix(); s != l.second {
		l.second, l.count = s, 0
	}
	l.count++
	f := l.fails[network(from)]
	if f != nil && now.Sub(f.since) > failWindow {
		delete(l.fails, network(from))
		f = nil
	}
	return l.count <= perSecond && (f == nil || f.count < failsAllowed)
}

// failed counts a proof that was wrong.
func (l *limiter) failed(from string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := network(from)
	f := l.fails[n]
	if f == nil {
		if len(l.fails) >= maxAddresses {
			clear(l.fails)
		}
		f = &fails{since: l.now()}
		l.fails[n] = f
	}
	f.count++
}

// network is what counts as one address: of IPv6 a host has a whole /64.
func network(from string) string {
	a, err := netip.ParseAddr(from)
	if err != nil || a.Unmap().Is4() {
		return from
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return from
	}
	return p.String()
}

// limitListener bounds the connections that are open at one time.
func limitListener(l net.Listener) net.Listener {
	return &limited{Listener: l, free: make(chan struct{}, maxConns)}
}

type limited struct {
	net.Listener
	free chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, free: l.free}, nil
}

type limitedConn struct {
	net.Conn
	once sync.Once
	free chan struct{}
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { <-c.free })
	return c.Conn.Close()
}
