// Package lab builds clusters of network namespaces: nodes joined by an underlay, with pods attached to them by the
// real CNI plugin and the real daemon running in each. The tests, the demo (internal/lab/demo) and the benchmarks use
// it; Warren itself never does.
package lab
