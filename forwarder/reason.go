package forwarder

import "github.com/warren-net/warren/forwarder/packet"

// Reason says why a packet was dropped. Reasons are counted per worker in an array; users see Name and Text in
// `warren drops` and in the metrics.
type Reason uint8

// The reasons, in the order of a packet's path.
const (
	NoReason Reason = iota

	// What the packet itself is.
	Truncated
	BadVersion
	BadHeader
	BadOffload

	// What comes from the TUN.
	SourceNotLocal
	NoRoute
	Multicast
	LinkLocal
	NodeToOutside
	TooBig
	NoSession
	SendFailed
	SendTooBig

	// What comes from the wire.
	UnknownPeer
	Plaintext
	EncapShort
	EncapFlags
	WrongVNI
	WrongMAC
	GroupMAC
	BadEtherType
	UnofferedExtension
	NotWireGuard
	UnknownSession
	BadSeal
	Replayed
	LostPieces
	Congestion
	SourceNotPeer
	NotForThisNode
	DeviceWrite

	NumReasons // how many there are
)

var reasons = [NumReasons]struct{ name, text string }{
	NoReason:           {"none", "not dropped"},
	Truncated:          {"truncated", "shorter than its headers say"},
	BadVersion:         {"bad-version", "neither IPv4 nor IPv6"},
	BadHeader:          {"bad-header", "header fields that contradict each other"},
	BadOffload:         {"bad-offload", "offload metadata that does not fit the packet"},
	SourceNotLocal:     {"source-not-local", "from a source outside this node's pod CIDRs and addresses"},
	NoRoute:            {"no-route", "to a cluster address that no known node holds"},
	Multicast:          {"multicast", "multicast or broadcast, which the pod network does not carry"},
	LinkLocal:          {"link-local", "to an IPv6 link-local address, which is never routed"},
	NodeToOutside:      {"node-to-outside", "the node's own traffic to the outside: a foreign route points at the device"},
	TooBig:             {"too-big", "larger than the path to the peer carries, and not to be fragmented"},
	NoSession:          {"no-session", "no key exchange with the peer in time, too many in wait, or no address known"},
	SendFailed:         {"send-failed", "the underlay socket refused it"},
	SendTooBig:         {"send-too-big", "larger than the underlay's MTU"},
	UnknownPeer:        {"unknown-peer", "from an underlay address, or with a key, that is no peer's"},
	Plaintext:          {"plaintext", "unencrypted from a peer whose traffic is encrypted"},
	EncapShort:         {"encap-short", "a datagram too short for its encapsulation"},
	EncapFlags:         {"encap-flags", "a VXLAN header without a valid VNI flag"},
	WrongVNI:           {"wrong-vni", "a VXLAN network identifier other than ours"},
	WrongMAC:           {"wrong-mac", "an inner frame addressed to another VTEP"},
	GroupMAC:           {"group-mac", "an inner broadcast or multicast frame (ARP and the like)"},
	BadEtherType:       {"bad-ethertype", "an inner frame that is neither IPv4 nor IPv6"},
	UnofferedExtension: {"unoffered-extension", "a VXLAN extension that this node did not offer"},
	NotWireGuard:       {"not-wireguard", "a datagram on the WireGuard port that is no message of the protocol"},
	UnknownSession:     {"unknown-session", "encrypted for a session that this node does not have (any more)"},
	BadSeal:            {"bad-seal", "encrypted data that does not decrypt"},
	Replayed:           {"replayed", "encrypted data that came before, or much too late"},
	LostPieces:         {"lost-pieces", "an encrypted superpacket of which not all pieces came"},
	Congestion:         {"congestion", "marked congested by the underlay, though its sender knows no ECN (RFC 6040)"},
	SourceNotPeer:      {"source-not-peer", "from the wire with an inner source that is not the sending peer's"},
	NotForThisNode:     {"not-for-this-node", "from the wire to an address that is not on this node"},
	DeviceWrite:        {"device-write", "the kernel refused it at the TUN device"},
}

// Name is the reason's name in lower case with hyphens, stable across versions: metrics carry it.
func (r Reason) Name() string {
	if r >= NumReasons {
		return "unknown"
	}
	return reasons[r].name
}

// Text explains the reason in a few words.
func (r Reason) Text() string {
	if r >= NumReasons {
		return ""
	}
	return reasons[r].text
}

// String implements fmt.Stringer.
func (r Reason) String() string { return r.Name() }

// FromError is the reason for a packet that the packet package refused.
func FromError(e packet.Error) Reason {
	switch e {
	case packet.OK:
		return NoReason
	case packet.ErrTruncated:
		return Truncated
	case packet.ErrVersion:
		return BadVersion
	case packet.ErrGSO:
		return BadOffload
	}
	return BadHeader
}
