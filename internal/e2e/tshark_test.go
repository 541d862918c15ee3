package e2e_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// A dump is tcpdump writing what leaves a device, whole packets, to a file.
type dump struct {
	c      *cluster
	device string
	file   string
	proc   *lab.Proc
}

// dump begins to write what leaves the device. A packet socket sees what a device is given to send after the kernel has
// cut it, and summed it, for a device that can do neither (validate_xmit_skb): so these are the wire's packets. What a
// device receives may have been merged already (GRO), and its checksums left open by the sender.
func (c *cluster) dump(ns *lab.NS, device string) *dump {
	return c.dumpOf(ns, device, device, "-Q", "out", "-s", "0")
}

// dumpOf does what dump does, under a name of its own, with options of tcpdump's for what is written.
func (c *cluster) dumpOf(ns *lab.NS, name, device string, options ...string) *dump {
	c.t.Helper()
	d := &dump{c: c, device: device, file: filepath.Join(c.lab.Dir, name+".pcap")}
	var err error
	d.proc, err = c.lab.Start(ns, "tcpdump-"+name, append([]string{"tcpdump", "-n", "-i", device, "-B", "16384",
		"--immediate-mode", "-Z", "root", "-w", d.file}, options...)...)
	c.ok(err)
	c.eventually(func() error {
		if !strings.Contains(d.proc.LogTail(), "listening on") {
			return fmt.Errorf("%w: tcpdump at %s: %s", errNotYet, device, d.proc.LogTail())
		}
		return nil
	})
	return d
}

var droppedByKernel = regexp.MustCompile(`(\d+) packets? dropped by kernel`)

// stop ends the dump, which must have lost nothing.
func (d *dump) stop() {
	d.c.t.Helper()
	d.c.ok(d.proc.Signal(syscall.SIGINT))
	d.c.ok(d.proc.Wait(d.c.ctx))
	if m := droppedByKernel.FindStringSubmatch(d.proc.LogTail()); m == nil || m[1] != "0" {
		d.c.t.Errorf("tcpdump at %s lost packets: %s", d.device, d.proc.LogTail())
	}
}

// fields are what tshark is asked for of each frame.
var fields = []string{
	"frame.number", "frame.len", "frame.cap_len", "frame.protocols", "eth.src", "eth.dst",
	"ip.src", "ip.dst", "ip.flags", "ip.frag_offset", "ip.proto", "ip.checksum.status",
	"ipv6.src", "ipv6.dst", "ipv6.nxt", "ipv6.fraghdr.nxt", "arp.src.proto_ipv4", "arp.dst.proto_ipv4",
	"icmpv6.nd.ns.target_address", "icmpv6.nd.na.target_address",
	"udp.dstport", "udp.checksum.status", "tcp.len", "tcp.checksum.status", "tcp.checksum",
	"tcp.checksum_calculated",
	"icmp.checksum.status", "icmpv6.checksum.status",
	"vxlan.flags", "vxlan.vni", "vxlan.gbp", "vxlan.reserved8",
	"_ws.expert.severity", "_ws.expert.message",
}

// A frame is what tshark says of one: the values of each field, from the outermost layer inwards.
type frame struct {
	where  string // the device at which it was captured
	fields map[string][]string
}

func (f frame) all(field string) []string { return f.fields[field] }

