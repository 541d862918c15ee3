package podrecord_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/cni/podrecord"
)

func record(id string) podrecord.Record {
	return podrecord.Record{
		ContainerID: id, IfName: "eth0", Netns: "/run/netns/" + id, Network: "pods", Mode: "routed",
		HostIfName: podrecord.HostIfName(id, "eth0"), MAC: "02:00:00:00:00:01",
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:10:244:1::2")},
		PodName:   "web", PodNamespace: "default", PodUID: "1234", Since: time.Unix(1700000000, 0).UTC(),
	}
}

func TestLifeOfARecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if list, err := podrecord.List(dir); err != nil || list != nil {
		t.Errorf("no directory: %v %v", list, err)
	}
	r := record("c1")
	full := r
	r.Addresses = nil
	if err := podrecord.Create(dir, r); err != nil {
		t.Fatal(err)
	}
	if err := podrecord.Create(dir, full); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create: %v", err)
	}
	if err := podrecord.Replace(dir, full); err != nil {
		t.Fatal(err)
	}
	got, err := podrecord.Read(dir, r.HostIfName)
	if err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("read %+v (%v), want %+v", got, err, full)
	}
	for range 2 {
		if err := podrecord.Remove(dir, r.HostIfName); err != nil {
			t.Error(err)
		}
	}
	if _, err := podrecord.Read(dir, r.HostIfName); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read after Remove: %v", err)
	}
}

func TestListReturnsTheGoodAndNamesTheBad(t *testing.T) {
	dir := t.TempDir()
	for _, id := range []string{"c1", "c2", "c3"} {
		if err := podrecord.Create(dir, record(id)); err != nil {
			t.Fatal(err)
		}
	}
	bad := podrecord.HostIfName("c2", "eth0")
	for name, content := range map[string]string{
		bad + ".json":                    `{"containerID": "c2`,
		".wrn00000000000.json.tmp":       "half",
		"README":                         "somebody's notes",
		"wrnnothexatall.json":            "{}",
		".wrn" + bad[3:] + ".json.tmp":   "{}",
		podrecord.HostIfName("c4", "x"):  "no suffix",
		"wrn000000000001234567890a.json": "{}",
	} {
		if err := os.WriteFile(filepath.Join(podrecord.Dir(dir), name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := podrecord.List(dir)
	if len(list) != 2 || err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("%d records, error %v; want two and an error that names %s", len(list), err, bad)
	}
	names, err := podrecord.Names(dir)
	if err != nil || len(names) != 4 {
		t.Errorf("names %v (%v), want the three and the leftover", names, err)
	}
	for _, name := range names {
		if err := podrecord.Remove(dir, name); err != nil {
			t.Error(err)
		}
	}
	if names, err := podrecord.Names(dir); err != nil || len(names) != 0 {
		t.Errorf("after all were removed: %v %v", names, err)
	}
}

func TestHostIfName(t *testing.T) {
	seen := map[string]bool{}
	long := strings.Repeat("x", 300)
	for _, c := range [][2]string{{"a", "beth0"}, {"ab", "eth0"}, {"a", "eth0"}, {"a", "net1"}, {long, "eth0"}} {
		name := podrecord.HostIfName(c[0], c[1])
		if len(name) != 14 || !podrecord.IsHostIfName(name) || seen[name] {
			t.Errorf("%v: %q", c, name)
		}
		seen[name] = true
	}
	for _, name := range []string{"", "wrn", "wrn1234567890", "wrn1234567890G", "wrn123456789012", "eth0", "warren0"} {
		if podrecord.IsHostIfName(name) {
			t.Errorf("%q was taken for one of ours", name)
		}
	}
}

func TestOnBridge(t *testing.T) {
	dir := t.TempDir()
	r := record("a")
	r.Mode, r.Bridge = "bridge", "br0"
	if podrecord.OnBridge(dir, "br0") {
		t.Error("a pod on a bridge without records")
	}
	if err := podrecord.Create(dir, r); err != nil {
		t.Fatal(err)
	}
	if !podrecord.OnBridge(dir, "br0") || podrecord.OnBridge(dir, "br1") {
		t.Error("a pod on br0 is not on br0 alone")
	}
	other := filepath.Join(podrecord.Dir(dir), podrecord.HostIfName("b", "eth0")+".json")
	if err := os.WriteFile(other, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !podrecord.OnBridge(dir, "br1") {
		t.Error("a record that can't be read may be of a pod on br1")
	}
}

func TestUnlike(t *testing.T) {
	dir := t.TempDir()
	add := func(id, mode, bridge, podName string) podrecord.Record {
		t.Helper()
		r := podrecord.Record{ContainerID: id, IfName: "eth0", HostIfName: podrecord.HostIfName(id, "eth0"), Network: "n",
			Mode: mode, Bridge: bridge, PodName: podName}
		if err := podrecord.Create(dir, r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	// A name that looks like another field's line; a record longer than what is read of one at first.
	routed := add("a", "routed", "", "x\",\n  \"mode\": \"bridge\",\n")
	add("b", "routed", "", strings.Repeat("long", 1000))
	bridged := add("c", "bridge", "br0", "x\",\n  \"mode\": \"routed\",\n")
	other := add("d", "bridge", "br1", "")
	for _, tc := range []struct {
		own  podrecord.Record
		want []string
	}{{routed, []string{"c", "d"}}, {bridged, []string{"a", "b", "d"}}, {other, []string{"a", "b", "c"}}} {
		records, err := podrecord.Unlike(dir, tc.own)
		var got []string
		for _, r := range records {
			got = append(got, r.ContainerID)
		}
		slices.Sort(got)
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("not attached like %s: %v, %v, want %v", tc.own.ContainerID, got, err, tc.want)
		}
	}
	broken := filepath.Join(podrecord.Dir(dir), podrecord.HostIfName("e", "eth0")+".json")
	if err := os.WriteFile(broken, []byte("{\n  \"mode\": \"rou"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := podrecord.Unlike(dir, routed); err == nil || !strings.Contains(err.Error(), broken) {
		t.Errorf("with a broken record: %v", err)
	}
}
