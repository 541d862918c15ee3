package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/hostnet"
	"github.com/warren-net/warren/node/api"
)

// call runs the program and returns what it said.
func call(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	status = Run(context.Background(), Invocation{Args: args, Stdout: &out, Stderr: &errOut})
	return status, out.String(), errOut.String()
}

type fake struct{ pods error }

func (fake) Status() api.Status {
	return api.Status{
		Node: "a", Version: "v9", PID: 7, UptimeSeconds: 61, Config: "/etc/w.yaml",
		Device: api.Device{Name: "warren0", Queues: 2, MTU: 1420},
		Tunnel: api.Tunnel{
			Encapsulation: "vxlan", VNI: 1, Port: 4789, MAC: "0e:57:c0:00:02:01",
			Underlay: []api.Underlay{{Address: netip.MustParseAddr("192.0.2.1"), Device: "eth0", MTU: 1500},
				{Address: netip.MustParseAddr("2001:db8::1")}},
			WireGuardPort: 51820, PublicKeys: []string{"NEW=", "OLD="},
		},
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
		Gateways:     []netip.Addr{netip.MustParseAddr("10.244.1.1")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00::/48")},
		Offloads:     []api.Offload{{Name: "tun-tso", Enabled: true}, {Name: "udp-gso", Reason: "configuration"}},
		Workers:      []api.Worker{{ID: 0, TxSuperpackets: 12, Wakeups: 5}},
		Snapshot:     api.Snapshot{Generation: 3, Peers: 2, Routes: 9},
		LastReload:   &api.Reload{Error: "w.yaml:3: bad"},
		Warnings:     []string{"the path is narrow"},
	}
}

func (fake) Peers() []api.Peer {
	seen := time.Now().Add(-3 * time.Second)
	return []api.Peer{
		{
			Name: "b", Encapsulation: "vxlan", Endpoint: netip.MustParseAddrPort("192.0.2.2:4789"),
			MAC: "0e:57:c0:00:02:02", MTU: 1420, TxPackets: 5,
			LastSeen: &seen,
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:0:0:2::/64")},
		},
		{
			Name: "long-name", Encapsulation: "wireguard", Endpoint: netip.MustParseAddrPort("[2001:db8::3]:4789"),
			PublicKey: "THEIRS=",
		},
		{Name: "away", Encapsulation: "wireguard", PublicKey: "ITS="},
		{
			Name: "near", Encapsulation: "direct", Endpoint: netip.MustParseAddrPort("192.0.2.4:4789"),
			PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244.4.0/24")},
			Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.4")},
			Direct: []api.DirectRoute{{
				Prefix: netip.MustParsePrefix("10.244.4.0/24"), NextHop: netip.MustParseAddr("192.0.2.254"), Device: "eth0",
			}},
		},
	}
}

func (fake) Routes() []api.Route {
	return []api.Route{{Prefix: netip.MustParsePrefix("10.244.2.0/24"), Kind: "peer", Peer: "b"},
		{Prefix: netip.MustParsePrefix("10.244.4.0/24"), Kind: "peer", Peer: "near", Device: "eth0",
			NextHop: netip.MustParseAddr("192.0.2.254")},
		{Prefix: netip.MustParsePrefix("10.244.0.0/16"), Kind: "unreachable"}}
}

func (f fake) Pods() ([]api.Pod, error) {
	return []api.Pod{{
		Namespace: "default", Name: "web", ContainerID: "0123456789abcdef0123", Interface: "eth0", HostInterface: "wrn1",
		Mode: "routed", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00::2")},
		Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), TxBytes: 700, RxBytes: 80,
	}, {HostInterface: "wrn2", Problem: "its record is torn\x1b"}, {ContainerID: "short", Interface: "eth0"},
		{ContainerID: "odd", Name: "web\x1b[2J\nx"}}, f.pods
}

func (fake) Drops() []api.Drop {
	return []api.Drop{{Reason: "truncated", Count: 3, Meaning: "cut off"}, {Reason: "wrong-vni",
		Meaning: "another network"}}
}

func serve(t *testing.T, src api.Source) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "warren.sock")
	l, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	srv := api.NewServer(api.Handler(src))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(func() { _ = srv.Close(); wg.Wait() })
	return path
}

