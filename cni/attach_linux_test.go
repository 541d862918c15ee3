package cni_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

var modes = []string{cni.ModeRouted, cni.ModeBridge}

// A pod's whole life, in both modes, in every version of the specification.
func TestLifeOfAPod(t *testing.T) {
	for _, mode := range modes {
		for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			t.Run(mode+" "+version, func(t *testing.T) {
				n := newNode(t)
				n.warm(mode)
				before := n.dump()
				p := n.pod(n.conf(version, mode))
				r := p.add()
				checkResult(t, p, r, version, mode)
				checkPod(t, p, r, mode)
				checkRecord(t, p, r, mode)
				for _, addr := range r.addrs() {
					ping(t, n.ns, addr)
				}
				for _, gateway := range []string{gateway4, gateway6} {
					ping(t, p.ns, netip.MustParseAddr(gateway))
				}
				p.del()
				unchanged(t, "after DEL", before, n.dump())
				if out, err := try(p.ns, "ip link show eth0"); err == nil {
					t.Errorf("the pod still has eth0: %s", out)
				}
				p.del() // a second time
				unchanged(t, "after the second DEL", before, n.dump())
			})
		}
	}
}

func checkResult(t *testing.T, p *pod, r result, version, mode string) {
	t.Helper()
	if r.CNIVersion != version {
		t.Errorf("cniVersion %q, want %q", r.CNIVersion, version)
	}
	bits, at := []int{32, 128}, 1
	if mode == cni.ModeBridge {
		bits, at = []int{24, 64}, 2
		if r.Interfaces[0].Name != cni.DefaultBridge {
			t.Errorf("first interface is %+v, want the bridge", r.Interfaces[0])
		}
	}
	host, eth0 := r.Interfaces[at-1], r.Interfaces[at]
	if len(r.Interfaces) != at+1 || host.Name != podrecord.HostIfName(p.id, "eth0") || host.Sandbox != "" {
		t.Errorf("interfaces %+v", r.Interfaces)
	}
	if eth0.Name != "eth0" || eth0.Sandbox != "/run/netns/"+p.ns || eth0.Mac == "" {
		t.Errorf("the pod's interface is %+v", eth0)
	}
	wantMTU := 0
	if version == "1.1.0" {
		wantMTU = 1420
	}
	if eth0.Mtu != wantMTU {
		t.Errorf("mtu %d in the result, want %d", eth0.Mtu, wantMTU)
	}
	want := []string{
		fmt.Sprintf("10.244.1.3/%d via %s", bits[0], gateway4), fmt.Sprintf("fd00:10:244:1::3/%d via %s", bits[1], gateway6),
	}
	for i, ip := range r.IPs {
		family := []string{"4", "6"}[i]
		if got := ip.Address + " via " + ip.Gateway; got != want[i] || ip.Interface != at {
			t.Errorf("address %s on interface %d, want %s", got, ip.Interface, want[i])
		}
		if strings.HasPrefix(version, "0") && ip.Version != family {
			t.Errorf("version %q of address %s", ip.Version, ip.Address)
		}
	}
	if len(r.IPs) != 2 || len(r.Routes) != 2 || r.Routes[0].Dst != "0.0.0.0/0" || r.Routes[1].Dst != "::/0" ||
		r.Routes[0].GW != gateway4 || r.Routes[1].GW != gateway6 {
		t.Errorf("ips %+v, routes %+v", r.IPs, r.Routes)
	}
}

