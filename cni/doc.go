// Package cni is Warren's CNI plugin: the commands of the CNI specification, the attachment of pods in the modes
// routed and bridge, and address management over the host-local allocator of containernetworking/plugins with a store
// that survives a kill at any moment (cni/ipam).
//
// But for STATUS it never talks to the daemon: what it needs to know it reads from internal/nodefile and from its own
// configuration, and what the daemon wants to know of pods it reads from the records that this package keeps in the
// state directory.
//
// Each command is a process of its own. One that takes a pod's interface away, most often a DEL, has a second one, the
// remover, which outlives it by some milliseconds: the kernel lets nobody go who removes an interface before it has
// freed it.
package cni
