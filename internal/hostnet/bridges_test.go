package hostnet

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func bridgePod(bridge string) Pod {
	return Pod{
		Interface: "wrn00000000001", Addrs: []netip.Addr{addr(pod1v4)}, Bridge: bridge,
		MAC: net.HardwareAddr{0x0e, 0, 0, 0, 3, 1},
	}
}

func (w *world) listsBridge(name string) bool {
	w.Helper()
	return strings.Contains(w.run("nft list set inet warren bridges"), `"`+name+`"`)
}

func TestRemoveBridge(t *testing.T) {
	w := newWorld(t)
	w.must(RemoveBridge("br0"))
	w.run("ip link add wrn00000000001 type bridge; ip link add br0 type bridge; ip link add br1 type bridge")
	w.must(EnsurePod(bridgePod("br0")))
	other := bridgePod("br1")
	other.Interface = "wrn00000000002"
	other.Addrs = []netip.Addr{addr(pod2v4)}
	w.must(EnsurePod(other))
	if names, err := Bridges(); err != nil || len(names) != 2 {
		t.Errorf("bridges of two pods: %q, %v", names, err)
	}
	w.must(RemoveBridge("br0"))
	w.must(RemoveBridge("br0"))
	if w.listsBridge("br0") || !w.listsBridge("br1") {
		t.Errorf("after br0 was removed:\n%s", w.run("nft list set inet warren bridges"))
	}
	w.must(EnsurePod(bridgePod("br0")))
	if !w.listsBridge("br0") {
		t.Error("the next pod on br0 does not list it")
	}
}

// TestApplyDropsBridgesWithoutPods has pods come and leave while Apply is at work: answers are what the records say,
// one after the other, and the last from then on.
func TestApplyDropsBridgesWithoutPods(t *testing.T) {
	for _, tt := range []struct {
		name         string
		listed, port bool // before
		pods         []Pod
		answers      []bool
		want         bool
	}{
		{name: "a pod that left", listed: true, answers: []bool{false}},
		{name: "a pod that is there", listed: true, pods: []Pod{bridgePod("br0")}, answers: []bool{true}, want: true},
		{name: "a pod whose record is lost", listed: true, port: true, answers: []bool{false}, want: true},
		{name: "a pod since the records were read", listed: true, answers: []bool{true}, want: true},
		{name: "a pod since the look", listed: true, answers: []bool{false, true}, want: true},
		{name: "a pod that left since the look", listed: true, answers: []bool{false, true, false}},
		{name: "the set was flushed", pods: []Pod{bridgePod("br0")}, answers: []bool{true}, want: true},
		{name: "left since the records were read", pods: []Pod{bridgePod("br0")}, answers: []bool{false}},
		{name: "left meanwhile", pods: []Pod{bridgePod("br0")}, answers: []bool{true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.tun("warren0")
			w.run("ip link add br0 type bridge")
			s := testSpec()
			w.apply(s)
			if tt.listed {
				w.run("nft 'add element inet warren bridges { br0 }'")
			}
			if tt.port {
				w.run("ip link add wrn00000000001 type veth peer name far0; ip link set wrn00000000001 master br0")
			}
			answers := tt.answers
			s.Pods, s.Bridged = tt.pods, func(name string) bool {
				if name != "br0" {
					t.Errorf("was asked of %q", name)
				}
				now := answers[0]
				if len(answers) > 1 {
					answers = answers[1:]
				}
				return now
			}
			w.apply(s)
			if w.listsBridge("br0") != tt.want {
				t.Errorf("br0 is listed: %v", !tt.want)
			}
			if c := w.apply(s); len(c.Made) > 0 {
				t.Errorf("changed again: %q", c.Made)
			}
		})
	}
}
