package packet

import "encoding/binary"

// IPv4 options (RFC 791, 3.1).
const (
	ipv4OptionEnd    = 0
	ipv4OptionNOP    = 1
	ipv4OptionCopied = 0x80 // of the option type: to be copied into all fragments
)

const ipv4OptionsMax = 40 // bytes

// Fragments is an IPv4 packet split into fragments, without moving the payload. The zero value is ready; it is reused
// from packet to packet and allocates nothing once it has grown. It belongs to one worker. It keeps the packet given
// to Split until the next Split.
type Fragments struct {
	// Arena stores the headers, which then stay as they are until it is reset. With nil the Fragments has storage of
	// its own, which the next Split overwrites.
	Arena *Arena
	// Prefix is put before each header: the headers of an encapsulation. It may be empty.
	Prefix []byte

	own     Arena
	headers []byte // the first one, then n-1 of laterHeader bytes
	packet  []byte
	n       int

	firstHeader, laterHeader int // bytes of a header, prefix included
	start                    int // offset of the first payload byte in packet
	firstSize, laterSize     int // payload bytes of the first fragment, and of each later one but the last
}

// Split splits p, of which Parse read i, into fragments of at most mtu bytes (RFC 791, 2.3 and 3.2). All but the last
// carry a multiple of 8 bytes of payload; options without the copied flag go with the first one only, and the room that
// they leave is used. p may be a fragment itself. A packet that fits is the only fragment, unchanged. p is not changed,
// and bytes of it beyond i.Len are left out.
//
// The transport checksum of p must be complete (CompleteChecksum), and p must be no superpacket: segment it first.
//
// ErrVersion: p is not IPv4. ErrHeader: p has DF set, its options are malformed, or mtu leaves no room for 8 bytes of
// payload. N is 0 after an error.
func (f *Fragments) Split(p []byte, i *Info, mtu int) Error {
	f.n = 0
	switch {
	case i.Version != 4:
		return ErrVersion
	case int(i.Len) > len(p):
		return ErrTruncated
	case i.L4 < ipv4HeaderLen || i.L4 > min(ipv4MaxLen, i.Len):
		return ErrHeader
	}
	p = p[:i.Len]
	first := int(i.L4)
	f.packet, f.start = p, first
	if len(p) <= mtu {
		f.n, f.firstSize, f.laterSize = 1, len(p)-first, 0
		f.takeHeaders(first, 0)
		copy(f.headers[len(f.Prefix):], p[:first])
		return OK
	}
	if i.Is(DontFragment) {
		return ErrHeader
	}
	var options [ipv4OptionsMax]byte
	n, ok := copiedOptions(&options, p[ipv4HeaderLen:first])
	if !ok {
		return ErrHeader
	}
	later := ipv4HeaderLen + n
	flags := binary.BigEndian.Uint16(p[6:8])
	offset := int(flags&ipv4OffsetMask) * 8
	f.firstSize, f.laterSize = (mtu-first)&^7, (mtu-later)&^7
	if f.firstSize < 8 || offset+len(p) > MaxPacket {
		return ErrHeader
	}
	// The last fragment need not be a multiple of 8 long, so it may fill the MTU to the last byte.
	rest := len(p) - first - f.firstSize
	f.n = 2 + (max(0, rest-(mtu-later))+f.laterSize-1)/f.laterSize
	f.takeHeaders(first, later)

	h := f.header(0)
	copy(h, p[:first])
	stampFragment(h, flags|ipv4FlagMF, f.firstSize)
	for k := 1; k < f.n; k++ {
		h := f.header(k)
		copy(h, p[:ipv4HeaderLen])
		h[0] = 4<<4 | uint8(later/4)
		copy(h[ipv4HeaderLen:], options[:n])
		start, end := f.payload(k)
		word := flags&^ipv4OffsetMask | uint16((offset+start-first)/8)
		if k < f.n-1 {
			word |= ipv4FlagMF // of the last one, MF is what it was: p may be a fragment
		}
		stampFragment(h, word, end-start)
	}
	return OK
}

// N is the number of fragments.
func (f *Fragments) N() int { return f.n }

// Pieces returns the k-th fragment, k < N: prefix and IPv4 header, then payload, which is a part of the packet.
func (f *Fragments) Pieces(k int) (header, payload []byte) {
	start, end := f.payload(k)
	at, size := f.headerAt(k)
	return f.headers[at : at+size : at+size], f.packet[start:end]
}

// takeHeaders takes room for f.n IPv4 headers of the given lengths from the arena and writes the prefixes.
func (f *Fragments) takeHeaders(first, later int) {
	arena := f.Arena
	if arena == nil {
		arena = &f.own
		arena.Reset()
	}
	f.firstHeader, f.laterHeader = len(f.Prefix)+first, len(f.Prefix)+later
	f.headers = arena.take(f.firstHeader + (f.n-1)*f.laterHeader)
	for k := range f.n {
		at, _ := f.headerAt(k)
		copy(f.headers[at:], f.Prefix)
	}
}

// headerAt is where in f.headers the k-th header is, and how long.
func (f *Fragments) headerAt(k int) (at, size int) {
	if k == 0 {
		return 0, f.firstHeader
	}
	return f.firstHeader + (k-1)*f.laterHeader, f.laterHeader
}

// header is the k-th IPv4 header, without the prefix.
func (f *Fragments) header(k int) []byte {
	at, size := f.headerAt(k)
	return f.headers[at+len(f.Prefix) : at+size]
}

// payload is where in f.packet the k-th fragment's payload is.
func (f *Fragments) payload(k int) (start, end int) {
	start, end = f.start, f.start+f.firstSize
	if k > 0 {
		start = end + (k-1)*f.laterSize
		end = start + f.laterSize
	}
	if k == f.n-1 {
		end = len(f.packet)
	}
	return start, end
}

// stampFragment writes the total length, the flags and offset, and the checksum of the IPv4 header h.
func stampFragment(h []byte, word uint16, payload int) {
	binary.BigEndian.PutUint16(h[2:4], uint16(len(h)+payload))
	binary.BigEndian.PutUint16(h[6:8], word)
	SetIPv4Checksum(h)
}

// copiedOptions writes those of options that go into every fragment to dst, padded with zeros (end of list) to a
// multiple of 4, and returns their length; false when options are malformed.
func copiedOptions(dst *[ipv4OptionsMax]byte, options []byte) (int, bool) {
	n := 0
	for len(options) > 0 && options[0] != ipv4OptionEnd {
		if options[0] == ipv4OptionNOP {
			options = options[1:]
			continue
		}
		if len(options) < 2 {
			return 0, false
		}
		size := int(options[1])
		if size < 2 || size > len(options) {
			return 0, false
		}
		if options[0]&ipv4OptionCopied != 0 {
			n += copy(dst[n:], options[:size])
		}
		options = options[size:]
	}
	return (n + 3) &^ 3, true
}
