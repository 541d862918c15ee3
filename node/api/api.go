// Package api is what a running node answers over its Unix socket: HTTP with JSON bodies, read only. The node daemon
// serves it (Handler, Listen), the command line asks it (Client), and both share the types here.
//
// The types are plain values; whoever receives one owns it. A Source is asked from several goroutines at once.
package api

import (
	"net/netip"
	"time"
)

// A Source answers the questions. Its methods are safe for concurrent use and return values that nobody else changes.
type Source interface {
	Status() Status
	Peers() []Peer
	Routes() []Route
	Pods() ([]Pod, error)
	Drops() []Drop // every reason, also those that were never counted
}

// Status is the node as a whole.
type Status struct {
	Node          string         `json:"node"`
	Version       string         `json:"version"`
	PID           int            `json:"pid"`
	Started       time.Time      `json:"started"`
	UptimeSeconds float64        `json:"uptimeSeconds"`
	Config        string         `json:"config"` // path of the file
	Device        Device         `json:"device"`
	Tunnel        Tunnel         `json:"tunnel"`
	PodCIDRs      []netip.Prefix `json:"podCIDRs"`
	Gateways      []netip.Addr   `json:"gateways"`
	ClusterCIDRs  []netip.Prefix `json:"clusterCIDRs"`
	Offloads      []Offload      `json:"offloads"`
	Workers       []Worker       `json:"workers"`
	Snapshot      Snapshot       `json:"snapshot"`
	Control       Control        `json:"control"`
	LastReload    *Reload        `json:"lastReload,omitempty"` // nil: none since the start
	Warnings      []string       `json:"warnings"`
}

// Device is the TUN device.
type Device struct {
	Name   string `json:"name"`
	Queues int    `json:"queues"`
	MTU    int    `json:"mtu"` // bytes; the pods' as well
}

// Tunnel is the encapsulation and what it runs over.
type Tunnel struct {
	Encapsulation string     `json:"encapsulation"`
	VNI           uint32     `json:"vni"`
	Port          uint16     `json:"port"`
	MAC           string     `json:"mac"` // of this node's VTEP
	Underlay      []Underlay `json:"underlay"`

	WireGuardPort uint16   `json:"wireguardPort"`
	PublicKeys    []string `json:"publicKeys"` // of this node, the newest first; more than one while it changes

	// Handshakes counts what the encrypted tunnel did and met, by name, since the start.
	Handshakes map[string]uint64 `json:"handshakes"`
}

// Underlay is one of this node's underlay addresses.
type Underlay struct {
	Address netip.Addr `json:"address"`
	Device  string     `json:"device,omitempty"` // that holds the address; empty: none does now
	MTU     int        `json:"mtu"`              // bytes; 0 when unknown
}

// Offload is the state of one offload of the device, of the sockets or of the way to peers.
type Offload struct {
	Name    string `json:"name"`
	Enabled bool   `json:"enabled"`
	Reason  string `json:"reason,omitempty"` // why it is not in use, or not for all
}

// Worker is one packet loop's counters since the start. Packets are segments, as they cross the wire, unless the name
// says superpackets.
type Worker struct {
	ID              int    `json:"id"`
	Express         bool   `json:"express"`         // it has the lanes in which little happens (`express`)
	Preferred       bool   `json:"preferred"`       // and its thread the highest priority
	TxSuperpackets  uint64 `json:"txSuperpackets"`  // from pods to peers
	TxBytes         uint64 `json:"txBytes"`         // inner IP bytes in them
	TxSegments      uint64 `json:"txSegments"`      // datagrams that they became
	TxCalls         uint64 `json:"txCalls"`         // system calls that sent these
	TxWhole         uint64 `json:"txWhole"`         // superpackets that left uncut (offload tunnel-gso)
	TxWholeRefused  uint64 `json:"txWholeRefused"`  // superpackets cut after all: too long with headers, or refused
	TxSuperframes   uint64 `json:"txSuperframes"`   // superpackets encrypted as one (offload superframes)
	RxSuperframes   uint64 `json:"rxSuperframes"`   // and decrypted
	RxSuperpackets  uint64 `json:"rxSuperpackets"`  // from peers, after joining
	RxBytes         uint64 `json:"rxBytes"`         // inner IP bytes
	RxSegments      uint64 `json:"rxSegments"`      // datagrams received
	LocalPackets    uint64 `json:"localPackets"`    // superpackets between pods of this node
	LocalBytes      uint64 `json:"localBytes"`      //
	OutsidePackets  uint64 `json:"outsidePackets"`  // superpackets given back to the kernel for the outside
	OutsideBytes    uint64 `json:"outsideBytes"`    //
	DeviceReads     uint64 `json:"deviceReads"`     // superpackets
	DeviceWrites    uint64 `json:"deviceWrites"`    // superpackets
	ICMPSent        uint64 `json:"icmpSent"`        //
	ICMPRateLimited uint64 `json:"icmpRateLimited"` //
	Wakeups         uint64 `json:"wakeups"`         // times it had nothing to do and waited
	Pauses          uint64 `json:"pauses"`          // times it paused before, so that more would come (`moderation`)
	LanesGiven      uint64 `json:"lanesGiven"`      // times it gave a lane to another worker
	FlowsMoved      uint64 `json:"flowsMoved"`      // times it had small flows leave the lane of a large one
	Drops           uint64 `json:"drops"`           // all reasons together
}

