package cni_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/internal/nodefile"
)

// Each kind of bad input gets its code and a message, and leaves nothing behind.
func TestBadInput(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	good := n.conf("1.0.0", cni.ModeRouted)
	with := func(fields string) string { return strings.TrimSuffix(good, "}") + ", " + fields + "}" }
	p := n.pod(good)
	gone := filepath.Join(n.dir, "gone")
	if err := os.WriteFile(gone, nil, 0o600); err != nil { // what is left of a namespace's file after its end
		t.Fatal(err)
	}
	before := n.dump()
	for _, tc := range []struct {
		name string
		edit func(*call)
		code uint
		want []string // parts of message and details
	}{
		{"garbage", func(c *call) { c.conf = "hello" }, types.ErrDecodingFailure,
			[]string{"invalid character", "one JSON object"}},
		{"empty", func(c *call) { c.conf = "" }, types.ErrDecodingFailure, []string{"one JSON object"}},
		{"truncated", func(c *call) { c.conf = good[:40] }, types.ErrDecodingFailure, []string{"one JSON object"}},
		{"an array", func(c *call) { c.conf = "[]" }, types.ErrDecodingFailure, []string{"one JSON object"}},
		{"no name", func(c *call) { c.conf = `{"cniVersion": "1.0.0"}` }, types.ErrInvalidNetworkConfig, []string{"name"}},
		{"unknown version", func(c *call) { c.conf = n.conf("9.9.9", "routed") }, types.ErrIncompatibleCNIVersion,
			[]string{"9.9.9", "set cniVersion to one of 0.3.1, 0.4.0, 1.0.0, 1.1.0"}},
		{"no version", func(c *call) { c.conf = `{"name": "pods"}` }, types.ErrIncompatibleCNIVersion,
			[]string{"set cniVersion"}},
		{"old version", func(c *call) { c.conf = n.conf("0.2.0", "routed") }, types.ErrIncompatibleCNIVersion,
			[]string{"set cniVersion"}},
		{"unknown field", func(c *call) { c.conf = with(`"brigde": "x"`) }, types.ErrUnsupportedField,
			[]string{`"brigde" with value "x"`, "bridge"}},
		{"a field of others", func(c *call) { c.conf = with(`"ipMasq": true`) }, types.ErrUnsupportedField,
			[]string{"warren.yaml"}},
		{"other ipam", func(c *call) { c.conf = with(`"ipam": {"type": "no-such"}`) }, types.ErrInvalidNetworkConfig,
			[]string{`"no-such"`, "install that plugin"}},
		{"bad mode", func(c *call) { c.conf = n.conf("1.0.0", "switched") }, types.ErrInvalidNetworkConfig,
			[]string{`"routed" or "bridge"`}},
		{"outside the node", func(c *call) { c.conf = with(`"podCIDRs": ["10.9.0.0/24"]`) }, types.ErrInvalidNetworkConfig,
			[]string{"10.9.0.0/24", "outside the node's pod CIDRs"}},
		{"other state", func(c *call) { c.conf = strings.Replace(good, n.state(), "/var/tmp/x", 1) },
			types.ErrInvalidNetworkConfig,
			[]string{"set stateDir of network \"pods\" to the daemon's"}},
		{"no daemon", func(c *call) { c.conf = strings.Replace(good, n.run(), "/nonexistent", 1) }, types.ErrTryAgainLater,
			[]string{"start `warren up`, or put podCIDRs into the CNI configuration"}},
		{"missing netns", func(c *call) { c.netns = "" }, types.ErrInvalidEnvironmentVariables, []string{"CNI_NETNS"}},
		{"absent netns", func(c *call) { c.netns = "/run/netns/absent" }, types.ErrInvalidNetNS,
			[]string{"/run/netns/absent", "does not exist"}},
		{"a netns that is gone", func(c *call) { c.netns = gone }, types.ErrInvalidNetNS, []string{gone, "gone"}},
		{"a process that is gone", func(c *call) { c.netns = "/proc/4194304/ns/net" }, types.ErrInvalidNetNS,
			[]string{"gone"}},
		{"other namespace", func(c *call) { c.netns = "/proc/self/ns/mnt" }, types.ErrInvalidNetNS, []string{"another kind"}},
		{"proc file", func(c *call) { c.netns = "/proc/version" }, types.ErrInvalidNetNS, []string{"no namespace"}},
		{"a directory", func(c *call) { c.netns = n.dir }, types.ErrInvalidNetNS, []string{"no namespace"}},
		{"the host's", func(c *call) { c.netns = "/run/netns/" + n.ns }, types.ErrInvalidNetNS, []string{"the host's own"}},
		{"name taken", func(c *call) { c.ifname = "lo" }, cni.CodeInterfaceName, []string{"lo already", "CNI_IFNAME"}},
		{"no name", func(c *call) { c.ifname = "" }, types.ErrInvalidEnvironmentVariables, []string{"CNI_IFNAME"}},
		{"long name", func(c *call) { c.ifname = "interface-number-one" }, types.ErrInvalidEnvironmentVariables,
			[]string{"too long"}},
		{"odd id", func(c *call) { c.id = "../../etc" }, types.ErrInvalidEnvironmentVariables, []string{"containerID"}},
		{"unknown argument", func(c *call) { c.args = "SHOE_SIZE=44" }, types.ErrInvalidEnvironmentVariables,
			[]string{"SHOE_SIZE", "IgnoreUnknown"}},
		{"no pair", func(c *call) { c.args = "IgnoreUnknown" }, types.ErrInvalidEnvironmentVariables, []string{"KEY=VALUE"}},
		{"bad address", func(c *call) { c.args = "IP=ten" }, types.ErrInvalidEnvironmentVariables, []string{"IP=ten"}},
		{"foreign address", func(c *call) { c.args = "IP=10.1.1.1" }, types.ErrInvalidNetworkConfig,
			[]string{"10.1.1.1", "no range", "ask for an address of these ranges"}},
		{"multicast mac", func(c *call) { c.args = "MAC=01:00:5e:00:00:01" }, types.ErrInvalidNetworkConfig,
			[]string{"unicast"}},
		{"short mac", func(c *call) { c.args = "MAC=02:00" }, types.ErrInvalidNetworkConfig, []string{"six bytes"}},
		{"bad route", func(c *call) { c.conf = with(`"routes": [{"dst": "10.0.0.0/8", "gw": "10.244.1.200"}]`) },
			types.ErrInvalidNetworkConfig, []string{"leave gw out"}},
		{"bad prevResult", func(c *call) { c.conf = with(`"prevResult": {"cniVersion": "1.0.0", "ips": 7}`) },
			types.ErrDecodingFailure,
			[]string{"prevResult"}},
		{"unknown command", func(c *call) { c.command = "FROB" }, types.ErrInvalidEnvironmentVariables, []string{"FROB"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := p.call("ADD")
			tc.edit(&c)
			_, err := n.do(c)
			if err == nil {
				t.Fatal("ADD succeeded")
			}
			if err.Code != tc.code {
				t.Errorf("code %d, want %d", err.Code, tc.code)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Msg+" "+err.Details, part) {
					t.Errorf("%q (%q) does not say %q", err.Msg, err.Details, part)
				}
			}
		})
	}
	unchanged(t, "after all of them", before, n.dump())
	p.add() // and the pod can still be attached
}

