// Package hostnet owns the kernel state that Warren keeps on a host: the addresses and settings of the TUN device,
// routes, policy rules, sysctls and nftables. The node daemon calls Apply, Watch and Remove; the CNI plugin calls
// EnsurePod, RemovePod, RemoveBridge, EnsurePodLink and EnsurePodBridge, which work while the daemon is down; `warren
// check` calls Check.
//
// # Whose objects are whose
//
// Routes and rules of Warren carry protocol 87 (Protocol), its TUN device the alias DeviceAlias, its nftables objects
// live in the tables `inet warren` and `bridge warren`. Only such objects are changed or removed, with two limits: of
// the routes with protocol 87 only those through the device and the unreachable ones are removed (routes to pods belong
// to the CNI plugin; they are put back but not removed), and of the device's addresses all are Warren's, as nobody else
// has business there. Sysctls are turned on and left.
//
// # Where packets of pods go
//
// The rules, at priorities counted from Spec.RulePriority:
//
//	+0  iif <device> lookup main              what the forwarder hands to the kernel
//	+0  from <own pod CIDR> fwmark <mark> lookup main
//	                                          answers of translated connections (kube-proxy), see nftables below
//	+1  iif <device> unreachable              the same, where the main table has no route for it
//	+1  from <gateway> lookup main            what the node itself sends from its gateway address
//	+2  (kept free for `to <own pod CIDR>`)
//	+3  from <own pod CIDR> lookup <table>    what local pods send, also those whose address is of a former pod CIDR
//
// Without the second rule a pod's packet to the outside would match the last one, on a node without a default route,
// and loop through the device until its TTL is used up.
//
// Warren's table holds a default route to the device and, at the worst metric, an unreachable default route. So a pod
// whose device is gone reaches nothing: neither pods nor the nodes of its peers get its packets in the clear. The main
// table routes the cluster's CIDRs to the device, and holds unreachable routes for them and for the node's own pod
// CIDRs at the worst metric: without them a packet to an absent local pod loops through the TUN, and with a dead TUN
// the node's packets to pods leave by the default route.
//
// # nftables
//
// `inet warren` has the chains source (a pod sends from its own address only), untracked and replies (connection
// tracking sees a packet once although it passes the node twice), outgoing (Masquerade, while there are pods) and,
// with Spec.TunnelGSO, probes (counts and drops the probes of the way of uncut superpackets). `bridge warren` is the
// source check of bridge mode, by port. The sets of pods are filled by EnsurePod and survive Apply. Where the kernel
// has no nftables everything else works, and Changes.Lost says what does not.
//
// # Network namespaces and concurrency
//
// Everything acts on the network namespace of the calling thread: a caller that switches namespaces holds
// runtime.LockOSThread. /proc/sys/net shows the namespace of the thread that opens a file there, so no path needs to
// name it (unlike /proc/net, which is the namespace of the thread group's leader: /proc/thread-self/net is used).
// Apply and Remove of one namespace may run at the same time as EnsurePod and RemovePod of any process: sets and chains
// change in kernel transactions. Two Apply at once do no harm when their Specs agree.
package hostnet
