package ipam_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/warren-net/warren/cni/ipam"
)

const wait = 30 * time.Second

func set(t testing.TB, ranges ...allocator.Range) allocator.RangeSet {
	t.Helper()
	s := allocator.RangeSet(ranges)
	if err := s.Canonicalize(); err != nil {
		t.Fatal(err)
	}
	return s
}

func subnet(t testing.TB, cidr string) allocator.Range {
	t.Helper()
	n, err := types.ParseCIDR(cidr)
	if err != nil {
		t.Fatal(err)
	}
	return allocator.Range{Subnet: types.IPNet(*n)}
}

func dual(t testing.TB) []allocator.RangeSet {
	t.Helper()
	return []allocator.RangeSet{set(t, subnet(t, "10.244.1.0/24")), set(t, subnet(t, "fd00:10:244:1::/64"))}
}

func open(t testing.TB, root, network string) *ipam.Store {
	t.Helper()
	s, err := ipam.Open(root, network, wait)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func addrs(given []ipam.Allocation) []string {
	var a []string
	for _, g := range given {
		a = append(a, g.Addr.String())
	}
	return a
}

// release does what a CNI DEL does.
func release(t testing.TB, s *ipam.Store, id, ifname string) {
	t.Helper()
	if err := s.Lock(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.ReleaseByID(id, ifname), s.Unlock()); err != nil {
		t.Fatal(err)
	}
}

func TestAllocateGivesBothFamiliesRoundRobin(t *testing.T) {
	s := open(t, t.TempDir(), "pods")
	for i, want := range [][]string{
		{"10.244.1.2", "fd00:10:244:1::2"},
		{"10.244.1.3", "fd00:10:244:1::3"},
		{"10.244.1.4", "fd00:10:244:1::4"}, // the second one is free again, but was used just before
	} {
		id := fmt.Sprint("c", i)
		given, err := s.Allocate(ipam.Request{ContainerID: id, IfName: "eth0", Sets: dual(t)})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(addrs(given), want) {
			t.Errorf("given %v, want %v", addrs(given), want)
		}
		wantGateway := []string{"10.244.1.1", "fd00:10:244:1::1"}
		for j, g := range given {
			if g.Gateway.String() != wantGateway[j] || !g.Subnet.Contains(g.Addr) || g.Subnet != g.Subnet.Masked() {
				t.Errorf("gateway %s, subnet %s for %s", g.Gateway, g.Subnet, g.Addr)
			}
		}
		if i == 1 {
			release(t, s, id, "eth0")
			release(t, s, id, "eth0") // twice is no error
		}
	}
	entries, err := s.Entries()
	if err != nil || len(entries) != 4 {
		t.Errorf("%d entries (%v), want 4", len(entries), err)
	}
}

func TestTwoInterfacesOfOneContainer(t *testing.T) {
	s := open(t, t.TempDir(), "pods")
	for _, ifname := range []string{"eth0", "net1"} {
		if _, err := s.Allocate(ipam.Request{ContainerID: "c", IfName: ifname, Sets: dual(t)}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Allocate(ipam.Request{ContainerID: "c", IfName: "net1", Sets: dual(t)})
	if err == nil || !strings.Contains(err.Error(), "delete it first") {
		t.Errorf("the same interface a second time: %v", err)
	}
	release(t, s, "c", "eth0")
	if got := s.GetByID("c", "net1"); len(got) != 2 {
		t.Errorf("net1 holds %v after eth0 was released", got)
	}
}

func TestFullPool(t *testing.T) {
	for cidr, total := range map[string]int{"10.244.1.0/24": 253, "10.244.1.0/29": 5, "fd00:10:244:1::/124": 14} {
		t.Run(cidr, func(t *testing.T) {
			s := open(t, t.TempDir(), "pods")
			sets := []allocator.RangeSet{set(t, subnet(t, cidr))}
			prefix := netip.MustParsePrefix(cidr)
			for i := range total {
				given, err := s.Allocate(ipam.Request{ContainerID: fmt.Sprint("c", i), IfName: "eth0", Sets: sets})
				if err != nil {
					t.Fatalf("address %d of %d: %v", i+1, total, err)
				}
				a := given[0].Addr
				last := !prefix.Contains(a.Next()) && a.Is4()
				if a == prefix.Addr() || a == prefix.Addr().Next() || last {
					t.Errorf("%s was given: network, gateway or broadcast address", a)
				}
			}
			_, err := s.Allocate(ipam.Request{ContainerID: "one more", IfName: "eth0", Sets: sets})
			var full *ipam.FullError
			want := fmt.Sprintf("all %d addresses of %s are in use", total, cidr)
			if !errors.As(err, &full) || full.Error() != want {
				t.Errorf("got %v, want %q", err, want)
			}
			release(t, s, "c3", "eth0")
			if _, err := s.Allocate(ipam.Request{ContainerID: "one more", IfName: "eth0", Sets: sets}); err != nil {
				t.Errorf("after one was freed: %v", err)
			}
		})
	}
}

func TestAllOrNothing(t *testing.T) {
	s := open(t, t.TempDir(), "pods")
	small := set(t, subnet(t, "fd00:10:244:1::/126")) // two addresses beside the gateway
	sets := []allocator.RangeSet{set(t, subnet(t, "10.244.1.0/24")), small}
	for i := range 4 {
		_, err := s.Allocate(ipam.Request{ContainerID: fmt.Sprint("c", i), IfName: "eth0", Sets: sets})
		if (err == nil) != (i < 2) {
			t.Errorf("pod %d: %v", i, err)
		}
	}
	entries, err := s.Entries()
	if err != nil || len(entries) != 4 {
		t.Errorf("%v (%v): a failed allocation kept something", entries, err)
	}
}

func TestUnreadableFilesCountAsTaken(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, "pods")
	if err := os.MkdirAll(filepath.Join(root, "pods"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"10.244.1.2": "", "10.244.1.3": `{"containerID": "x`, "10.244.1.4": `{}`, "10.244.1.5": "\x00\x00\x00",
		"last.0": "\x00\x00", ".10.244.1.6.tmp": `{"containerID": "killed", "ifname": "eth0"}`, "notes.txt": "by hand",
	} {
		if err := os.WriteFile(filepath.Join(root, "pods", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sets := []allocator.RangeSet{set(t, subnet(t, "10.244.1.0/29"))}
	given, err := s.Allocate(ipam.Request{ContainerID: "c", IfName: "eth0", Sets: sets})
	if err != nil || given[0].Addr.String() != "10.244.1.6" {
		t.Fatalf("given %v (%v), want 10.244.1.6", given, err)
	}
	if _, err := os.Stat(filepath.Join(root, "pods", ".10.244.1.6.tmp")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the leftover of a killed writer is still there: %v", err)
	}
	_, err = s.Allocate(ipam.Request{ContainerID: "d", IfName: "eth0", Sets: sets})
	if err == nil || !strings.Contains(err.Error(), "all 5 addresses") ||
		!strings.Contains(err.Error(), "(4 of them by an unreadable") {
		t.Errorf("full with four unreadable files: %v", err)
	}
	entries, err := s.Entries()
	if err != nil {
		t.Fatal(err)
	}
	var bad []netip.Addr
	for _, e := range entries {
		if e.Err != nil {
			bad = append(bad, e.Addr)
		}
	}
	if err := errors.Join(s.Lock(), s.Free(bad...), s.Free(bad...), s.Unlock()); err != nil || len(bad) != 4 {
		t.Errorf("freeing %v: %v", bad, err)
	}
	if _, err := s.Allocate(ipam.Request{ContainerID: "d", IfName: "eth0", Sets: sets}); err != nil {
		t.Errorf("after the repair: %v", err)
	}
}

func TestNetworksShareAPodCIDR(t *testing.T) {
	root := t.TempDir()
	sets := []allocator.RangeSet{set(t, subnet(t, "10.244.1.0/24"))}
	seen := map[netip.Addr]string{}
	for i := range 6 {
		network := []string{"blue", "green"}[i%2]
		given, err := open(t, root, network).Allocate(ipam.Request{ContainerID: fmt.Sprint(i), IfName: "eth0", Sets: sets})
		if err != nil {
			t.Fatal(err)
		}
		if other := seen[given[0].Addr]; other != "" {
			t.Errorf("%s was given to %s and %s", given[0].Addr, other, network)
		}
		seen[given[0].Addr] = network
	}
}

func TestWantedAddresses(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, "pods")
	for _, file := range []struct{ name, content string }{
		{"10.244.1.90", `{"containerID": "z", "ifname": "net1"}`}, {"10.244.1.91", "half"},
	} {
		dir := filepath.Join(root, "other")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file.name), []byte(file.content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(id string, want ...string) error {
		var wanted []netip.Addr
		for _, w := range want {
			wanted = append(wanted, netip.MustParseAddr(w))
		}
		given, err := s.Allocate(ipam.Request{ContainerID: id, IfName: "eth0", Sets: dual(t), Wanted: wanted})
		for _, w := range want {
			if err == nil && !slices.Contains(addrs(given), w) {
				t.Errorf("asked for %v, given %v", want, addrs(given))
			}
		}
		return err
	}
	for _, tc := range []struct {
		id   string
		want []string
		err  string
	}{
		{"a", []string{"10.244.1.77"}, ""},
		{"b", []string{"fd00:10:244:1::77", "10.244.1.78"}, ""},
		{"c", []string{"10.244.1.77"}, `in use by interface eth0 of container a (network "pods")`},
		{"c", []string{"10.244.1.90"}, `in use by interface net1 of container z (network "other")`},
		{"c", []string{"10.244.1.91"}, "in use by whom can't be told: " + filepath.Join(root, "other", "10.244.1.91")},
		{"d", []string{"10.244.2.7"}, "no range of this network"},
		{"e", []string{"10.244.1.1"}, "no range of this network"},   // gateway
		{"f", []string{"10.244.1.255"}, "no range of this network"}, // broadcast
		{"g", []string{"10.244.1.0"}, "no range of this network"},   // network
		{"h", []string{"10.244.1.8", "10.244.1.9"}, "a pod gets one address"},
	} {
		err := ask(tc.id, tc.want...)
		if (err == nil) != (tc.err == "") || (err != nil && !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%v: %v, want %q", tc.want, err, tc.err)
		}
		if err != nil && len(s.GetByID(tc.id, "eth0")) != 0 {
			t.Errorf("%v: a refused request kept %v", tc.want, s.GetByID(tc.id, "eth0"))
		}
	}
}

// The plain backend.Store, as another caller of host-local's allocator would use it.
func TestBackendStore(t *testing.T) {
	root := t.TempDir()
	s := open(t, root, "pods")
	ip := net.ParseIP("10.244.1.9")
	if ok, err := s.Reserve("c", "eth0", ip, "0"); ok || err == nil {
		t.Error("reserved without the lock")
	}
	if err := s.Lock(); err != nil {
		t.Fatal(err)
	}
	if err := s.Lock(); err == nil {
		t.Error("locked twice by one store")
	}
	for range 2 { // idempotent
		if ok, err := s.Reserve("c", "eth0", ip, "0"); !ok || err != nil {
			t.Errorf("Reserve: %v %v", ok, err)
		}
	}
	if ok, err := s.Reserve("d", "eth0", ip, "0"); ok || err != nil {
		t.Errorf("reserving what c holds: %v %v", ok, err)
	}
	if last, err := s.LastReservedIP("0"); err != nil || !last.Equal(ip) {
		t.Errorf("last reserved: %v %v", last, err)
	}
	if _, err := s.LastReservedIP("7"); !os.IsNotExist(err) {
		t.Errorf("last reserved of an unknown range: %v", err)
	}
	other, err := ipam.Open(root, "pods", 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Lock(); !errors.Is(err, ipam.ErrBusy) {
		t.Errorf("the lock was taken twice: %v", err)
	}
}

func TestOpenRefusesNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", ".lock", "a/b", "a\x00"} {
		if _, err := ipam.Open(t.TempDir(), name, wait); err == nil {
			t.Errorf("network name %q was taken", name)
		}
	}
}