// What makes room depends on what the network's addresses are a part of.
func TestFullPool(t *testing.T) {
	for name, tc := range map[string]struct{ more, cidr, hint string }{
		"of the node":          {"", "10.244.1.0/29", "give the node a larger pod CIDR"},
		"all of the node's":    {`, "ranges": [[{"subnet": "10.244.1.0/29"}]]`, "10.244.1.0/29", "a larger pod CIDR"},
		"narrower podCIDRs":    {`, "podCIDRs": ["10.244.1.0/29"]`, "10.244.1.0/24", `widen podCIDRs of network "pods"`},
		"narrower ranges":      {`, "ranges": [[{"subnet": "10.244.1.0/29"}]]`, "10.244.1.0/24", "widen ranges of"},
		"without the daemon's": {`, "podCIDRs": ["10.244.1.0/29"]`, "", `widen podCIDRs of network "pods"`},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.confMore = tc.more
			if tc.cidr == "" {
				if err := os.Remove(filepath.Join(n.run(), nodefile.Name)); err != nil {
					t.Fatal(err)
				}
			} else {
				n.file.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(tc.cidr)}
				n.file.Gateways = n.file.Gateways[:1]
				n.writeNodeFile()
			}
			conf := n.conf("1.1.0", cni.ModeRouted)
			for range 5 {
				n.pod(conf).add()
			}
			before := n.dump()
			late := n.pod(conf)
			const full = "all 5 addresses of 10.244.1.0/29 are in use"
			_, err := n.do(late.call("ADD"))
			refusedWith(t, "ADD", err, types.ErrTryAgainLater, full, tc.hint)
			unchanged(t, "a refused ADD", before, n.dump())
			_, err = n.do(late.call("STATUS"))
			refusedWith(t, "STATUS", err, types.ErrPluginNotAvailable, full, tc.hint)
		})
	}
}

