package cni_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/warren-net/warren/cni"
)

// Killed before each system call of ADD, and of DEL, that changes state: no address is given that somebody has, and a
// DEL, or a garbage collection, brings the node back to where it was. The pod is the only one, so that in mode bridge
// ADD makes the bridge and DEL takes it away.
func TestKilledAtEveryStep(t *testing.T) {
	for _, mode := range modes {
		for _, tc := range []struct {
			command string
			who     victim
			alone   bool
		}{
			{"ADD", killAll, false},
			{"DEL", killCaller, false},
			{"DEL", killPlugin, false},
			{"DEL", killAll, false},
			{"DEL", killAll, true},
		} {
			t.Run(fmt.Sprintf("%s %s, %s, alone %t", mode, tc.command, tc.who, tc.alone), func(t *testing.T) {
				n := newNode(t)
				n.warm(mode)
				killEverywhere(n, mode, tc.command, tc.who, tc.alone)
			})
		}
	}
}

// The same with an uplink, of a bridge that ADD makes and of one that an operator has made: it comes down with the last
// pod as it was before the first one.
func TestKilledAtEveryStepWithUplink(t *testing.T) {
	for _, bridge := range []string{"", "br-mine"} {
		for _, command := range []string{"ADD", "DEL"} {
			t.Run(command+" "+bridge, func(t *testing.T) {
				n := uplinked(t)[0]
				n.confMore = `, "uplink": "up0"`
				if bridge != "" {
					sh(t, n.ns, "ip link add "+bridge+" type bridge && ip link set "+bridge+
						" address 02:00:00:00:00:07 addrgenmode none up")
					n.confMore += fmt.Sprintf(`, "bridge": %q`, bridge)
				}
				n.warm(cni.ModeBridge)
				killEverywhere(n, cni.ModeBridge, command, killAll, true)
			})
		}
	}
}

// The same with addresses of upstream's host-local, which outlives the plugin, is killed with it, or alone. But in ADD
// it is left alone: killed when it has made an address's file and not yet written it, it keeps the address for ever.
func TestKilledAtEveryStepWithHostLocal(t *testing.T) {
	for _, tc := range []struct {
		command string
		who     victim
	}{{"ADD", killPlugin}, {"DEL", killPlugin}, {"DEL", killCaller}, {"DEL", killAll}} {
		t.Run(fmt.Sprintf("%s, %s", tc.command, tc.who), func(t *testing.T) {
			n := newNodeWithUpstream(t)
			n.warm(cni.ModeRouted)
			n.confMore = n.hostLocal("10.244.1.0/24")
			killEverywhere(n, cni.ModeRouted, tc.command, tc.who, false)
		})
	}
}

// The same with upstream's DHCP client and a server beyond the uplink, of an ADD that has its address from there when
// the interface is up.
func TestKilledAtEveryStepWithDHCP(t *testing.T) {
	for _, command := range []string{"ADD", "DEL"} {
		t.Run(command, func(t *testing.T) {
			n := newDHCPNode(t, onUplink)
			n.daemon(t)
			n.server(t, pool, gateway4)
			n.warmWithout(t)
			killEverywhere(n.node, cni.ModeBridge, command, killPlugin, true)
		})
	}
}

// The same with an ADD that fails in the end, and undoes what it did: with a route that the pod has already.
func TestKilledAtEveryStepOfUndoing(t *testing.T) {
	for _, who := range []victim{killCaller, killPlugin, killAll} {
		t.Run(string(who), func(t *testing.T) {
			n := newNode(t)
			n.warm(cni.ModeRouted)
			s := newSteps(n, cni.ModeRouted, who, false)
			s.fails = true
			s.victim.conf = strings.TrimSuffix(s.victim.conf, "}") +
				`, "routes": [{"dst": "10.0.0.0/8"}, {"dst": "10.0.0.0/8"}]}`
			if _, err := n.do(s.victim.call("ADD")); err == nil || !strings.Contains(err.Msg, "has a route to 10.0.0.0/8") {
				t.Fatalf("ADD with a route that is there: %+v", err)
			}
			s.everywhere("ADD")
		})
	}
}

