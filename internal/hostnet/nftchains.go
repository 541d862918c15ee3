package hostnet

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of Warren's nftables objects.
const (
	tableName      = "warren"
	setPods4       = "pods4"   // interface . IPv4 address
	setPods6       = "pods6"   // interface . IPv6 address
	setMACs        = "macs"    // interface . Ethernet address (broadcast: may use DHCP); table bridge only
	setBridges     = "bridges" // bridges of bridge mode; table inet only
	counterSpoofed = "spoofed"
	chainSource    = "source"
)

func podSet(f family) string {
	if f == v4 {
		return setPods4
	}
	return setPods6
}

// A chain is a base chain with its rules.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     nftables.ChainHook
	priority nftables.ChainPriority
	rules    []chainRule
	sets     []*nftables.Set // that it looks into, beside those that every table has
	lost     string          // what does not work when the kernel refuses the chain; "": the table is of no use without it
}

// A chainRule is a rule with the reason that `nft list ruleset` shows beside it.
type chainRule struct {
	why   string
	exprs match
}

// inetTable and bridgeTable are the tables by their kernel names.
func inetTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
}

func bridgeTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyBridge, Name: tableName}
}

// podSets are those that pods have elements in.
func podSets(t *nftables.Table) []*nftables.Set {
	concat := func(name string, second nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{
			Table: t, Name: name, Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, second),
		}
	}
	sets := []*nftables.Set{concat(setPods4, nftables.TypeIPAddr), concat(setPods6, nftables.TypeIP6Addr)}
	if t.Family == nftables.TableFamilyBridge {
		return append(sets, concat(setMACs, nftables.TypeEtherAddr))
	}
	// The byte order is for `nft list`: it shows a name backwards without.
	return append(sets, &nftables.Set{
		Table: t, Name: setBridges, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
	})
}

var (
	linkLocal          = netip.MustParsePrefix("fe80::/10")
	multicast6         = netip.MustParsePrefix("ff00::/8")
	multicast4         = netip.MustParsePrefix("224.0.0.0/4")
	unspecified4       = netip.MustParsePrefix("0.0.0.0/32")
	unspecified6       = netip.MustParsePrefix("::/128")
	linkScopeMulticast = netip.MustParsePrefix("ff02::/16")
)

// sourceChain is the source check of routed mode. It comes before everything that looks at a packet's addresses, and
// after defragmentation (-400). It depends on nothing but the sets, so that the CNI plugin can make it as well.
func sourceChain() chain {
	var rules []chainRule
	add := func(why string, ms ...match) { rules = append(rules, chainRule{why, join(ms...)}) }
	add("not from a pod", notFromPods(), accept())
	add("a bridge's ports are checked in table bridge", fromBridges(), accept())
	add("the pod's own IPv4 address", isFamily(v4), isOwnSource(v4), accept())
	add("the pod's own IPv6 address", isFamily(v6), isOwnSource(v6), accept())
	addNeighborRules(add, isFamily(v6))
	// Every pod reports multicast groups when it starts: no spoofing, and of no use on a point-to-point link.
	add("multicast listener reports, uncounted", isFamily(v6), sourceIn(linkLocal),
		icmp6Type(icmpv6MLDReport1, icmpv6MLDDone, icmpv6MLDReport2), drop())
	add("multicast listener reports, uncounted", isFamily(v6), sourceIn(unspecified6),
		icmp6Type(icmpv6MLDReport1, icmpv6MLDDone, icmpv6MLDReport2), drop())
	add("not the pod's own address", countedDrop())
	return chain{
		name: chainSource, kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookPrerouting, priority: -310, rules: rules,
	}
}

// addNeighborRules lets link-local neighbour discovery through (RFC 4861): solicitations and advertisements of
// neighbours, and router solicitations, but neither router advertisements nor redirects.
func addNeighborRules(add func(string, ...match), isIPv6 match) {
	types := []byte{icmpv6RouterSol, icmpv6NeighborSol, icmpv6NeighborAdv}
	add("neighbour discovery", isIPv6, sourceIn(linkLocal), destinationIn(linkLocal), icmp6Type(types...), accept())
	add("neighbour discovery", isIPv6, sourceIn(linkLocal), destinationIn(linkScopeMulticast), icmp6Type(types...),
		accept())
	add("duplicate address detection", isIPv6, sourceIn(unspecified6), destinationIn(linkScopeMulticast),
		icmp6Type(icmpv6RouterSol, icmpv6NeighborSol), accept())
}

