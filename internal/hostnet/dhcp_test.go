package hostnet

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A pod that gets its address by DHCP may ask for it, and may send nothing else without one; other pods may not ask.
func TestDHCPInBridgeMode(t *testing.T) {
	w := newWorld(t)
	w.run("ip link add br0 type bridge; ip link set br0 addrgenmode none up")
	const asks, other = "wrn00000000004", "wrn00000000005"
	macs := map[string]net.HardwareAddr{}
	for i, name := range []string{asks, other} {
		mac := net.HardwareAddr{0x0e, 0, 0, 0, 2, byte(i)}
		macs[name] = mac
		w.run(fmt.Sprintf("ip link add %s type veth peer name pod%d address %s; ip link set pod%d addrgenmode none up; "+
			"ip link set %s master br0 addrgenmode none up", name, i, mac, i, name))
		w.must(EnsurePod(Pod{Interface: name, Bridge: "br0", MAC: mac, DHCP: name == asks}))
		w.eventually("the port forwards", func() bool {
			return strings.Contains(w.run("bridge link show dev "+name), "state forwarding")
		})
	}
	bad := net.HardwareAddr{0x0e, 0, 0, 0, 2, 9}
	unicast := net.HardwareAddr{0x0e, 0, 0, 0, 2, 8}
	type f = dhcpFrame
	for _, tc := range []struct {
		name  string
		frame dhcpFrame
		asks  bool // let through from the one that may ask; never from the other
	}{
		{"question", f{}, true},
		{"to a server it knows, by broadcast", f{dst: "10.244.1.250"}, true},
		{"from an address", f{src: "10.244.1.9"}, false},
		{"from the broadcast address", f{src: "255.255.255.255"}, false},
		{"of a server", f{from: 67, to: 68}, false},
		{"to another port", f{to: 53}, false},
		{"from another port", f{from: 69}, false},
		{"not UDP", f{proto: unix.IPPROTO_TCP}, false},
		{"a later fragment", f{fragment: 100}, false},
		{"a first fragment", f{fragment: 1 << 13}, false},
		{"of another Ethernet address", f{srcMAC: bad}, false},
		{"from the broadcast Ethernet address", f{srcMAC: broadcastMAC()}, false},
		{"to one Ethernet address", f{dstMAC: unicast}, false},
	} {
		for i, from := range []string{asks, other} {
			before, err := Spoofed()
			w.must(err)
			received := w.received("br0")
			w.send(fmt.Sprintf("pod%d", i), tc.frame.bytes(macs[from]))
			after, err := Spoofed()
			w.must(err)
			// What the bridge takes for the node itself it counts; a frame to somebody else's address it only forwards.
			through := w.received("br0") > received
			if allowed := tc.asks && from == asks; through != allowed || after > before == allowed && !tc.frame.isBroken() {
				t.Errorf("%s from %s: through %v, want %v; %d counted as spoofed", tc.name, from, through, allowed, after-before)
			}
		}
	}
	// With its address it may send from that, and asks on.
	w.must(EnsurePod(Pod{Interface: asks, Bridge: "br0", MAC: macs[asks], DHCP: true,
		Addrs: []netip.Addr{addr("10.244.1.9")}}))
	for _, frame := range []f{{}, {src: "10.244.1.9", from: 5, to: 5}} {
		received := w.received("br0")
		w.send("pod0", frame.bytes(macs[asks]))
		if w.received("br0") == received {
			t.Errorf("%+v of a pod that has got its address was dropped", frame)
		}
	}
	if lost, err := CheckPod(Pod{Interface: other, Bridge: "br0", MAC: macs[other], DHCP: true}); err != nil ||
		len(lost) == 0 {
		t.Errorf("CheckPod does not miss what lets a pod ask: %v, %v", lost, err)
	}
	w.must(RemovePod(asks))
	received := w.received("br0")
	w.send("pod0", f{}.bytes(macs[asks]))
	if w.received("br0") != received {
		t.Error("a pod that was taken out of the check may still ask")
	}
}

// received is how many packets a device has received.
func (w *world) received(device string) uint64 {
	w.Helper()
	link, err := netlink.LinkByName(device)
	w.must(err)
	return link.Attrs().Statistics.RxPackets
}

// send puts a frame on a device of the current namespace.
func (w *world) send(device string, frame []byte) {
	w.Helper()
	link, err := net.InterfaceByName(device)
	w.must(err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	w.must(err)
	defer unix.Close(fd)
	w.must(unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index, Halen: 6}))
}

// dhcpFrame is a DHCP client's question, but for what is set.
type dhcpFrame struct {
	srcMAC, dstMAC net.HardwareAddr
	src, dst       string
	proto          byte
	from, to       uint16
	fragment       uint16 // flags, and offset in eight bytes
}

// isBroken reports whether a bridge drops the frame before anybody looks at it.
func (f dhcpFrame) isBroken() bool { return slices.Equal(f.srcMAC, broadcastMAC()) }

func (f dhcpFrame) bytes(own net.HardwareAddr) []byte {
	if f.srcMAC == nil {
		f.srcMAC = own
	}
	if f.dstMAC == nil {
		f.dstMAC = broadcastMAC()
	}
	for _, d := range []struct {
		to    *string
		value string
	}{{&f.src, "0.0.0.0"}, {&f.dst, "255.255.255.255"}} {
		if *d.to == "" {
			*d.to = d.value
		}
	}
	if f.proto == 0 {
		f.proto = unix.IPPROTO_UDP
	}
	if f.from == 0 {
		f.from = 68
	}
	if f.to == 0 {
		f.to = 67
	}
	payload := make([]byte, 300)
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, f.proto, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	binary.BigEndian.PutUint16(ip[6:], f.fragment)
	ip = slices.Concat(ip, addr(f.src).AsSlice(), addr(f.dst).AsSlice())
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	udp := binary.BigEndian.AppendUint16(nil, f.from)
	udp = binary.BigEndian.AppendUint16(udp, f.to)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(udp, 0, 0)
	return slices.Concat(f.dstMAC, f.srcMAC, []byte{0x08, 0x00}, ip, udp, payload)
}
