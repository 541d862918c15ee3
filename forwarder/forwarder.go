// Package forwarder decides what happens to a packet. Decide is pure: parsed headers and an immutable Snapshot go in,
// a Decision comes out. No file descriptor, lock, clock, channel, map write, allocation or log line is inside, so that
// it costs tens of nanoseconds, can be tested and fuzzed without root, and gives the same answer to the same packet.
//
// # Snapshot
//
// A Snapshot holds everything that a decision depends on: the node's own pod CIDRs and addresses, the cluster's CIDRs
// and the peers. It is built by one writer (Build) and published whole through a Table; it never changes afterwards.
// A worker loads it once per batch and may use it, and every *Peer in it, for as long as it likes: the garbage
// collector is the grace period.
//
// # One table for all questions
//
// One longest-prefix match classifies an address as a pod of this node, the node itself, peer P, a hole in the
// cluster's ranges, or the world outside. The same match answers "where does this go" for destinations and "who may
// send this" for sources: a packet from peer P must come from an address that would be sent to peer P.
package forwarder

import (
	"sync/atomic"

	"github.com/warren-net/warren/forwarder/packet"
)

// Verdict is what is to happen to a superpacket.
type Verdict uint8

// The verdicts. Local and Kernel both mean "write it to the TUN"; they differ in why, which the counters show.
const (
	Drop   Verdict = iota // drop and count Decision.Reason; answer with Decision.Reject if that is set
	Local                 // a pod of this node or the node itself: the kernel has the route to its interface
	Kernel                // outside the cluster: the kernel routes (and masquerades) it
	ToPeer                // encapsulate and send to Decision.Peer
)

// Edit is a set of changes that the worker makes before it carries out a verdict.
type Edit uint8

// The edits.
const (
	ClampMSS Edit = 1 << iota // a TCP SYN: lower its MSS option to Decision.MTU
	Fragment                  // IPv4 without DF and larger than Decision.MTU: send it in fragments (RFC 791)
)

// A Decision is the answer to "what happens to this superpacket".
type Decision struct {
	Peer    *Peer         // ToPeer; for wire traffic the sending peer
	MTU     int           // bytes, for ClampMSS, Fragment and a "too big" Reject
	Verdict Verdict       //
	Reason  Reason        // why, when Drop
	Reject  packet.Reject // ICMP error to answer with, when Drop; packet.RejectNone: be silent
	Edit    Edit          //
}

const (
	tcpSYN  = 0x02
	minMTU6 = 1280
)

// FromTUN decides on a superpacket that the kernel routed to the TUN: pod traffic, and the node's own to pods of
// other nodes.
func (s *Snapshot) FromTUN(i *packet.Info, m packet.Meta) Decision {
	if !s.isLocal(i.Src) {
		// The kernel reports its groups from ::, which is nobody's mistake.
		if i.Src.IsUnspecified() && i.Dst.IsMulticast() {
			return Decision{Reason: Multicast}
		}
		return Decision{Reason: SourceNotLocal}
	}
	switch dst := s.routes.lookup(i.Dst); dst.kind() {
	case kindPeer:
		return toPeer(s.peers[dst.peer()], i, m)
	case kindPod, kindSelf:
		return Decision{Verdict: Local}
	case kindHole:
		return Decision{Reason: NoRoute, Reject: packet.RejectNoRoute}
	}
	// What is left has no place in the cluster. Only then is it worth asking whether it has one anywhere.
	if i.Dst.IsMulticast() || i.Dst == broadcast4 {
		return Decision{Reason: Multicast}
	}
	if i.Version == 6 && i.Dst.IsLinkLocalUnicast() {
		return Decision{Reason: LinkLocal}
	}
	if s.routes.lookup(i.Src).kind() == kindSelf {
		// The node's own traffic to the outside is not routed here, unless somebody's route is wrong; giving it back
		// to the kernel would loop.
		return Decision{Reason: NodeToOutside, Reject: packet.RejectNoRoute}
	}
	return Decision{Verdict: Kernel}
}

func toPeer(p *Peer, i *packet.Info, m packet.Meta) Decision {
	d := Decision{Verdict: ToPeer, Peer: p, MTU: p.MTU}
	if i.TCPFlags&tcpSYN != 0 {
		d.Edit = ClampMSS
	}
	limit := p.MTU
	if i.Version == 6 {
		// Every IPv6 path carries 1280 bytes (RFC 8200, 5); a smaller figure would be ignored by hosts. What the path then
		// still refuses is lost, but the MSS is clamped to what passes.
		limit = max(limit, minMTU6)
	}
	if i.SegmentLen(m) > limit {
		if i.Is(packet.DontFragment) {
			return Decision{Reason: TooBig, Reject: packet.RejectTooBig, Peer: p, MTU: limit}
		}
		d.Edit |= Fragment
	}
	return d
}

// FromWire decides on a superpacket that peer p sent and the encapsulation accepted.
func (s *Snapshot) FromWire(p *Peer, i *packet.Info) Decision {
	if s.routes.lookup(i.Src) != newTarget(kindPeer, int(p.Index)) {
		return Decision{Reason: SourceNotPeer, Peer: p}
	}
	if !s.isLocal(i.Dst) {
		return Decision{Reason: NotForThisNode, Peer: p}
	}
	d := Decision{Verdict: Local, Peer: p}
	if i.TCPFlags&tcpSYN != 0 {
		// The MSS in here bounds what our pod sends back on this very path.
		d.Edit, d.MTU = ClampMSS, p.MTU
	}
	return d
}

// A Table publishes snapshots: one writer stores, any number of readers load. The zero Table holds an empty snapshot,
// which drops everything.
type Table struct {
	p atomic.Pointer[Snapshot]
}

// Load returns the snapshot in force; never nil.
func (t *Table) Load() *Snapshot {
	if s := t.p.Load(); s != nil {
		return s
	}
	return &emptySnapshot
}

// Store puts s in force.
func (t *Table) Store(s *Snapshot) { t.p.Store(s) }