// bridgeChain is the source check of bridge mode, by bridge port: addresses of frames, ARP and IP, and what a pod may
// tell its neighbours about addresses.
func bridgeChain() chain {
	var rules []chainRule
	add := func(why string, ms ...match) { rules = append(rules, chainRule{why, join(ms...)}) }
	network, link := expr.PayloadBaseNetworkHeader, expr.PayloadBaseLLHeader
	add("not from a pod", notFromPods(), accept())
	add("not the pod's Ethernet address", pair(setMACs, link, etherSource, 6, true), countedDrop())
	add("the pod's own IPv4 address", isEther(v4), isOwnSource(v4), accept())
	isARP := match{payload(link, etherTypeOffset, 2, 1), eq(etherTypeARP>>8, etherTypeARP&0xff)}
	add("ARP for the pod's own address", isARP, pair(setPods4, network, arpSenderIPv4, 4, false), accept())
	add("ARP probe (RFC 5227)", isARP,
		match{payload(network, arpSenderIPv4, 4, 1), eq(0, 0, 0, 0)}, accept())
	add("pods are no routers", isEther(v6), icmp6Type(icmpv6RouterAdv, icmpv6Redirect), countedDrop())
	target := inPrefix(expr.CmpOpNeq, neighborAdvTarget, linkLocal)
	target[0] = payload(expr.PayloadBaseTransportHeader, neighborAdvTarget, 16, 1)
	add("advertises an address of somebody else", isEther(v6), icmp6Type(icmpv6NeighborAdv), target,
		pair(setPods6, expr.PayloadBaseTransportHeader, neighborAdvTarget, 16, true), countedDrop())
	add("the pod's own IPv6 address", isEther(v6), isOwnSource(v6), accept())
	addNeighborRules(add, isEther(v6))
	// Here a snooping bridge needs them.
	for _, source := range []netip.Prefix{linkLocal, unspecified6} {
		add("multicast listener reports", isEther(v6), sourceIn(source), destinationIn(linkScopeMulticast),
			icmp6Type(icmpv6MLDReport1, icmpv6MLDDone, icmpv6MLDReport2), accept())
	}
	// The element that allows it holds the frame's destination. It allows nothing else: a bridge takes no frame that
	// comes from the broadcast address.
	add("DHCP of a pod that gets its address so (RFC 2131)", isEther(v4), sourceIn(unspecified4), dhcpRequest(),
		pair(setMACs, link, etherDestination, 6, false), accept())
	add("not the pod's own address", countedDrop())
	return chain{
		name: chainSource, kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookPrerouting, priority: -300, rules: rules,
	}
}

// chains are the chains of table inet, without the one that comes and goes with the pods (Masquerade).
func (s Spec) chains(families []family) []chain {
	cs := []chain{sourceChain(), s.untracked(families), s.replies(families)}
	if s.TunnelGSO != "" {
		cs = append(cs, probes(s.TunnelGSO))
	}
	if s.checksUnderlay() {
		cs = append(cs, s.underlayChain(families))
	}
	if s.CookiePort != 0 {
		cs = append(cs, cookies(s.CookiePort))
	}
	return cs
}

// cookies keeps connection tracking from seeing what a flood of WireGuard handshakes is answered with. Each of these
// may have another source, a forged one, and would be a connection that goes both ways. Of such the kernel gives none
// up when its table is full, and refuses new ones to everybody on the node; what is not answered it does give up.
func cookies(port uint16) chain {
	const cookieReply = 3 // the message's type, in its first byte
	udpHeader := uint32(8)
	th := expr.PayloadBaseTransportHeader
	return chain{
		name: "cookies", kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookOutput,
		priority: *nftables.ChainPriorityRaw,
		rules: []chainRule{{"a cookie for whoever calls", join(match{
			meta(expr.MetaKeyL4PROTO), eq(unix.IPPROTO_UDP),
			payload(th, 0, 2, 1), eq(binary.BigEndian.AppendUint16(nil, port)...),
			payload(th, udpHeader, 1, 1), eq(cookieReply),
		}, notrack())}},
		lost: "a flood of handshakes from forged sources can fill the kernel's table of connections",
	}
}

