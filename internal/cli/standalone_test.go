package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/warren-net/warren/control/etcd"
	"github.com/warren-net/warren/control/etcd/etcdtest"
)

// TestOwnEtcd sets hosts up with an etcd that runs already.
func TestOwnEtcd(t *testing.T) {
	endpoint := "http://" + etcdtest.Start(t).Endpoints()[0]
	host := func(name string) []string {
		dir := t.TempDir()
		return []string{"--config", filepath.Join(dir, "warren.yaml"), "--state-dir", filepath.Join(dir, "lib"),
			"--run-dir", dir, "--node", name, "--no-start", "--etcd-endpoints", endpoint, "--network", "own"}
	}
	a, b := host("a"), host("b")
	must := func(args ...string) string {
		t.Helper()
		status, out, errOut := call(t, args...)
		if status != 0 {
			t.Fatalf("warren %v: %s", args, errOut)
		}
		return out
	}
	refused := func(want string, args ...string) {
		t.Helper()
		status, _, errOut := call(t, args...)
		if status != 1 || !strings.Contains(errOut, want) || strings.Count(errOut, "\n") != 1 {
			t.Errorf("warren %v: status %d, %q, want %q in one line", args, status, errOut, want)
		}
	}
	refused("there is no such network", append([]string{"join", "--address", "192.0.2.2"}, b...)...)
	out := must(append([]string{"init", "--address", "192.0.2.1", "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48",
		"--encapsulation", "vxlan"}, a...)...)
	if !strings.HasPrefix(out, "warren join --etcd-endpoints "+endpoint) || !strings.Contains(out, "--network own") {
		t.Error(out)
	}
	// Again, and with another range.
	must(append([]string{"init", "--address", "192.0.2.1", "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48",
		"--encapsulation", "vxlan"}, a...)...)
	refused("the network exists already, with other settings", append([]string{"init", "--address", "192.0.2.1",
		"--cluster-cidr", "10.1.0.0/16"}, a...)...)
	must(append([]string{"join", "--address", "192.0.2.2"}, b...)...)
	data, err := os.ReadFile(b[1])
	if err != nil || !strings.Contains(string(data), "encapsulation: vxlan") {
		t.Errorf("%s, %v", data, err)
	}
	// Not over another node's file.
	other := append([]string{}, b...)
	other[7] = "c"
	refused(`is the configuration of node "b"`, append([]string{"join", "--address", "192.0.2.3"}, other...)...)

	// Nobody makes a network that others are in.
	kv, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	if _, err := kv.Put(t.Context(), "/warren/v1/own/nodes/z", "{}"); err != nil {
		t.Fatal(err)
	}
	refused("is in that etcd already, with nodes (z): `warren join --etcd-endpoints "+endpoint+" --network own`",
		append([]string{"init", "--address", "192.0.2.3", "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48",
			"--encapsulation", "vxlan"}, host("d")...)...)
	if _, err := kv.Delete(t.Context(), "/warren/v1/own/nodes/z"); err != nil {
		t.Fatal(err)
	}

	config := []string{"--config", b[1]}
	refused("has no nodes in it, as its `control` is etcd",
		append([]string{"routes", "export", "--from-file"}, config...)...)
	var nodes []any
	if err := json.Unmarshal([]byte(must(append([]string{"nodes", "-o", "json"}, config...)...)), &nodes); err != nil ||
		len(nodes) != 0 {
		t.Errorf("%v, %v", nodes, err)
	}
	refused("is the user's own", append([]string{"token", "new"}, config...)...)
	refused("is the user's own", append([]string{"control", "promote", "--token", "x"}, config...)...)
	refused("there is no such node", append([]string{"leave", "--node", "c"}, config...)...)
	must(append([]string{"leave"}, config...)...)
	if _, err := os.Stat(b[1]); err == nil {
		t.Error("the configuration is there still")
	}
	refused("is out of its network already", append([]string{"leave"}, config...)...)
	if err := os.MkdirAll(etcd.Dir(b[3]), 0o700); err != nil {
		t.Fatal(err)
	}
	refused("`warren leave --node NAME` on a member", append([]string{"leave"}, config...)...)
}

