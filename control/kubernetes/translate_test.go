package kubernetes

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"

	"github.com/warren-net/warren/control"
)

// TestBroken goes through everything that cannot be read.
func TestBroken(t *testing.T) {
	note := func(name, value string) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Annotations[name] = value }
	}
	cidrs := func(list ...string) func(*corev1.Node) { return func(n *corev1.Node) { n.Spec.PodCIDRs = list } }
	addresses := func(list ...string) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.Status.Addresses = nil
			for _, a := range list {
				n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
			}
		}
	}
	const daemon = "(its daemon writes it: look at its log; `kubectl annotate node b "
	for _, c := range []struct {
		name  string
		spoil func(*corev1.Node)
		want  string
	}{
		{"key", note(AnnotationPublicKey, "garbage"), `Node b: annotation warren.network/public-key: "garbage" is not a ` +
			"public key; it has to be the 44 characters that `warren key public` prints on that node " + daemon +
			"warren.network/public-key-` removes it)"},
		{"no key in it", note(AnnotationPublicKey, ""), `public-key: "" is not a public key`},
		{"zero key", note(AnnotationPublicKey, strings.Repeat("A", 43)+"="), "is not a public key"},
		{"huge", note(AnnotationPublicKey, strings.Repeat("é", 100_000)), `"` + strings.Repeat("é", 24) + `…" is not`},
		{"control characters", note(AnnotationEncapsulation, "\x1b[31m\n"), `"\x1b[31m\n" is not an encapsulation`},
		{"encapsulation of a newer version", note(AnnotationEncapsulation, "geneve"), `encapsulation: "geneve" is not an ` +
			"encapsulation that this version of Warren knows; it has to be wireguard, vxlan, direct or auto; if a newer " +
			"Warren wrote it, upgrade this node's " + daemon},
		{"wireguard port", note(AnnotationWireGuardPort, "65536"), `wireguard-port: "65536" is not a UDP port; it has to be`},
		{"vxlan port", note(AnnotationVXLANPort, "0"), `vxlan-port: "0" is not a UDP port`},
		{"negative port", note(AnnotationVXLANPort, "-1"), `vxlan-port: "-1" is not a UDP port`},
		{"mac", note(AnnotationVXLANMAC, "01:00:5e:00:00:01"), "is not the Ethernet address of one station"},
		{"mac of 8 bytes", note(AnnotationVXLANMAC, "02:00:5e:10:00:00:00:01"), "is not the Ethernet address"},
		{"zero mac", note(AnnotationVXLANMAC, "00:00:00:00:00:00"), "is not the Ethernet address"},
		{"addresses", note(AnnotationAddresses, "192.0.2.1,"), `addresses: "192.0.2.1," is not a list of IP addresses`},
		{"two of a family", note(AnnotationAddresses, "192.0.2.1, 192.0.2.2"), "holds two addresses of one family"},
		{"multicast", note(AnnotationAddresses, "ff02::1"), "holds ff02::1, which is no host's on the underlay"},
		{"link-local", note(AnnotationAddresses, "fe80::1%eth0"), "which is link-local; use addresses at which"},
		{"override", note(AnnotationOverrideAddresses, "127.0.0.1"), `override-addresses: "127.0.0.1" holds 127.0.0.1, ` +
			"which is no host's on the underlay; use addresses at which the other nodes reach that node (`kubectl annotate " +
			"--overwrite node b warren.network/override-addresses=ADDRESS`)"},
		{"internal address", addresses("not an address"), `Node b: status.addresses has InternalIP "not an address", which ` +
			"is no IP address; set the kubelet's --node-ip, or annotate the node with warren.network/override-addresses"},
		{"loopback", addresses("127.0.0.1", "::1"), `InternalIP "127.0.0.1", which is no host's on the underlay`},
		{"no range", cidrs("10.244.1.0"), `Node b: spec.podCIDRs has "10.244.1.0", which is not an address range; ` +
			"kube-controller-manager gives them"},
		{"everything", cidrs("0.0.0.0/0"), "is not a range that pods can have"},
		{"mapped", cidrs("::ffff:10.244.1.0/120"), "is not a range that pods can have"},
		{"too small", cidrs("10.244.1.0/31"), "is too small: it holds no pod beside the gateway"},
		{"second of a family", cidrs("10.244.1.0/24", "10.244.2.0/24"), "is a second one of its family"},
	} {
		n := object("b", 2)
		c.spoil(n)
		got, missing := translate(n, false)
		if missing != (gap{}) || !strings.Contains(got.Broken, c.want) || len(got.Broken) > 600 {
			t.Errorf("%s: missing %v; got\n%s\nwant\n%s", c.name, missing, got.Broken, c.want)
		}
		if bare := (control.Node{Name: "b", Broken: got.Broken}); !got.Equal(&bare) {
			t.Errorf("%s: more than the name is known of what cannot be read: %+v", c.name, got)
		}
	}
}

