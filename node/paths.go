package node

import (
	"net/netip"
	"time"
)

// pathMemory is how long a path's MTU is believed after the underlay said it: RFC 1191, 6.3 and RFC 8201, 4 ask for at
// least five minutes and suggest ten, because a path that grew again says nothing.
const pathMemory = 10 * time.Minute

// minOuterMTU is the least outer MTU that is believed, in bytes: RFC 791's minimum. Below it somebody is making it up.
const minOuterMTU = 68

// pathLimits are the path MTUs that ICMP errors and refused sends taught. It belongs to the writer goroutine.
type pathLimits map[netip.Addr]pathLimit

type pathLimit struct {
	mtu   int // bytes of the largest outer packet
	until time.Time
}

// note remembers that outer packets to a carry at most mtu bytes. It reports whether that is news.
func (p pathLimits) note(a netip.Addr, mtu int, now time.Time) bool {
	if mtu < minOuterMTU {
		return false
	}
	old, known := p[a]
	if known && old.mtu < mtu {
		// Routes of several widths lead there: the narrowest counts, until it is forgotten.
		return false
	}
	p[a] = pathLimit{mtu: mtu, until: now.Add(pathMemory)}
	return !known || old.mtu != mtu
}

// expire forgets what is too old, and reports whether there was anything.
func (p pathLimits) expire(now time.Time) bool {
	gone := false
	for a, l := range p {
		if !now.Before(l.until) {
			delete(p, a)
			gone = true
		}
	}
	return gone
}
