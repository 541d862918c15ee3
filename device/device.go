// Package device defines the pod side of Warren's data path: a multi-queue layer-3 device that delivers and takes
// superpackets. device/tun is the kernel's TUN; device/memory is its twin in memory, to which tests attach gVisor
// netstacks as pods, so that the whole data path runs without root.
//
// # Ownership and concurrency
//
// A Queue belongs to one worker at a time and is not safe for concurrent use, except for Close. Read fills the caller's
// buffer and keeps nothing of it; Write keeps nothing of its pieces after it returned.
package device

import (
	"errors"

	"github.com/warren-net/warren/forwarder/packet"
)

// Headroom is the number of bytes at the front of a read buffer that a queue may use for its own header; the packet
// that Read returns begins at or after it.
const Headroom = 16

// BufferSize is the size in bytes of a buffer that holds any superpacket with its headroom.
const BufferSize = Headroom + packet.MaxPacket + 1

// ErrWouldBlock is returned by Read when nothing is queued and by Write when the device takes nothing now.
var ErrWouldBlock = errors.New("device: would block")

// ErrClosed is returned when the queue or the device is gone.
var ErrClosed = errors.New("device: closed")

// ErrNotTaken is returned by Write when the device does not take this superpacket as a whole: its type is off, or the
// kernel refused it. The caller cuts it and writes the segments instead.
var ErrNotTaken = errors.New("device: superpacket not taken, write its segments instead")

// ErrDown is returned by Write while the device's link is down. The packet is lost, the queue stays usable.
var ErrDown = errors.New("device: the link is down")

// ErrBadPacket is returned by Write for a packet or metadata that no kernel would take; see Inspect.
var ErrBadPacket = errors.New("device: packet or offload metadata that cannot be")

// GSOUnknown is the type of a superpacket that was read with an offload type that Warren does not know. No routine
// takes it: cutting it is packet.ErrGSO, so the packet becomes a counted drop.
const GSOUnknown packet.GSOType = 255

// OffloadState is the state of one offload, for status and metrics. It has the shape of tunnel.OffloadState.
type OffloadState struct {
	Name    string `json:"name"`             // "tun-checksum", "tun-tso", "tun-uso"
	Enabled bool   `json:"enabled"`          // in use now, in both directions
	Reason  string `json:"reason,omitempty"` // why not: "configuration", or what showed that it is missing or broken
}

// A Queue is one queue of the device.
type Queue interface {
	// Read reads one superpacket into buf, which has at least BufferSize bytes. The returned slice is a part of buf, with
	// the capacity up to buf's end, and begins with the IP header; it may be truncated or otherwise bad, which is the
	// caller's to find out, as is metadata that lies. ErrWouldBlock: nothing there. ErrClosed: the device is gone.
	Read(buf []byte) ([]byte, packet.Meta, error)

	// Write hands the superpacket that the pieces make up (in order, the IP header in the first one) to the kernel in
	// one system call. After ErrNotTaken the caller writes the segments; any other error than ErrWouldBlock and
	// ErrClosed means that this packet, and only this one, is lost.
	Write(m packet.Meta, pieces [][]byte) error

	// Takes reports whether the device takes superpackets of type t now. It may turn false at run time, when a write
	// showed that the kernel's offload is broken.
	Takes(t packet.GSOType) bool

	Close() error
}
