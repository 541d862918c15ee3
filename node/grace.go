package node

import (
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/node/config"
)

// graceTime is how long plaintext is taken from a peer that has become an encrypted one by a reload, at most: nodes
// reload one after the other, and until its turn has come the peer sends as before. Whoever can forge that could a
// moment earlier. A start gives no grace.
const graceTime = 10 * time.Minute

// graces notes which peers have just become encrypted ones.
func (p *plan) graces(old, next *config.Config, now time.Time) {
	before := map[string]*control.Node{}
	for _, n := range old.Peers(old.State) {
		before[n.Name] = &n
	}
	for _, n := range next.Peers(next.State) {
		was := before[n.Name]
		switch {
		case n.Roams || was == nil || !next.Encrypted(&n):
			delete(p.grace, n.Name)
		case !old.Encrypted(was):
			p.grace[n.Name] = now.Add(graceTime)
		}
		delete(before, n.Name)
	}
	for name := range before {
		delete(p.grace, name)
	}
}

// endGraces ends the graces of peers that have encrypted something since, or had their time, and reports whether there
// were any.
func (p *plan) endGraces(now time.Time) bool {
	ended := false
	for name, until := range p.grace {
		s, ok := p.secure.tunnel.Status(p.tunnels[name])
		if now.Before(until) && ok && s.LastData.Before(until.Add(-graceTime)) {
			continue
		}
		delete(p.grace, name)
		ended = true
	}
	return ended
}
