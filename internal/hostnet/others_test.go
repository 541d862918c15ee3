package hostnet

import (
	"strings"
	"testing"
)

// A VPN client that routes what it marked itself may use any bit: Warren's mark concerns nothing but what pods send.
func TestMarksOfOthersAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.underlay()
	w.tun("warren0")
	w.run("ip link add vpn0 type bridge; ip link set vpn0 up")
	w.run("ip addr add 198.51.100.1/24 dev vpn0; ip addr add 2001:db8:51::1/64 dev vpn0 nodad")
	for _, ip := range []string{"ip", "ip -6"} {
		w.run(ip + " rule add fwmark 0x1000/0x1000 lookup 77 priority 9000; " + ip + " route add default dev vpn0 table 77")
	}
	w.apply(testSpec())
	for _, dst := range []string{"203.0.113.9", "2001:db8:9::9"} {
		if out := w.run("ip route get " + dst + " mark 0x1000"); !strings.Contains(out, "dev vpn0") {
			t.Errorf("a marked packet of the node to %s leaves another way than before: %s", dst, out)
		}
	}
}
