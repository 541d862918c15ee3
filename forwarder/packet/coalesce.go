package packet

import "encoding/binary"

// maxOpen is the number of runs that can grow at the same time. With more flows than that in one batch they take turns,
// which costs joins and never order.
const maxOpen = 32

// maxDatagrams is how many datagrams every kernel that knows USO takes in a superpacket.
const maxDatagrams = 64

// CoalescerOptions says what a Coalescer joins.
type CoalescerOptions struct {
	TCP bool // join TCP segments (the device takes GSOTCP4 and GSOTCP6)
	UDP bool // join UDP datagrams (the device takes GSOUDP)

	MaxBytes    int // largest superpacket in bytes, headers included; 0: MaxPacket
	MaxSegments int // most segments of a superpacket; 0: MaxSegments

	// MaxDatagrams is the most datagrams of a UDP superpacket; 0: 64. Linux takes no superpacket of more than
	// UDP_MAX_SEGMENTS, 64 until 6.9 and 128 since; TCP knows no such limit.
	MaxDatagrams int

	// TrustChecksums joins without verifying transport checksums: something else has proven the payload. A segment that
	// was broken before gets a right checksum by joining.
	TrustChecksums bool
}

// A Run is what became of the packets of one flow that followed each other: a superpacket, or a lone packet.
type Run struct {
	Info     Info  // of the superpacket as Finish makes it: Len and TCPFlags are those of all segments together
	Tag      int32 // as given to Add
	Segments int   // 1: a lone packet
	Bytes    int   // of the superpacket, headers once

	head, tail int32  // indices of its first and last piece
	size       uint16 // payload bytes of each segment but the last
	id, idStep uint16 // IPv4 ID of the last segment, and its distance from one segment to the next
	seq        uint32 // TCP sequence number that follows the last segment
	verified   bool   // the first segment's checksums were found right
}

// A Coalescer joins the packets of a received batch to superpackets by reference: a superpacket's pieces are its first
// packet, whose headers speak for all, and the payloads of the others. A worker adds what it received, then finishes
// each run and writes it, then resets.
//
// Joined is only what cutting the superpacket again gives back byte for byte (Segments does, the receiving kernel
// would): the same headers but for lengths, checksums, sequence number and IPv4 ID; contiguous data; equal sizes but
// for the last; right checksums. The one exception is the IPv4 ID of packets with DF whose sender never changes it: it
// means nothing there (RFC 6864 section 4.1). Everything else is a run of one, whose bytes are not changed, unless its
// transport checksum was left to be completed: see CompletePartial.
//
// Runs come in the order of their first packets, and no packet joins a run after another packet of its flow was put
// elsewhere: within a flow the order is kept.
type Coalescer struct {
	opts   CoalescerOptions
	info   Info // of the packet being added
	runs   []Run
	pieces []piece
	out    [][]byte // what Finish returned slices of

	open  [maxOpen]openRun
	opens int // open[:opens] are in use
	evict int // the next one to give up when all are in use

	// latest is 1 more than the slot of the run that the last packet is part of, whose headers info still tells; 0 when
	// that run is closed.
	latest int
}

// piece is an element of a run's list of pieces.
type piece struct {
	b    []byte
	next int32 // index of the next piece, -1 at the end
}

// openRun is a run that can still grow.
type openRun struct {
	key uint64 // of its flow, see flowKey
	run int32
}

// NewCoalescer makes an empty Coalescer.
func NewCoalescer(opts CoalescerOptions) *Coalescer {
	if opts.MaxBytes <= 0 || opts.MaxBytes > MaxPacket {
		opts.MaxBytes = MaxPacket
	}
	if opts.MaxSegments <= 0 || opts.MaxSegments > MaxSegments {
		opts.MaxSegments = MaxSegments
	}
	if opts.MaxDatagrams <= 0 {
		opts.MaxDatagrams = maxDatagrams
	}
	opts.MaxDatagrams = min(opts.MaxDatagrams, opts.MaxSegments)
	return &Coalescer{opts: opts}
}

// SetTCP says whether TCP segments are joined from now on.
func (c *Coalescer) SetTCP(on bool) { c.opts.TCP = on }

// SetUDP says whether UDP datagrams are joined from now on.
func (c *Coalescer) SetUDP(on bool) { c.opts.UDP = on }

// Reset forgets all packets. The capacity stays.
func (c *Coalescer) Reset() {
	clear(c.pieces)
	clear(c.out)
	c.runs, c.pieces, c.out = c.runs[:0], c.pieces[:0], c.out[:0]
	c.opens, c.latest = 0, 0
}

