package lab

import (
	"bytes"
	"encoding/binary"
	"iter"
	"slices"
)

// A Plaintext recognises traffic of pods that is not encrypted, wherever it lies in a packet: by what a Transfer sends,
// and by the header of an IP packet from or for a pod. Its methods are safe for concurrent use.
type Plaintext struct {
	windows map[[windowBytes]byte]struct{} // pieces of the block that transfers repeat, one next to the other
	headers []headerForm
}

const (
	windowBytes = 8
	// probeEvery is how far apart a packet is searched for a piece of a transfer: one that has so many bytes of it, and
	// two pieces more, is found.
	probeEvery = 256
)

// NewPlaintext prepares the recognition.
func NewPlaintext() *Plaintext {
	p := &Plaintext{windows: make(map[[windowBytes]byte]struct{}), headers: []headerForm{
		{4, 12, 16, 20, []byte{10, 244}, []byte{192, 0, 2}},
		{6, 8, 24, 40, []byte{0xfd, 0, 0, 0x10, 2, 0x44}, []byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0}},
	}}
	for window := range slices.Chunk(transferBlock()[windowBytes:], windowBytes) { // the beginning varies
		p.windows[[windowBytes]byte(window)] = struct{}{}
	}
	return p
}

// In reports whether the packet, or what it carries, is traffic of pods in the clear. That it says so of 10^9 bytes of
// ciphertext is less likely than one in ten thousand.
func (p *Plaintext) In(packet []byte) bool {
	return p.transferIn(packet) || slices.ContainsFunc(p.headers, func(h headerForm) bool { return h.in(packet) })
}

func (p *Plaintext) transferIn(packet []byte) bool {
	for at := 0; at < len(packet); at += probeEvery {
		for i := at; i < at+windowBytes && i+windowBytes <= len(packet); i++ {
			if _, ok := p.windows[[windowBytes]byte(packet[i:])]; ok {
				return true
			}
		}
	}
	return false
}

// A headerForm is where the addresses lie in a header, and what those of pods and of nodes begin with.
type headerForm struct {
	version                   byte
	source, destination, size int
	pod, node                 []byte
}

// in reports whether there is such a header from a pod or for one, whose other end is in the lab as well.
func (h headerForm) in(b []byte) bool {
	for at := range indices(b, h.pod) {
		for _, offset := range []int{h.source, h.destination} {
			start := at - offset
			if start < 0 || start+h.size > len(b) || b[start]>>4 != h.version || !sound(b[start:]) {
				continue
			}
			other := b[start+h.source+h.destination-offset:]
			if bytes.HasPrefix(other, h.pod) || bytes.HasPrefix(other, h.node) {
				return true
			}
		}
	}
	return false
}

// sound reports whether the checksum of an IPv4 header is right (RFC 791); IPv6 has none. Without that a header would
// be found in every thirtieth 10^9 bytes of ciphertext.
func sound(b []byte) bool {
	if b[0]>>4 != 4 {
		return true
	}
	header := int(b[0]&0xf) * 4
	if header < 20 || header > len(b) {
		return false
	}
	var sum uint32
	for i := 0; i < header; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum == 0xffff
}

// indices are where a sequence of bytes lies in others.
func indices(b, sequence []byte) iter.Seq[int] {
	return func(yield func(int) bool) {
		for from := 0; ; {
			i := bytes.Index(b[from:], sequence)
			if i < 0 || !yield(from+i) {
				return
			}
			from += i + 1
		}
	}
}
