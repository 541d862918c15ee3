package e2e_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/tunnel/vxlan"
)

// A wireCheck knows what frames on the underlay may be like.
type wireCheck struct {
	mtu   int // bytes
	nodes []wireNode
}

// A wireNode is a node as others see it.
type wireNode struct {
	port      string
	addresses []netip.Addr
	mac       string
	podCIDRs  []netip.Prefix
}

func (n wireNode) holds(pod netip.Addr) bool {
	return slices.ContainsFunc(n.podCIDRs, func(p netip.Prefix) bool { return p.Contains(pod) })
}

// newWireNode is a node whose configuration lists these addresses, the first of which makes its VTEP's MAC.
func newWireNode(n *lab.Node, addresses ...netip.Addr) wireNode {
	return wireNode{port: n.Port(), addresses: addresses, mac: vxlan.MAC(addresses[0]).String(), podCIDRs: n.PodCIDRs}
}

// statusGood is how tshark says that it verified a checksum; 0 is bad, 2 unverified, 3 absent.
const statusGood = "1"

// minusZero reports a TCP checksum of 0xFFFF where 0 is meant. The kernel writes it so when it completes a checksum
// itself (skb_checksum_help), once in 65,536 packets, and every receiver takes it; tshark counts it as bad.
func (f frame) minusZero() bool {
	return f.first("tcp.checksum") == "0xffff" && f.first("tcp.checksum_calculated") == "0x0000"
}

// severityError is the severity with which tshark's expert marks a bad checksum or a malformed packet.
const severityError = 0x800000

// checksummed are the protocols with a checksum, as tshark calls them.
func checksummed() []string { return []string{"ip", "udp", "tcp", "icmp", "icmpv6"} }

// problems says what is wrong with a frame.
func (w wireCheck) problems(f frame) []string {
	var found []string
	wrong := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	const ethernet = 14
	if f.number("frame.len") > w.mtu+ethernet {
		wrong("larger than the MTU")
	}
	if f.number("frame.cap_len") != f.number("frame.len") {
		wrong("not captured whole")
	}
	layers := f.protocols()
	for _, p := range checksummed() {
		statuses := f.all(p + ".checksum.status")
		if !slices.Contains(layers, p) && len(statuses) == 0 {
			continue
		}
		for _, s := range statuses {
			if s != statusGood && !(p == "tcp" && f.minusZero()) {
				wrong("%s checksum has status %s", p, s)
			}
		}
		if layer := count(layers, p); len(statuses) < layer {
			wrong("%d %s checksums of %d verified", len(statuses), p, layer)
		}
	}
	for i, severity := range f.all("_ws.expert.severity") {
		var s int
		if _, err := fmt.Sscan(severity, &s); err != nil || s >= severityError {
			wrong("tshark's expert: %s", f.all("_ws.expert.message")[i])
		}
	}
	if slices.Contains(layers, "_ws.malformed") {
		wrong("malformed")
	}
	const moreFragments = 1 // of the three bits that tshark shows
	if strings.HasPrefix(f.first("frame.protocols"), "eth:ethertype:ip:") &&
		(f.number("ip.flags")&moreFragments != 0 || f.number("ip.frag_offset") != 0) ||
		f.first("ipv6.nxt") == "44" && strings.HasPrefix(f.first("frame.protocols"), "eth:ethertype:ipv6:ipv6") {
		wrong("a fragment")
	}
	if f.vxlan() {
		return append(found, w.tunnelled(f)...)
	}
	for _, a := range f.addresses() {
		for _, c := range clusterCIDRs() {
			if c.Contains(a) {
				wrong("pod address %s outside of the tunnel", a)
			}
		}
	}
	return found
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}

// tunnelled says what is wrong with a frame to VXLAN's port (RFC 7348, section 5).
func (w wireCheck) tunnelled(f frame) []string {
	var found []string
	wrong := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	p := f.protocols()
	if len(p) < 9 || p[3] != "udp" || p[4] != "vxlan" || p[5] != "eth" || p[7] != "ip" && p[7] != "ipv6" {
		return append(found, "no IP packet in Ethernet in VXLAN: "+f.first("frame.protocols"))
	}
	const onlyI = 0x0800
	for field, want := range map[string]int{
		"vxlan.flags": onlyI, "vxlan.vni": 1, "vxlan.gbp": 0, "vxlan.reserved8": 0,
	} {
		if got := f.number(field); got != want {
			wrong("%s is %#x, want %#x", field, got, want)
		}
	}
	ends := func(outer, inner string) (from, to netip.Addr, podFrom, podTo netip.Addr) {
		// A field has its values from the outermost layer inwards, so the families may share them out.
		from, to = parseAddr(f.first(outer+".src")), parseAddr(f.first(outer+".dst"))
		return from, to, parseAddr(f.last(inner + ".src")), parseAddr(f.last(inner + ".dst"))
	}
	from, to, podFrom, podTo := ends(p[2], p[7])
	sender, receiver := w.nodeWith(from), w.nodeWith(to)
	if sender == nil || receiver == nil || sender == receiver {
		return append(found, fmt.Sprintf("outer addresses %s and %s are not those of two nodes", from, to))
	}
	if !sender.holds(podFrom) || !receiver.holds(podTo) {
		wrong("inner addresses %s to %s are not those of pods at %s and %s", podFrom, podTo, from, to)
	}
	if receiver.port != f.where {
		wrong("for %s, but on its way to %s", receiver.port, f.where)
	}
	if got, want := f.all("eth.src"), sender.mac; len(got) != 2 || got[1] != want {
		wrong("inner source MAC %v, want %s in the second place", got, want)
	}
	if got, want := f.all("eth.dst"), receiver.mac; len(got) != 2 || got[1] != want {
		wrong("inner destination MAC %v, want %s in the second place", got, want)
	}
	return found
}