// Len is the number of runs.
func (c *Coalescer) Len() int { return len(c.runs) }

// Run is the k-th run, k < Len. It is valid until the next Add or Reset.
func (c *Coalescer) Run(k int) *Run { return &c.runs[k] }

// Add takes the packet p, received from the peer tag; packets of different tags never join. p stays referenced until
// Reset, and Finish may change its headers. Bytes beyond the length in p's IP header are left out. A packet that Parse
// refuses is not kept; the error is Parse's.
func (c *Coalescer) Add(p []byte, tag int32) Error {
	i := &c.info
	if c.latest > 0 && c.addNext(p, tag) {
		return OK
	}
	c.latest = 0
	if err := Parse(p, i); err != OK {
		return err
	}
	p = p[:i.Len]
	grows := c.mayJoin(p, i)
	if i.Is(Fragment) {
		// Only first fragments say what flow they are of.
		c.closeBetween(i, tag)
	} else if slot := c.find(i, tag); slot >= 0 {
		r := &c.runs[c.open[slot].run]
		if grows && c.follows(r, p, i) && c.verifyFirst(r) && c.verify(p, i) {
			c.join(r, slot, p, i)
			return OK
		}
		c.close(slot)
	}
	c.start(p, i, tag, grows && i.TCPFlags&(tcpPSH|tcpFIN) == 0)
	return OK
}

// AddUncut takes the superpacket p, which its sender never cut: its checksum is partial (see CompletePartial), and its
// segments are to have size bytes of payload each. It becomes a run of its own. Anything else is taken as Add takes it.
func (c *Coalescer) AddUncut(p []byte, tag int32, size int) Error {
	i := &c.info
	c.latest = 0
	if err := Parse(p, i); err != OK {
		return err
	}
	m, ok := partial(p, i)
	m.Type, m.SegmentSize = gsoType(i), uint16(size)
	n := 0
	if ok && size > 0 && size <= MaxPacket {
		n = CountSegments(p[:i.Len], i, m)
	}
	if n < 2 {
		return c.Add(p, tag)
	}
	if slot := c.find(i, tag); slot >= 0 {
		c.close(slot)
	}
	c.start(p[:i.Len], i, tag, false)
	r := &c.runs[len(c.runs)-1]
	r.size, r.Segments = uint16(size), n
	return OK
}

// gsoType is the kind of superpacket that i's packets join to.
func gsoType(i *Info) GSOType {
	switch {
	case i.Proto != protoTCP:
		return GSOUDP
	case i.Version == 6:
		return GSOTCP6
	}
	return GSOTCP4
}

// mayJoin reports whether p is of a kind that can be part of a run of several.
func (c *Coalescer) mayJoin(p []byte, i *Info) bool {
	if i.Flags&(HasPorts|Fragment|HasOptions) != HasPorts || i.HeaderLen() >= int(i.Len) {
		return false
	}
	l4 := p[i.L4:]
	if i.Proto == protoTCP {
		// The low half of byte 12 is reserved, or AccECN's (RFC 9768): joined packets would lose its changes.
		return c.opts.TCP && i.TCPFlags&^(tcpPSH|tcpFIN|tcpECE) == tcpACK && l4[12]&15 == 0
	}
	return c.opts.UDP && int(binary.BigEndian.Uint16(l4[4:])) == len(l4) &&
		binary.BigEndian.Uint16(l4[udpChecksumOffset:]) != 0
}

// flowKey is the part of a flow that fits a word, and tells most flows apart: the ports and the tag.
func flowKey(i *Info, tag int32) uint64 {
	return uint64(i.SrcPort)<<48 | uint64(i.DstPort)<<32 | uint64(uint32(tag))
}

// find returns the slot of the open run of i's flow, or -1.
func (c *Coalescer) find(i *Info, tag int32) int {
	if i.Flags&HasPorts == 0 {
		return -1
	}
	key := flowKey(i, tag)
	for slot := range c.open[:c.opens] {
		if c.open[slot].key != key {
			continue
		}
		r := &c.runs[c.open[slot].run]
		if r.Info.Proto == i.Proto && r.Info.Src == i.Src && r.Info.Dst == i.Dst {
			return slot
		}
	}
	return -1
}

// close keeps a run from growing.
func (c *Coalescer) close(slot int) {
	c.opens--
	c.open[slot] = c.open[c.opens]
	c.latest = 0
}

// closeBetween closes the runs between i's addresses.
func (c *Coalescer) closeBetween(i *Info, tag int32) {
	for slot := c.opens - 1; slot >= 0; slot-- {
		r := &c.runs[c.open[slot].run]
		if r.Tag == tag && r.Info.Src == i.Src && r.Info.Dst == i.Dst {
			c.close(slot)
		}
	}
}

