package nodefile_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/nodefile"
)

func sample() nodefile.File {
	return nodefile.File{
		Node:         "a",
		Device:       "warren0",
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
		Gateways:     []netip.Addr{netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00:10:244:1::1")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		MTU:          1420,
		GSOMaxSize:   65000,
		Masquerade:   true,
		Table:        8787,
		RulePriority: 5200,
		StateDir:     "/var/lib/warren",
	}
}

func TestWriteRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "warren")
	for _, mtu := range []int{1420, 1300} {
		want := sample()
		want.MTU = mtu
		if err := nodefile.Write(dir, want); err != nil {
			t.Fatal(err)
		}
		got, err := nodefile.Read(dir)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("read\n%+v\nwant\n%+v", got, want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the run directory holds %v (%v), want one file", entries, err)
	}
}

func TestReadSaysWhatToDo(t *testing.T) {
	for _, tc := range []struct{ name, content, want string }{
		{"missing", "", "start `warren up`, or put podCIDRs into the CNI configuration"},
		{"empty", "\n", "is empty: restart `warren up`"},
		{"truncated", `{"node": "a", "podCIDRs": ["10.2`, "is not what the daemon writes"},
		{"not JSON", "hello", "is not what the daemon writes"},
		{"bad CIDR", `{"podCIDRs": ["10.244.1.0/99"]}`, "is not what the daemon writes"},
		{"no CIDR", `{"node": "a"}`, "podCIDRs is empty"},
		{"host bits", `{"podCIDRs": ["10.244.1.7/24"], "gateways": ["10.244.1.1"], "mtu": 1420}`, "not a network's address"},
		{"no gateway", `{"podCIDRs": ["10.244.1.0/24"], "mtu": 1420}`, "0 gateways for 1 podCIDRs"},
		{"gateway elsewhere", `{"podCIDRs": ["10.244.1.0/24"], "gateways": ["10.1.1.1"], "mtu": 1420}`,
			"not inside its pod CIDR"},
		{"no MTU", `{"podCIDRs": ["10.244.1.0/24"], "gateways": ["10.244.1.1"]}`, "mtu is 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.content != "" {
				if err := os.WriteFile(filepath.Join(dir, nodefile.Name), []byte(tc.content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := nodefile.Read(dir)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "warren up") {
				t.Errorf("got %v, want it to say %q and what to do", err, tc.want)
			}
			if got := errors.Is(err, nodefile.ErrMissing); got != (tc.content == "") {
				t.Errorf("errors.Is(err, ErrMissing) = %v", got)
			}
		})
	}
}

func TestWriteRefuses(t *testing.T) {
	f := sample()
	f.Gateways = f.Gateways[:1]
	dir := t.TempDir()
	if err := nodefile.Write(dir, f); err == nil {
		t.Error("a file with a gateway missing was written")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestGateway(t *testing.T) {
	f := sample()
	for prefix, want := range map[string]string{
		"10.244.1.0/24":         "10.244.1.1",
		"10.244.1.128/25":       "10.244.1.1",
		"fd00:10:244:1:8::/80":  "fd00:10:244:1::1",
		"10.244.0.0/16":         "",
		"10.244.2.0/24":         "",
		"fd00:10:244:2::/64":    "",
		"::ffff:10.244.1.0/120": "",
	} {
		got, ok := f.Gateway(netip.MustParsePrefix(prefix))
		if ok != (want != "") || (ok && got.String() != want) {
			t.Errorf("gateway of %s: %v %v, want %q", prefix, got, ok, want)
		}
	}
}
