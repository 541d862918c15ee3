// Package cri runs containerd on the nodes of a lab and asks it for pods as a kubelet does, through CRI.
//
// Each node's containerd lives in a network namespace (the node's), a mount namespace and a process namespace of its
// own, with an empty /run: shims, sandboxes' namespaces and mounts are then the node's and not the machine's, all of
// them end with one process, and a reboot is that process killed. What the node keeps on its disk is in Node.Dir.
//
// Images are assembled from programs built here; there is no registry.
//
// The tests need containerd, runc, iptables and CNI's own plugins, which plain `make test` should not ask for: they
// are behind the build tag "runtime", and `make test-runtime` gets what they need and sets the tag. A test of theirs
// that finds something missing fails; none is skipped.
package cri
