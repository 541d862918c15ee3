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

// The same with an uplink, which comes down with the last pod as it was before the first one.
func TestKilledAtEveryStepWithUplink(t *testing.T) {
	for _, command := range []string{"ADD", "DEL"} {
		t.Run(command, func(t *testing.T) {
			n := uplinked(t)[0]
			n.warm(cni.ModeBridge)
			n.confMore = `, "uplink": "up0"`
			killEverywhere(n, cni.ModeBridge, command, killAll, true)
		})
	}
}

// killEverywhere kills at one call after the other; with alone, nobody is added before what is left is cleaned up.
func killEverywhere(n *node, mode, command string, who victim, alone bool) {
	t := n.t
	t.Helper()
	conf := n.conf("1.1.0", mode)
	s := steps{node: n, victim: n.pod(conf), before: n.dump() + n.uplink(), mode: mode, who: who}
	if !alone {
		s.other = n.pod(conf)
	}
	const most = 300
	fewest := map[string]int{"ADD": 30, "DEL": 8}[command]
	at := 1
	for ; s.kill(command, at); at++ {
		if t.Failed() {
			return
		}
		if at == most {
			t.Fatalf("still not done after %d calls: the count is wrong", at)
		}
	}
	t.Logf("%s was killed at each of %d calls", command, at-1)
	if at-1 < fewest {
		t.Errorf("only %d calls were seen to change state: the test looks at too few", at-1)
	}
	r := s.victim.add()
	ping(t, n.ns, r.addrs()[0])
	s.victim.del()
	unchanged(t, "at the end", s.before, n.dump()+n.uplink())
}

// steps are what the kills of one command have in common.
type steps struct {
	*node
	victim, other *pod // other is nil when nobody is added after a kill, which would make good what that left
	before        string
	mode          string
	who           victim
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
	if s.who == killCaller && !status.Signaled() && status != 0 {
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
	unchanged(s.t, when, s.before, s.dump()+s.uplink())
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
