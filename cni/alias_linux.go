package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"unicode/utf8"

	"github.com/warren-net/warren/cni/podrecord"
)

const (
	aliasBytes   = 255 // that the kernel takes (IFALIASZ - 1)
	networkBytes = 120 // of these for the network, so that the pod's name has room
)

// alias names a host interface for whoever reads `ip link`. Whose it is comes before the pod, which is what is cut.
func alias(rec podrecord.Record) string {
	who := rec.ContainerID
	if rec.PodName != "" {
		who = rec.PodNamespace + "/" + rec.PodName
	}
	begin, end := networkAlias(rec.Network), " "+rec.IfName
	return begin + cut(who, aliasBytes-len(begin)-len(end)) + end
}

// networkAlias is what the aliases of a network's interfaces begin with, and those of no other: GC goes by it where
// there is no record. A sum stands for what is cut off, after a sign that no network's name has.
func networkAlias(network string) string {
	if len(network) > networkBytes {
		sum := sha256.Sum256([]byte(network))
		digits := "~" + hex.EncodeToString(sum[:8])
		network = cut(network, networkBytes-len(digits)) + digits
	}
	return aliasPrefix + network + " "
}

// cut takes no more than some bytes of a string, and no part of a character.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