// untracked keeps connection tracking from seeing a packet twice. A packet of a pod that goes on to the TUN and is for
// nobody in the cluster is first tracked when it comes back; a packet between local pods is tracked as it leaves the
// pod and not when it comes back from the TUN. What a tunnel takes does not come back, and is tracked as it leaves the
// pod: it may be the answer to a peer that asked a host port (see replies). What Warren itself sends to peers uncut is
// forwarded, and must not be translated, nor judged by a connection's state.
//
// A bridge of the operator's own has others on it than pods, whose packets take the host's routes and not the TUN: what
// is not tracked goes by the source.
func (s Spec) untracked(families []family) chain {
	var rules []chainRule
	add := func(why string, ms ...match) { rules = append(rules, chainRule{why, join(ms...)}) }
	// What comes from elsewhere, the tunnel's own datagrams above all, is done with one rule, and so is the most with few:
	// a rule that only compares a name takes some 20 ns.
	add("from elsewhere", notFromPods(), nameIsNot(s.Device), nameIsNot(s.TunnelGSO), notFromBridges(), accept())
	toCluster := func(from match) {
		for _, f := range families {
			for _, c := range cidrsOf(f, s.ClusterCIDRs) {
				add("from a pod to the cluster, only time", from, isFamily(f), destinationIn(c), accept())
			}
		}
	}
	toCluster(fromPods()) // the most, in mode routed
	if s.TunnelGSO != "" {
		add("uncut superpackets to peers", iifIs(s.TunnelGSO), notrack(), accept())
	}
	for _, f := range families {
		for _, p := range s.podCIDRs(f) {
			for _, q := range s.podCIDRs(f) {
				add("between local pods, second time",
					iifIs(s.Device), isFamily(f), sourceIn(p), destinationIn(q), notrack(), accept())
			}
		}
	}
	add("from the TUN", iifIs(s.Device), accept())
	toCluster(nil) // from bridges
	for _, f := range families {
		outside := match{}
		for _, p := range s.podCIDRs(f) {
			outside = join(outside, destinationNotIn(p))
		}
		add("from a pod to a node, only time", isFamily(f), destinationOneOf(f, nodeSet(f)), accept())
		for _, p := range s.podCIDRs(f) {
			add("from a pod to the TUN, first time", isFamily(f), sourceIn(p), outside, destinationNotLocal(), notrack())
		}
	}
	return chain{
		name: "untracked", kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookPrerouting,
		priority: *nftables.ChainPriorityRaw, rules: rules,
		lost: "translated connections of pods (kube-proxy, host ports, masquerading) fail: " +
			"connection tracking sees packets twice",
	}
}

// replies marks answers of local pods whose connection was translated on its way in: the mark's policy rule keeps them
// out of the TUN, where they would lose their connection. That rule asks for the source, and so does this chain: what
// others on a bridge send keeps its mark.
func (s Spec) replies(families []family) chain {
	rules := []chainRule{{"from elsewhere", join(notFromPods(), notFromBridges(), accept())}}
	for _, f := range families {
		for _, p := range s.podCIDRs(f) {
			exprs := join(isFamily(f), sourceIn(p), isTranslatedReply(), setMark(s.Mark))
			rules = append(rules, chainRule{"answer of a translated connection", exprs})
		}
	}
	return chain{
		name: "replies", kind: nftables.ChainTypeFilter, hook: *nftables.ChainHookPrerouting,
		priority: *nftables.ChainPriorityMangle, rules: rules,
		lost: "answers to ClusterIPs and host ports of pods on this node are lost",
	}
}

func (s Spec) podCIDRs(f family) []netip.Prefix { return cidrsOf(f, s.PodCIDRs) }

func cidrsOf(f family, all []netip.Prefix) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range all {
		if familyOf(p.Addr()) == f {
			ps = append(ps, p)
		}
	}
	return ps
}
