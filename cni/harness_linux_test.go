package cni_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/nodefile"
)

// The gateways of the test node. The address of the daemon's device is on the loopback here: this kernel has no dummy
// device, and who owns the gateway makes no difference to the plugin.
const (
	gateway4 = "10.244.1.1"
	gateway6 = "fd00:10:244:1::1"
)

// binary builds the plugin once, as it is released.
var binary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(os.TempDir(), "warren-cni")
	out, err := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path,
		"../cmd/warren-cni").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building the plugin: %w\n%s", err, out)
	}
	return path, nil
})

// labPrefix begins the names of this package's namespaces and directories, as lab.Sweep knows them: "wrn-<prefix>-…".
const labPrefix = "cni"

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

// run keeps all files in one directory. What a run leaves that was killed, by a signal or after -timeout, the next one
// removes.
func run(m *testing.M) int {
	dir, err := workDir()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	return m.Run()
}

// workDir makes the directory, and lets everybody who asks for a temporary one make it there.
func workDir() (string, error) {
	if _, err := lab.Sweep(labPrefix, lab.SweepAbandoned); err != nil {
		fmt.Fprintf(os.Stderr, "what killed tests left can't be removed: %v\n", err)
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("wrn-%s-%d-", labPrefix, os.Getpid()))
	if err != nil {
		return "", err
	}
	return dir, os.Setenv("TMPDIR", dir)
}

var namespaces atomic.Int64

