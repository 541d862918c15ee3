package install

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

// plugin builds the plugin once.
var plugin = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "wrn-install")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "warren-cni")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", path, "../../cmd/warren-cni").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := plugin(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// options are those of a runtime's empty directories.
func options(t *testing.T) Options {
	t.Helper()
	binary, err := plugin()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	o := Options{
		Dirs: Dirs{Bin: filepath.Join(dir, "bin"), Conf: filepath.Join(dir, "net.d")}, Binary: binary,
		Network: Network{Name: "warren", CNIVersion: "1.0.0", Mode: cni.ModeRouted, RunDir: cni.DefaultRunDir,
			StateDir: filepath.Join(dir, "state")},
	}
	for _, d := range []string{o.Bin, o.Conf} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func files(t *testing.T, d Dirs) string {
	t.Helper()
	var names []string
	for _, dir := range []string{d.Bin, d.Conf} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	return strings.Join(names, " ")
}

// lines wants each line of a report to contain its word, in order.
func lines(t *testing.T, got []string, want ...string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := 0; ok && i < len(want); i++ {
		ok = strings.Contains(got[i], want[i])
	}
	if !ok {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestInstallAndRemove(t *testing.T) {
	o := options(t)
	if err := os.WriteFile(filepath.Join(o.Bin, ".warren-cni.tmp"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Install(o)
	if err != nil {
		t.Fatal(err)
	}
	lines(t, r.Done, "bin/warren-cni: installed", "net.d/10-warren.conflist: installed")
	lines(t, r.Warnings)
	if got := files(t, o.Dirs); got != "warren-cni 10-warren.conflist" {
		t.Errorf("files: %s", got)
	}
	if info, err := os.Stat(o.binary()); err != nil || info.Mode().Perm()&0o700 != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for _, path := range []string{o.binary(), o.list()} { // killed before the rename
		write(t, filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp"), "half")
	}
	if r, err = Install(o); err != nil {
		t.Error(err)
	}
	lines(t, r.Done, "unchanged", "unchanged")
	if got := files(t, o.Dirs); got != "warren-cni 10-warren.conflist" {
		t.Errorf("files: %s", got)
	}
	// What only looks different is the same.
	data, err := os.ReadFile(o.list())
	if err != nil {
		t.Fatal(err)
	}
	write(t, o.list(), strings.Join(strings.Fields(string(data)), " "))
	if err := os.Chmod(o.binary(), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err = Install(o); err != nil {
		t.Error(err)
	}
	lines(t, r.Done, "bin/warren-cni: replaced", "unchanged")
	for _, want := range []string{"removed", "not there"} {
		r, err := Remove(RemoveOptions{Dirs: o.Dirs})
		if err != nil {
			t.Error(err)
		}
		lines(t, r.Done, "10-warren.conflist: "+want, "warren-cni: "+want)
	}
	if got := files(t, o.Dirs); got != "" {
		t.Errorf("left: %s", got)
	}
}

// What is written, read again: every network that can be installed is known as unedited.
func TestListIsKnownAgain(t *testing.T) {
	for _, n := range []Network{
		{Name: "warren", CNIVersion: "1.0.0", Mode: cni.ModeRouted, RunDir: cni.DefaultRunDir, StateDir: cni.DefaultStateDir},
		{Name: "x", CNIVersion: "0.3.1", Mode: cni.ModeBridge, RunDir: "/r", StateDir: "/s", Chain: Chainable()},
	} {
		data, err := n.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, ours, edited := networkOf(data)
		if !ours || edited || !reflect.DeepEqual(got, n) {
			t.Errorf("ours %v, edited %v: %+v\n%s", ours, edited, got, data)
		}
		for _, e := range []struct{ from, to string }{
			{`"ips": true`, `"ips": false`}, {`"type": "warren-cni"`, `"type": "warren-cni", "mtu": 1300`},
			{`"plugins"`, `"disableCheck": true, "plugins"`}, {`"plugins": [`, `"plugins": [{"type": "sbr"},`}, {"}", ""},
		} {
			text := strings.Replace(string(data), e.from, e.to, 1)
			if _, ours, edited := networkOf([]byte(text)); !ours || !edited || text == string(data) {
				t.Errorf("%s to %s: ours %v, edited %v", e.from, e.to, ours, edited)
			}
		}
	}
	for _, text := range []string{"", "{}", `{"plugins": [{"type": "bridge"}]}`, "hello"} {
		if _, ours, _ := networkOf([]byte(text)); ours {
			t.Errorf("%q is taken for Warren's", text)
		}
	}
}

func TestInstallRefuses(t *testing.T) {
	for _, x := range []struct {
		name  string
		edit  func(*Options)
		words []string
	}{
		{"no bin directory", func(o *Options) { o.Bin += "/none" }, []string{"/bin/none does not exist", "--bin-dir",
			"mkdir -p", "containerd", "CRI-O", "Podman"}},
		{"no conf directory", func(o *Options) { o.Conf += "/none" }, []string{"/net.d/none does not exist", "--conf-dir"}},
		{"conf directory is a file", func(o *Options) { o.Conf = o.Binary }, []string{"is not a directory", "--conf-dir"}},
		{"no plugin", func(o *Options) { o.Binary += "x" }, []string{"there is no plugin", "--binary"}},
		{"not a Go program", func(o *Options) { o.Binary = "/bin/sh" }, []string{"/bin/sh is not the program warren-cni"}},
		{"another Go program", func(o *Options) { o.Binary = os.Args[0] }, []string{"is not the program warren-cni but"}},
		{"mode", func(o *Options) { o.Network.Mode = "routd" }, []string{`mode is "routd"`, `"bridge"`}},
		{"name", func(o *Options) { o.Network.Name = "a b" }, []string{"name", "a b"}},
		{"run directory", func(o *Options) { o.Network.RunDir = "run" }, []string{`runDir is "run"`, "absolute"}},
		{"version", func(o *Options) { o.Network.CNIVersion = "2.0" }, []string{`"2.0"`, "1.1.0"}},
		{"chain", func(o *Options) { o.Network.Chain = []string{"portmpa"} }, []string{`"portmpa"`, "portmap"}},
		{"chain twice", func(o *Options) { o.Network.Chain = []string{"portmap", "portmap"} }, []string{"twice"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			o := options(t)
			dirs := o.Dirs
			x.edit(&o)
			_, err := Install(o)
			if err == nil {
				t.Fatal("no error")
			}
			for _, word := range x.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("no %q in: %v", word, err)
				}
			}
			if got := files(t, dirs); got != "" {
				t.Errorf("left: %s", got)
			}
		})
	}
	info := &buildinfo.BuildInfo{Path: "x/cmd/warren-cni", Settings: []debug.BuildSetting{{Key: "GOARCH", Value: "pdp11"}}}
	if err := suits(info); err == nil || !strings.Contains(err.Error(), "built for pdp11") {
		t.Error(err)
	}
}

// A list that says something else is named by what differs, and replaced by force only.
func TestEditedList(t *testing.T) {
	o := options(t)
	if _, err := Install(o); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(o.list())
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(data), `"name": "warren"`, `"name": "blue", "disableCheck": true`, 1)
	write(t, o.list(), edited)
	if err := os.Remove(o.binary()); err != nil {
		t.Fatal(err)
	}
	_, err = Install(o)
	diff := `disableCheck is true and would not be there, name is "blue" and would be "warren"`
	if err == nil || !strings.Contains(err.Error(), diff) || !strings.Contains(err.Error(), "--force") {
		t.Error(err)
	}
	if got := files(t, o.Dirs); got != "10-warren.conflist" {
		t.Errorf("a refusal changed something: %s", got)
	}
	if _, err := Remove(RemoveOptions{Dirs: o.Dirs}); err == nil || !strings.Contains(err.Error(), "edited by hand") {
		t.Error(err)
	}
	if now, err := os.ReadFile(o.list()); err != nil || string(now) != edited {
		t.Errorf("%s, %v", now, err)
	}
	o.Force = true
	r, err := Install(o)
	if err != nil {
		t.Fatal(err)
	}
	lines(t, r.Done, "installed", "replaced")
	write(t, o.list(), edited)
	if r, err = Remove(RemoveOptions{Dirs: o.Dirs, Force: true}); err != nil {
		t.Fatal(err)
	}
	lines(t, r.Done, "conflist: removed", "warren-cni: removed")
}

func TestSurroundings(t *testing.T) {
	o := options(t)
	o.Network.Chain = []string{"portmap", "bandwidth"}
	write(t, filepath.Join(o.Bin, "portmap"), "")
	write(t, filepath.Join(o.Conf, "05-other.conflist"), `{"name": "other", "plugins": [{"type": "bridge"}]}`)
	write(t, filepath.Join(o.Conf, "06-not-read.txt"), "")
	mine := filepath.Join(o.Conf, "20-mine.conf")
	write(t, mine, `{"name": "warren", "plugins": [{"type": "warren-cni"}]}`)
	write(t, filepath.Join(o.Conf, "30-theirs.conf"), `{"name": "warren", "type": "bridge"}`)
	r, err := Install(o)
	if err != nil {
		t.Fatal(err)
	}
	lines(t, r.Warnings, "plugin bandwidth, which is not in", "05-other.conflist sorts before",
		`20-mine.conf has the network's name "warren" too`, "30-theirs.conf has the network's name")
	// The plugin stays for the other list.
	if r, err = Remove(RemoveOptions{Dirs: o.Dirs}); err != nil {
		t.Fatal(err)
	}
	lines(t, r.Done, "10-warren.conflist: removed", "warren-cni: left, as 20-mine.conf needs it")
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	// What is not Warren's stays.
	write(t, o.list(), `{"name": "x", "plugins": [{"type": "bridge"}]}`)
	write(t, o.binary(), "somebody else's")
	if r, err = Remove(RemoveOptions{Dirs: o.Dirs}); err != nil {
		t.Fatal(err)
	}
	lines(t, r.Done, "left, it does not name warren-cni", "left, it is not Warren's plugin")
}

func TestRemoveWithPods(t *testing.T) {
	o := options(t)
	if _, err := Install(o); err != nil {
		t.Fatal(err)
	}
	for _, r := range []podrecord.Record{
		{ContainerID: "c1", IfName: "eth0", Network: "warren", PodName: "web", PodNamespace: "shop"},
		{ContainerID: "0123456789abcdef", IfName: "eth0", Network: "warren"},
		{ContainerID: "c3", IfName: "eth0", Network: "another"},
	} {
		r.HostIfName = podrecord.HostIfName(r.ContainerID, r.IfName)
		if err := podrecord.Create(o.Network.StateDir, r); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Remove(RemoveOptions{Dirs: o.Dirs})
	if err == nil || !strings.Contains(err.Error(), "pods are attached (") || !strings.Contains(err.Error(), "shop/web") ||
		!strings.Contains(err.Error(), "container 0123456789ab") {
		t.Error(err)
	}
	if got := files(t, o.Dirs); got != "warren-cni 10-warren.conflist" {
		t.Errorf("files: %s", got)
	}
	r, err := Remove(RemoveOptions{Dirs: o.Dirs, Force: true})
	if err != nil {
		t.Error(err)
	}
	lines(t, r.Warnings, "pods are attached (")
	lines(t, r.Done, "removed", "removed")
}

// One at a time: the second is refused, and changes nothing.
func TestTwoInstallers(t *testing.T) {
	o := options(t)
	unlock, err := o.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Install(o); err == nil || !strings.Contains(err.Error(), "another `warren cni` is at work") {
		t.Error(err)
	}
	if got := files(t, o.Dirs); got != "" {
		t.Errorf("files: %s", got)
	}
	unlock()
	if _, err := Install(o); err != nil {
		t.Error(err)
	}
}
