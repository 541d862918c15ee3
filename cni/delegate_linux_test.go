package cni_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

// hostLocal is a section ipam for upstream's host-local, with the given ranges.
func (n *node) hostLocal(subnets ...string) string {
	var ranges []string
	for _, s := range subnets {
		ranges = append(ranges, fmt.Sprintf(`[{"subnet": %q}]`, s))
	}
	return fmt.Sprintf(`, "ipam": {"type": "host-local", "dataDir": %q, "ranges": [%s]}`,
		filepath.Join(n.dir, "host-local"), strings.Join(ranges, ","))
}

// static is a section ipam for upstream's static.
func static(addresses ...string) string {
	return fmt.Sprintf(`, "ipam": {"type": "static", "addresses": [%s], "dns": {"nameservers": ["10.96.0.10"]}}`,
		strings.Join(addresses, ","))
}

// held lists the addresses that host-local has given.
func (n *node) held() []string {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.dir, "host-local", "pods"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Fatal(err)
	}
	var addrs []string
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err == nil {
			addrs = append(addrs, e.Name())
		}
	}
	return addrs
}

// withPrev is a call of the plugin with the result of ADD.
func (p *pod) withPrev(command string, out []byte) call {
	c := p.call(command)
	c.conf = strings.TrimSuffix(c.conf, "}") + `, "prevResult": ` + string(out) + "}"
	return c
}

// Addresses of upstream's host-local, from the first ADD to the last DEL.
func TestHostLocal(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNodeWithUpstream(t)
			n.warm(mode)
			before := n.dump()
			n.confMore = n.hostLocal("10.244.1.0/24", "fd00:10:244:1::/64")
			conf := n.conf("1.0.0", mode)
			first, second := n.pod(conf), n.pod(conf)
			out := n.must(first.call("ADD"))
			r := second.add()
			if addrs := r.addrs(); len(addrs) != 2 || len(n.held()) != 4 || r.IPs[0].Gateway != gateway4 ||
				r.IPs[1].Gateway != gateway6 || len(r.Routes) != 2 || !slices.Contains(n.held(), addrs[1].String()) {
				t.Fatalf("result %+v, host-local gave %v", r, n.held())
			}
			for _, addr := range r.addrs() {
				ping(t, n.ns, addr)
				ping(t, first.ns, addr)
			}
			n.must(first.withPrev("CHECK", out))
			if err := os.Remove(filepath.Join(n.dir, "host-local", "pods", addrOf(t, out))); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(n.dir, "host-local", "pods", "fd00:10:244:1::2")); err != nil {
				t.Fatal(err)
			}
			if _, err := n.do(first.withPrev("CHECK", out)); err == nil || !strings.Contains(err.Msg, `"host-local"`) {
				t.Errorf("CHECK of an address that host-local does not know: %+v", err)
			}
			first.del()
			// Without a record, with another plugin's configuration, and once more.
			record := podrecord.Dir(n.state()) + "/" + podrecord.HostIfName(second.id, "eth0") + ".json"
			content, err := os.ReadFile(record)
			if err != nil || os.Remove(record) != nil {
				t.Fatal(err)
			}
			second.del()
			if held := n.held(); len(held) > 0 {
				t.Errorf("DEL without a record left %v", held)
			}
			second.add()
			if _, err := os.Stat(record); err != nil || !bytes.Contains(content, []byte("host-local")) {
				t.Errorf("the record does not name the plugin (%v): %s", err, content)
			}
			n.confMore = static()
			second.conf = n.conf("1.0.0", mode)
			second.del()
			if held := n.held(); len(held) > 0 {
				t.Errorf("DEL with another configuration left %v", held)
			}
			second.del()
			unchanged(t, "after DEL", before, n.dump())
		})
	}
}