func parseAddr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

func (w wireCheck) nodeWith(a netip.Addr) *wireNode {
	for i := range w.nodes {
		if slices.Contains(w.nodes[i].addresses, a) {
			return &w.nodes[i]
		}
	}
	return nil
}

// Offsets in a frame of TCP in IPv4 in VXLAN in UDP over IPv4.
const (
	atOuterIP  = 14
	atOuterUDP = 34
	atVXLAN    = 42
	atInnerEth = 50
	atInnerIP  = 64
	atInnerTCP = 84
)

// A damage spoils a good frame in one way; the check has to name it.
type damage struct {
	spoil func(b []byte) []byte
	want  string
}

func damages() map[string]damage {
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte {
			b[at] ^= 0x40
			return sumOuter(b)
		}
	}
	return map[string]damage{
		"outer UDP checksum":  {func(b []byte) []byte { b[atOuterUDP+6] ^= 1; return b }, "udp checksum has status 0"},
		"no outer checksum":   {unsummed, "udp checksum has status 3"},
		"outer IP checksum":   {func(b []byte) []byte { b[atOuterIP+10] ^= 1; return b }, "ip checksum has status 0"},
		"outer fragment":      {fragment, "a fragment"},
		"too large":           {func(b []byte) []byte { return append(b, make([]byte, 1500)...) }, "larger than the MTU"},
		"I flag":              {func(b []byte) []byte { b[atVXLAN] = 0; return sumOuter(b) }, "vxlan.flags"},
		"reserved flag":       {flip(atVXLAN), "vxlan.flags"},
		"first reserved bits": {flip(atVXLAN + 2), "vxlan.gbp"},
		"VNI":                 {flip(atVXLAN + 5), "vxlan.vni"},
		"last reserved bits":  {flip(atVXLAN + 7), "vxlan.reserved8"},
		"inner MAC":           {flip(atInnerEth + 10), "inner source MAC"},
		"inner IP checksum":   {flip(atInnerIP + 10), "ip checksum has status 0"},
		"inner TCP checksum":  {flip(atInnerTCP + 16), "tcp checksum has status 0"},
		"inner payload":       {func(b []byte) []byte { return flip(len(b) - 1)(b) }, "tcp checksum has status 0"},
		"cut in TCP":          {func(b []byte) []byte { return cut(b, atInnerTCP+15) }, "Malformed"},
		"no VXLAN":            {func(b []byte) []byte { return cut(b, atVXLAN+3) }, "no IP packet"},
		"without tunnel":      {func(b []byte) []byte { return b[atInnerEth:] }, "outside of the tunnel"},
	}
}

func unsummed(b []byte) []byte {
	b[atOuterUDP+6], b[atOuterUDP+7] = 0, 0 // which IPv4 allows, and Warren does not do
	return b
}

func fragment(b []byte) []byte {
	b[atOuterIP+6] = 0x20 // more fragments
	return sumOuter(b)
}

// cut leaves an outer packet of less bytes, correct in itself.
func cut(b []byte, length int) []byte {
	b = b[:length]
	binary.BigEndian.PutUint16(b[atOuterIP+2:], uint16(length-atOuterIP))
	binary.BigEndian.PutUint16(b[atOuterUDP+4:], uint16(length-atOuterUDP))
	return sumOuter(b)
}

// sumOuter has the outer checksums right again.
func sumOuter(b []byte) []byte {
	ip, udp := b[atOuterIP:atOuterUDP], b[atOuterUDP:]
	ip[10], ip[11], udp[6], udp[7] = 0, 0, 0, 0
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	pseudo := append(slices.Clone(ip[12:20]), 0, protoUDP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(udp)))
	binary.BigEndian.PutUint16(udp[6:], checksum(append(pseudo, udp...)))
	return b
}

// sees wants each damage of a frame of TCP data over IPv4 and IPv4 to be found, and the frame itself to be good.
func (w wireCheck) sees(t *testing.T, c *cluster, good []byte, where string) {
	t.Helper()
	names := []string{"undamaged"}
	frames := [][]byte{good}
	for name, d := range damages() {
		names = append(names, name)
		frames = append(frames, d.spoil(slices.Clone(good)))
	}
	file := filepath.Join(c.lab.Dir, "damaged.pcap")
	c.writePcap(file, frames)
	for i, f := range c.decode(file, where) {
		found := strings.Join(w.problems(f), "; ")
		if want := damages()[names[i]].want; want == "" && found != "" || !strings.Contains(found, want) {
			t.Errorf("%s: found %q, want %q: %s", names[i], found, want, f)
		}
	}
}