func TestSameAddTwice(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			p := n.pod(n.conf("1.0.0", mode))
			r := p.add()
			before := n.dump()
			_, err := n.do(p.call("ADD"))
			if err == nil || err.Code != cni.CodeAttached || !strings.Contains(err.Msg, "delete it first (CNI DEL)") ||
				!strings.Contains(err.Msg, r.addrs()[0].String()) {
				t.Errorf("the second ADD: %+v", err)
			}
			unchanged(t, "the second ADD", before, n.dump())
			ping(t, n.ns, r.addrs()[0])
			ping(t, p.ns, netip.MustParseAddr(gateway6))
		})
	}
}

func TestInterfaceNameTaken(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	p := n.pod(n.conf("1.0.0", cni.ModeRouted))
	sh(t, p.ns, "ip link add eth0 type veth peer name other")
	before, pod := n.dump(), sh(t, p.ns, "ip -br link")
	_, err := n.do(p.call("ADD"))
	if err == nil || err.Code != cni.CodeInterfaceName || !strings.Contains(err.Msg, "eth0 already") {
		t.Errorf("ADD: %+v", err)
	}
	unchanged(t, "ADD", before, n.dump())
	p.del() // the runtime's clean-up leaves what is not ours
	unchanged(t, "the pod", pod, sh(t, p.ns, "ip -br link"))

	// The host's end taken by somebody: neither ADD nor its undoing harms it.
	host := podrecord.HostIfName("another", "eth0")
	sh(t, n.ns, "ip link add "+host+" type bridge")
	before = n.dump()
	q := n.pod(p.conf)
	q.id = "another"
	if _, err := n.do(q.call("ADD")); err == nil || !strings.Contains(err.Msg, host+" exists without a pod record") {
		t.Errorf("ADD with a taken host interface: %+v", err)
	}
	if _, err := n.do(q.call("DEL")); err == nil || !strings.Contains(err.Msg, "not the veth that Warren makes") {
		t.Errorf("DEL with a taken host interface: %+v", err)
	}
	unchanged(t, "with a taken host interface", before, n.dump())
}

func TestDelOnItsOwn(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.warm(mode)
			before := n.dump()
			p := n.pod(n.conf("1.0.0", mode))
			p.del() // before ADD
			unchanged(t, "DEL before ADD", before, n.dump())

			p.add()
			c := p.call("DEL")
			c.netns = ""
			n.must(c)
			unchanged(t, "DEL without netns", before, n.dump())

			q := n.pod(p.conf)
			q.add()
			sh(t, "", "ip netns del "+q.ns)
			q.del()
			unchanged(t, "DEL with a netns that is gone", before, n.dump())

			// The id of the pod's process, and with it the path, may be another process's by now.
			own := n.pod(p.conf)
			own.add()
			c = own.call("DEL")
			c.netns = "/run/netns/" + n.ns
			n.must(c)
			n.must(c)
			unchanged(t, "DEL with the host's own netns", before, n.dump())
			c.command = "ADD"
			if _, err := n.do(c); err == nil || err.Code != types.ErrInvalidNetNS {
				t.Errorf("ADD with the host's own netns: %+v", err)
			}

			// A configuration that ADD would refuse, and a run directory without a daemon.
			w := n.pod(p.conf)
			w.add()
			w.conf = strings.Replace(w.conf, `"mode"`, `"surprise": 1, "podCIDRs": "none", "runDir": "/nonexistent", "mode"`, 1)
			w.conf = strings.Replace(w.conf, `, "runDir": "`+n.run()+`"`, "", 1)
			w.del()
			unchanged(t, "DEL with a configuration that changed", before, n.dump())
		})
	}
}