// Addresses, gateways, routes and DNS of upstream's static.
func TestStatic(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNodeWithUpstream(t)
			n.warm(mode)
			before := n.dump()
			n.confMore = strings.Replace(static(`{"address": "10.244.1.77/24", "gateway": "10.244.1.1"}`,
				`{"address": "10.244.1.78/24"}`, `{"address": "fd00:10:244:1::77/64"}`),
				`"dns"`, `"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00:10:244:1::1"}], "dns"`, 1)
			p := n.pod(n.conf("1.1.0", mode))
			out := n.must(p.call("ADD"))
			n.must(p.withPrev("CHECK", out))
			for _, want := range []string{"10.244.1.77", "10.244.1.78", "fd00:10:244:1::77"} {
				ping(t, n.ns, netip.MustParseAddr(want))
				if !bytes.Contains(out, []byte(want)) {
					t.Errorf("the result lacks %s: %s", want, out)
				}
			}
			if !bytes.Contains(out, []byte("10.96.0.10")) {
				t.Errorf("the result lacks the DNS server: %s", out)
			}
			ping(t, p.ns, netip.MustParseAddr(gateway4))
			ping(t, p.ns, netip.MustParseAddr(gateway6))
			if _, err := n.do(n.pod(p.conf).call("ADD")); err == nil || !strings.Contains(err.Msg, "which interface eth0 of") {
				t.Errorf("the same address for a second pod: %+v", err)
			}
			n.confMore = `, "ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.77", "rangeEnd": "10.244.1.77"}]]`
			own := n.pod(strings.Replace(n.conf("1.1.0", mode), `"pods"`, `"other"`, 1))
			if _, err := n.do(own.call("ADD")); err == nil || !strings.Contains(err.Msg, `(network "pods")`) {
				t.Errorf("the same address of another network, from Warren's own: %+v", err)
			}
			ping(t, n.ns, netip.MustParseAddr("10.244.1.77"))
			p.del()
			unchanged(t, "after DEL", before, n.dump())
		})
	}
}

// What an IPAM plugin gives is refused where the node could not serve it, and given back.
func TestDelegateRefused(t *testing.T) {
	for _, tc := range []struct{ mode, ipam, want string }{
		{cni.ModeRouted, "10.245.1.0/24", "outside the node's pod CIDRs"},
		{cni.ModeBridge, "10.244.1.128/25", "gateway 10.244.1.129, which is not the node's, 10.244.1.1"},
		{cni.ModeBridge, "10.244.0.0/16", "gave 10.244.0.2, which is outside"},
		{cni.ModeRouted, `{"address": "10.244.1.50/24"}`, "which the node itself has"},
		{cni.ModeBridge, `{"address": "10.244.1.1/24"}`, "which is the gateway's"},
		{cni.ModeBridge, `{"address": "10.244.1.9/16"}`, "larger than the node's pod CIDRs"},
		{cni.ModeBridge, `{"address": "10.244.1.9/32"}`, "a subnet without its gateway"},
		{cni.ModeBridge, `{"address": "10.244.1.255/24"}`, "broadcast"},
		{cni.ModeRouted, `{"address": "10.244.1.9/24"}, {"address": "10.244.1.9/24"}`, "overlap"},
		{cni.ModeRouted, "", "gave no address"},
		{cni.ModeRouted, `, "ipam": {"type": "dhcp"}`, "in which no DHCP server is on the pod's link"},
		{cni.ModeBridge, `, "ipam": {"type": "dhcp", "daemonSocketPath": "/nonexistent"}`,
			`IPAM plugin "dhcp" failed: error dialing DHCP daemon`},
		{cni.ModeRouted, `, "ipam": {"type": "no-such"}`, `failed to find plugin "no-such" in path`},
		{cni.ModeRouted, `, "ipam": {"type": "../x"}`, "invalid plugin name"},
		{cni.ModeRouted, `, "ipam": {"type": "host-local"}`, "no IP ranges specified"},
		{cni.ModeRouted, static(`{"address": "10.244.1.9/24"}`) + `, "runtimeConfig": {"ips": ["10.244.1.8/24"]}` +
			`, "routes": [{"dst": "::/0"}]`, "gives no address of that family"},
	} {
		t.Run(tc.mode+" "+tc.want, func(t *testing.T) {
			n := newNodeWithUpstream(t)
			n.warm(tc.mode)
			sh(t, n.ns, "ip addr add 10.244.1.50/32 dev lo")
			before := n.dump()
			switch {
			case strings.HasPrefix(tc.ipam, ","):
				n.confMore = tc.ipam
			case strings.HasPrefix(tc.ipam, "1"):
				n.confMore = n.hostLocal(tc.ipam)
			default:
				n.confMore = static(tc.ipam)
			}
			p := n.pod(n.conf("1.0.0", tc.mode))
			_, err := n.do(p.call("ADD"))
			if err == nil || !strings.Contains(err.Msg, tc.want) {
				t.Errorf("ADD: %+v, want %q", err, tc.want)
			}
			if held := n.held(); len(held) > 0 {
				t.Errorf("host-local still holds %v", held)
			}
			// A plugin that is not there, or can't work, can't give back either, and DEL has to say so.
			if !strings.HasPrefix(tc.ipam, `, "ipam": {"type"`) {
				unchanged(t, "after ADD", before, n.dump())
			}
		})
	}
}

