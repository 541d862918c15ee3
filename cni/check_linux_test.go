package cni_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

// check is the CHECK after an ADD with the same configuration that printed out.
func (c call) check(out []byte) call {
	c.command = "CHECK"
	c.conf = strings.TrimSuffix(c.conf, "}") + `, "prevResult": ` + string(out) + "}"
	return c
}

// CHECK right after ADD is content, whatever routes ADD was to set.
func TestCheckOfSoundPods(t *testing.T) {
	for name, more := range map[string]string{
		"no routes":         `, "routes": []`,
		"one family":        `, "routes": [{"dst": "10.0.0.0/8"}]`,
		"host bits":         `, "routes": [{"dst": "10.1.2.3/8"}, {"dst": "fd01::5/64"}]`,
		"default as routes": `, "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}, {"dst": "::/0", "priority": 7}]`,
		"two of a family":   `, "ranges": [[{"subnet": "10.244.1.0/25"}], [{"subnet": "10.244.1.128/25"}]]`,
		"behind another": `, "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "x0"}],
			"ips": [{"address": "198.51.100.5/24", "gateway": "198.51.100.1", "interface": 0}],
			"routes": [{"dst": "198.51.100.0/24", "gw": "198.51.100.1"}, {"dst": "203.0.113.0/24"}]}, "routes": [
			{"dst": "203.0.113.0/24"}]`,
	} {
		for _, mode := range modes {
			if mode == cni.ModeBridge && name == "two of a family" {
				more = strings.ReplaceAll(more, "/25", "/24")
				more = strings.Replace(more, `/24"}]`, `/24", "rangeEnd": "10.244.1.9"}]`, 1)
				more = strings.Replace(more, `10.244.1.128/24"`, `10.244.1.0/24", "rangeStart": "10.244.1.10"`, 1)
			}
			t.Run(name+" "+mode, func(t *testing.T) {
				n := newNode(t)
				n.confMore = more
				c := n.pod(n.conf("1.0.0", mode)).call("ADD")
				n.must(c.check(n.must(c)))
			})
		}
	}
}

// Somebody changes something about an attached pod: CHECK says what, and what to do. Its commands put it right.
func TestCheckNamesTheWayBack(t *testing.T) {
	type harm struct{ ns, does, want string }
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			p := n.pod(n.conf("1.1.0", mode))
			in, host := p.ns, podrecord.HostIfName(p.id, "eth0")
			harms := []harm{
				{in, "ip link set eth0 down", "eth0 in the pod is down"},
				{in, "ip addr flush dev eth0 scope global", "eth0 in the pod lacks address ADDR/BITS"},
				{in, "ip addr add ADDR/8 dev eth0 && ip addr del ADDR/BITS dev eth0",
					"eth0 in the pod has address ADDR/8, not ADDR/BITS"},
				{in, "ip link set eth0 address 02:00:00:00:00:99",
					"eth0 in the pod has hardware address 02:00:00:00:00:99, not MAC"},
				{in, "ip link set eth0 mtu 1300", "eth0 in the pod has MTU 1300, not 1420"},
				{in, "ip route del default", "the pod has no route to 0.0.0.0/0 via 10.244.1.1 through eth0"},
				{in, "ip route replace default via 10.244.1.77 dev eth0 onlink",
					"the pod's route to 0.0.0.0/0 through eth0 goes via 10.244.1.77, not 10.244.1.1"},
				{in, "ip -6 route replace default via fd00:10:244:1::77 dev eth0 onlink",
					"the pod's route to ::/0 through eth0 goes via fd00:10:244:1::77, not fd00:10:244:1::1"},
				{n.ns, "ip link set HOST down", "host interface HOST is down"},
				{n.ns, "ip link set HOST mtu 1300", "host interface HOST has MTU 1300, not 1420"},
			}
			bits := "24"
			if mode == cni.ModeRouted {
				bits = "32"
				harms = append(harms, []harm{
					{in, "ip neigh replace 10.244.1.1 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
						"the pod's neighbour entry of its gateway 10.244.1.1 has hardware address 02:00:00:00:00:09, not 0e:57"},
					{n.ns, "ip neigh replace ADDR lladdr 02:00:00:00:00:09 dev HOST nud permanent",
						"the neighbour entry of ADDR on host interface HOST has hardware address 02:00:00:00:00:09, not the pod's"},
					{n.ns, "ip -6 neigh flush dev HOST nud permanent", "HOST has no permanent neighbour entry of fd00"},
					{n.ns, "ip route del ADDR", "the host has no route to ADDR through HOST"},
					{n.ns, "ip link set HOST address 02:00:00:00:00:09",
						"host interface HOST has hardware address 02:00:00:00:00:09, not the one that the pod sends to, 0e:57"},
					{n.ns, "sysctl -qw net.ipv4.conf.HOST.rp_filter=0", "rp_filter of host interface HOST is 0, not 1"},
				}...)
			} else {
				harms = append(harms, []harm{
					{n.ns, "ip link set HOST nomaster", "host interface HOST is no port of bridge warren-br0"},
					{n.ns, "ip link set warren-br0 down", "bridge warren-br0 is down"},
					{n.ns, "ip addr flush dev warren-br0", "bridge warren-br0 lacks the pod's gateway address 10.244.1.1"},
					{n.ns, "ip link set HOST type bridge_slave hairpin off",
						"hairpin of port HOST of bridge warren-br0 is off, not on"},
					{n.ns, "ip link set HOST type bridge_slave isolated on",
						"isolated of port HOST of bridge warren-br0 is on, not off"},
					{n.ns, "ip link set HOST type bridge_slave learning off",
						"learning of port HOST of bridge warren-br0 is off"},
					{n.ns, "ip link set HOST type bridge_slave flood off",
						"flood of port HOST of bridge warren-br0 is off"},
				}...)
			}
			for _, h := range harms {
				c := p.call("ADD")
				out := n.must(c)
				fill := strings.NewReplacer("ADDR", addrOf(t, out), "BITS", bits, "HOST", host, "MAC", macOf(t, out)).Replace
				n.must(c.check(out))
				sh(t, h.ns, fill(h.does))
				_, err := n.do(c.check(out))
				if err == nil || err.Code != cni.CodeChanged || !strings.Contains(err.Msg, fill(h.want)) {
					t.Errorf("after %s: %+v, want %q", h.does, err, fill(h.want))
				} else {
					n.follow(err.Msg)
					if _, err := n.do(c.check(out)); err != nil {
						t.Errorf("after %s and what to do about it: %s", h.does, err.Msg)
					}
				}
				p.del()
			}
		})
	}
}

