package cni_test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

// What somebody can get wrong has a code that says where, a text that says what, and what to do. It changes nothing,
// and DEL, with which a runtime ends a failed ADD, succeeds.
func TestErrorsSayWhatToDo(t *testing.T) {
	n := newNode(t)
	n.warm(cni.ModeRouted)
	good := n.conf("1.0.0", cni.ModeRouted)
	with := func(fields string) string { return strings.TrimSuffix(good, "}") + ", " + fields + "}" }
	before := n.dump()
	for name, tc := range map[string]struct {
		edit func(*call)
		code uint
		want []string
	}{
		"two addresses of one range": {func(c *call) { c.args = "IP=10.244.1.7,10.244.1.8" }, types.ErrInvalidNetworkConfig,
			[]string{"10.244.1.7 and 10.244.1.8", "ask for one of them"}},
		"a pattern as name": {func(c *call) { c.ifname = "eth%d" }, types.ErrInvalidEnvironmentVariables,
			[]string{`CNI_IFNAME is "eth%d"`, "choose a name like eth0"}},
		"the name of all": {func(c *call) { c.ifname = "all" }, types.ErrInvalidEnvironmentVariables,
			[]string{`CNI_IFNAME is "all"`, "/proc/sys/net"}},
		"the default name": {func(c *call) { c.ifname = "default" }, types.ErrInvalidEnvironmentVariables,
			[]string{`CNI_IFNAME is "default"`}},
		"a name of no text": {func(c *call) { c.ifname = "eth\xff" }, types.ErrInvalidEnvironmentVariables,
			[]string{"CNI_IFNAME", "not UTF-8"}},
		"a name with a slash": {func(c *call) { c.ifname = "a/b" }, types.ErrInvalidEnvironmentVariables,
			[]string{`CNI_IFNAME is "a/b": it must have 1 to 15 bytes`}},
		"a name that is too long": {func(c *call) { c.ifname = "interface-number-one" }, types.ErrInvalidEnvironmentVariables,
			[]string{`CNI_IFNAME is "interface-number-one"`}},
		"an old GC": {func(c *call) { c.command = "GC" }, types.ErrIncompatibleCNIVersion,
			[]string{"there is GC from 1.1.0 on: set cniVersion to 1.1.0"}},
		"an old STATUS": {func(c *call) { c.command = "STATUS" }, types.ErrIncompatibleCNIVersion,
			[]string{"there is STATUS from 1.1.0 on: set cniVersion to 1.1.0"}},
		"an old CHECK": {func(c *call) { c.command, c.conf = "CHECK", n.conf("0.3.1", cni.ModeRouted) },
			types.ErrIncompatibleCNIVersion,
			[]string{"there is CHECK from 0.4.0 on: set cniVersion to one of 0.4.0, 1.0.0, 1.1.0"}},
		"a version of letters": {func(c *call) { c.command, c.conf = "STATUS", n.conf("new", cni.ModeRouted) },
			types.ErrDecodingFailure, []string{`"new"`, "cniVersion must be three numbers"}},
		"an odd id": {func(c *call) { c.id = "a b" }, types.ErrInvalidEnvironmentVariables,
			[]string{"CNI_CONTAINERID must begin with"}},
		"an unknown command": {func(c *call) { c.command = "FROB" }, types.ErrInvalidEnvironmentVariables,
			[]string{"it is one of ADD, DEL"}},
		"an odd network": {func(c *call) { c.conf = strings.Replace(c.conf, `"pods"`, `"a/b"`, 1) },
			types.ErrInvalidNetworkConfig, []string{"name must begin with"}},
		"a long network": {func(c *call) { c.conf = strings.Replace(c.conf, "pods", strings.Repeat("n", 256), 1) },
			types.ErrInvalidNetworkConfig, []string{"name has 256 bytes: it must have at most 255"}},
		"a version that is none": {func(c *call) { c.conf = strings.Replace(c.conf, `"1.0.0"`, `7`, 1) },
			types.ErrDecodingFailure, []string{`cniVersion must be a string`}},
		"an ipam of nobody": {func(c *call) { c.conf = with(`"ipam": {"ranges": [[{"subnet": "10.244.1.0/24"}]]}`) },
			types.ErrInvalidNetworkConfig, []string{"ipam has ranges, but no type", "ipam.type"}},
		"an unknown field": {func(c *call) { c.conf = with(`"vlan": {"id": 7}`) }, types.ErrUnsupportedField,
			[]string{`"vlan" with value {"id": 7}`}},
	} {
		t.Run(name, func(t *testing.T) {
			c := n.pod(good).call("ADD")
			tc.edit(&c)
			_, err := n.do(c)
			if err == nil || err.Code != tc.code {
				t.Fatalf("ADD: %+v, want code %d", err, tc.code)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Msg+"\n"+err.Details, part) {
					t.Errorf("%q (%q) does not say %q", err.Msg, err.Details, part)
				}
			}
			unchanged(t, "ADD", before, n.dump())
			if name == "a long network" || strings.HasSuffix(name, "name") {
				c.command = "DEL"
				n.must(c)
			}
		})
	}
}

