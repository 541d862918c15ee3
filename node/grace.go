package node

import (
	"fmt"
	"time"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/node/config"
)

// graceTime is how long a change of a peer's encapsulation by a reload takes at most. Nodes reload one after the other,
// and until its turn has come a peer sends as before, and takes only what it took before:
//
//   - A peer that has become an encrypted one may still send plaintext until it has encrypted something. Whoever can
//     forge that could a moment earlier.
//   - To one that has become a plaintext one is still encrypted, which it takes before and after its own reload.
//
// A start gives no grace.
const graceTime = 10 * time.Minute

// graceOf notes that a peer's encapsulation changes, when it does. It comes before the peer is planned anew; before
// says what this node was until now.
func (p *plan) graceOf(n *control.Node, before *config.Config, now time.Time) {
	was := survivor(p.peers[n.Name], n, false)
	switch {
	case was == nil || n.Roams || n.PublicKey.IsZero():
		delete(p.grace, n.Name)
	case before.Encrypted(&was.node) != p.cfg.Encrypted(n):
		p.grace[n.Name] = now.Add(graceTime)
	}
}

// encrypts reports whether what is sent to a node is encrypted, and whether its plaintext is refused.
func (p *plan) encrypts(n *control.Node) (encrypted, refuses bool) {
	_, graced := p.grace[n.Name]
	encrypted = p.cfg.Encrypted(n)
	return encrypted || graced, encrypted && !graced && !n.Roams
}

// endGraces ends the graces of those who have encrypted something since they should, and of all who had their time, and
// names them.
func (p *plan) endGraces(now time.Time) []string {
	var ended []string
	for name, until := range p.grace {
		m := p.peers[name]
		if m != nil && now.Before(until) {
			if !p.cfg.Encrypted(&m.node) || m.tunnel == nil {
				continue
			}
			s, known := p.secure.tunnel.Status(m.tunnel.ID)
			if !known || s.LastData.Before(until.Add(-graceTime)) {
				continue
			}
		}
		delete(p.grace, name)
		ended = append(ended, name)
	}
	return ended
}

// graceWarning says of a node what its configuration does not.
func (p *plan) graceWarning(n *control.Node) string {
	until, ok := p.grace[n.Name]
	switch {
	case !ok:
		return ""
	case p.cfg.Encrypted(n):
		return fmt.Sprintf("plaintext is still taken from peer %s, which has become an encrypted one, until it encrypts, or "+
			"until %s", n.Name, until.Format(time.TimeOnly))
	}
	return fmt.Sprintf("peer %s has become a plaintext one; what is sent to it is still encrypted until %s, as it may "+
		"not have read its own configuration yet", n.Name, until.Format(time.TimeOnly))
}