// TestStandaloneFlags goes through what is refused before anything is asked.
func TestStandaloneFlags(t *testing.T) {
	dir := t.TempDir()
	static := filepath.Join(dir, "static.yaml")
	if err := os.WriteFile(static, []byte("node: a\ncluster: [10.244.0.0/16]\nnodes: [{name: a, addresses: [192.0.2.1], "+
		"podCIDRs: [10.244.1.0/24], encapsulation: vxlan}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	shared := t.TempDir()
	if err := os.Chmod(shared, 0o777); err != nil { //nolint:gosec // which is what is refused
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		`--encapsulation "ipsec"`:                           {"init", "--address", "192.0.2.1", "--encapsulation", "ipsec"},
		"--address 192.0.2.222: this host does not have it": {"init", "--address", "192.0.2.222"},
		"--token-uses 0":                                    {"init", "--address", "192.0.2.1", "--token-uses", "0"},
		"that is each host's own":                           {"init", "--address", "127.0.0.1"},
		"this host does not have it": {"join", "192.0.2.9", "--token", "abc", "--address", "192.0.2.222",
			"--no-start=false"},
		"`chmod go-w " + shared + "`": {"join", "192.0.2.9", "--address", "192.0.2.1", "--state-dir=" + shared},
		"the token with its flag":     {"join", "192.0.2.9", "abc"},
		"is the configuration of a node whose control plane is static": {"init", "--config", static, "--node", "a",
			"--address", "192.0.2.1"},
		"is inside of the pods' range 192.0.2.0/24": {"init", "--address", "192.0.2.1", "--cluster-cidr", "192.0.2.0/24"},
		`--cluster-cidr "x"`:                        {"init", "--address", "192.0.2.1", "--cluster-cidr", "x"},
		"holds no pod CIDR of /24":                  {"init", "--address", "192.0.2.1", "--cluster-cidr", "10.244.0.0/25"},
		`--address "localhost"`:                     {"init", "--address", "localhost"},
		"are of one family":                         {"init", "--address", "192.0.2.1", "--address", "192.0.2.2"},
		"etcd keeps that name for itself":           {"init", "--node", "root", "--address", "192.0.2.1"},
		"--etcd-endpoints needs --etcd-ca":          {"init", "--address", "192.0.2.1", "--etcd-endpoints", "192.0.2.9:2379"},
		"belong together":                           {"init", "--address", "192.0.2.1", "--etcd-cert", "x"},
		"say where to join and with what":           {"join", "--address", "192.0.2.1"},
		"not a token":                               {"join", "192.0.2.9", "--token", "abc", "--address", "192.0.2.1"},
		"there is no member to ask": {"join", "192.0.2.9", "--address", "192.0.2.1", "--etcd-endpoints",
			"http://192.0.2.9:2379"},
		"this command is for hosts that": {"nodes", "--config", static},
	} {
		if args[0] != "nodes" {
			args = slices.Concat(args[:1], []string{"--state-dir", dir, "--no-start"}, args[1:])
		}
		if !slices.Contains(args, "--config") {
			args = append(args, "--config", filepath.Join(dir, "warren.yaml"))
		}
		status, _, errOut := call(t, args...)
		if status != 1 || !strings.Contains(errOut, want) || strings.Count(errOut, "\n") != 1 {
			t.Errorf("warren %v: status %d, %q, want %q in one line", args, status, errOut, want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("something was left: %v, %v", entries, err)
	}
}

// TestTakenDown holds that a node can be taken down whose configuration is gone.
func TestTakenDown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "warren.yaml")
	var said strings.Builder
	if _, err := configLeft(path, true, &said); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
	cfg, err := configLeft(path, false, &said)
	if err != nil || cfg.Device != "warren0" || cfg.RunDir != defaultRunDir || !strings.Contains(said.String(), path) {
		t.Errorf("%+v, %v, %q", cfg, err, said.String())
	}
	left := "node: a\ncluster: [10.244.0.0/16]\ndevice: other0\nnodes: [{name: a, addresses: [192.0.2.1], " +
		"podCIDRs: [10.244.1.0/24], encapsulation: vxlan}]\n"
	if err := os.WriteFile(leftBy(path), []byte(left), 0o600); err != nil {
		t.Fatal(err)
	}
	if cfg, err := configLeft(path, true, &said); err != nil || cfg.Device != "other0" {
		t.Errorf("%+v, %v", cfg, err)
	}
}
