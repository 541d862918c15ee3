package node

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/warren-net/warren/control"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/node/config"
	"github.com/warren-net/warren/tunnel"
	"github.com/warren-net/warren/tunnel/vxlan"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// overhead is what a tunnel adds to an inner packet on its way to the address, in bytes.
func overhead(to netip.Addr, encrypted bool) int {
	switch {
	case encrypted && to.Is4():
		return wireguard.Overhead4
	case encrypted:
		return wireguard.Overhead6
	case to.Is4():
		return vxlan.Overhead4
	}
	return vxlan.Overhead6
}

// underlayMTU is the MTU in bytes of the device that packets to the address leave from, as far as it is known.
func (p *plan) underlayMTU(to netip.Addr) int {
	for _, u := range p.underlay {
		if u.Address.Is4() == to.Is4() && u.MTU > 0 {
			return u.MTU
		}
	}
	return p.podMTU + overhead(to, true)
}

// elsewhereMTU is the MTU in bytes that is taken for the path to a machine that may be anywhere: Ethernet's.
const elsewhereMTU = 1500

// peerMTU is the largest inner packet that reaches the peer, and a warning when the path is narrower than its device.
// A figure below 576 is not believed: what every IPv4 host has to be able to receive passes everywhere. That IPv6 must
// not be told less than 1280 is the forwarder's to heed.
func (p *plan) peerMTU(n *control.Node, to netip.Addr, encrypted bool) (mtu int, warning string) {
	outer := p.underlayMTU(to)
	if n.Roams {
		outer = min(outer, elsewhereMTU)
	}
	if limit, ok := p.paths[to]; ok && limit.mtu < outer {
		outer = limit.mtu
		warning = fmt.Sprintf("the path to peer %s (%s) carries packets of at most %d bytes, so its pods get %d", n.Name, to,
			outer, max(outer-overhead(to, encrypted), config.MinMTU4))
	}
	inner := outer - overhead(to, encrypted)
	least := config.MinMTU4
	if hasIPv6(p.cfg.Self.PodCIDRs) && hasIPv6(n.PodCIDRs) {
		least = config.MinMTU6
	}
	if inner < least {
		warning = fmt.Sprintf("the path to peer %s (%s) carries packets of at most %d bytes, but %d are needed for the %d "+
			"that its pods are entitled to: larger packets are lost; raise the MTU of the underlay", n.Name, to, outer,
			least+overhead(to, encrypted), least)
	}
	return min(max(inner, config.MinMTU4), p.podMTU), warning
}

func hasIPv6(list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(c netip.Prefix) bool { return c.Addr().Is6() })
}

// underlayWarnings says which of the node's underlay devices cannot carry what the pods' MTU promises.
func (p *plan) underlayWarnings() []string {
	var out []string
	encrypted := p.secured > 0 || !p.cfg.Self.Plaintext()
	for _, u := range p.underlay {
		more := overhead(u.Address, encrypted)
		need := p.podMTU + more
		switch {
		case u.Device == "":
			out = append(out, fmt.Sprintf("underlay address %s is on no device of this host any more", u.Address))
		case u.MTU < need:
			out = append(out, fmt.Sprintf("underlay device %s (%s) has MTU %d, but pods with MTU %d need %d: pods are told to "+
				"send smaller packets; raise it to %d, or set `mtu: %d` and restart", u.Device, u.Address, u.MTU, p.podMTU,
				need, need, u.MTU-more))
		}
	}
	return out
}

// podMTU is the MTU of the pods: the configured one, or the narrowest underlay's less the margin.
func podMTU(cfg *config.Config, underlay []api.Underlay) (int, error) {
	if cfg.MTU != 0 {
		return cfg.MTU, nil
	}
	narrow := underlay[0]
	for _, u := range underlay[1:] {
		if u.MTU < narrow.MTU {
			narrow = u
		}
	}
	mtu := min(narrow.MTU, 1<<16-1) - config.PodMTUMargin
	if least := cfg.MinMTU(); mtu < least {
		return 0, fmt.Errorf("underlay device %s (%s) has MTU %d, which leaves the pods %d bytes, below the least of %d; "+
			"raise it to %d or more", narrow.Device, narrow.Address, narrow.MTU, mtu, least, least+config.PodMTUMargin)
	}
	return mtu, nil
}

// deviceGSOMaxSize is the gso_max_size in bytes of the device: as large as superpackets get. With a smaller one the
// kernel would cut a larger superpacket into single packets before the device: 0.57 of the rate, measured with pods
// whose veths had the kernel's own limit.
const deviceGSOMaxSize = 65536

// deviceQueueLength is how many packets wait in each queue of the device before the kernel drops. Its own default of
// 500 is 2 ms of small packets, less than a thread may have to wait for its processor. The price: senders that nothing
// slows down can fill a queue with superpackets, 62 MiB of the kernel's memory, and with many flows all queues: 1 GiB
// with 16 lanes. A TCP connection keeps to its window.
const deviceQueueLength = 1000

// gsoMaxSize is the size in bytes of superpackets whose segments, with the tunnel's headers, fit one send: a longer one
// costs a second system call for a few segments. 72 bytes are the longest usual headers (IPv6, TCP with timestamps).
func gsoMaxSize(podMTU int) int {
	const headers = 72
	n := min(tunnel.MaxSendBytes/(podMTU+vxlan.HeaderLen), tunnel.MaxSendSegments)
	return min(max(n, 1)*(podMTU-headers)+headers, 1<<16-1)
}