// follow does what CHECK says is to be done.
func (n *node) follow(advice string) {
	n.t.Helper()
	for _, command := range regexp.MustCompile("`[^`]*`").FindAllString(advice, -1) {
		sh(n.t, n.ns, strings.Trim(command, "`"))
	}
	if strings.Contains(advice, "add another pod") {
		n.pod(n.conf("1.1.0", cni.ModeBridge)).add()
	}
}

func macOf(t *testing.T, out []byte) string {
	t.Helper()
	found := regexp.MustCompile(`"mac": "([0-9a-f:]*)"[^}]*"sandbox"`).FindSubmatch(out)
	if found == nil {
		t.Fatalf("no hardware address of the pod in %s", out)
	}
	return string(found[1])
}

// Without its record an attachment can't be checked. As long as something of it is left, the runtime has to delete it,
// which code 3 would let it do without.
func TestCheckWithoutTheRecord(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.warm(mode)
			before := n.dump()
			p := n.pod(n.conf("1.1.0", mode))
			c := p.call("ADD")
			host := podrecord.HostIfName(p.id, "eth0")
			record := filepath.Join(podrecord.Dir(n.state()), host+".json")
			remove := func() {
				if err := os.Remove(record); err != nil {
					t.Fatal(err)
				}
			}
			said := func(out []byte, what string, code uint, parts ...string) {
				t.Helper()
				_, err := n.do(c.check(out))
				if err == nil || err.Code != code {
					t.Errorf("%s: %+v, want code %d", what, err, code)
					return
				}
				for _, part := range parts {
					if !strings.Contains(err.Msg, part) {
						t.Errorf("%s: %q does not say %q", what, err.Msg, part)
					}
				}
			}
			out := n.must(c)
			remove()
			said(out, "a lost record", cni.CodeChanged, "has no record", host+" is there", "CNI DEL")
			sh(t, n.ns, "ip link del "+host)
			said(out, "a lost record and interface", cni.CodeChanged, addrOf(t, out), "CNI DEL")
			p.del()
			said(out, "after DEL", types.ErrUnknownContainer, "CNI ADD")

			out = n.must(c)
			if err := os.WriteFile(record, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			said(out, "a broken record", cni.CodeChanged, record, "CNI DEL")
			p.del()
			unchanged(t, "after DEL", before, n.dump())
		})
	}
}

// An interface without routes reaches its gateway by the route to that, and by nothing else.
func TestCheckOfTheGatewaysRoute(t *testing.T) {
	n := newNode(t)
	n.confMore = `, "routes": []`
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	c := p.call("ADD")
	out := n.must(c)
	sh(t, p.ns, "ip route del 10.244.1.1")
	_, err := n.do(c.check(out))
	if err == nil || !strings.Contains(err.Msg, "the pod has no route to 10.244.1.1/32 through eth0") {
		t.Fatalf("CHECK: %+v", err)
	}
	n.follow(err.Msg)
	n.must(c.check(out))
}