// first is the value of a field in the outermost layer that has it.
func (f frame) first(field string) string {
	if v := f.fields[field]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// last is the value of a field in the innermost layer that has it.
func (f frame) last(field string) string {
	if v := f.fields[field]; len(v) > 0 {
		return v[len(v)-1]
	}
	return ""
}

// number is the value of a field in the outermost layer that has it; -1: there is none.
func (f frame) number(field string) int {
	n, err := strconv.ParseInt(f.first(field), 0, 64)
	if err != nil {
		return -1
	}
	return int(n)
}

// vxlan reports whether the frame goes to VXLAN's port.
func (f frame) vxlan() bool { return f.number("udp.dstport") == vxlanPort }

// protocols are the frame's layers by tshark's names.
func (f frame) protocols() []string { return strings.Split(f.first("frame.protocols"), ":") }

// addresses are all addresses that the frame names in any layer.
func (f frame) addresses() []netip.Addr {
	var all []netip.Addr
	for _, field := range []string{"ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "arp.src.proto_ipv4", "arp.dst.proto_ipv4",
		"icmpv6.nd.ns.target_address", "icmpv6.nd.na.target_address"} {
		for _, text := range f.all(field) {
			if a, err := netip.ParseAddr(text); err == nil {
				all = append(all, a)
			}
		}
	}
	return all
}

func (f frame) String() string {
	return fmt.Sprintf("frame %s to %s, %s bytes, %s, %v", f.first("frame.number"), f.where, f.first("frame.len"),
		f.first("frame.protocols"), f.addresses())
}

// opaquePorts are those whose payload tshark takes as it is. Otherwise what some protocol is known to use a port for
// would decide on what it makes of it.
func opaquePorts(between string) string { return "20000" + between + "20999" }

// decode has tshark read a file of captured frames and verify every checksum.
func (c *cluster) decode(file, where string) []frame {
	c.t.Helper()
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=|",
		"-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE",
		"-d", "tcp.port==" + opaquePorts("-") + ",data", "-d", "udp.port==" + opaquePorts("-") + ",data"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	cmd := exec.CommandContext(c.ctx, "tshark", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+c.lab.Dir) // nobody's preferences but these
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("tshark (`make deps` installs it): %v: %s", err, &stderr)
	}
	var frames []frame
	for line := range strings.Lines(string(out)) {
		values := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(values) != len(fields) {
			c.t.Fatalf("tshark gave %d fields instead of %d: %q", len(values), len(fields), line)
		}
		f := frame{where: where, fields: make(map[string][]string, len(fields))}
		for i, v := range values {
			if v != "" {
				f.fields[fields[i]] = strings.Split(v, "|")
			}
		}
		frames = append(frames, f)
	}
	return frames
}

// The form of a capture file with the machine's byte order and microseconds (pcap-savefile(5)).
const (
	pcapMagic        = 0xa1b2c3d4
	pcapFileHeader   = 24
	pcapPacketHeader = 16
	pcapEthernet     = 1
)

// readPcap is the frames of a capture file.
func (c *cluster) readPcap(file string) [][]byte {
	c.t.Helper()
	b, err := os.ReadFile(file)
	c.ok(err)
	if len(b) < pcapFileHeader || binary.NativeEndian.Uint32(b) != pcapMagic {
		c.t.Fatalf("%s is no capture file of this machine's", file)
	}
	var frames [][]byte
	for b = b[pcapFileHeader:]; len(b) >= pcapPacketHeader; {
		end := pcapPacketHeader + int(binary.NativeEndian.Uint32(b[8:]))
		frames = append(frames, b[pcapPacketHeader:end:end])
		b = b[end:]
	}
	return frames
}

// writePcap writes a capture file.
func (c *cluster) writePcap(file string, frames [][]byte) {
	c.t.Helper()
	const major, minor, snapLength = 2, 4, 1 << 18
	e := binary.NativeEndian
	b := e.AppendUint32(nil, pcapMagic)
	b = e.AppendUint16(e.AppendUint16(b, major), minor)
	b = e.AppendUint32(e.AppendUint32(e.AppendUint64(b, 0), snapLength), pcapEthernet)
	now := uint32(time.Now().Unix())
	for i, f := range frames {
		b = e.AppendUint32(e.AppendUint32(b, now), uint32(i))
		b = e.AppendUint32(e.AppendUint32(b, uint32(len(f))), uint32(len(f)))
		b = append(b, f...)
	}
	c.ok(os.WriteFile(file, b, 0o644))
}
