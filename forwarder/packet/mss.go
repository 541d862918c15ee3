package packet

import "encoding/binary"

// TCP options (IANA registry "TCP Option Kind Numbers").
const (
	tcpOptionEnd = 0
	tcpOptionNOP = 1
	tcpOptionMSS = 2
	tcpMSSLen    = 4
)

// ClampMSS lowers the MSS option of a TCP SYN to what fits packets of mtu bytes, and reports whether it changed p. The
// MSS counts neither IP nor TCP options (RFC 6691), so it is mtu less 40 for IPv4 and less 60 for IPv6. A SYN without
// the option is left alone: its MSS is 536 or 1,220 (RFC 9293, 3.7.1), which fits every MTU that Warren accepts.
// Anything else is left alone too, a malformed option list from its first mistake on.
//
// p need only hold the headers (i.HeaderLen() bytes); i is what Parse read of it. m is the packet's offload metadata:
// where the TCP checksum is partial, the field holds the pseudo header's sum alone, which the option is no part of, so
// only a complete checksum is updated (RFC 1624).
func ClampMSS(p []byte, i *Info, m Meta, mtu int) bool {
	if i.TCPFlags&tcpSYN == 0 || i.Proto != protoTCP || i.L4Len <= tcpHeaderLen || len(p) < i.HeaderLen() {
		return false
	}
	limit := mtu - ipv6HeaderLen - tcpHeaderLen
	if i.Version == 4 {
		limit = mtu - ipv4HeaderLen - tcpHeaderLen
	}
	if limit <= 0 || limit >= 0xffff {
		return false
	}
	tcp := p[i.L4:i.HeaderLen()]
	// A pod's own tunnel may leave an inner checksum to be completed, while that of the outer TCP header is complete.
	partial := m.NeedsChecksum && m.ChecksumStart == i.L4
	changed := false
	for k := tcpHeaderLen; k < len(tcp); {
		kind := tcp[k]
		if kind == tcpOptionEnd {
			break
		}
		if kind == tcpOptionNOP {
			k++
			continue
		}
		if len(tcp)-k < 2 {
			break
		}
		size := int(tcp[k+1])
		if size < 2 || size > len(tcp)-k {
			break
		}
		// A second MSS option is clamped as well: which one counts is the receiver's choice.
		if kind == tcpOptionMSS && size == tcpMSSLen {
			changed = lowerMSS(tcp, k+2, uint16(limit), !partial) || changed
		}
		k += size
	}
	return changed
}

// lowerMSS lowers the 16-bit value at tcp[at:] to limit, updates the checksum if that is wanted, and reports whether it
// changed anything.
func lowerMSS(tcp []byte, at int, limit uint16, updateChecksum bool) bool {
	mss := binary.BigEndian.Uint16(tcp[at:])
	if mss <= limit {
		return false
	}
	binary.BigEndian.PutUint16(tcp[at:], limit)
	if !updateChecksum {
		return true
	}
	if at%2 != 0 {
		// The value lies across two of the words that the checksum adds up, its high byte in the low half of the first
		// and its low byte in the high half of the second: in ones-complement arithmetic the swapped value in one word.
		mss, limit = mss<<8|mss>>8, limit<<8|limit>>8
	}
	check := Update16(binary.BigEndian.Uint16(tcp[tcpChecksumOffset:]), mss, limit)
	binary.BigEndian.PutUint16(tcp[tcpChecksumOffset:], check)
	return true
}
