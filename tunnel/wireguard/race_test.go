//go:build race

package wireguard

// raceEnabled has the longest tests be shorter.
const raceEnabled = true
