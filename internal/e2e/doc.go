// Package e2e tests the whole system from outside: the real programs, built once per run, in clusters of network
// namespaces made by internal/lab. Each test looks at what a user or another host would see: packets on the wire, the
// hash of what arrived, the kernel's tables, exit statuses and messages. It holds no code but its tests, which need
// root and leave nothing behind.
//
// A test that captures packets proves first that its capture sees what it is to see: a count of zero is worth nothing
// from a socket that listens at the wrong place.
package e2e
