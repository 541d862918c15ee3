// Package ipam gives addresses to pods. The allocator is host-local's (containernetworking/plugins), which hands out
// addresses round robin; the store under it is this package's, because host-local's own creates a file and writes it
// afterwards, without a flush, so that a kill between the two leaks the address for good.
//
// # Files
//
//	<root>/.lock                     flock(2) taken by every change, of all networks
//	<root>/<network>/<address>       one per address in use: {"containerID": …, "ifname": …}
//	<root>/<network>/last.<range>    the address given last, where the round robin goes on
//
// An address file appears complete or not at all (package internal/atomicfile: temporary file, fsync, link), and the
// link is the reservation: it fails when the address is taken. A file that says nothing readable counts as taken:
// nobody here can say that no pod lives there. Entries, Release and Unreadable report it, and the caller decides, who
// has the pods' records.
//
// An address is taken when any network has it: two networks may share a pod CIDR, which both read from the node file.
//
// # Concurrency
//
// Processes exclude each other by the lock. A Store is for one goroutine; open one for each.
package ipam
