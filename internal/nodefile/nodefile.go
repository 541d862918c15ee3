// Package nodefile is the small file by which the node daemon tells the CNI plugin what it needs to attach a pod: the
// node's pod CIDRs, gateway addresses and MTU. The daemon writes it whole (temporary file, fsync, rename). It is there
// as long as the kernel keeps pods from sending in the clear: while the daemon runs, after it was killed, and after it
// stopped and left its state, or pods, behind. So pods can be added while it restarts.
package nodefile

import "net/netip"

// Name is the file's name in the run directory.
const Name = "node.json"

// File is the content of the file.
type File struct {
	Node         string         `json:"node"`
	Device       string         `json:"device"`       // the TUN's name, "warren0"
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`     // the node's own
	Gateways     []netip.Addr   `json:"gateways"`     // one per pod CIDR, the first address of each
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"` // everything that is never masqueraded and never leaves in the clear
	MTU          int            `json:"mtu"`          // bytes, of the pods' interfaces
	GSOMaxSize   int            `json:"gsoMaxSize"`   // bytes, of the pods' veths, so that it fits one send; 0: leave
	Masquerade   bool           `json:"masquerade"`
	Table        int            `json:"table"`        // the routing table of the policy rules
	RulePriority int            `json:"rulePriority"` // of the first rule
	StateDir     string         `json:"stateDir"`
}