// killEverywhere kills at one call after the other; with alone, nobody is added before what is left is cleaned up.
func killEverywhere(n *node, mode, command string, who victim, alone bool) {
	t := n.t
	t.Helper()
	s := newSteps(n, mode, who, alone)
	s.everywhere(command)
	r := s.victim.add()
	ping(t, n.ns, r.addrs()[0])
	s.victim.del()
	unchanged(t, "at the end", s.before, s.all())
}

// steps are what the kills of one command have in common.
type steps struct {
	*node
	victim, other *pod // other is nil when nobody is added after a kill, which would make good what that left
	before        string
	mode          string
	who           victim
	fails         bool // the command does, killed or not
}

func newSteps(n *node, mode string, who victim, alone bool) *steps {
	n.t.Helper()
	conf := n.conf("1.1.0", mode)
	s := &steps{node: n, victim: n.pod(conf), mode: mode, who: who}
	if !alone {
		s.other = n.pod(conf)
	}
	s.before = s.all()
	return s
}

// all is what has to be after a kill and cleaning up as it was before.
func (s *steps) all() string {
	s.t.Helper()
	return fmt.Sprintf("%s\nuplink %s\nhost-local %q", s.dump(), s.uplink(), s.held())
}

// everywhere kills the command at one call after the other.
func (s *steps) everywhere(command string) {
	s.t.Helper()
	const most = 300
	fewest := map[string]int{"ADD": 30, "DEL": 8}[command]
	at := 1
	for ; s.kill(command, at); at++ {
		if s.t.Failed() {
			return
		}
		if at == most {
			s.t.Fatalf("still not done after %d calls: the count is wrong", at)
		}
	}
	s.t.Logf("%s was killed at each of %d calls", command, at-1)
	if at-1 < fewest {
		s.t.Errorf("only %d calls were seen to change state: the test looks at too few", at-1)
	}
}

// kill kills the command at its call number at and cleans up, in turns by DEL and by a garbage collection (the other
// way round in the other mode). It reports whether the command still makes so many calls.
func (s *steps) kill(command string, at int) bool {
	s.t.Helper()
	s.victim.id = fmt.Sprintf("killed-%s-%d", command, at)
	if command == "DEL" {
		s.victim.add()
	}
	what, status := s.killAt(s.victim.call(command), at, s.who)
	when := fmt.Sprintf("%s killed at call %d (%s)", command, at, what)
	killed := status.Signaled()
	if !killed && status != 0 && !s.fails && !(what != "" && strings.Contains(s.confMore, `"ipam"`)) {
		s.t.Errorf("%s: the plugin was not killed, and failed with %#x", when, status)
	}
	if s.other != nil {
		// What the killed one left in the pod may be used by it.
		held := addresses(s.victim.ns)
		for _, addr := range s.other.add().addrs() {
			if slices.Contains(held, addr) {
				s.t.Errorf("%s: %s is given once more, while the pod still has it", when, addr)
			}
		}
	}
	if (at%2 == 0) == (s.mode == cni.ModeRouted) {
		valid := ""
		if s.other != nil {
			valid = fmt.Sprintf(`{"containerID": %q, "ifname": "eth0"}`, s.other.id)
		}
		s.must(call{command: "GC", conf: strings.TrimSuffix(s.victim.conf, "}") +
			`, "cni.dev/valid-attachments": [` + valid + "]}"})
	} else {
		s.victim.del()
	}
	if s.other != nil {
		s.other.del()
	}
	unchanged(s.t, when, s.before, s.all())
	if left := addresses(s.victim.ns); len(left) > 0 {
		s.t.Errorf("%s: the pod still has %v", when, left)
	}
	return what != ""
}

// addresses lists what eth0 of a namespace has.
func addresses(ns string) []netip.Addr {
	out, err := try(ns, "ip -o addr show dev eth0 scope global")
	if err != nil {
		return nil // there is none
	}
	var addrs []netip.Addr
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 3 {
			if p, err := netip.ParsePrefix(f[3]); err == nil {
				addrs = append(addrs, p.Addr())
			}
		}
	}
	return addrs
}