// verify reports whether p's checksums are right, and what cutting gives back: a sum of 0 is written as 0xFFFF by UDP
// alone, though everybody has to take it.
func (c *Coalescer) verify(p []byte, i *Info) bool {
	if i.Version == 4 && (binary.BigEndian.Uint16(p[10:]) == 0xffff || !VerifyIPv4(p[:i.L4])) {
		return false
	}
	if i.Proto == protoTCP && binary.BigEndian.Uint16(p[i.L4+tcpChecksumOffset:]) == 0xffff {
		return false
	}
	return c.opts.TrustChecksums || VerifyTransport(p, i) || CompletePartial(p, i)
}

// verifyFirst reports whether the checksums of r's first packet are right. Nobody asks before a second packet comes:
// a lone packet is not summed.
func (c *Coalescer) verifyFirst(r *Run) bool {
	if !r.verified {
		r.verified = c.verify(c.pieces[r.head].b, &r.Info)
	}
	return r.verified
}

// join appends p to r, the run of slot.
func (c *Coalescer) join(r *Run, slot int, p []byte, i *Info) {
	payload := p[i.HeaderLen():]
	c.pieces = append(c.pieces, piece{payload, -1})
	last := int32(len(c.pieces) - 1)
	c.pieces[r.tail].next = last
	r.tail = last
	r.Segments++
	r.Bytes += len(payload)
	r.Info.Len = uint16(r.Bytes)
	r.Info.TCPFlags |= i.TCPFlags
	r.seq += uint32(len(payload))
	r.id += r.idStep
	c.latest = slot + 1
	if len(payload) < int(r.size) || i.TCPFlags&(tcpPSH|tcpFIN) != 0 {
		c.close(slot)
	}
}

// start begins a run with p, open for others when grows is set.
func (c *Coalescer) start(p []byte, i *Info, tag int32, grows bool) {
	at := int32(len(c.pieces))
	c.pieces = append(c.pieces, piece{p, -1})
	c.runs = append(c.runs, Run{Info: *i, Tag: tag, Segments: 1, Bytes: len(p), head: at, tail: at})
	if !grows {
		return
	}
	r := &c.runs[len(c.runs)-1]
	r.size = i.Len - uint16(i.HeaderLen())
	r.id = binary.BigEndian.Uint16(p[4:])
	if i.Proto == protoTCP {
		r.seq = binary.BigEndian.Uint32(p[i.L4+4:]) + uint32(r.size)
	}
	slot := c.opens
	if slot == maxOpen {
		slot = c.evict
		c.evict = (c.evict + 1) % maxOpen
	} else {
		c.opens++
	}
	c.open[slot] = openRun{flowKey(i, tag), int32(len(c.runs) - 1)}
	c.latest = slot + 1
}

// Finish makes the k-th run ready to be written, k < Len: it returns its offload metadata, zero for a lone packet, and
// its pieces, which are valid until Reset. The headers of a superpacket's first packet are changed in place: lengths,
// IPv4 checksum, TCP flags, and the pseudo header's sum as transport checksum. After the first Finish nothing is added
// until Reset.
func (c *Coalescer) Finish(k int) (Meta, [][]byte) {
	r := &c.runs[k]
	start := len(c.out)
	for j := r.head; j >= 0; j = c.pieces[j].next {
		c.out = append(c.out, c.pieces[j].b)
	}
	pieces := c.out[start:len(c.out):len(c.out)]
	i, p := &r.Info, pieces[0]
	if r.Segments == 1 {
		if !r.verified {
			CompletePartial(p, i)
		}
		return Meta{}, pieces
	}

	m := Meta{Type: gsoType(i), NeedsChecksum: true, SegmentSize: r.size, ChecksumStart: i.L4}
	if i.Version == 4 {
		binary.BigEndian.PutUint16(p[2:], i.Len)
		SetIPv4Checksum(p[:i.L4])
	} else {
		binary.BigEndian.PutUint16(p[4:], i.Len-ipv6HeaderLen)
	}
	length := i.Len - i.L4
	if i.Proto == protoTCP {
		m.ChecksumOffset = tcpChecksumOffset
		p[i.L4+13] = i.TCPFlags
	} else {
		m.ChecksumOffset = udpChecksumOffset
		binary.BigEndian.PutUint16(p[i.L4+4:], length)
	}
	binary.BigEndian.PutUint16(p[i.L4+m.ChecksumOffset:], PseudoHeader(i, int(length)))
	return m, pieces
}
