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
		for _, command := range []string{"ADD", "DEL"} {
			t.Run(mode+" "+command, func(t *testing.T) {
				n := newNode(t)
				n.warm(mode)
				conf := n.conf("1.1.0", mode)
				s := steps{node: n, victim: n.pod(conf), other: n.pod(conf), before: n.dump(), mode: mode}
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
				unchanged(t, "at the end", s.before, n.dump())
			})
		}
	}
}

// steps are what the kills of one command have in common.
type steps struct {
	*node
	victim, other *pod
	before        string
	mode          string
}

// kill kills the command at its call number at and cleans up, in turns by DEL and by a garbage collection (the other
// way round in the other mode). It reports whether the command still makes so many calls.
func (s *steps) kill(command string, at int) bool {
	s.t.Helper()
	s.victim.id = fmt.Sprintf("killed-%s-%d", command, at)
	if command == "DEL" {
		s.victim.add()
	}
	what := s.killAt(s.victim.call(command), at)
	when := fmt.Sprintf("%s killed at call %d (%s)", command, at, what)
	// What the killed one left in the pod may be used by it.
	held := addresses(s.victim.ns)
	for _, addr := range s.other.add().addrs() {
		if slices.Contains(held, addr) {
			s.t.Errorf("%s: %s is given once more, while the pod still has it", when, addr)
		}
	}
	if (at%2 == 0) == (s.mode == cni.ModeRouted) {
		list := fmt.Sprintf(`, "cni.dev/valid-attachments": [{"containerID": %q, "ifname": "eth0"}]}`, s.other.id)
		s.must(call{command: "GC", conf: strings.TrimSuffix(s.victim.conf, "}") + list})
	} else {
		s.victim.del()
	}
	s.other.del()
	unchanged(s.t, when, s.before, s.dump())
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
