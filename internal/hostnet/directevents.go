package hostnet

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// hopAddrs are the underlay addresses of direct peers, in order, for finding out which events may change the way to
// them. It is safe for concurrent use.
type hopAddrs struct{ sorted atomic.Pointer[[]netip.Addr] }

func (h *hopAddrs) set(peers []DirectPeer) {
	var addrs []netip.Addr
	for _, p := range peers {
		addrs = append(addrs, p.NodeAddrs...)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	h.sorted.Store(&addrs)
}

// in reports whether one of the addresses is in p.
func (h *hopAddrs) in(p netip.Prefix) bool {
	addrs := h.sorted.Load()
	if addrs == nil {
		return false
	}
	i, _ := slices.BinarySearchFunc(*addrs, p.Masked().Addr(), netip.Addr.Compare)
	return i < len(*addrs) && p.Contains((*addrs)[i])
}

func (h *hopAddrs) none() bool {
	addrs := h.sorted.Load()
	return addrs == nil || len(*addrs) == 0
}

// event finds what may move the way to a direct peer: others' routes that cover its address, addresses, rules, and
// devices but those of pods. Such routes are few also where a routing daemon has thousands.
func (h *hopAddrs) event() interesting {
	return func(m syscall.NetlinkMessage) bool {
		if h.none() {
			return false
		}
		switch m.Header.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			dst, ok := routeDestination(m.Data)
			return ok && m.Data[5] != Protocol && h.in(dst)
		case unix.RTM_NEWADDR, unix.RTM_NEWRULE:
			return true
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if len(m.Data) <= unix.SizeofIfInfomsg {
				return false
			}
			name := bytes.TrimRight(attribute(m.Data[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME), "\x00")
			return !strings.HasPrefix(string(name), PodPrefix)
		}
		return false
	}
}

// routeDestination reads the destination of a route's message: struct rtmsg has its family first and the prefix length
// next.
func routeDestination(data []byte) (netip.Prefix, bool) {
	if len(data) < unix.SizeofRtMsg || data[0] != unix.AF_INET && data[0] != unix.AF_INET6 {
		return netip.Prefix{}, false
	}
	f := family(data[0])
	dst := attribute(data[unix.SizeofRtMsg:], unix.RTA_DST)
	if data[1] == 0 || dst == nil {
		return defaultRoute(f), true
	}
	a, ok := netip.AddrFromSlice(dst)
	if !ok || int(data[1]) > a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, int(data[1])), true
}
