package node

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/warren-net/warren/forwarder"
)

// A probeWay sends probes the way of uncut superpackets, and counts those that got behind the host's firewall.
type probeWay interface {
	Probe(to netip.AddrPort) error
	Arrived() (uint64, error) // begins anew when somebody replaces the counting rules
}

// What proving costs at most.
const (
	probeBatch   = 256                    // peers probed together; fewer than net.core.netdev_max_backlog, 1,000
	probeBatches = 2                      // of peers that are well, in a round without an event
	probeTries   = 2                      // a lone probe may be lost
	probeWait    = 100 * time.Millisecond // for what is missing
	probeLook    = 5 * time.Millisecond
	probeShort   = 32 // tests that wait for something missing, in a round
	probeHalve   = 24 // of these, kept for halves of groups
	probeResets  = 3  // of the counter, in a test
)

// A prober finds out to which peers a probe arrives. A firewall may decide by any field, the peer's address included,
// so every peer is probed by itself; but one count tells of a whole batch when all of it arrived, or nothing. Else
// the batch is halved, and its halves again, after all batches have been tested whole: that costs no wait where all
// is well. A round waits probeShort times at most; whom it does not come to is off until a later one. Peers off are
// tried again in every round, together.
type prober struct {
	way  probeWay
	rest func(context.Context, time.Duration)

	known   map[netip.AddrPort]bool // whether probes arrive; absent: not told
	rounds  int
	short   int                 // tests that may still fall short in this round
	mixed   [][]*forwarder.Peer // groups of which some probes arrived and some did not, to be halved
	sending time.Duration       // spent in this round, without waits
}

// round probes peers: with all every one, else those of which nothing is known, some of those that are well, in turns,
// and as many of the others as arrive. A peer whose probe may not have arrived takes nothing uncut from that moment
// on; to let it take something is the caller's. After an error nothing is known of any.
func (p *prober) round(ctx context.Context, peers []*forwarder.Peer, all bool) error {
	err := p.settleAll(ctx, peers, all)
	if err != nil {
		p.known = nil
	}
	return err
}

func (p *prober) settleAll(ctx context.Context, peers []*forwarder.Peer, all bool) error {
	p.short, p.sending, p.mixed = probeShort, 0, nil
	known := make(map[netip.AddrPort]bool, len(peers))
	var fresh, well, off []*forwarder.Peer
	for _, peer := range peers {
		arrives, told := p.known[peer.Endpoint]
		switch {
		case !told:
			fresh = append(fresh, peer)
			continue
		case arrives:
			well = append(well, peer)
		default:
			off = append(off, peer)
		}
		known[peer.Endpoint] = arrives
	}
	p.known = known // of peers that are gone nothing is kept
	p.rounds++
	// They come first, as they have something to lose, and cost no wait as long as all is well.
	k := 0
	for batch := range slices.Chunk(turned(well, p.rounds*probeBatches*probeBatch), probeBatch) {
		if k++; k > probeBatches && !all {
			break
		}
		arrived, err := p.settle(ctx, batch, probeHalve)
		if err != nil {
			return err
		}
		all = all || !arrived // something changed, and no event told of it
	}
	for batch := range slices.Chunk(turned(fresh, p.rounds*probeBatch), probeBatch) {
		if _, err := p.settle(ctx, batch, probeHalve); err != nil {
			return err
		}
	}
	if err := p.halve(ctx); err != nil {
		return err
	}
	for batch := range slices.Chunk(turned(off, p.rounds*probeBatch), probeBatch) {
		if p.short == 0 {
			break
		}
		arrived, err := p.settle(ctx, batch, 0)
		if err != nil {
			return err
		}
		if !arrived && !all {
			break
		}
	}
	return p.halve(ctx)
}

// halve settles the halves of the groups that turned out to be mixed, and the halves of those first: what is found out
// of a single peer stays, of a mixed group nothing does.
func (p *prober) halve(ctx context.Context) error {
	for len(p.mixed) > 0 {
		last := len(p.mixed) - 1
		group := p.mixed[last]
		p.mixed = p.mixed[:last]
		for half := range slices.Chunk(group, (len(group)+1)/2) {
			if _, err := p.settle(ctx, half, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// turned is s beginning elsewhere.
func turned(s []*forwarder.Peer, by int) []*forwarder.Peer {
	if len(s) == 0 {
		return nil
	}
	by %= len(s)
	return slices.Concat(s[by:], s[:by])
}

// settle finds out whether probes arrive at the peers of a group, and reports whether at all of them. It waits when
// they do not. A mixed group goes to p.mixed. Where no more than keep of the round's tests are left it does nothing,
// and the group is off.
func (p *prober) settle(ctx context.Context, group []*forwarder.Peer, keep int) (bool, error) {
	if p.short <= keep {
		for _, peer := range group {
			peer.Whole.Store(false)
			delete(p.known, peer.Endpoint)
		}
		return false, nil
	}
	arrived, err := p.test(ctx, group)
	for try := 1; err == nil && arrived == 0 && len(group) == 1 && p.short > 0 && try < probeTries; try++ {
		arrived, err = p.test(ctx, group)
	}
	if err != nil {
		return false, err
	}
	if arrived > 0 && arrived < len(group) {
		for _, peer := range group {
			delete(p.known, peer.Endpoint)
		}
		p.mixed = append(p.mixed, group)
		return false, nil
	}
	for _, peer := range group {
		p.known[peer.Endpoint] = arrived > 0
	}
	return arrived > 0, nil
}

// test sends a probe to each peer of a group and says how many arrived, at most all. When some are missing it has
// waited, and the group is off.
func (p *prober) test(ctx context.Context, group []*forwarder.Peer) (arrived int, err error) {
	for range probeResets {
		before, err := p.way.Arrived()
		if err != nil {
			return 0, err
		}
		began := time.Now()
		for _, peer := range group {
			if err := p.way.Probe(peer.Endpoint); err != nil {
				return 0, err
			}
		}
		p.sending += time.Since(began)
		after, err := p.await(ctx, before, before+uint64(len(group)))
		if err != nil {
			return 0, err
		}
		if after >= before {
			arrived = int(min(after-before, uint64(len(group))))
			break
		}
	}
	if arrived < len(group) {
		p.short = max(p.short-1, 0)
		for _, peer := range group {
			peer.Whole.Store(false)
		}
	}
	return arrived, ctx.Err()
}

// await looks at the counter until it has come from before to want, for probeWait at most. The kernel forwards within
// the write, unless it hands packets to another processor (RPS). A count below before is a counter that began anew.
func (p *prober) await(ctx context.Context, before, want uint64) (uint64, error) {
	for looks := probeWait / probeLook; ; looks-- {
		n, err := p.way.Arrived()
		if err != nil || n >= want || n < before || looks == 0 || ctx.Err() != nil {
			return n, err
		}
		p.rest(ctx, probeLook)
	}
}