func TestTables(t *testing.T) {
	sock := serve(t, fake{})
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"status"}, []string{
			"node           a (v9, pid 7, up 1m1s)\n", "device         warren0, 2 queues, MTU 1420\n",
			"encapsulation  vxlan\n", "vxlan          VNI 1, UDP port 4789, VTEP 0e:57:c0:00:02:01\n",
			"wireguard      UDP port 51820, public key NEW=, before OLD=\n",
			"underlay       192.0.2.1 on eth0, MTU 1500\n", "underlay       2001:db8::1 on no device\n",
			"pods           10.244.1.0/24, gateway 10.244.1.1\n", "cluster        10.244.0.0/16,fd00::/48\n",
			"the old state stays in force: w.yaml:3: bad\n", "warning        the path is narrow\n",
			"\nOFFLOAD  STATE  WHY\ntun-tso  on     -\nudp-gso  off    configuration\n", "\nWORKER  TX SUPERPACKETS",
		}},
		{[]string{"peers"}, []string{
			"NAME       ENCAPSULATION  ENDPOINT",
			"b          vxlan          192.0.2.2:4789            10.244.2.0/24,fd00:0:0:2::/64", "3s ago     -\n",
			"long-name  wireguard      [2001:db8::3]:4789        -", "never      never\n", "away       wireguard      unknown ",
			"near       direct         via 192.0.2.254 dev eth0  10.244.4.0/24 ",
		}},
		{[]string{"routes"},
			[]string{"PREFIX         KIND         PEER  DIRECT\n10.244.2.0/24  peer         b     -\n",
				"10.244.4.0/24  peer         near  via 192.0.2.254 dev eth0\n", "10.244.0.0/16  unreachable  -     -\n"}},
		{[]string{"pods"}, []string{"default/web  0123456789ab  eth0       wrn1            routed  10.244.1.2,fd00::2  " +
			"2026-01-02T03:04:05Z  700       80\n", "-            -             -          wrn2 ",
			"\nproblem  wrn2: its record is torn?\n",
			"-            short ", "web?[2J?x    odd "}},
		{[]string{"drops"}, []string{"REASON     COUNT  MEANING\ntruncated  3      cut off\n"}},
		{[]string{"drops", "-a"}, []string{"wrong-vni  0      another network\n"}},
	} {
		status, out, errOut := call(t, append(c.args, "--socket", sock)...)
		if status != 0 || errOut != "" {
			t.Errorf("%v: status %d, %s", c.args, status, errOut)
		}
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in\n%s", c.args, want, out)
			}
		}
	}
}

func TestJSON(t *testing.T) {
	sock := serve(t, fake{})
	for _, what := range []string{"status", "peers", "routes", "pods", "drops"} {
		status, out, errOut := call(t, what, "-o", "json", "--socket", sock)
		var v any
		if err := json.Unmarshal([]byte(out), &v); status != 0 || errOut != "" || err != nil {
			t.Errorf("%s: status %d, %v, %s", what, status, err, errOut)
		}
	}
	_, out, _ := call(t, "drops", "-o", "json", "--socket", sock)
	if strings.Contains(out, "wrong-vni") {
		t.Error("a reason that was never counted is shown without -a")
	}
}

func TestSocketFromConfig(t *testing.T) {
	sock := serve(t, fake{})
	dir := filepath.Dir(sock)
	file := filepath.Join(dir, "w.yaml")
	text := "node: a\nencapsulation: vxlan\ncluster: [10.244.0.0/16]\n" +
		"nodes: [{name: a, addresses: [192.0.2.1], podCIDRs: [10.244.1.0/24]}]\nrunDir: " + dir + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// Also when the file has become wrong since the node read it.
	for _, change := range []string{"", "nonsense: true\n"} {
		if err := os.WriteFile(file, []byte(text+change), 0o600); err != nil {
			t.Fatal(err)
		}
		status, out, errOut := call(t, "routes", "--config", file)
		if status != 0 || !strings.Contains(out, "10.244.2.0/24") {
			t.Errorf("status %d: %s%s", status, out, errOut)
		}
	}
}

