package join

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// How often one may ask, and how many connections may be open: all together and one address, so that one stranger does
// not hold up all others; and how often an address may fail to prove its token.
const (
	perSecond     = 50
	perSecondEach = perSecond / 2
	failsAllowed  = 10
	failWindow    = time.Minute
	maxAddresses  = 4096
	maxConns      = 256
	maxConnsEach  = maxConns / 4
)

// A limiter bounds what strangers can make a member do. Secrets are not to be guessed at any rate; this keeps the log
// and the processor from being somebody else's.
type limiter struct {
	now func() time.Time

	mu     sync.Mutex
	second int64
	asked  map[who]*asked
	fails  map[string]*fails
}

// Who asks: those who showed a certificate of the network have what is allowed for themselves.
type who bool

const (
	stranger who = false
	host     who = true
)

// An asked counts the questions of one second.
type asked struct {
	all  int
	from map[string]int // by network
}

type fails struct {
	since time.Time
	count int
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, fails: map[string]*fails{}}
}

// allow reports whether the address may ask now.
func (l *limiter) allow(from string, by who) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, n := l.now(), network(from)
	if s := now.Unix(); s != l.second {
		l.second, l.asked = s, map[who]*asked{stranger: {from: map[string]int{}}, host: {from: map[string]int{}}}
	}
	f := l.fails[n]
	if f != nil && now.Sub(f.since) > failWindow {
		delete(l.fails, n)
		f = nil
	}
	a := l.asked[by]
	if a.all >= perSecond || a.from[n] >= perSecondEach || f != nil && f.count >= failsAllowed {
		return false
	}
	a.all++
	a.from[n]++
	return true
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
	return &limited{Listener: l, free: make(chan struct{}, maxConns), from: map[string]int{}}
}

type limited struct {
	net.Listener
	free chan struct{}

	mu   sync.Mutex
	from map[string]int // open connections by network
}

// Accept closes at once what an address has too many of.
func (l *limited) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.free
			return nil, err
		}
		host, _, err := net.SplitHostPort(c.RemoteAddr().String())
		if err != nil {
			host = c.RemoteAddr().String()
		}
		n := network(host)
		if l.take(n) {
			return &limitedConn{Conn: c, of: l, network: n}, nil
		}
		_ = c.Close() // nothing was said on it
	}
}

func (l *limited) take(network string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.from[network] >= maxConnsEach {
		return false
	}
	l.from[network]++
	return true
}

func (l *limited) give(network string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.from[network]--; l.from[network] == 0 {
		delete(l.from, network)
	}
	<-l.free
}

type limitedConn struct {
	net.Conn
	once    sync.Once
	of      *limited
	network string
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { c.of.give(c.network) })
	return c.Conn.Close()
}