// namespace makes a network namespace that goes with the test.
func namespace(t testing.TB, kind string) string {
	t.Helper()
	name := fmt.Sprintf("wrn-%s-%s%d-%d", labPrefix, kind, namespaces.Add(1), os.Getpid())
	sh(t, "", "ip netns add "+name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	sh(t, name, "ip link set lo up")
	return name
}

// try runs a command line in a namespace ("" for the machine's own).
func try(ns, line string) (string, error) {
	args := []string{"sh", "-c", line}
	if ns != "" {
		args = append([]string{"nsenter", "--net=/run/netns/" + ns}, args...)
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

func sh(t testing.TB, ns, line string) string {
	t.Helper()
	out, err := try(ns, line)
	if err != nil {
		t.Fatalf("%s in %q: %v\n%s", line, ns, err, out)
	}
	return out
}

// node is a host in a network namespace, with the files that the daemon would keep.
type node struct {
	t        testing.TB
	ns, dir  string
	bin      string
	file     nodefile.File
	path     string   // CNI_PATH
	as       []string // beginning of a command line that runs the plugin as somebody else
	confMore string   // more fields for the network configuration, each with a comma before it
}

func newNode(t testing.TB) *node {
	t.Helper()
	lab.NeedRoot(t)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, ns: namespace(t, "n"), dir: t.TempDir(), bin: bin, path: filepath.Dir(bin)}
	n.file = nodefile.File{
		Node: "a", Device: "lo", MTU: 1420, GSOMaxSize: 60000, StateDir: n.state(), Table: 8787, RulePriority: 5200,
		Masquerade:   true,
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
		Gateways:     []netip.Addr{netip.MustParseAddr(gateway4), netip.MustParseAddr(gateway6)},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
	}
	n.writeNodeFile()
	sh(t, n.ns, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	sh(t, n.ns, "ip addr add "+gateway4+"/32 dev lo && ip addr add "+gateway6+"/128 dev lo nodad")
	return n
}

func (n *node) run() string   { return filepath.Join(n.dir, "run") }
func (n *node) state() string { return filepath.Join(n.dir, "state") }

func (n *node) writeNodeFile() {
	n.t.Helper()
	if err := nodefile.Write(n.run(), n.file); err != nil {
		n.t.Fatal(err)
	}
}

// conf is the network configuration for a mode.
func (n *node) conf(version, mode string) string {
	return fmt.Sprintf(
		`{"cniVersion": %q, "name": "pods", "type": "warren-cni", "mode": %q, "runDir": %q, "stateDir": %q%s}`,
		version, mode, n.run(), n.state(), n.confMore)
}

// call is one run of the plugin.
type call struct {
	command, id, ifname, netns, args string
	conf                             string
}

func (n *node) command(c call) *exec.Cmd {
	cmd := exec.Command("nsenter", append(append([]string{"--net=/run/netns/" + n.ns}, n.as...), n.bin)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + n.path, "CNI_COMMAND=" + c.command}
	for key, value := range map[string]string{
		"CNI_CONTAINERID": c.id, "CNI_IFNAME": c.ifname, "CNI_NETNS": c.netns, "CNI_ARGS": c.args,
	} {
		if value != "" {
			cmd.Env = append(cmd.Env, key+"="+value)
		}
	}
	cmd.Stdin = strings.NewReader(c.conf)
	return cmd
}

// do runs the plugin. What it prints must be what the specification has for the command: one JSON object that names a
// version, or, where DEL, CHECK, GC or STATUS succeeds, nothing.
func (n *node) do(c call) ([]byte, *types.Error) {
	n.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := n.command(c)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if stderr.Len() > 0 {
		n.t.Logf("%s %s says: %s", c.command, c.id, stderr.String())
	}
	if err == nil && c.command != "ADD" && c.command != "VERSION" {
		if stdout.Len() > 0 {
			n.t.Errorf("%s succeeded and printed %q", c.command, stdout.String())
		}
		return nil, nil
	}
	object := map[string]any{}
	if decodeErr := json.Unmarshal(stdout.Bytes(), &object); decodeErr != nil || !spoken(object["cniVersion"]) {
		n.t.Errorf("%s printed %q, which is not one JSON object with a version (%v)", c.command, stdout.String(), decodeErr)
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		n.t.Fatalf("%s %s ended with %v\n%s%s", c.command, c.id, err, stdout.String(), stderr.String())
	}
	var e types.Error
	if err := json.Unmarshal(stdout.Bytes(), &e); err != nil || e.Msg == "" || e.Code == 0 {
		n.t.Fatalf("%s printed no error object (%v): %q", c.command, err, stdout.String())
	}
	return stdout.Bytes(), &e
}

func spoken(version any) bool {
	v, _ := version.(string)
	return slices.Contains(cni.Versions().SupportedVersions(), v)
}

func (n *node) must(c call) []byte {
	n.t.Helper()
	out, err := n.do(c)
	if err != nil {
		n.t.Fatalf("%s %s: code %d: %s (%s)", c.command, c.id, err.Code, err.Msg, err.Details)
	}
	return out
}

// pod is a network namespace with what the runtime knows of it.
type pod struct {
	n          *node
	ns, id     string
	conf, args string
}

func (n *node) pod(conf string) *pod {
	n.t.Helper()
	ns := namespace(n.t, "p")
	return &pod{n: n, ns: ns, id: ns, conf: conf, args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=" + ns}
}

func (p *pod) call(command string) call {
	return call{command: command, id: p.id, ifname: "eth0", netns: "/run/netns/" + p.ns, args: p.args, conf: p.conf}
}

// result is a result of any version from 0.3.1 on.
type result struct {
	CNIVersion string
	Interfaces []struct {
		Name, Mac, Sandbox string
		Mtu                int
	}
	IPs []struct {
		Version, Address, Gateway string
		Interface                 int
	}
	Routes []struct{ Dst, GW string }
	DNS    types.DNS
}

func (r result) addrs() []netip.Addr {
	var addrs []netip.Addr
	for _, ip := range r.IPs {
		addrs = append(addrs, netip.MustParsePrefix(ip.Address).Addr())
	}
	return addrs
}

func (p *pod) add() result {
	p.n.t.Helper()
	var r result
	out := p.n.must(p.call("ADD"))
	if err := json.Unmarshal(out, &r); err != nil {
		p.n.t.Fatalf("result of ADD: %v\n%s", err, out)
	}
	return r
}

func (p *pod) del() {
	p.n.t.Helper()
	p.n.must(p.call("DEL"))
}

// ping sends one packet and expects the answer at once.
func ping(t testing.TB, ns string, to netip.Addr) {
	t.Helper()
	if out, err := try(ns, "ping -c 1 -W 2 "+to.String()); err != nil {
		t.Errorf("ping %s from %s: %v\n%s", to, ns, err, out)
	}
}

// volatile is what changes in a dump by itself: counters, and the carrier, which the kernel notices a little later.
func volatile() *regexp.Regexp {
	return regexp.MustCompile(`packets \d+ bytes \d+|(valid|preferred)_lft \S+|@if\d+|NO-CARRIER,|,LOWER_UP|` +
		` +(UP|DOWN|UNKNOWN) +|linkdown *|(?m)^multicast ff00::/8 dev wrn.*$`)
}

// dump is the kernel state of the node's namespace and the files of its state directory.
func (n *node) dump() string {
	n.t.Helper()
	out := sh(n.t, n.ns, "ip -br link; ip -br addr; ip rule; ip -6 rule; ip neigh show nud permanent; ip route show "+
		"table all; "+
		"ip -6 route show table all; nft list ruleset")
	lines := strings.Split(volatile().ReplaceAllString(out, ""), "\n")
	sort.Strings(lines)
	return strings.Join(lines, "\n") + "\n" + strings.Join(n.files(), "\n")
}

// files lists the state directory but for what is there for good: locks and the memory of the round robin.
func (n *node) files() []string {
	n.t.Helper()
	var files []string
	err := filepath.WalkDir(n.state(), func(path string, d fs.DirEntry, err error) error {
		name := filepath.Base(path)
		if err != nil || d.IsDir() || name == "lock" || name == ".lock" || strings.HasPrefix(name, "last.") {
			return err
		}
		files = append(files, strings.TrimPrefix(path, n.state()))
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Fatal(err)
	}
	return files
}

// warm lets the plugin make what stays after the last pod: the tables of the source check.
func (n *node) warm(mode string) {
	n.t.Helper()
	p := n.pod(n.conf("1.0.0", mode))
	p.add()
	p.del()
}

// unchanged compares two dumps.
func unchanged(t testing.TB, what, before, after string) {
	t.Helper()
	if before == after {
		return
	}
	seen := map[string]int{}
	for line := range strings.SplitSeq(before, "\n") {
		seen[line]++
	}
	for line := range strings.SplitSeq(after, "\n") {
		if seen[line]--; seen[line] < 0 && line != "" {
			t.Errorf("%s: left behind: %s", what, line)
		}
	}
	for line, count := range seen {
		if count > 0 && line != "" {
			t.Errorf("%s: gone: %s", what, line)
		}
	}
}
