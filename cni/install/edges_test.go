package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warren-net/warren/cni/podrecord"
)

// attach records a pod of a network.
func attach(t *testing.T, o Options, id, network string) {
	t.Helper()
	err := podrecord.Create(o.Network.StateDir, podrecord.Record{
		ContainerID: id, IfName: "eth0", Network: network, HostIfName: podrecord.HostIfName(id, "eth0"),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The plugin deletes the pods of every network: while one is attached it stays, whatever the list says by then.
func TestPluginStaysWhilePodsNeedIt(t *testing.T) {
	const theirs = `{"name": "theirs", "plugins": [{"type": "bridge"}]}`
	for name, prepare := range map[string]func(t *testing.T, o Options){
		"the list is somebody else's": func(t *testing.T, o Options) {
			write(t, o.list(), theirs)
			attach(t, o, "c1", "warren")
		},
		"the pod is another network's": func(t *testing.T, o Options) { attach(t, o, "c1", "another") },
		"there is no list": func(t *testing.T, o Options) {
			if err := os.Remove(o.list()); err != nil {
				t.Fatal(err)
			}
			attach(t, o, "c1", "another")
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			if _, err := Install(o); err != nil {
				t.Fatal(err)
			}
			prepare(t, o)
			before := files(t, o.Dirs)
			remove := RemoveOptions{Dirs: o.Dirs, StateDir: o.Network.StateDir}
			if _, err := Remove(remove); err == nil || !strings.Contains(err.Error(), "pods are attached (container c1)") {
				t.Errorf("while a pod is attached: %v", err)
			}
			if got := files(t, o.Dirs); got != before {
				t.Errorf("files: %s, were %s", got, before)
			}
			remove.Force = true
			r, err := Remove(remove)
			if err != nil {
				t.Error(err)
			}
			lines(t, r.Warnings, "pods are attached (container c1)")
			if got := files(t, o.Dirs); strings.Contains(got, pluginType) {
				t.Errorf("files: %s", got)
			}
		})
	}
}

// A list may go while pods of other networks are attached, if the plugin stays for their lists.
func TestListGoesWhilePluginStays(t *testing.T) {
	o := options(t)
	if _, err := Install(o); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(o.Conf, "20-mine.conf"), `{"name": "another", "plugins": [{"type": "warren-cni"}]}`)
	attach(t, o, "c1", "another")
	r, err := Remove(RemoveOptions{Dirs: o.Dirs})
	if err != nil {
		t.Fatal(err)
	}
	lines(t, r.Done, "10-warren.conflist: removed", "warren-cni: left, as 20-mine.conf needs it")
	if got := files(t, o.Dirs); got != "warren-cni 20-mine.conf" {
		t.Errorf("files: %s", got)
	}
}

// Under whatever umask, a runtime that is not root may read both files and execute the plugin, and a second install has
// nothing to do. The umask is a process's: this needs one of its own.
func TestUmask(t *testing.T) {
	const inside = "WARREN_TEST_UMASK"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("sh", "-c", `umask 077 && exec "$0" -test.run '^TestUmask$' -test.count 1`, os.Args[0])
		cmd.Env = append(os.Environ(), inside+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	o := options(t)
	for _, want := range []string{"installed", "unchanged"} {
		r, err := Install(o)
		if err != nil {
			t.Fatal(err)
		}
		lines(t, r.Done, "warren-cni: "+want, "10-warren.conflist: "+want)
	}
	for path, want := range map[string]os.FileMode{o.binary(): 0o755, o.list(): 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

// Two names of one directory are no two installers.
func TestOneDirectoryByTwoNames(t *testing.T) {
	for name, other := range map[string]func(t *testing.T, dir string) string{
		"slash": func(_ *testing.T, dir string) string { return dir + "/" },
		"symbolic link": func(t *testing.T, dir string) string {
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(dir, link); err != nil {
				t.Fatal(err)
			}
			return link
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			o.Conf = other(t, o.Bin)
			if _, err := Install(o); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(o.Bin, ListName)); err != nil {
				t.Error(err)
			}
			if _, err := Remove(RemoveOptions{Dirs: o.Dirs}); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who installs a list with which a runtime removes pods is told so.
func TestSaysWhatGCDoes(t *testing.T) {
	for version, want := range map[string][]string{
		"1.0.0": {"installed", "installed"}, "1.1.0": {"installed", "installed", `"disableGC": true`},
	} {
		o := options(t)
		o.Network.CNIVersion = version
		r, err := Install(o)
		if err != nil {
			t.Fatal(err)
		}
		lines(t, r.Done, want...)
	}
}

// What has the plugin's name and is not the plugin is replaced by force only, and a directory not at all.
func TestForeignProgram(t *testing.T) {
	for name, tc := range map[string]struct {
		put    func(path string) error
		want   string
		forced bool // force replaces it
	}{
		"a file": {func(path string) error { return os.WriteFile(path, []byte("theirs"), 0o600) },
			"/warren-cni is not Warren's plugin (", true},
		"another program": {func(path string) error { return os.Symlink(os.Args[0], path) }, "(it is the program ", true},
		"a directory":     {func(path string) error { return os.Mkdir(path, 0o700) }, "/warren-cni is a directory", false},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			if err := tc.put(o.binary()); err != nil {
				t.Fatal(err)
			}
			if _, err := Install(o); err == nil || !strings.Contains(err.Error(), o.Bin) ||
				!strings.Contains(err.Error(), tc.want) || tc.forced != strings.Contains(err.Error(), "--force") {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if got := files(t, o.Dirs); got != "warren-cni" {
				t.Errorf("a refusal changed something: %s", got)
			}
			o.Force = true
			switch r, err := Install(o); {
			case tc.forced != (err == nil):
				t.Errorf("by force: %v", err)
			case tc.forced:
				lines(t, r.Done, "warren-cni: replaced", "10-warren.conflist: installed")
			}
		})
	}
}
