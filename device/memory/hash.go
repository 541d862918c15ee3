package memory

import (
	"bytes"
	"encoding/binary"
)

// FNV-1a, 32 bits.
const (
	fnvOffset = 2166136261
	fnvPrime  = 16777619
)

// flowHash is the same for both directions of a flow, like the kernel's for a TUN queue (__skb_get_hash_symmetric):
// addresses, and for TCP and UDP the ports. Fragments have no ports, so that all of them meet in one queue.
func flowHash(p []byte) uint32 {
	var a, b, ports []byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		a, b = p[12:16], p[16:20]
		header := int(p[0]&15) * 4
		if binary.BigEndian.Uint16(p[6:])&0x3fff == 0 && hasPorts(p[9]) && header >= 20 && len(p) >= header+4 {
			ports = p[header : header+4]
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		a, b = p[8:24], p[24:40]
		if hasPorts(p[6]) && len(p) >= 44 {
			ports = p[40:44]
		}
	default:
		return 0
	}
	swap := bytes.Compare(a, b) > 0
	if len(ports) > 0 && bytes.Equal(a, b) {
		swap = bytes.Compare(ports[:2], ports[2:]) > 0
	}
	if swap {
		a, b = b, a
	}
	h := fnv(fnv(fnvOffset, a), b)
	if len(ports) > 0 {
		if swap {
			return fnv(fnv(h, ports[2:]), ports[:2])
		}
		h = fnv(h, ports)
	}
	return h
}

func hasPorts(proto byte) bool { return proto == 6 || proto == 17 }

func fnv(h uint32, b []byte) uint32 {
	for _, c := range b {
		h = (h ^ uint32(c)) * fnvPrime
	}
	return h
}