func TestDelWithoutAnything(t *testing.T) {
	n := newNode(t)
	p := n.pod(n.conf("1.0.0", cni.ModeRouted))
	p.del()
	if files := n.files(); len(files) != 0 {
		t.Errorf("DEL on a fresh node made %v", files)
	}
	if _, err := os.Stat(n.state()); err == nil {
		t.Error("DEL on a fresh node made a state directory")
	}
}

// A container id is used again after a reboot, of which only the state directory tells.
func TestAddAfterReboot(t *testing.T) {
	n := newNode(t)
	p := n.pod(n.conf("1.0.0", cni.ModeBridge))
	first := p.add()
	sh(t, n.ns, "ip link del "+podrecord.HostIfName(p.id, "eth0")+"; ip link del "+cni.DefaultBridge+"; nft flush ruleset")
	second := p.add()
	if slices.Equal(first.addrs(), second.addrs()) {
		t.Logf("the address %s was given again at once", second.addrs()[0])
	}
	ping(t, n.ns, second.addrs()[0])
	records, err := podrecord.List(n.state())
	if err != nil || len(records) != 1 {
		t.Errorf("records %+v (%v)", records, err)
	}
	if ips, _ := filepath.Glob(filepath.Join(n.state(), "cni/ipam/pods/10.*")); len(ips) != 1 {
		t.Errorf("addresses in use: %v", ips)
	}
}

func TestBrokenState(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	before := n.dump()
	p := n.pod(n.conf("1.0.0", cni.ModeRouted))
	p.add()
	record := filepath.Join(podrecord.Dir(n.state()), podrecord.HostIfName(p.id, "eth0")+".json")
	if err := os.WriteFile(record, []byte(`{"containerID": "`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.do(p.call("ADD")); err == nil || err.Code != cni.CodeAttached {
		t.Errorf("ADD over a broken record: %+v", err)
	}
	p.del()
	unchanged(t, "DEL with a broken record", before, n.dump())

	if err := os.WriteFile(filepath.Join(n.run(), nodefile.Name), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.do(p.call("ADD")); err == nil || !strings.Contains(err.Msg, "restart `warren up`") {
		t.Errorf("ADD with a broken node file: %+v", err)
	}
	n.writeNodeFile()

	// A state directory that can't be written.
	ro := filepath.Join(n.dir, "state", "cni", "pods")
	sh(t, "", fmt.Sprintf("mount -t tmpfs -o ro,mode=700 none %s", ro))
	t.Cleanup(func() { _ = exec.Command("umount", ro).Run() })
	if _, err := n.do(p.call("ADD")); err == nil || err.Code != types.ErrIOFailure ||
		!strings.Contains(err.Msg, "read-only") {
		t.Errorf("ADD with a read-only state directory: %+v", err)
	}
	sh(t, "", "umount "+ro)
	unchanged(t, "after all", before, n.dump())
}

// A state directory that others can write to is refused by ADD and STATUS, and does not keep a pod from being deleted.
func TestStateOfOthers(t *testing.T) {
	n := newNode(t)
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	p.add()
	late := n.pod(n.conf("1.1.0", cni.ModeRouted))
	pods := podrecord.Dir(n.state())
	for _, tc := range []struct{ harm, undo, want string }{
		{"chown 65534 " + n.state(), "chown 0 " + n.state(), n.state() + " belongs to user 65534"},
		{"chmod o+w " + pods, "chmod o-w " + pods, pods + " has mode 0702"},
		{"mv " + n.state() + " " + n.dir + "/s && touch " + n.state(),
			"rm " + n.state() + " && mv " + n.dir + "/s " + n.state(), "is no directory"},
	} {
		sh(t, "", tc.harm)
		if _, err := n.do(late.call("ADD")); err == nil || err.Code != cni.CodeState || !strings.Contains(err.Msg, tc.want) {
			t.Errorf("ADD after %s: %+v", tc.harm, err)
		}
		if _, err := n.do(late.call("STATUS")); err == nil || err.Code != types.ErrPluginNotAvailable ||
			!strings.Contains(err.Msg, tc.want) {
			t.Errorf("STATUS after %s: %+v", tc.harm, err)
		}
		sh(t, "", tc.undo)
	}
	sh(t, "", "chown -R 65534 "+n.state())
	p.del()
	sh(t, "", "chown -R 0 "+n.state())
	late.add()
	late.del()
}