// An error names the version of the configuration it is about, or the newest where there is none.
func TestErrorVersion(t *testing.T) {
	n := newNode(t)
	for conf, want := range map[string]string{
		n.conf("0.4.0", "switched"): "0.4.0", n.conf("1.0.0", "switched"): "1.0.0", n.conf("9.9.9", "routed"): "1.1.0",
		"garbage": "1.1.0",
	} {
		out, err := n.do(n.pod(conf).call("ADD"))
		var said struct{ CNIVersion string }
		if jsonErr := json.Unmarshal(out, &said); err == nil || jsonErr != nil || said.CNIVersion != want {
			t.Errorf("%.30s: %s (%v), want version %s", conf, out, jsonErr, want)
		}
	}
}

// A state directory that can't be written is a failure of I/O, and not the plugin's own.
func TestStateThatCantBeWritten(t *testing.T) {
	n := newNode(t)
	sh(t, "", "mkdir -p "+n.state())
	t.Cleanup(func() { _ = exec.Command("umount", n.state()).Run() })
	for _, tc := range []struct{ mount, want string }{
		{"mount -t tmpfs -o ro,mode=755 none " + n.state(), "mount it writable"},
		{"mount -t tmpfs -o size=64k,mode=755 none " + n.state() + " && mkdir -p " + podrecord.Dir(n.state()) +
			" && chmod 700 " + n.state() + "/cni && head -c 1M /dev/zero > " + n.state() + "/fill 2>/dev/null; true",
			"make room"},
	} {
		sh(t, "", tc.mount)
		for _, mode := range modes {
			_, err := n.do(n.pod(n.conf("1.0.0", mode)).call("ADD"))
			if err == nil || err.Code != types.ErrIOFailure || !strings.Contains(err.Details, tc.want) {
				t.Errorf("%s: %+v, want code %d and %q", fmt.Sprintf("%.40s", tc.mount), err, types.ErrIOFailure, tc.want)
			}
		}
		sh(t, "", "umount "+n.state())
	}
}

// Both ways of asking may ask for the same: an address twice is one, and of two hardware addresses runtimeConfig's is
// taken, as in upstream's plugins.
func TestAskedForTwice(t *testing.T) {
	n := newNode(t)
	n.confMore = `, "runtimeConfig": {"ips": ["10.244.1.50/24", "10.244.1.50"], "mac": "02:00:00:00:00:11"}`
	p := n.pod(n.conf("1.0.0", cni.ModeRouted))
	p.args = "IP=10.244.1.50;MAC=02:00:00:00:00:22"
	r := p.add()
	if r.addrs()[0].String() != "10.244.1.50" || r.Interfaces[1].Mac != "02:00:00:00:00:11" {
		t.Errorf("result %+v", r)
	}
}
