package node

import (
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node/api"
)

// kernelDrops is what the kernel dropped before a worker could see it. It is read when somebody asks; what the kernel
// does not tell counts as 0.
func (n *Node) kernelDrops() []api.Drop {
	spoofed, _ := hostnet.Spoofed()
	out := []api.Drop{
		{Reason: "spoofed", Count: spoofed, Meaning: "from a pod, and not from the pod's own address; or from the underlay " +
			"under a pod's, and not from a direct peer's"},
		{Reason: "queue-full", Meaning: "the device's queue was full: pods send faster than the workers read"},
		{Reason: "socket-full", Meaning: "the socket's buffer was full: peers send faster than the workers read"},
	}
	if n.device != nil {
		if link, err := netlink.LinkByIndex(n.device.Index()); err == nil && link.Attrs().Statistics != nil {
			out[1].Count = link.Attrs().Statistics.TxDropped
		}
	}
	for _, s := range slices.Concat(n.sockets, n.secure.lanes()) {
		out[2].Count += s.Overflows()
	}
	if n.secure.sockets != nil {
		out = append(out, api.Drop{
			Reason: "handshake-socket-full", Count: n.secure.sockets.Control.Overflows(),
			Meaning: "more handshakes, or what passes for them, than are read: a flood",
		})
	}
	return out
}