// checkPod looks at the pod as a program in it does.
func checkPod(t *testing.T, p *pod, r result, mode string) {
	t.Helper()
	addrs := sh(t, p.ns, "ip -o addr show dev eth0")
	for _, ip := range r.IPs {
		if !strings.Contains(addrs, " "+ip.Address+" ") {
			t.Errorf("the pod lacks %s:\n%s", ip.Address, addrs)
		}
	}
	// The link-local address becomes usable a moment later, when a kernel worker comes to it; nothing here needs it.
	if global := sh(t, p.ns, "ip -o addr show dev eth0 scope global"); strings.Contains(global, "tentative") {
		t.Errorf("an address is not usable yet:\n%s", global)
	}
	link := sh(t, p.ns, "ip -d link show dev eth0")
	for _, want := range []string{"mtu 1420", "gso_max_size 60000", r.Interfaces[len(r.Interfaces)-1].Mac, "state UP"} {
		if !strings.Contains(link, want) {
			t.Errorf("eth0 lacks %q:\n%s", want, link)
		}
	}
	routes := sh(t, p.ns, "ip route; ip -6 route")
	for _, gw := range []string{gateway4, gateway6} {
		if !strings.Contains(routes, "default via "+gw+" dev eth0") {
			t.Errorf("no default route via %s:\n%s", gw, routes)
		}
	}
	host := podrecord.HostIfName(p.id, "eth0")
	link = sh(t, p.n.ns, "ip -d link show dev "+host)
	if !strings.Contains(link, "alias warren pod: pods shop/"+p.id+" eth0") || !strings.Contains(link, "mtu 1420") {
		t.Errorf("the host's end:\n%s", link)
	}
	if mode == cni.ModeBridge {
		if !strings.Contains(link, "master "+cni.DefaultBridge) || !strings.Contains(link, "hairpin on") ||
			!strings.Contains(link, "isolated off") {
			t.Errorf("the port:\n%s", link)
		}
		return
	}
	neigh := sh(t, p.ns, "ip neigh") + sh(t, p.n.ns, "ip neigh")
	for _, addr := range []string{gateway4, gateway6, r.addrs()[0].String(), r.addrs()[1].String()} {
		if !strings.Contains(neigh, addr+" dev ") || strings.Count(neigh, "PERMANENT") != 4 {
			t.Errorf("no permanent entry for %s:\n%s", addr, neigh)
		}
	}
	for key, want := range map[string]string{"ipv4.conf.%s.rp_filter": "1", "ipv6.conf.%s.accept_ra": "0"} {
		key = fmt.Sprintf("net."+key, host)
		if got := strings.TrimSpace(sh(t, p.n.ns, "sysctl -n "+key)); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	hostRoutes := sh(t, p.n.ns, "ip route; ip -6 route")
	for i, gw := range []string{gateway4, gateway6} {
		addr := r.addrs()[i].String()
		if !strings.Contains(hostRoutes, addr+" dev "+host+" proto 87") || !strings.Contains(hostRoutes, "src "+gw) {
			t.Errorf("no route to %s with source %s:\n%s", addr, gw, hostRoutes)
		}
	}
}

func checkRecord(t *testing.T, p *pod, r result, mode string) {
	t.Helper()
	records, err := podrecord.List(p.n.state())
	if err != nil || len(records) != 1 {
		t.Fatalf("records %+v (%v), want one", records, err)
	}
	rec := records[0]
	if rec.ContainerID != p.id || rec.IfName != "eth0" || rec.Netns != "/run/netns/"+p.ns || rec.Network != "pods" ||
		rec.Mode != mode || rec.PodName != p.id || rec.PodNamespace != "shop" || rec.Since.IsZero() ||
		fmt.Sprint(rec.Addresses) != fmt.Sprint(r.addrs()) || rec.MAC != r.Interfaces[len(r.Interfaces)-1].Mac {
		t.Errorf("record %+v", rec)
	}
}

func TestPodsOfOneNodeReachEachOther(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			a, b := n.pod(n.conf("1.0.0", mode)), n.pod(n.conf("1.0.0", mode))
			ra, rb := a.add(), b.add()
			for i := range ra.addrs() {
				ping(t, a.ns, rb.addrs()[i])
				ping(t, b.ns, ra.addrs()[i])
				ping(t, a.ns, ra.addrs()[i])
			}
			b.del()
			ping(t, n.ns, ra.addrs()[0]) // the bridge stays as long as a pod is on it
			a.del()
		})
	}
}

