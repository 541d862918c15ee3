package packet

import (
	"bytes"
	"encoding/binary"
)

// This file is the reference for checksums, segmentation and coalescing: written to be obviously right, from the RFCs
// and without the code under test. Nothing here is fast.

// naiveSum adds up b as big-endian words, an odd last byte as a high byte.
func naiveSum(parts ...[]byte) uint16 {
	var sum uint64
	for _, b := range parts {
		for k, v := range b {
			if k%2 == 0 {
				sum += uint64(v) << 8
			} else {
				sum += uint64(v)
			}
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// naiveSpec describes a TCP or UDP packet to build.
type naiveSpec struct {
	v6          bool
	udp         bool
	host        byte // last byte of the source address
	sport       uint16
	seq, ack    uint32
	flags       byte
	res         byte // low half of byte 12 of the TCP header
	window, urg uint16
	options     []byte // TCP; a multiple of 4 bytes
	ipOptions   []byte // IPv4; a multiple of 4 bytes
	ext         bool   // IPv6: a destination options header
	tos, ttl    byte
	id, frag    uint16 // frag: the IPv4 word of flags and offset
	label       uint32 // IPv6 flow label
	payload     []byte
}

// naiveL4 returns where the transport header and the payload of a built packet begin, and its protocol.
func naiveL4(p []byte) (l4, data int, proto byte) {
	if p[0]>>4 == 4 {
		l4, proto = int(p[0]&15)*4, p[9]
	} else {
		l4, proto = 40, p[6]
		if proto == 60 {
			l4, proto = 48, p[40]
		}
	}
	data = l4 + 8
	if proto == 6 {
		data = l4 + int(p[l4+12]>>4)*4
	}
	return l4, data, proto
}

// build makes the packet with complete checksums.
func (s naiveSpec) build() []byte {
	var t []byte
	proto := byte(6)
	if s.udp {
		proto = 17
		t = binary.BigEndian.AppendUint16(t, s.sport)
		t = binary.BigEndian.AppendUint16(t, 443)
		t = append(t, 0, 0, 0, 0)
	} else {
		t = binary.BigEndian.AppendUint16(t, s.sport)
		t = binary.BigEndian.AppendUint16(t, 443)
		t = binary.BigEndian.AppendUint32(t, s.seq)
		t = binary.BigEndian.AppendUint32(t, s.ack)
		t = append(t, byte(20+len(s.options))<<2|s.res, s.flags)
		t = binary.BigEndian.AppendUint16(t, s.window)
		t = append(t, 0, 0)
		t = binary.BigEndian.AppendUint16(t, s.urg)
		t = append(t, s.options...)
	}
	t = append(t, s.payload...)
	var p []byte
	if s.v6 {
		p = binary.BigEndian.AppendUint32(p, 6<<28|uint32(s.tos)<<20|s.label)
		p = append(p, 0, 0, proto, s.ttl)
		p = append(p, 0xfd, 0, 0, 0x10, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, s.host)
		p = append(p, 0xfd, 0, 0, 0x10, 2, 0x44, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9)
		if s.ext {
			p[6] = 60
			p = append(p, proto, 0, 1, 4, 0, 0, 0, 0) // padding (PadN)
		}
	} else {
		p = append(p, 0x45+byte(len(s.ipOptions)/4), s.tos, 0, 0)
		p = binary.BigEndian.AppendUint16(p, s.id)
		p = binary.BigEndian.AppendUint16(p, s.frag)
		p = append(p, s.ttl, proto, 0, 0, 10, 244, 1, s.host, 10, 244, 2, 9)
		p = append(p, s.ipOptions...)
	}
	p = append(p, t...)
	naiveFinish(p)
	return p
}

// naiveFinish writes the lengths and checksums of a packet.
func naiveFinish(p []byte) { naiveFinishWith(p, false) }

// naiveFinishWith does what naiveFinish does; partial leaves the pseudo header's sum in the transport checksum field.
func naiveFinishWith(p []byte, partial bool) {
	l4, _, proto := naiveL4(p)
	var addresses []byte
	if p[0]>>4 == 4 {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], ^naiveSum(p[:l4]))
		addresses = p[12:20]
	} else {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		addresses = p[8:40]
	}
	at := l4 + 16
	if proto == 17 {
		binary.BigEndian.PutUint16(p[l4+4:], uint16(len(p)-l4))
		at = l4 + 6
	}
	field := p[at : at+2]
	field[0], field[1] = 0, 0
	pseudo := binary.BigEndian.AppendUint32(bytes.Clone(addresses), uint32(len(p)-l4))
	pseudo = append(pseudo, 0, 0, 0, proto)
	sum := naiveSum(pseudo)
	if !partial {
		sum = ^naiveSum(pseudo, p[l4:])
		if proto == 17 && sum == 0 {
			sum = 0xffff
		}
	}
	binary.BigEndian.PutUint16(field, sum)
}

// naiveComplete completes p's checksum when its field holds the pseudo header's sum alone.
func naiveComplete(p []byte, i *Info) {
	if !i.Is(HasPorts) || i.Is(Fragment) {
		return
	}
	l4 := p[i.L4:]
	at := 16
	if i.Proto == 17 {
		if at = 6; int(binary.BigEndian.Uint16(l4[4:])) != len(l4) {
			return
		}
	}
	field := l4[at : at+2]
	pseudo := append(i.Src.AsSlice(), i.Dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint16(append(pseudo, 0, i.Proto), uint16(len(l4)))
	if binary.BigEndian.Uint16(field) != naiveSum(pseudo) {
		return
	}
	clear(field)
	sum := ^naiveSum(pseudo, l4)
	if i.Proto == 17 && sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
}

// naiveMeta makes p a superpacket of segments with size bytes of payload each.
func naiveMeta(p []byte, size int) Meta {
	l4, _, proto := naiveL4(p)
	m := Meta{Type: GSOUDP, NeedsChecksum: true, SegmentSize: uint16(size), ChecksumStart: uint16(l4), ChecksumOffset: 6}
	if proto == 6 {
		m.Type, m.ChecksumOffset = GSOTCP4, 16
		if p[0]>>4 == 6 {
			m.Type = GSOTCP6
		}
	}
	naiveFinishWith(p, true)
	return m
}

// naiveSegment cuts a superpacket into whole packets. sameID leaves the IPv4 ID as it is.
func naiveSegment(p []byte, size int, sameID bool) [][]byte {
	l4, data, proto := naiveL4(p)
	var out [][]byte
	for at := 0; data+at < len(p); at += size {
		end := min(data+at+size, len(p))
		seg := append(bytes.Clone(p[:data]), p[data+at:end]...)
		if p[0]>>4 == 4 && !sameID {
			binary.BigEndian.PutUint16(seg[4:], binary.BigEndian.Uint16(p[4:])+uint16(len(out)))
		}
		if proto == 6 {
			binary.BigEndian.PutUint32(seg[l4+4:], binary.BigEndian.Uint32(p[l4+4:])+uint32(at))
			if at > 0 {
				seg[l4+13] &^= 0x80 // CWR
			}
			if end < len(p) {
				seg[l4+13] &^= 0x09 // PSH, FIN
			}
			if urgent := int(binary.BigEndian.Uint16(p[l4+18:])); at > 0 && p[l4+13]&0x20 != 0 {
				if urgent > at {
					binary.BigEndian.PutUint16(seg[l4+18:], uint16(urgent-at))
				} else {
					seg[l4+13] &^= 0x20
					seg[l4+18], seg[l4+19] = 0, 0
				}
			}
		}
		naiveFinish(seg)
		out = append(out, seg)
	}
	return out
}

// naiveRun is a run of a naive coalescer: the packets as they came, and how they are cut again.
type naiveRun struct {
	tag     int32
	packets [][]byte
}

// super returns the superpacket of a run of several, with complete checksums, and its segment size.
func (r *naiveRun) super() ([]byte, int) {
	_, data, _ := naiveL4(r.packets[0])
	p := bytes.Clone(r.packets[0])
	size := len(p) - data
	l4, _, proto := naiveL4(p)
	for _, q := range r.packets[1:] {
		_, data, _ := naiveL4(q)
		p = append(p, q[data:]...)
		if proto == 6 {
			p[l4+13] |= q[l4+13]
		}
	}
	if len(p) <= MaxPacket {
		naiveFinish(p)
	}
	return p, size
}

// naiveFlow returns what is equal for all packets of one flow; whole is false for fragments, whose flow is known by
// the addresses alone.
func naiveFlow(p []byte) (addresses, flow string, whole bool) {
	var i Info
	Parse(p, &i)
	addresses = i.Src.String() + " " + i.Dst.String()
	if !i.Is(HasPorts) {
		return addresses, "", !i.Is(Fragment)
	}
	return addresses, addresses + " " + string(p[i.L4:i.L4+4]) + string(rune(i.Proto)), !i.Is(Fragment)
}

// naiveJoinable says which packets may join at all.
func naiveJoinable(p []byte, tcp, udp bool) bool {
	if p[0]>>4 == 4 && (p[0] != 0x45 || binary.BigEndian.Uint16(p[6:])&0x3fff != 0) {
		return false
	}
	proto := p[9]
	if p[0]>>4 == 6 {
		proto = p[6]
	}
	switch proto {
	case 6:
		l4, data, _ := naiveL4(p)
		// ACK, perhaps ECE, FIN and PSH; nothing in the reserved bits.
		return tcp && len(p) > data && p[l4+13]&^0x49 == 0x10 && p[l4+12]&15 == 0
	case 17:
		l4, data, _ := naiveL4(p)
		return udp && len(p) > data && int(binary.BigEndian.Uint16(p[l4+4:])) == len(p)-l4
	}
	return false
}

// naiveCoalesce joins packets, tag by tag, by trying: a packet joins the last run of its flow when cutting the joined
// superpacket gives back all its packets. It has no limit on the number of open runs.
func naiveCoalesce(packets [][]byte, tags []int32, opts CoalescerOptions) []*naiveRun {
	type flow struct {
		tag  int32
		name string
	}
	var runs []*naiveRun
	last := map[flow]*naiveRun{}
	for k, p := range packets {
		addresses, name, whole := naiveFlow(p)
		id := flow{tags[k], name}
		run := &naiveRun{tag: tags[k], packets: [][]byte{p}}
		if !whole {
			for other := range last {
				if other.tag == tags[k] && len(other.name) > len(addresses) &&
					other.name[:len(addresses)+1] == addresses+" " {
					delete(last, other)
				}
			}
			runs = append(runs, run)
			continue
		}
		if before := last[id]; before != nil && name != "" && naiveJoinable(p, opts.TCP, opts.UDP) {
			joined := &naiveRun{tag: tags[k], packets: append(before.packets[:len(before.packets):len(before.packets)], p)}
			if joined.reversible(opts) {
				before.packets = joined.packets
				continue
			}
		}
		last[id] = run
		runs = append(runs, run)
	}
	return runs
}

// reversible reports whether a run may be one superpacket.
func (r *naiveRun) reversible(opts CoalescerOptions) bool {
	if opts.MaxSegments > 0 && len(r.packets) > opts.MaxSegments {
		return false
	}
	for _, p := range r.packets {
		if !naiveJoinable(p, opts.TCP, opts.UDP) {
			return false
		}
	}
	if _, _, proto := naiveL4(r.packets[0]); proto == 17 && opts.MaxDatagrams > 0 && len(r.packets) > opts.MaxDatagrams {
		return false
	}
	p, size := r.super()
	if len(p) > MaxPacket || opts.MaxBytes > 0 && len(p) > opts.MaxBytes {
		return false
	}
	sameID := p[0]>>4 == 4 && p[6]&0x40 != 0 && [2]byte(r.packets[0][4:]) == [2]byte(r.packets[1][4:])
	cut := naiveSegment(p, size, sameID)
	if len(cut) != len(r.packets) {
		return false
	}
	for k := range cut {
		if !bytes.Equal(cut[k], r.packets[k]) {
			return false
		}
	}
	return true
}