// TestRead goes through what can be read, and which of several values counts.
func TestRead(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*corev1.Node)
		want func(*control.Node)
	}{
		{"as it comes", func(*corev1.Node) {}, func(*control.Node) {}},
		{"not the annotations' CIDRs", func(n *corev1.Node) {
			n.Annotations[Domain+"pod-cidrs"] = "10.244.7.0/24"
			n.Annotations[Domain+"podCIDRs"] = "10.244.7.0/24"
		}, func(*control.Node) {}},
		{"published addresses", func(n *corev1.Node) { n.Annotations[AnnotationAddresses] = "198.51.100.7" },
			func(n *control.Node) { n.Addresses = []netip.Addr{netip.MustParseAddr("198.51.100.7")} }},
		{"a person's addresses", func(n *corev1.Node) {
			n.Annotations[AnnotationAddresses] = "198.51.100.7"
			n.Annotations[AnnotationOverrideAddresses] = " 2001:db8::7 , ::ffff:203.0.113.7"
		}, func(n *control.Node) {
			n.Addresses = []netip.Addr{netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("203.0.113.7")}
		}},
		{"first of a family", func(n *corev1.Node) {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP,
				Address: "192.0.2.99"})
		}, func(*control.Node) {}},
		{"first usable", func(n *corev1.Node) { n.Status.Addresses[1].Address = "169.254.0.1" },
			func(n *control.Node) { n.Addresses = n.Addresses[1:] }},
		{"host bits", func(n *corev1.Node) { n.Spec.PodCIDRs[0] = "10.244.2.1/24" }, func(*control.Node) {}},
		{"one family", func(n *corev1.Node) { n.Spec.PodCIDRs = n.Spec.PodCIDRs[1:] },
			func(n *control.Node) { n.PodCIDRs = n.PodCIDRs[1:] }},
	} {
		obj, want := object("b", 2), claim("b", 2)
		c.edit(obj)
		c.want(&want)
		if got, missing := translate(obj, false); !got.Equal(&want) || missing != (gap{}) {
			t.Errorf("%s:\ngot  %+v %v\nwant %+v", c.name, got, missing, want)
		}
	}
}

// FuzzAnnotations holds that what is read back is what was written, and that nothing else is taken for it.
func FuzzAnnotations(f *testing.F) {
	for name, value := range saidAnnotations {
		f.Add(name, value)
	}
	f.Add(AnnotationOverrideAddresses, "192.0.2.1,2001:db8::1")
	f.Add(AnnotationAddresses, "::ffff:192.0.2.1")
	f.Fuzz(func(t *testing.T, name, value string) {
		obj := object("b", 2)
		obj.Annotations[name] = value
		n, _ := translate(obj, false)
		if n.Broken != "" {
			if !utf8.ValidString(n.Broken) || strings.ContainsAny(n.Broken, "\n\x1b") {
				t.Errorf("%q", n.Broken)
			}
			return
		}
		said := annotations(&n)
		again := control.Node{}
		for name := range said {
			if err := (reader{from: said, to: &again}).read(name); err != nil {
				t.Fatalf("what was written cannot be read: %v", err)
			}
		}
		if back := annotations(&again); !maps.Equal(back, said) {
			t.Errorf("%v became %v", said, back)
		}
	})
}

// TestMemory holds what a node costs that is kept: not its object, which has some 20 KB here and 50 KB in big clusters.
func TestMemory(t *testing.T) {
	const nodes = 5000
	s := newStore("node-0", func() {}, func() {})
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range nodes {
		n := object(fmt.Sprintf("node-%d", i), i%250)
		n.UID = "01234567-89ab-cdef-0123-456789abcdef"
		for j := range 50 {
			n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{
				fmt.Sprintf("registry.example/%d@sha256:%064d", j, i), fmt.Sprintf("registry.example/%d:v%d", j, i)}})
		}
		if err := s.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	s.listed = true
	s.mu.Unlock()
	if u, _ := s.take(); len(u.Nodes) != nodes {
		t.Fatalf("%d nodes", len(u.Nodes))
	}
	each := (heap() - before) / nodes
	t.Logf("%d bytes per node", each)
	if each > 1000 {
		t.Errorf("%d bytes per node are kept", each)
	}
	runtime.KeepAlive(s)
}