// The address of a pod that left goes to another one: nobody may be left with the old one's hardware address.
func TestAddressChangesHands(t *testing.T) {
	n := newNode(t)
	n.confMore = `, "ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.8", "rangeEnd": "10.244.1.9"}]]`
	conf := n.conf("1.0.0", cni.ModeBridge)
	a, b, c := n.pod(conf), n.pod(conf), n.pod(conf)
	a.add()
	addr := b.add().addrs()[0]
	ping(t, a.ns, addr)
	ping(t, n.ns, addr)
	b.del()
	if got := c.add().addrs()[0]; got != addr {
		t.Fatalf("the third pod got %s, want %s", got, addr)
	}
	ping(t, a.ns, addr)
	ping(t, n.ns, addr)
}

func TestPodCannotUseAnotherAddress(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			a, b := n.pod(n.conf("1.0.0", mode)), n.pod(n.conf("1.0.0", mode))
			a.add()
			rb := b.add()
			for i, spoofed := range []string{"10.244.1.99/32", "fd00:10:244:1::99/128"} {
				sh(t, a.ns, "ip addr add "+spoofed+" dev eth0 nodad 2>/dev/null || ip addr add "+spoofed+" dev eth0")
				// The host would answer, and route the answer to where the address belongs: let it be the sender's interface.
				host := podrecord.HostIfName(a.id, "eth0")
				if mode == cni.ModeRouted {
					sh(t, n.ns, "ip route add "+spoofed+" dev "+host)
				}
				addr, _, _ := strings.Cut(spoofed, "/")
				for _, to := range []string{rb.addrs()[i].String(), []string{gateway4, gateway6}[i]} {
					if out, err := try(a.ns, "ping -c 1 -W 1 -I "+addr+" "+to); err == nil {
						t.Errorf("a ping from %s to %s was answered:\n%s", addr, to, out)
					}
				}
			}
			// That it was the source check, and nothing else in the way, shows when it is gone.
			sh(t, n.ns, "nft flush ruleset; for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
			sh(t, n.ns, "ip neigh flush all; ip -6 neigh flush all")
			sh(t, a.ns, "ip neigh flush all; ip -6 neigh flush all")
			if host := podrecord.HostIfName(a.id, "eth0"); mode == cni.ModeRouted {
				mac := sh(t, a.ns, "ip -o link show eth0 2>/dev/null | sed 's/.*ether \\([^ ]*\\).*/\\1/'")
				sh(t, n.ns, "ip neigh replace fd00:10:244:1::99 lladdr "+strings.TrimSpace(mac)+" dev "+host)
			}
			sh(t, a.ns, "ping -c 3 -W 2 -I 10.244.1.99 "+gateway4+" && ping -c 3 -W 2 -I fd00:10:244:1::99 "+gateway6)
		})
	}
}

func TestPreparedBridge(t *testing.T) {
	n := newNode(t)
	n.confMore = `, "bridge": "br-mine"`
	conf := n.conf("1.0.0", cni.ModeBridge)
	sh(t, n.ns, "ip link add br-mine mtu 1400 type bridge && ip link set br-mine addrgenmode none up && "+
		"ip addr add 192.0.2.1/24 dev br-mine")
	p := n.pod(conf)
	if _, err := n.do(p.call("ADD")); err == nil || !strings.Contains(err.Msg, "set mtu to 1400") {
		t.Errorf("a bridge with a smaller MTU: %+v", err)
	}
	sh(t, n.ns, "ip link set br-mine mtu 1500")
	look := func() string {
		return volatile().ReplaceAllString(sh(t, n.ns, "ip -br addr show br-mine; ip -br link show br-mine"), "")
	}
	bridge := look()
	p.add()
	p.del()
	unchanged(t, "the bridge after its last pod", bridge, look())
	before := n.dump()
	r := p.add()
	ping(t, p.ns, netip.MustParseAddr(gateway4))
	ping(t, p.ns, netip.MustParseAddr(gateway6))
	ping(t, n.ns, r.addrs()[1])
	p.del()
	unchanged(t, "the second time", before, n.dump())
	sh(t, n.ns, "ip link del br-mine && ip link add br-mine type veth peer name other")
	if _, err := n.do(p.call("ADD")); err == nil || !strings.Contains(err.Msg, "br-mine is a veth and not a bridge") {
		t.Errorf("a bridge that is none: %+v", err)
	}
}

