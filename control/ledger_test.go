package control

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/key"
)

// claim is a claim to 10.244.cidr.0/24, 192.0.2.address and a key.
func claim(name string, cidr, address int, public byte) Node {
	n := Node{
		Name:      name,
		PodCIDRs:  []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", cidr))},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(address)})},
	}
	if public != 0 {
		n.PublicKey = key.Public{public}
	}
	return n
}

func ledger() *Ledger {
	return NewLedger(Rules{Self: "self", Cluster: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
}

// names are those that a change sets, and those that it ends behind a minus.
func names(c Change) string {
	var out []string
	for _, n := range c.Set {
		out = append(out, n.Name)
	}
	for _, name := range c.Gone {
		out = append(out, "-"+name)
	}
	return strings.Join(out, " ")
}

func refused(l *Ledger) string {
	var out []string
	for _, r := range l.Refusals() {
		out = append(out, r.Name)
	}
	return strings.Join(out, " ")
}

func TestLedger(t *testing.T) {
	older := func(n Node, order int64) Node {
		n.Order = order
		return n
	}
	broken := Node{Name: "a", Broken: "its record is garbage: mend it"}
	type step struct {
		update         Update
		change, refuse string // names
	}
	set := func(nodes ...Node) Update { return Update{Nodes: nodes} }
	for name, steps := range map[string][]step{
		"a cluster comes, changes and goes": {
			{Update{Whole: true, Nodes: []Node{claim("self", 1, 1, 1), claim("a", 2, 2, 2)}}, "a self", ""},
			{set(claim("a", 2, 2, 2)), "", ""},
			{set(claim("a", 2, 2, 3), claim("b", 3, 3, 4)), "a b", ""},
			{Update{Gone: []string{"a", "nobody"}}, "-a", ""},
			{Update{Whole: true, Nodes: []Node{claim("b", 3, 3, 4)}}, "-self", ""},
		},
		"a pod CIDR is its owner's until it gives it up": {
			{set(claim("a", 2, 2, 2)), "a", ""},
			{set(claim("thief", 2, 3, 3)), "", "thief"},
			{set(older(claim("thief", 2, 3, 3), -5)), "", "thief"},
			{set(claim("a", 4, 2, 2)), "a thief", ""},
		},
		"wider and narrower": {
			{set(claim("a", 2, 2, 2)), "a", ""},
			{set(Node{Name: "wide", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/20")}}), "", "wide"},
			{set(Node{Name: "narrow", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.7/32")}}), "", "narrow wide"},
			{Update{Gone: []string{"a"}}, "narrow -a", "wide"},
			{Update{Gone: []string{"narrow"}}, "wide -narrow", ""},
		},
		"an address, a key and a MAC": {
			{set(claim("a", 2, 2, 2)), "a", ""},
			{set(claim("b", 3, 2, 3), claim("c", 4, 4, 2)), "", "b c"},
			{Update{Gone: []string{"a"}}, "b c -a", ""},
			{set(Node{Name: "d", MAC: []byte{2, 0, 0, 0, 0, 1}}), "d", ""},
			{set(Node{Name: "e", MAC: []byte{2, 0, 0, 0, 0, 1}}), "", "e"},
			{Update{Gone: []string{"d", "e"}}, "-d", ""},
		},
		"of new claims the older one holds, then the name": {
			{set(older(claim("a", 2, 2, 2), 7), older(claim("b", 2, 3, 3), 6)), "b", "a"},
			{set(claim("d", 5, 5, 5), claim("c", 5, 6, 6)), "c", "a d"},
		},
		"the own node holds what it claims": {
			{set(claim("a", 1, 1, 1)), "a", ""},
			{set(older(claim("self", 1, 1, 1), 99)), "self -a", "a"},
			{set(claim("a", 1, 2, 2)), "", "a"},
			{set(claim("a", 2, 2, 2)), "a", ""},
		},
		"two nodes swap": {
			{set(claim("a", 2, 2, 2), claim("b", 3, 3, 3)), "a b", ""},
			{set(claim("a", 3, 2, 2), claim("b", 2, 3, 3)), "a b", ""},
			{set(claim("a", 3, 3, 3), claim("b", 2, 2, 2)), "a b", ""},
		},
		"what cannot be read leaves what was": {
			{set(claim("a", 2, 2, 2)), "a", ""},
			{set(broken), "", "a"},
			{set(claim("b", 2, 3, 3)), "", "a b"},
			{set(claim("a", 2, 2, 2)), "", "b"},
			{set(broken, claim("b", 3, 3, 3)), "b", "a"},
			{Update{Gone: []string{"a"}}, "-a", ""},
			{set(broken), "", "a"},
		},
		"outside of the cluster's ranges, and inside": {
			{set(Node{Name: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}), "", "a"},
			{set(Node{Name: "b", Addresses: []netip.Addr{netip.MustParseAddr("10.244.9.9")}}), "", "a b"},
			{set(Node{Name: "a"}, Node{Name: "b"}), "a b", ""},
		},
		"a refused claim leaves what the node had": {
			{set(claim("a", 2, 2, 2), claim("b", 3, 3, 3)), "a b", ""},
			{set(claim("b", 2, 3, 3)), "", "b"},
			{set(claim("c", 3, 4, 4)), "c -b", "b"}, // b does not want it any more
			{Update{Gone: []string{"a"}}, "b -a", ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := ledger()
			for k, s := range steps {
				if got := names(l.Apply(s.update)); got != s.change {
					t.Errorf("step %d: changed %q, want %q", k, got, s.change)
				}
				if got := refused(l); got != s.refuse {
					t.Errorf("step %d: refused %q, want %q: %+v", k, got, s.refuse, l.Refusals())
				}
			}
		})
	}
}

func TestLedgerOfAnotherCluster(t *testing.T) {
	l := ledger()
	l.Apply(Update{Nodes: []Node{claim("self", 1, 1, 1), claim("a", 2, 2, 2), claim("b", 200, 3, 3)}})
	low, high := netip.MustParsePrefix("10.244.0.0/17"), netip.MustParsePrefix("10.244.128.0/17")
	wide, underlay := netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("192.0.2.0/30")
	for _, s := range []struct {
		ranges                   []netip.Prefix
		changed, refuse, failure string
	}{
		{[]netip.Prefix{low}, "-b", "b", ""},
		{[]netip.Prefix{wide}, "b", "", ""},
		{[]netip.Prefix{high}, "-a", "a self", ""}, // the own node keeps its pod CIDR
		{[]netip.Prefix{wide, underlay}, "", "a self", "192.0.2.1 lies inside the cluster's range 192.0.2.0/30"},
		{[]netip.Prefix{wide}, "a", "", ""},
		{[]netip.Prefix{wide, netip.MustParsePrefix("192.0.2.3/32")}, "-b", "b", ""},
	} {
		change, err := l.SetCluster(s.ranges)
		if got := names(change); got != s.changed || refused(l) != s.refuse {
			t.Errorf("%v: changed %q, refused %q, want %q and %q", s.ranges, got, refused(l), s.changed, s.refuse)
		}
		if (err != nil) != (s.failure != "") || err != nil && !strings.Contains(err.Error(), s.failure) {
			t.Errorf("%v: %v, want %q", s.ranges, err, s.failure)
		}
	}
}

// TestLedgerKeepsTheOwnNode: what the own node has outside of the ranges stays its own until it claims something else,
// and people are told as long as that is so.
func TestLedgerKeepsTheOwnNode(t *testing.T) {
	l := ledger()
	l.Apply(Update{Nodes: []Node{claim("self", 1, 1, 1), claim("a", 200, 2, 2)}})
	if _, err := l.SetCluster([]netip.Prefix{netip.MustParsePrefix("10.244.128.0/17")}); err != nil {
		t.Fatal(err)
	}
	is := func(what, refusal string) {
		t.Helper()
		why := ""
		for _, r := range l.Refusals() {
			if r.Name == "self" {
				why = r.Why
			}
		}
		if (why == "") != (refusal == "") || !strings.Contains(why, refusal) || l.Node("self") == nil {
			t.Errorf("%s: in force %+v, refused %q, want %q", what, l.Node("self"), why, refusal)
		}
	}
	is("at once", "until then it stays as it is")
	if c := l.Apply(Update{Nodes: []Node{claim("self", 1, 1, 1)}}); !c.Empty() {
		t.Errorf("the same again: %+v", c)
	}
	is("said again", "until then it stays as it is")
	if c := l.Apply(Update{Nodes: []Node{claim("self", 2, 1, 1)}}); !c.Empty() ||
		l.Node("self").PodCIDRs[0].Addr().String() != "10.244.1.0" {
		t.Errorf("another one outside: %+v", c)
	}
	is("another one outside", "10.244.2.0/24 is outside")
	l.Apply(Update{Nodes: []Node{claim("b", 1, 3, 3)}})
	if got := names(l.Apply(Update{Nodes: []Node{claim("self", 201, 1, 1)}})); got != "self" {
		t.Errorf("one inside: changed %q", got)
	}
	is("one inside", "")
}

// TestLedgerOfConfiguredMachines: what this host's configuration has keeps its name, whichever came first.
func TestLedgerOfConfiguredMachines(t *testing.T) {
	machine := func(name string, last byte) Node {
		return Node{Name: name, Roams: true, PublicKey: key.Public{100 + last},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, 255, last}), 32)}}
	}
	broken := Node{Name: "a", Broken: "garbage"}
	set := func(nodes ...Node) func(*Ledger) Change {
		return func(l *Ledger) Change { return l.Apply(Update{Nodes: nodes}) }
	}
	whole := func(nodes ...Node) func(*Ledger) Change {
		return func(l *Ledger) Change { return l.Apply(Update{Whole: true, Nodes: nodes}) }
	}
	configured := func(machines ...Node) func(*Ledger) Change {
		return func(l *Ledger) Change { return l.Configure(machines) }
	}
	gone := func(names ...string) func(*Ledger) Change {
		return func(l *Ledger) Change { return l.Apply(Update{Gone: names}) }
	}
	type step struct {
		do             func(*Ledger) Change
		change, refuse string
		roams          bool // what is in force of a
	}
	for name, steps := range map[string][]step{
		"the machine first": {
			{configured(machine("a", 1), machine("b", 2)), "a b", "", true},
			{set(claim("a", 2, 2, 2), claim("c", 3, 3, 3)), "c", "a", true},
			{whole(claim("a", 2, 2, 2)), "-c", "a", true},
			{configured(machine("a", 3)), "a -b", "a", true},
			{gone("a"), "", "", true},
			{set(claim("a", 2, 2, 2)), "", "a", true},
			{configured(), "a", "", false},
			{gone("a"), "-a", "", false},
		},
		"the node first": {
			{set(claim("a", 2, 2, 2)), "a", "", false},
			{configured(machine("a", 1)), "a", "a", true},
			{set(claim("d", 2, 4, 4)), "d", "a", true}, // what the refused one claims is free
			{configured(), "-a", "a", false},
			{gone("d"), "a -d", "", false},
			{configured(machine("a", 1)), "a", "a", true},
			{whole(), "", "", true},
			{configured(), "-a", "", false},
		},
		"a node that cannot be read": {
			{set(claim("a", 2, 2, 2)), "a", "", false},
			{set(broken), "", "a", false},
			{configured(machine("a", 1)), "a", "a", true},
			{configured(), "-a", "a", false},
			{set(claim("a", 2, 2, 2)), "a", "", false},
		},
		"a machine that has nothing of its own": {
			{set(claim("c", 255, 2, 2)), "c", "", false},
			{configured(machine("a", 1)), "", "a", false},
			{set(claim("a", 2, 3, 3)), "", "a a", false},
			{gone("c"), "a -c", "a", true},
		},
		"the own node's name": {
			{set(claim("self", 1, 1, 1)), "self", "", false},
			{configured(machine("self", 1)), "", "", false},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := ledger()
			for k, s := range steps {
				if got := names(s.do(l)); got != s.change {
					t.Errorf("step %d: changed %q, want %q", k, got, s.change)
				}
				if got := refused(l); got != s.refuse {
					t.Errorf("step %d: refused %q, want %q: %+v", k, got, s.refuse, l.Refusals())
				}
				if n := l.Node("a"); (n != nil && n.Roams) != s.roams {
					t.Errorf("step %d: in force %+v", k, n)
				}
			}
		})
	}
}

// TestLedgerKeepsItsWord goes through random updates: what is in force never contradicts itself, the changes add up to
// it, nobody loses what he claims to anybody but the own node, and what is refused has a reason that is true.
func TestLedgerKeepsItsWord(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		l := ledger()
		inForce, claims := map[string]Node{}, map[string]Node{}
		for range 40 {
			var u Update
			for range 1 + rng.IntN(3) {
				name := []string{"self", "a", "b", "c", "d", "e"}[rng.IntN(6)]
				if slices.ContainsFunc(u.Nodes, func(n Node) bool { return n.Name == name }) {
					continue
				}
				if rng.IntN(5) == 0 {
					u.Gone = append(u.Gone, name)
					delete(claims, name)
					continue
				}
				if slices.Contains(u.Gone, name) {
					continue
				}
				n := claim(name, rng.IntN(6), rng.IntN(6), byte(1+rng.IntN(5)))
				n.Order = int64(rng.IntN(3))
				u.Nodes = append(u.Nodes, n)
				claims[name] = n
			}
			before := inForce
			inForce = map[string]Node{}
			for name, n := range before {
				inForce[name] = n
			}
			change := l.Apply(u)
			for _, n := range change.Set {
				inForce[n.Name] = n
			}
			for _, name := range change.Gone {
				delete(inForce, name)
			}
			check(t, l, inForce, before, claims)
			if t.Failed() {
				t.Fatalf("after %+v", u)
			}
		}
	}
}

func check(t *testing.T, l *Ledger, inForce, before, claims map[string]Node) {
	t.Helper()
	var list []Node
	for _, n := range l.Nodes() {
		if !reflect.DeepEqual(inForce[n.Name], n) {
			t.Errorf("%+v is in force, the changes said %+v", n, inForce[n.Name])
		}
		list = append(list, n)
	}
	if len(list) != len(inForce) {
		t.Errorf("%d are in force, the changes said %d", len(list), len(inForce))
	}
	clash := func(a, b *Node) bool {
		return a.PodCIDRs[0] == b.PodCIDRs[0] || a.Addresses[0] == b.Addresses[0] || a.PublicKey == b.PublicKey
	}
	for i := range list {
		for j := range i {
			if clash(&list[i], &list[j]) {
				t.Errorf("%+v and %+v are both in force", list[i], list[j])
			}
		}
	}
	own, claimsOwn := claims["self"]
	for name, was := range before {
		c, claims := claims[name]
		if now, ok := inForce[name]; claims && was.Equal(&c) && (!ok || !now.Equal(&c)) &&
			(!claimsOwn || !clash(&own, &c)) {
			t.Errorf("%s lost what it claims, %+v", name, c)
		}
	}
	refused := map[string]bool{}
	for _, r := range l.Refusals() {
		refused[r.Name] = true
	}
	for name, c := range claims {
		now, ok := inForce[name]
		if got := ok && now.Equal(&c); got == refused[name] {
			t.Errorf("%s in force %v and refused %v", name, got, refused[name])
		}
		blocked := slices.ContainsFunc(list, func(o Node) bool { return o.Name != name && clash(&o, &c) })
		if refused[name] && !blocked {
			t.Errorf("%s is refused although nobody is in its way: %+v", name, l.Refusals())
		}
	}
}