// GC frees what host-local gave to pods that are gone.
func TestGCWithHostLocal(t *testing.T) {
	n := newNodeWithUpstream(t)
	n.confMore = n.hostLocal("10.244.1.0/24")
	conf := n.conf("1.1.0", cni.ModeRouted)
	keep, lost := n.pod(conf), n.pod(conf)
	r := keep.add()
	lost.add()
	sh(t, "", "ip netns del "+lost.ns)
	n.daemon(healthy)
	n.must(call{command: "STATUS", conf: conf})
	n.must(call{command: "GC", conf: strings.TrimSuffix(conf, "}") + fmt.Sprintf(
		`, "cni.dev/valid-attachments": [{"containerID": %q, "ifname": "eth0"}]}`, keep.id)})
	if held := n.held(); len(held) != 1 || held[0] != r.addrs()[0].String() {
		t.Errorf("after GC host-local holds %v, want %v", held, r.addrs())
	}
	ping(t, n.ns, r.addrs()[0])
	keep.del()
}

// STATUS, CHECK and GC reach the IPAM plugin, and what it says reaches the runtime.
func TestDelegatePassedOn(t *testing.T) {
	n := newNodeWithUpstream(t)
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	// It gives an address like any other, and has something to say on the other commands.
	script := `#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >> ` + log + `
cat > ` + log + `.stdin
case $CNI_COMMAND in
ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.244.1.40/24"}]}' ;;
DEL) ;;
*) echo '{"cniVersion": "1.1.0", "code": 50, "msg": "'$CNI_COMMAND' says no"}'; exit 1 ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "other-ipam"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n.path += ":" + dir
	n.confMore = `, "ipam": {"type": "other-ipam", "colour": "blue"}`
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	out := n.must(p.call("ADD"))
	for _, c := range []call{
		p.withPrev("CHECK", out), {command: "STATUS", conf: p.conf},
		{command: "GC", conf: strings.TrimSuffix(p.conf, "}") + `, "cni.dev/valid-attachments": []}`},
	} {
		_, err := n.do(c)
		if err == nil || err.Code != types.ErrPluginNotAvailable || !strings.Contains(err.Msg, c.command+" says no") {
			t.Errorf("%s: %+v", c.command, err)
		}
	}
	calls, err := os.ReadFile(log)
	want := fmt.Sprintf("ADD %s eth0\nCHECK %s eth0\nSTATUS  \nDEL %s eth0\nGC  \n", p.id, p.id, p.id)
	if err != nil || string(calls) != want {
		t.Errorf("the plugin was called with (%v)\n%swant\n%s", err, calls, want)
	}
	if stdin, err := os.ReadFile(log + ".stdin"); err != nil || !bytes.Contains(stdin, []byte(`"colour": "blue"`)) ||
		!bytes.Contains(stdin, []byte("cni.dev/valid-attachments")) {
		t.Errorf("GC handed over (%v) %s", err, stdin)
	}
	n.path = dir + "-none"
	if _, err := n.do(call{command: "STATUS", conf: p.conf}); err == nil || err.Code != types.ErrPluginNotAvailable ||
		!strings.Contains(err.Msg, "install that plugin") {
		t.Errorf("STATUS without the plugin: %+v", err)
	}
}

// A section ipam that its plugin refuses makes no pod that can't be deleted; neither does an ADD with it that is
// killed, once the section has been corrected.
func TestDelegateRefusesItsSection(t *testing.T) {
	n := newNodeWithUpstream(t)
	n.warm(cni.ModeRouted)
	before := n.dump()
	n.confMore = n.hostLocal("10.244.1.0/24")
	good := n.conf("1.1.0", cni.ModeRouted)
	n.confMore = `, "ipam": {"type": "host-local"}`
	bad := n.conf("1.1.0", cni.ModeRouted)
	p := n.pod(bad)
	_, err := n.do(p.call("ADD"))
	if err == nil || !strings.Contains(err.Msg, "no IP ranges specified: it may need another section ipam") ||
		strings.Contains(err.Msg, "undoing") {
		t.Errorf("ADD: %+v", err)
	}
	unchanged(t, "ADD", before, n.dump())
	p.conf = good
	p.del()

	for at := 1; ; at++ {
		p.conf, p.id = bad, fmt.Sprintf("killed-%d", at)
		what, _ := n.killAt(p.call("ADD"), at, killPlugin)
		_, err := os.Stat(p.record())
		recorded := err == nil
		p.conf = good
		p.del()
		unchanged(t, "DEL after the section was corrected, of an ADD killed at "+what, before, n.dump())
		if recorded {
			break
		}
		if what == "" {
			t.Fatal("no killed ADD left a record: the test showed nothing")
		}
	}
	ping(t, n.ns, p.add().addrs()[0])
	p.del()
}