// TestErrors: every error is one line on standard error, and names what to do.
func TestErrors(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.yaml")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sock := serve(t, fake{pods: errors.New("records are unreadable\nboth of them")})
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"status", "--socket", dir + "/none"},
			"warren: no node daemon answers at " + dir + "/none; start it with `warren up`"},
		{[]string{"status", "--socket", sock, "-o", "xml"}, `warren: output format "xml": use table or json`},
		{[]string{"status", "--config", dir + "/none"},
			"warren: " + dir + "/none: there is no such file; name another with --config"},
		{[]string{"up", "--config", empty}, "warren: " + empty + ": the file is empty; it needs"},
		{[]string{"down", "--config", empty}, "the file is empty"},
		{[]string{"check", "--config", empty}, "the file is empty"},
		{[]string{"check", "-o", "xml"}, `output format "xml": use table or json`},
		{[]string{"pods", "--socket", sock}, "warren: the node daemon answers: records are unreadable; both of them"},
		{[]string{"staus"}, `warren: unknown command "staus" for "warren"`},
		{[]string{"status", "extra"}, `warren: unknown command "extra" for "warren status"`},
		{[]string{"status", "--sokcet", "x"}, "warren: unknown flag: --sokcet; see `warren status --help`"},
	} {
		status, out, errOut := call(t, c.args...)
		if status != 1 || out != "" {
			t.Errorf("%v: status %d, standard output %q", c.args, status, out)
		}
		if !strings.Contains(errOut, c.want) || strings.Count(errOut, "\n") != 1 {
			t.Errorf("%v: got  %s\nwant %s", c.args, errOut, c.want)
		}
	}
}

func TestHelpVersionCompletion(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--help"}, "warren up"},
		{nil, "Available Commands"},
		{[]string{"version"}, "warren "},
		{[]string{"--version"}, "warren " + versions() + "\n"},
		{[]string{"completion", "bash"}, "__start_warren"},
		{[]string{"__complete", "status", "-o", ""}, "json"},
	} {
		if status, out, errOut := call(t, c.args...); status != 0 || !strings.Contains(out, c.want) {
			t.Errorf("%v: status %d\n%s%s", c.args, status, out, errOut)
		}
	}
}

func TestCheckReport(t *testing.T) {
	findings := []hostnet.Finding{
		{Level: hostnet.OK, What: "TUN", Why: "can be opened"},
		{Level: hostnet.Warning, What: "MTU", Why: "is small", Mend: "`ip link set eth0 mtu 1500`"},
	}
	var out bytes.Buffer
	if err := report(&out, findings, "table"); err != nil {
		t.Error(err)
	}
	want := "ok       TUN: can be opened\nwarning  MTU: is small\n         mend: `ip link set eth0 mtu 1500`\n" +
		"1 ok, 1 warning, 0 errors\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	err := report(&out, append(findings, hostnet.Finding{Level: hostnet.Error, What: "port"}), "json")
	if !errors.Is(err, errSilent) || !strings.Contains(out.String(), `"level": "error"`) {
		t.Errorf("%v: %s", err, out.String())
	}
}

// TestRoutesExport asks a running node, and a file, for what a router needs.
func TestRoutesExport(t *testing.T) {
	sock := serve(t, fake{})
	file := filepath.Join(t.TempDir(), "w.yaml")
	text := "node: a\nencapsulation: direct\ncluster: [10.244.0.0/16]\nnodes:\n" +
		"- {name: a, addresses: [192.0.2.1], podCIDRs: [10.244.1.0/24]}\n" +
		"- {name: b, addresses: [192.0.2.2], podCIDRs: [10.244.2.0/24]}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args           []string
		status         int
		out, errOut    string
		notInTheAnswer string
	}{
		{args: []string{"--socket", sock}, out: "ip route replace 10.244.1.0/24 via 192.0.2.1 proto static # a\n" +
			"ip route replace 10.244.4.0/24 via 192.0.2.4 proto static # near\n", notInTheAnswer: "10.244.2.0"},
		{args: []string{"--socket", sock, "--format", "bird", "--node", "near"},
			out: "\troute 10.244.4.0/24 via 192.0.2.4; # near\n", notInTheAnswer: "10.244.1.0"},
		{args: []string{"--socket", sock, "--node", "far"}, status: 1,
			errOut: "warren: --node far: there is no such node; there are a, near\n"},
		{args: []string{"--from-file", "--config", file, "--format", "frr"},
			out: "! a\nip route 10.244.1.0/24 192.0.2.1\n! b\nip route 10.244.2.0/24 192.0.2.2\n"},
		{args: []string{"--from-file", "--config", file, "--format", "ios"}, status: 1,
			errOut: "warren: format \"ios\": use one of ip, bird, frr\n"},
		{args: []string{"--from-file", "--config", file + ".not"}, status: 1, errOut: "warren: "},
	} {
		status, out, errOut := call(t, append([]string{"routes", "export"}, c.args...)...)
		if status != c.status || !strings.Contains(out, c.out) || !strings.Contains(errOut, c.errOut) ||
			c.notInTheAnswer != "" && strings.Contains(out, c.notInTheAnswer) {
			t.Errorf("%v: status %d\n%s%s", c.args, status, out, errOut)
		}
	}
}