func TestBridgeWithAnotherPortStays(t *testing.T) {
	n := newNode(t)
	p := n.pod(n.conf("1.0.0", cni.ModeBridge))
	p.add()
	sh(t, n.ns, "ip link add up0 type veth peer name up1 && ip link set up0 master "+cni.DefaultBridge)
	p.del()
	sh(t, n.ns, "ip link show "+cni.DefaultBridge)
}

func TestSeveralInterfaces(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	before := n.dump()
	p := n.pod(n.conf("1.0.0", cni.ModeRouted))
	out := n.must(p.call("ADD"))
	second := p.call("ADD")
	second.ifname = "net1"
	second.conf = strings.Replace(second.conf, `"mode"`, `"routes": [], "mode"`, 1) // eth0 has the default routes
	n.must(second.check(n.must(second)))
	n.must(p.call("CHECK").check(out))
	if out := sh(t, p.ns, "ip -o -4 addr"); !strings.Contains(out, "net1") || !strings.Contains(out, "eth0") {
		t.Errorf("interfaces of the pod:\n%s", out)
	}
	second.command = "DEL"
	n.must(second)
	ping(t, p.ns, netip.MustParseAddr(gateway4)) // eth0 goes on
	p.del()
	unchanged(t, "after both", before, n.dump())
}

func TestWhatTheRuntimeAsksFor(t *testing.T) {
	n := newNode(t)
	n.confMore = `, "capabilities": {"ips": true, "mac": true},
		"runtimeConfig": {"ips": ["10.244.1.50/24"], "mac": "02:00:00:00:00:77"}`
	p := n.pod(n.conf("1.0.0", cni.ModeRouted))
	p.args += ";IP=fd00:10:244:1::50"
	r := p.add()
	if got := fmt.Sprint(r.addrs()); got != "[10.244.1.50 fd00:10:244:1::50]" ||
		r.Interfaces[1].Mac != "02:00:00:00:00:77" {
		t.Errorf("addresses %s, hardware address %s", got, r.Interfaces[1].Mac)
	}
	ping(t, n.ns, r.addrs()[0])
	ping(t, n.ns, r.addrs()[1])
}

// What two on a bridge have, the bridge takes to one of them.
func TestHardwareAddressTaken(t *testing.T) {
	n := newNode(t)
	n.confMore = `, "bridge": "br0"`
	conf := n.conf("1.0.0", cni.ModeBridge)
	p, asking := n.pod(conf), n.pod(conf)
	sh(t, n.ns, "ip link add br0 address 02:00:00:00:00:01 type bridge && "+
		"ip link add port address 02:00:00:00:00:02 type veth peer name x && ip link set port master br0")
	own := p.add().Interfaces[2].Mac
	before := n.dump()
	for mac, want := range map[string]string{
		"02:00:00:00:00:01": "which bridge br0 itself has", "02:00:00:00:00:02": "which port port of bridge br0 has",
		strings.ToUpper(own): "which interface eth0 of container " + p.id + ", on the same bridge br0, has",
	} {
		asking.args = "IgnoreUnknown=1;MAC=" + mac
		_, err := n.do(asking.call("ADD"))
		refusedWith(t, mac, err, types.ErrInvalidNetworkConfig, want, "ask for another")
		unchanged(t, mac, before, n.dump())
	}
	asking.args = "IgnoreUnknown=1;MAC=02:00:00:00:00:03"
	asking.add()
	asking.del()
	p.del()
}

func TestWithoutTheDaemon(t *testing.T) {
	n := newNode(t)
	sh(t, "", "rm -r "+n.run())
	sh(t, n.ns, "ip addr flush dev lo")
	sh(t, n.ns, "ip addr add 127.0.0.1/8 dev lo")
	n.confMore = `, "podCIDRs": ["10.244.7.0/24"], "mtu": 1300, "routes": [{"dst": "10.0.0.0/8"}]`
	p := n.pod(n.conf("1.0.0", cni.ModeRouted))
	r := p.add()
	if r.addrs()[0].String() != "10.244.7.2" || len(r.IPs) != 1 || r.Routes[0].Dst != "10.0.0.0/8" {
		t.Errorf("result %+v", r)
	}
	routes := sh(t, p.ns, "ip route")
	if strings.Contains(routes, "default") || !strings.Contains(routes, "10.0.0.0/8 via 10.244.7.1") {
		t.Errorf("routes of the pod:\n%s", routes)
	}
	if out := sh(t, n.ns, "ip route"); !strings.Contains(out, "10.244.7.2 dev "+podrecord.HostIfName(p.id, "eth0")) {
		t.Errorf("routes of the host:\n%s", out)
	}
	p.del()
}

