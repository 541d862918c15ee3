//go:build race

package e2e_test

// raceEnabled has the tests build the programs as they are built themselves.
const raceEnabled = true
