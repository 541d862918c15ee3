// Package flood sends what an attacker would: UDP datagrams from any IPv4 address, real or not, as fast as a thread can
// or at a rate, and initiations of WireGuard handshakes that cost their receiver as much as can be without a known key.
//
// A Sender belongs to one goroutine at a time. What it is given to send it copies.
package flood