func TestVersionCommand(t *testing.T) {
	n := newNode(t)
	info, err := os.Stat(n.bin)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 12_000_000 {
		t.Errorf("the plugin has %d bytes, more than 12 MB", info.Size())
	}
	out := string(n.must(call{command: "VERSION", conf: `{"cniVersion": "1.0.0"}`}))
	for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		if !strings.Contains(out, `"`+v+`"`) {
			t.Errorf("version %s is not offered: %s", v, out)
		}
	}
	if out, err := exec.Command(n.bin).CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "Warren CNI plugin") {
		t.Errorf("without a command: %v\n%s", err, out)
	}
}

// A plugin before this one in the list: what it made comes first, and its addresses keep their interface.
func TestAfterAnotherPlugin(t *testing.T) {
	older := `"version": "4", `
	for version, field := range map[string]string{"0.3.1": older, "0.4.0": older, "1.0.0": "", "1.1.0": ""} {
		t.Run(version, func(t *testing.T) {
			n := newNode(t)
			n.confMore = fmt.Sprintf(`, "prevResult": {"cniVersion": %q, "interfaces": [{"name": "x0"}, {"name": "net1"}],
				"ips": [{%s"address": "198.51.100.5/24", "gateway": "198.51.100.1", "interface": 1}],
				"routes": [{"dst": "198.51.100.0/24", "gw": "198.51.100.1"}],
				"dns": {"nameservers": ["198.51.100.53"]}}`, version, field)
			r := n.pod(n.conf(version, cni.ModeRouted)).add()
			if len(r.Interfaces) != 4 || r.Interfaces[1].Name != "net1" || r.Interfaces[3].Name != "eth0" {
				t.Errorf("interfaces %+v", r.Interfaces)
			}
			if len(r.IPs) != 3 || r.IPs[0].Address != "198.51.100.5/24" || r.IPs[0].Interface != 1 || r.IPs[1].Interface != 3 {
				t.Errorf("addresses %+v", r.IPs)
			}
			if len(r.Routes) != 3 || r.Routes[0].Dst != "198.51.100.0/24" {
				t.Errorf("routes %+v", r.Routes)
			}
			if r.CNIVersion != version || strings.Join(r.DNS.Nameservers, " ") != "198.51.100.53" {
				t.Errorf("version %q, DNS %+v", r.CNIVersion, r.DNS)
			}
		})
	}
}

// What pods send out of the cluster is translated from the first pod to the last, also when a pod was forgotten.
func TestMasqueradeGoesWithTheLastPod(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			there := func() bool {
				out, err := try(n.ns, "nft list chain inet warren outgoing")
				return err == nil && strings.Contains(out, "masquerade")
			}
			first, second := n.pod(n.conf("1.1.0", mode)), n.pod(n.conf("1.1.0", mode))
			first.add()
			second.add()
			if !there() {
				t.Fatal("two pods, and nothing is translated")
			}
			first.del()
			if !there() {
				t.Error("the first of two pods left, and nothing is translated")
			}
			second.del()
			if there() {
				t.Error("the last pod left, and the translation stays")
			}
			first.add()
			sh(t, n.ns, "ip link del "+podrecord.HostIfName(first.id, "eth0")+
				" && rm -r "+filepath.Join(n.state(), "cni", "pods"))
			gc := strings.TrimSuffix(n.conf("1.1.0", mode), "}") + `, "cni.dev/valid-attachments": []}`
			n.must(call{command: "GC", conf: gc})
			if there() {
				t.Error("GC left the translation")
			}
		})
	}
}
