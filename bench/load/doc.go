// Package load has the generators for what iperf3 can't do: small datagrams at a given rate (datagram.go) and the
// search for the highest rate that arrives (search.go), short connections (connect.go), and a thousand flows at once
// (flows.go).
//
// All of them run in the calling process, so nothing outlives it: a socket stays in the network namespace where it was
// opened, whatever thread uses it later. Each side of a generator is one thread that makes system calls in batches and
// allocates nothing meanwhile, so that it takes little of the processors that the system under test needs.
//
// A generator's functions return when their time is over or their context ends. Nothing here is safe for concurrent
// use.
package load
