package static

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/yamldoc"
)

const good = `encapsulation: vxlan
cluster: [10.244.0.0/16, "fd00:10:244::/48"]
nodes:
  - {name: a, addresses: [192.0.2.1, "2001:db8::1"], podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]}
  - {name: b, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24], mac: "0e:57:c0:00:02:02", port: 4790}
`

func build(text string) (*Cluster, error) {
	var spec Spec
	doc, err := yamldoc.Decode("f", []byte(text), &spec)
	if err != nil {
		return nil, err
	}
	return spec.Build(doc)
}

func TestBuild(t *testing.T) {
	c, err := build(good)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.CIDRs) != 2 || len(c.State.Nodes) != 2 {
		t.Fatalf("%+v", c)
	}
	a, b := c.State.Nodes[0], c.State.Nodes[1]
	if a.Addresses[1] != netip.MustParseAddr("2001:db8::1") ||
		a.PodCIDRs[1] != netip.MustParsePrefix("fd00:10:244:1::/64") {
		t.Errorf("%+v", a)
	}
	if b.MAC.String() != "0e:57:c0:00:02:02" || b.Port != 4790 || a.MAC != nil || a.Port != 0 {
		t.Errorf("%+v", b)
	}
}

func TestBuildErrors(t *testing.T) {
	// edit changes the good file in one place.
	edit := func(from, to string) string {
		if !strings.Contains(good, from) {
			t.Fatalf("%q is not in the file", from)
		}
		return strings.Replace(good, from, to, 1)
	}
	for _, c := range []struct{ name, in, want string }{
		{"no cluster", "nodes: []\n", "f: cluster: the cluster's address ranges are missing"},
		{"no nodes", "cluster: [10.0.0.0/8]\n", "f: nodes: no node is listed"},
		{"bad CIDR", edit("10.244.2.0/24", "10.244.2.0/33"),
			`f:5: nodes[1].podCIDRs[0]: "10.244.2.0/33" is not an address range (CIDR); write it as`},
		{"CIDR without length", edit("10.244.2.0/24", "10.244.2.0"), "add the prefix length, for example 10.244.2.0/24"},
		{"CIDR without length 6", edit("fd00:10:244:1::/64", "fd00:10:244:1::"), "for example fd00:10:244:1::/64"},
		{"host bits", edit("10.244.2.0/24", "10.244.2.5/24"),
			`f:5: nodes[1].podCIDRs[0]: "10.244.2.5/24" has host bits set after the prefix length; write 10.244.2.0/24`},
		{"host bits cluster", edit("10.244.0.0/16", "10.244.1.0/16"), `f:2: cluster[0]: "10.244.1.0/16" has host bits`},
		{"overlap", edit("10.244.2.0/24", "10.244.1.128/25"), "of node b overlaps 10.244.1.0/24 of node a"},
		{"overlap wider", edit("10.244.2.0/24", "10.244.0.0/22"), "of node b overlaps 10.244.1.0/24 of node a"},
		{"overlap cluster", edit(`"fd00:10:244::/48"`, "10.244.0.0/20"),
			"cluster[1]: \"10.244.0.0/20\" overlaps 10.244.0.0/16"},
		{"outside", edit("10.244.2.0/24", "10.245.2.0/24"),
			"of node b is outside the cluster's ranges [10.244.0.0/16 fd00:10:244::/48]"},
		{"wider than cluster", edit("10.244.2.0/24", "10.0.0.0/8"), "outside the cluster's ranges"},
		{"too small", edit("10.244.2.0/24", "10.244.2.0/31"), "too small"},
		{"second CIDR", edit("10.244.2.0/24", "10.244.2.0/24, 10.244.3.0/24"), "second IPv4 pod CIDR, beside 10.244.2.0/24"},
		{"everything", edit("10.244.0.0/16", "0.0.0.0/0"), "not a range that pods can have"},
		{"mapped CIDR", edit("10.244.2.0/24", `"::ffff:10.244.2.0/120"`), "is an IPv4-mapped IPv6 range"},
		{"no CIDR", edit("[10.244.2.0/24]", "[]"), "node b has no pod CIDR"},
		{"name twice", edit("name: b", "name: a"), `f:5: nodes[1].name: "a" is in the list a second time`},
		{"no name", edit("name: b, ", ""), "f:5: nodes[1].name: the node has no name"},
		{"bad name", edit("name: b", "name: b/c"), `"b/c" is not a node name`},
		{"address twice", edit("192.0.2.2", "192.0.2.1"),
			`nodes[1].addresses[0]: "192.0.2.1" is the address of node a already`},
		{"address twice in a node", edit(`"2001:db8::1"`, "192.0.2.1"), "is in the list a second time"},
		{"two of a family", edit("192.0.2.2", "192.0.2.2, 192.0.2.3"), "is a second IPv4 address, beside 192.0.2.2"},
		{"bad address", edit("192.0.2.2", "192.0.2.256"), "is not an IP address; write it as"},
		{"address with length", edit("192.0.2.2", "192.0.2.2/24"), "leave the prefix length out: 192.0.2.2"},
		{"mapped address", edit("192.0.2.2", `"::ffff:192.0.2.2"`), "is an IPv4-mapped IPv6 address; write it as 192.0.2.2"},
		{"link-local", edit("192.0.2.2", `"fe80::1"`), "is a link-local address"},
		{"zone", edit("192.0.2.2", `"fe80::1%eth0"`), "is a link-local address"},
		{"loopback", edit("192.0.2.2", "127.0.0.1"), "is not the address of a host on the underlay"},
		{"unspecified", edit("192.0.2.2", `"::"`), "is not the address of a host on the underlay"},
		{"multicast", edit("192.0.2.2", "224.0.0.1"), "is not the address of a host on the underlay"},
		{"no address", edit("[192.0.2.2]", "[]"), "node b has no underlay address"},
		{"address in pods", edit("192.0.2.2", "10.244.1.9"), "of node b lies inside the cluster's range 10.244.0.0/16"},
		{"bad MAC", edit("0e:57:c0:00:02:02", "0e:57:c0:00:02"), "is not an Ethernet address"},
		{"long MAC", edit("0e:57:c0:00:02:02", "0e:57:c0:00:02:02:01:01"), "is not an Ethernet address"},
		{"multicast MAC", edit("0e:57:c0:00:02:02", "01:57:c0:00:02:02"), "is not the address of one station"},
		{"zero MAC", edit("0e:57:c0:00:02:02", "00:00:00:00:00:00"), "is not the address of one station"},
		{"MAC twice", edit("name: a,", `name: a, mac: "0E-57-C0-00-02-02",`), "is the mac of node a already"},
		{"port", edit("4790", "65536"), `nodes[1].port: "65536" is not a UDP port`},
		{"port 0", edit("4790", "0"), `nodes[1].port: "0" is not a UDP port`},
		{"port negative", edit("4790", "-1"), "is not a UDP port"},
		{"unknown key", edit("podCIDRs: [10.244.2", "podCIDR: [10.244.2"),
			"f:5: nodes[1].podCIDR: unknown key; did you mean podCIDRs?"},
		{"null node", "cluster: [10.244.0.0/16]\nnodes: [~]\n", "the node has no name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := build(c.in)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got  %v\nwant %q in it", err, c.want)
			}
		})
	}
}

func FuzzBuild(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(encrypted))
	f.Add([]byte("cluster: [\"::/1\"]\nnodes: [{name: x, addresses: [\"1::\"], podCIDRs: [\"::/2\"]}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := build(string(data))
		if err != nil {
			return
		}
		for _, n := range c.State.Nodes {
			if n.Name == "" || n.Roams != (len(n.Addresses) == 0) || len(n.PodCIDRs) == 0 ||
				n.PublicKey.IsZero() && !n.Plaintext() {
				t.Fatalf("accepted %+v", n)
			}
		}
	})
}
