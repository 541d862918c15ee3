// Package netpod plays a node's kernel and its pods for tests: a Host stands on the kernel's side of a memory device,
// and each Pod is a gVisor network stack behind it, with real TCP. So the whole data path runs in one process, without
// privileges.
//
// # What the Host does
//
// What a pod sends is routed to the device in the form in which Linux hands it to a TUN: TCP in superpackets of up to
// 64 KiB with partial checksums, all other TCP and UDP packets with partial checksums too (Offload says otherwise), one
// hop less to live. What is written to the device is treated as Linux would treat it: a superpacket is cut by a naive
// segmenter that is independent of Warren's own, partial checksums are completed from what stands in the packet and not
// worked out afresh, the hop limit falls again, and packets of at most the pod's MTU reach a stack that verifies every
// checksum. So a superpacket that is wrong in any way shows up in Stats or in Pod.BadChecksums, and no test passes by
// accident. The kernel's own ICMP errors are not played: what would make one is counted.
//
// # Ownership and concurrency
//
// Everything is safe for concurrent use. Packets are delivered in the goroutine of the worker that writes them.
// Close stops all goroutines of the stacks.
package netpod
