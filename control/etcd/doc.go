// Package etcd is the control plane that is an etcd: one that Warren's own members run (control/etcd/member), or the
// user's. Each node leases its pod CIDRs from the cluster's ranges, tells the others its addresses and its key, and
// watches theirs.
//
// Everything of a network is below /warren/v1/NETWORK/, so that several networks can share one etcd:
//
//	settings      what holds for the whole network; written once, when it is made
//	nodes/NAME    what a node tells of itself, its pod CIDRs among it
//	leased/NAME   its pod CIDRs and nothing else; the modification revision says since when it has them
//	cidrs/CIDR    who leases a pod CIDR; the key is what makes two owners impossible
//	alive/NAME    the node's daemon has contact; gone some seconds after it
//	members/NAME  where a host that runs a member of the etcd is reached
//	tokens/ID     with which hosts join (control/join)
//
// The first three keys of a node hang on one etcd lease of a day, which outlives reboots: when it ends, name and CIDRs
// go back. Until then they are the node's, by the id in its state directory, which the record has too. Nothing depends
// on a host's clock: what ends, ends with an etcd lease, and who came first is said by etcd's revisions.
//
// Where Warren runs the etcd itself its authentication is on: a node is known by the common name of its certificate,
// may read the network, and write no node's records but its own (member.Admin). It may write below cidrs/, as any of
// them may become its own. So these keys keep honest nodes from leasing one CIDR at the same moment, and decide nothing
// else: of two that claim one, it is the one's who claims it for longer, which the etcd's revision of leased/NAME says
// and nobody can set back. A host that is not to be trusted can keep others from getting a CIDR, but not take over
// theirs.
//
// A Source has two halves that share a client and nothing else. The follower reads the records and watches them, from
// where it was: after a compaction, or when the etcd was put back to an older state, it reads them all again. The
// registrar keeps the node's own lease, record and CIDRs, writing only what is not there yet.
package etcd
