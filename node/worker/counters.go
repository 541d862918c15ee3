package worker

import (
	"sync/atomic"

	"github.com/warren-net/warren/forwarder"
)

// Counters are one worker's. Only the worker writes them; everybody may read them at any time. Packets are segments
// (what crosses the wire) unless a name says superpackets or datagrams.
type Counters struct {
	QueueReads   atomic.Uint64 // superpackets read from the device
	QueueWrites  atomic.Uint64 // superpackets written to the device
	QueueBytes   atomic.Uint64 // bytes read from the device, IP headers included
	ToPeers      atomic.Uint64 // superpackets encapsulated or encrypted
	ToPeersBytes atomic.Uint64 // inner IP bytes in them
	SegmentsOut  atomic.Uint64 // datagrams handed to the socket, and those that uncut superpackets will be
	Sends        atomic.Uint64 // sends handed to the kernel, of one or more datagrams
	SendCalls    atomic.Uint64 // system calls for them
	Whole        atomic.Uint64 // superpackets sent uncut
	WholeRefused atomic.Uint64 // superpackets cut after all: too long with headers, or refused by the kernel
	Sealed       atomic.Uint64 // datagrams encrypted; SegmentsOut has them too, once they are sent
	FramesSealed atomic.Uint64 // superpackets among these that left as superframes
	Waited       atomic.Uint64 // superpackets kept until there is a session to encrypt them in
	SegmentsIn   atomic.Uint64 // datagrams received
	BytesIn      atomic.Uint64 // inner IP bytes accepted from peers
	Opened       atomic.Uint64 // datagrams decrypted, those that hold no packet among them
	FramesOpened atomic.Uint64 // superframes among these
	Receives     atomic.Uint64 // receive slots filled; SegmentsIn/Receives says how well UDP_GRO joins
	RunsIn       atomic.Uint64 // superpackets made of what was received
	LocalPackets atomic.Uint64 // superpackets from local pods to this node
	LocalBytes   atomic.Uint64
	KernelOut    atomic.Uint64 // superpackets from local pods to the outside
	KernelBytes  atomic.Uint64
	ICMPSent     atomic.Uint64 // ICMP errors made
	ICMPLimited  atomic.Uint64 // ICMP errors not made because of the rate limit
	Wakeups      atomic.Uint64 // times the worker had nothing to do and waited
	Pauses       atomic.Uint64 // times it paused before, so that more would come; see moderation
	LanesGiven   atomic.Uint64 // lanes given to another worker
	FlowsMoved   atomic.Uint64 // buckets of flows told to leave a lane with a large one; see steering
	// Of what came from the device the superpackets, of what came from peers or was to leave to them the segments.
	Drops [forwarder.NumReasons]atomic.Uint64
}
