// Package soak keeps Warren under a mixed load for an hour or so, on three nodes in network namespaces, and looks for
// what grows: memory, goroutines, descriptors, and drops of a kind that this load gives no reason for. The load is
// bounded (it needs a fraction of a core), because the question is not how fast Warren is but whether it is the same
// after an hour of everything.
//
// load.go and udp.go are the traffic; trouble.go is what happens besides: pods that come and go, peers that come and go
// in the configuration, a daemon that is killed; sample.go reads the daemons' own metrics; judge.go decides. Two nodes
// run undisturbed from the beginning to the end, so that a slow leak has the time to show; the third is the one that is
// killed.
//
// The command is warren-soak; `make soak` runs it.
package soak