// Snapshot is the state that the forwarder decides on.
type Snapshot struct {
	Generation uint64    `json:"generation"`
	Since      time.Time `json:"since"`
	Peers      int       `json:"peers"`
	Routes     int       `json:"routes"`
}

// Control is where the nodes come from.
type Control struct {
	Source  string `json:"source"`            // "static", "etcd" or "kubernetes"
	Problem string `json:"problem,omitempty"` // why it says nothing now; what it said last is in force
}

// Reload is the outcome of the last reading of the configuration.
type Reload struct {
	Time         time.Time `json:"time"`
	Error        string    `json:"error,omitempty"`        // why the old state stays in force
	Incomplete   string    `json:"incomplete,omitempty"`   // what of the new state the host did not take
	NeedsRestart []string  `json:"needsRestart,omitempty"` // what the file says and a restart alone can apply
}

// Peer is another node.
type Peer struct {
	Name          string         `json:"name"`
	Encapsulation string         `json:"encapsulation"` // of what is sent to it: "vxlan", "wireguard" or "direct"
	Endpoint      netip.AddrPort `json:"endpoint"`      // of an encrypted one where it was heard last; zero: unknown
	PodCIDRs      []netip.Prefix `json:"podCIDRs"`
	MAC           string         `json:"mac"`
	MTU           int            `json:"mtu"`       // bytes of the largest inner packet
	TunnelGSO     bool           `json:"tunnelGSO"` // superpackets leave to it uncut
	TxPackets     uint64         `json:"txPackets"`
	TxBytes       uint64         `json:"txBytes"`
	RxPackets     uint64         `json:"rxPackets"`
	RxBytes       uint64         `json:"rxBytes"`
	LastSeen      *time.Time     `json:"lastSeen,omitempty"` // nil: never

	// Addresses are the node's on the underlay; none: it may be anywhere.
	Addresses []netip.Addr `json:"addresses,omitempty"`

	// Direct says how a node that asks for direct or auto, as this one does, is reached, pod CIDR by pod CIDR. What goes
	// without a tunnel is not in the counters. The encapsulation is "direct" when all of it does; "direct+vxlan" or
	// "direct+wireguard" when a part does.
	Direct []DirectRoute `json:"direct,omitempty"`

	PublicKey     string     `json:"publicKey,omitempty"`
	Session       bool       `json:"session"`                 // there are keys to encrypt with now
	Superframes   bool       `json:"superframes"`             // superpackets are encrypted to it as one
	Paused        bool       `json:"superframesPaused"`       // it was asked not to, as pieces are lost on their way here
	LastHandshake *time.Time `json:"lastHandshake,omitempty"` // nil: never
}

// DirectRoute is how some addresses of a peer are reached without a tunnel, or why they are not.
type DirectRoute struct {
	Prefix  netip.Prefix `json:"prefix"`
	NextHop netip.Addr   `json:"nextHop,omitzero"`
	Device  string       `json:"device,omitempty"`
	Tunnel  string       `json:"tunnel,omitempty"` // why the tunnel is taken instead; empty: it is not
}

// Route is one line of the forwarder's table.
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	Kind   string       `json:"kind"` // "pod", "node", "peer" or "unreachable"
	Peer   string       `json:"peer,omitempty"`

	// Of a prefix that is reached without a tunnel: the kernel has a route that is tried before the forwarder is.
	NextHop netip.Addr `json:"nextHop,omitzero"`
	Device  string     `json:"device,omitempty"`
}

// Pod is a pod that the CNI plugin attached to this node.
type Pod struct {
	Namespace     string       `json:"namespace,omitempty"` // of Kubernetes
	Name          string       `json:"name,omitempty"`
	ContainerID   string       `json:"containerID"`
	Interface     string       `json:"interface"`     // in the pod
	HostInterface string       `json:"hostInterface"` // its other end
	Mode          string       `json:"mode"`          // "routed" or "bridge"
	Addresses     []netip.Addr `json:"addresses"`
	Since         time.Time    `json:"since"` // when it was attached

	// What the pod sent and received, as the kernel counts at the host's end: bytes with the Ethernet header, a
	// superpacket as one packet.
	TxPackets uint64 `json:"txPackets"`
	TxBytes   uint64 `json:"txBytes"`
	RxPackets uint64 `json:"rxPackets"`
	RxBytes   uint64 `json:"rxBytes"`

	// Problem says what is wrong with the pod's record or its host interface, and what to do; empty: nothing. Of a
	// record that cannot be read HostInterface is all that is known.
	Problem string `json:"problem,omitempty"`
}

// Drop is the count of one reason.
type Drop struct {
	Reason  string `json:"reason"`
	Count   uint64 `json:"count"`
	Meaning string `json:"meaning"`
}

// An Error is the body of every answer that is not 200.
type Error struct {
	Message string `json:"error"`
}
