package tunnel

import (
	"net/netip"

	"github.com/warren-net/warren/forwarder/packet"
)

// A Superpacket is an inner TCP superpacket that is to leave uncut: whoever sends it adds one outer header, and the
// device that it leaves by makes segments of it.
type Superpacket struct {
	To         netip.AddrPort // the peer's underlay address, never in IPv4-mapped form
	SourcePort uint16         // UDP port that it is to come from: that of the socket that gets ICMP errors about it
	TOS        uint8          // DSCP and ECN of the outer header
	Header     []byte         // the encapsulation's, between the outer UDP header and Packet
	Packet     []byte         // the inner IP packet, with the checksum as Meta says
	Info       *packet.Info   // of Packet
	Meta       packet.Meta    // packet.CountSegments found it to fit Packet and Info
}

// A WholeSender sends superpackets uncut, for one worker. It never blocks, and keeps nothing of what it was given.
type WholeSender interface {
	// Usable says no once SendWhole would say no to everything.
	Usable() bool
	// SendWhole hands s to the kernel in one system call. False: it did not leave, so the caller cuts it and sends the
	// segments.
	SendWhole(s *Superpacket) bool
}
