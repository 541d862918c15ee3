// Package bench measures Warren beside other ways to join pods: the same two nodes and two pods in network namespaces,
// the same generator (iperf3, ping), the same wire, one system after the other, round after round.
//
// What makes a figure believable is kept apart: a Bed is the two nodes and the wire between them (bed.go), a System
// makes the pods reach each other over it (system.go), a scenario measures one thing (scenario.go), the self-check
// refuses figures of traffic that took another way (check.go), and the report forms medians and ratios (report.go).
// The command is bench/warren-bench; `make bench` runs it.
//
// Nothing here is safe for concurrent use: measurements must not overlap.
package bench
