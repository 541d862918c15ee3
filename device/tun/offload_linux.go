package tun

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/device"
	"github.com/warren-net/warren/forwarder/packet"
)

// Bits of TUNSETOFFLOAD. The kernel takes USO4 and USO6 only together.
const (
	offTSO    = unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	offTSOECN = offTSO | unix.TUN_F_TSO_ECN
	offUSO    = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

// maxRefusals is how many superpackets of a type the kernel refuses in a row before the type is switched off. One is
// not enough: whoever finds a packet that passes device.Inspect and not the kernel could switch it off for all.
const maxRefusals = 4

// reasonConfig is the reason of an offload that the configuration switched off.
const reasonConfig = "configuration"

// offloads is the state of the device's offloads, shared by its queues. TUNSETOFFLOAD acts on the whole device.
type offloads struct {
	takes [packet.GSOUDP + 1]atomic.Bool // by type: superpackets may be written

	mu                 sync.Mutex // guards what follows, which is only written when something is switched off
	checksum, tso, uso string     // why the kernel does not deliver it; empty: it does
	refused            [packet.GSOUDP + 1]string
}

// negotiate asks for as many offloads as cfg wants and the kernel has. set is TUNSETOFFLOAD.
func negotiate(cfg Config, set func(flags int) error) *offloads {
	o := &offloads{tso: reasonConfig, uso: reasonConfig}
	if cfg.Checksum == Off {
		o.checksum = reasonConfig
	} else if err := set(unix.TUN_F_CSUM); err != nil {
		o.checksum = fmt.Sprintf("not in this kernel: TUNSETOFFLOAD: %v", err)
	}
	if o.checksum != "" {
		// Everything else needs it. Make sure that nothing of an earlier process is left on the device.
		if err := set(0); err != nil {
			o.checksum = fmt.Sprintf("%s; and they could not be reset: %v", o.checksum, err)
		}
	}
	flags := unix.TUN_F_CSUM
	if cfg.TSO == Auto {
		o.tso = withoutChecksum(o.checksum)
		if o.checksum == "" {
			flags, o.tso = firstTaken(set, flags, offTSOECN, offTSO)
		}
	}
	if cfg.USO == Auto {
		o.uso = withoutChecksum(o.checksum)
		if o.checksum == "" {
			_, o.uso = firstTaken(set, flags, offUSO)
		}
	}
	o.takes[packet.GSONone].Store(true)
	// A kernel without TUN_F_CSUM takes them still; who switched checksums off wants none left to the kernel.
	tcp := cfg.TSO == Auto && cfg.Checksum == Auto
	o.takes[packet.GSOTCP4].Store(tcp)
	o.takes[packet.GSOTCP6].Store(tcp)
	o.takes[packet.GSOUDP].Store(o.uso == "") // both directions came with Linux 6.2
	return o
}

// withoutChecksum is why superpackets are off when checksums are; empty when they are not.
func withoutChecksum(reason string) string {
	if reason == "" {
		return ""
	}
	return "needs tun-checksum: " + reason
}

// firstTaken adds the first of the sets that the kernel takes to flags. A refused TUNSETOFFLOAD changes nothing.
func firstTaken(set func(int) error, flags int, sets ...int) (got int, reason string) {
	var err error
	for _, s := range sets {
		if err = set(flags | s); err == nil {
			return flags | s, ""
		}
	}
	return flags, fmt.Sprintf("not in this kernel: TUNSETOFFLOAD: %v", err)
}

// switchOff remembers that the kernel does not take superpackets of type t.
func (o *offloads) switchOff(t packet.GSOType, reason string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.takes[t].Swap(false) {
		o.refused[t] = reason
	}
}

// states reports the offloads for people.
func (o *offloads) states() []device.OffloadState {
	o.mu.Lock()
	defer o.mu.Unlock()
	state := func(name, reason string, refused ...string) device.OffloadState {
		for _, r := range refused {
			if reason == "" && r != "" {
				reason = r
			}
		}
		return device.OffloadState{Name: name, Enabled: reason == "", Reason: reason}
	}
	return []device.OffloadState{
		state("tun-checksum", o.checksum),
		state("tun-tso", o.tso, o.refused[packet.GSOTCP4], o.refused[packet.GSOTCP6]),
		state("tun-uso", o.uso, o.refused[packet.GSOUDP]),
	}
}

// probe writes a superpacket of each type that is on to a temporary device that is down, and switches off what the
// kernel refuses. The package comment says why this is harmless. When the temporary device can't be made, nothing is
// switched off: Write notices a refusal too.
func (o *offloads) probe(node string) error {
	fd, err := openNode(node)
	if err != nil {
		return fmt.Errorf("try offloads: %w", err)
	}
	err = o.probeOn(fd)
	return errors.Join(err, unix.Close(fd)) // the device goes with its only queue
}

func (o *offloads) probeOn(fd int) error {
	ifr, err := unix.NewIfreq("wrnprobe%d") // the kernel fills in a free number
	if err != nil {
		return fmt.Errorf("try offloads: %w", err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("try offloads on a temporary device: %w", err)
	}
	return o.tryWrites(func(p []byte) error {
		_, err := unix.Write(fd, p)
		return err
	})
}

// tryWrites writes the probes of the types that are on.
func (o *offloads) tryWrites(write func(p []byte) error) error {
	for _, s := range probes() {
		if !o.takes[s.meta.Type].Load() {
			continue
		}
		shape, err := device.Inspect(s.meta, [][]byte{s.packet})
		if err != nil {
			return fmt.Errorf("try offloads with a bad packet: %w", err)
		}
		var h [vnetLen]byte
		encode(&h, s.meta, shape)
		if err := write(append(h[:], s.packet...)); errors.Is(err, unix.EINVAL) {
			o.switchOff(s.meta.Type, fmt.Sprintf("the kernel refused to take a %s superpacket when it was tried: %v", s.name,
				err))
		}
	}
	return nil
}

// A probePacket is a superpacket to try an offload with.
type probePacket struct {
	name   string
	meta   packet.Meta
	packet []byte
}

// probes returns a superpacket of three segments of each kind. They are from and to the loopback address, which the
// kernel drops as a martian, should a device be up after all.
func probes() []probePacket {
	const segment, payload = 100, 300
	v4 := func(proto byte, transport int) []byte {
		p := make([]byte, 20+transport+payload)
		p[0], p[2], p[3], p[8], p[9] = 0x45, byte(len(p)>>8), byte(len(p)), 1, proto
		p[12], p[15], p[16], p[19] = 127, 1, 127, 1
		return p
	}
	v6 := func(proto byte, transport int) []byte {
		p := make([]byte, 40+transport+payload)
		n := len(p) - 40
		p[0], p[4], p[5], p[6], p[7] = 0x60, byte(n>>8), byte(n), proto, 1
		p[23], p[39] = 1, 1
		return p
	}
	tcp := func(name string, t packet.GSOType, start int, p []byte) probePacket {
		p[start+12] = 5 << 4
		return probePacket{name, packet.Meta{Type: t, NeedsChecksum: true, SegmentSize: segment,
			ChecksumStart: uint16(start), ChecksumOffset: 16}, p}
	}
	udp := func(name string, start int, p []byte) probePacket {
		n := len(p) - start
		p[start+4], p[start+5] = byte(n>>8), byte(n)
		return probePacket{name, packet.Meta{Type: packet.GSOUDP, NeedsChecksum: true, SegmentSize: segment,
			ChecksumStart: uint16(start), ChecksumOffset: 6}, p}
	}
	return []probePacket{
		tcp("TCP over IPv4", packet.GSOTCP4, 20, v4(unix.IPPROTO_TCP, 20)),
		tcp("TCP over IPv6", packet.GSOTCP6, 40, v6(unix.IPPROTO_TCP, 20)),
		udp("UDP over IPv4", 20, v4(unix.IPPROTO_UDP, 8)),
		udp("UDP over IPv6", 40, v6(unix.IPPROTO_UDP, 8)),
	}
}
