//go:build race

package node_test

// raceEnabled has the tests build the daemon as they are built themselves.
const raceEnabled = true
