package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// A host is a node with the directories of a container runtime.
type host struct {
	*cluster
	node      *lab.Node
	bin, conf string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{cluster: newCluster(t, lab.Options{})}
	h.node = h.cluster.node("a")
	h.configure()
	h.ok(os.Chmod(h.lab.Dir, 0o755))
	h.bin, h.conf = filepath.Join(h.node.Dir, "bin"), filepath.Join(h.node.Dir, "net.d")
	h.ok(errors.Join(os.Mkdir(h.bin, 0o755), os.Mkdir(h.conf, 0o755)))
	return h
}

// cni is the command line of `warren cni`, with the runtime's directories.
func (h *host) cni(command string, more ...string) []string {
	return append([]string{warren(), "cni", command, "--config", h.node.ConfigFile, "--bin-dir", h.bin, "--conf-dir",
		h.conf}, more...)
}

// done runs `warren cni`, which must succeed, and returns what it printed.
func (h *host) done(args []string) outcome {
	h.t.Helper()
	o := h.program(h.node.NS, nil, args...)
	if o.code != 0 {
		h.t.Fatalf("%q: exit status %d\n%s%s", args, o.code, o.stdout, o.stderr)
	}
	return o
}

// TestInstalledPlugin installs the plugin with `warren cni install`, attaches a pod through libcni, as containerd and
// CRI-O do, and removes everything again.
func TestInstalledPlugin(t *testing.T) {
	for _, x := range []struct {
		mode string
		args []string
	}{
		{"routed", nil}, {"bridge", []string{"--mode", "bridge", "--name", "blue", "--cni-version", "1.1.0"}},
	} {
		t.Run(x.mode, func(t *testing.T) {
			h := newHost(t)
			a := h.node
			before := h.state(a.NS)
			h.program(a.NS, nil, h.cni("install", x.args...)...).aLine(t, "node.json", "has not run", "`warren up`")
			h.up(a)
			o := h.done(h.cni("install", x.args...))
			for _, want := range []string{"warren-cni: installed", "conflist: installed",
				"node a: pods get addresses of 10.244.1.0/24,fd00:10:244:1::/64, MTU 1420"} {
				if !strings.Contains(o.stdout, want) || o.stderr != "" {
					t.Errorf("no %q in:\n%s%s", want, o.stdout, o.stderr)
				}
			}
			list, err := libcni.ConfListFromFile(filepath.Join(h.conf, "10-warren.conflist"))
			h.ok(err)
			config := libcni.NewCNIConfigWithCacheDir([]string{h.bin}, filepath.Join(a.Dir, "cache"), nil)
			pod, err := h.lab.AddNS("a-libcni")
			h.ok(err)
			rt := &libcni.RuntimeConf{
				ContainerID: "libcni", NetNS: pod.Path(), IfName: "eth0",
				Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web"}},
				CapabilityArgs: map[string]any{"ips": []string{"10.244.1.77"}, "mac": "02:00:00:00:00:77"},
			}
			var result *types100.Result
			h.ok(a.NS.Do(func() error {
				r, err := config.AddNetworkList(h.ctx, list, rt)
				if err == nil {
					result, err = types100.GetResult(r)
				}
				return err
			}))
			if got := result.IPs[0].Address.IP.String(); got != "10.244.1.77" {
				t.Errorf("address %s: the list lacks the capability", got)
			}
			h.ping(pod, outside(4), lab.Ping{})
			h.ping(pod, outside(6), lab.Ping{})
			pods := ask[[]api.Pod](h.cluster, a, "pods")
			if len(pods) != 1 || pods[0].Name != "web" || pods[0].Mode != x.mode || pods[0].TxBytes == 0 {
				t.Errorf("%+v", pods)
			}
			h.program(a.NS, nil, h.cni("remove")...).aLine(t, "pods are attached (shop/web)", "nothing was removed")
			h.ok(a.NS.Do(func() error { return config.DelNetworkList(h.ctx, list, rt) }))
			h.ok(h.lab.RemoveNS(pod))
			h.done(h.cni("remove"))
			if left := listing(t, h.bin) + listing(t, h.conf); left != h.bin+h.conf {
				t.Errorf("left:\n%s", left)
			}
			h.ok(a.Down(h.ctx))
			h.same(a.NS, before)
		})
	}
}

// TestInstallRefuses installs where it can't work: one line says why, and both directories stay as they were.
func TestInstallRefuses(t *testing.T) {
	h := newHost(t)
	a := h.node
	h.up(a)
	inside := func(script string) []string {
		return append([]string{"unshare", "--mount", "sh", "-c", script + ` && exec "$0" "$@"`}, h.cni("install")...)
	}
	list := filepath.Join(h.conf, "10-warren.conflist")
	for _, x := range []struct {
		name  string
		args  []string
		user  bool
		words []string
	}{
		{name: "not root", args: h.cni("install"), user: true, words: []string{"effective user is 65534", "as root"}},
		{name: "remove, not root", args: h.cni("remove"), user: true, words: []string{"as root"}},
		{name: "unknown mode", args: h.cni("install", "--mode", "vlan"), words: []string{`mode is "vlan"`, "bridge"}},
		{name: "unknown plugin", args: h.cni("install", "--chain", "portmap,sbr"), words: []string{`"sbr"`, "tuning"}},
		{name: "no plugin", args: h.cni("install", "--binary", "/none"), words: []string{"/none", "--binary"}},
		{name: "no directory", args: h.cni("install", "--bin-dir", "/none"), words: []string{"/none", "containerd", "mkdir"}},
		{name: "full disk", args: inside("mount -t tmpfs -o size=1m none " + h.bin),
			words: []string{"no space left", "make room", h.bin}},
		{name: "full disk for the list", words: []string{"no space left", list},
			args: inside("mount -t tmpfs -o size=4k none " + h.conf + " && ! cat /dev/zero >" + h.conf + "/fill 2>/dev/null")},
		{name: "read-only", args: inside("mount -t tmpfs -o ro none " + h.conf), words: []string{"read-only", "--conf-dir"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			sub := *h.cluster
			sub.t = t
			how := nobody()
			if !x.user {
				how = nil
			}
			sub.program(a.NS, how, x.args...).aLine(t, x.words...)
			if _, err := os.Lstat(list); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("there is a list: %v", err)
			}
		})
	}
	// Where only the list failed, the plugin is there: it is first, and does no harm alone. The same again completes it.
	h.done(h.cni("install"))
	h.ok(os.WriteFile(list, []byte(`{"name": "warren", "plugins": [{"type": "warren-cni", "mtu": 1300}]}`), 0o644))
	h.program(a.NS, nil, h.cni("install")...).aLine(t, "plugins[0].mtu is 1300 and would not be there", "--force")
	h.program(a.NS, nil, h.cni("remove")...).aLine(t, "edited by hand")
	h.done(h.cni("install", "--force"))
	h.done(h.cni("remove"))
	h.done(h.cni("remove"))
}

// variant is the plugin with another content and the same behaviour: what stands behind an ELF file is not read.
func (h *host) variant(name string) string {
	h.t.Helper()
	content, err := os.ReadFile(filepath.Join(binDir(), "warren-cni"))
	h.ok(err)
	path := filepath.Join(h.node.Dir, name)
	h.ok(os.WriteFile(path, append(content, name...), 0o755))
	return path
}

// TestInstallOverRunningPlugin replaces the program while it runs: no "text file busy".
func TestInstallOverRunningPlugin(t *testing.T) {
	h := newHost(t)
	h.up(h.node)
	h.done(h.cni("install"))
	plugin := exec.Command(filepath.Join(h.bin, "warren-cni"))
	plugin.Env = append(os.Environ(), "CNI_COMMAND=STATUS", "CNI_PATH="+h.bin)
	stdin, err := plugin.StdinPipe() // it waits for its configuration
	h.ok(err)
	var out bytes.Buffer
	plugin.Stdout = &out
	h.ok(plugin.Start())
	o := h.done(h.cni("install", "--binary", h.variant("newer")))
	if !strings.Contains(o.stdout, "warren-cni: replaced") {
		t.Errorf("%s%s", o.stdout, o.stderr)
	}
	_, err = stdin.Write([]byte(`{"cniVersion": "1.1.0", "name": "x", "type": "warren-cni", "nonsense": 1}`))
	h.ok(errors.Join(err, stdin.Close()))
	if err := plugin.Wait(); err == nil || !strings.Contains(out.String(), "nonsense") {
		t.Errorf("the plugin that ran meanwhile: %v\n%s", err, out.String())
	}
}

// TestKilledInstall kills the installer at random moments while it replaces both files, and reads them all the time, as
// a runtime would: they are there whole, old or new. The next call completes what was begun.
func TestKilledInstall(t *testing.T) {
	h := newHost(t)
	h.up(h.node)
	variants := [][]string{
		h.cni("install", "--force", "--binary", h.variant("one")),
		h.cni("install", "--force", "--binary", h.variant("two"), "--mode", "bridge", "--chain", "portmap,bandwidth"),
	}
	binary, list := filepath.Join(h.bin, "warren-cni"), filepath.Join(h.conf, "10-warren.conflist")
	whole := map[string]bool{}
	took := time.Hour
	for i, args := range append(variants, variants...) {
		begin := time.Now()
		h.done(args)
		took = min(took, time.Since(begin)) // the longest may be a busy machine's
		for _, path := range []string{binary, list} {
			content, err := os.ReadFile(path)
			h.ok(err)
			whole[string(content)] = true
		}
		if i == 3 && len(whole) != 4 {
			t.Fatalf("%d different contents of two files in two variants", len(whole))
		}
	}
	stop, read := make(chan struct{}), make(chan int)
	go func() {
		reads := 0
		for ; ; reads++ {
			for _, path := range []string{binary, list} {
				content, err := os.ReadFile(path)
				if err != nil || !whole[string(content)] {
					t.Errorf("%s: %d bytes that nobody wrote (%v)", path, len(content), err)
				}
			}
			select {
			case <-stop:
				read <- reads
				return
			default:
			}
		}
	}()
	var killed int
	for i := 0; i < 40 || killed < 10 && i < 400; i++ {
		cmd := exec.Command(variants[i%2][0], variants[i%2][1:]...)
		h.ok(cmd.Start())
		time.Sleep(rand.N(took * 5 / 4))
		_ = cmd.Process.Kill()
		if cmd.Wait() != nil {
			killed++
		}
	}
	h.done(variants[0])
	close(stop)
	if reads := <-read; reads < 10 || killed < 10 {
		t.Errorf("%d reads and %d kills: the test showed nothing", reads, killed)
	}
	var conf struct{ Plugins []map[string]any }
	content, err := os.ReadFile(list)
	h.ok(errors.Join(err, json.Unmarshal(content, &conf)))
	if len(conf.Plugins) != 1 {
		t.Errorf("the call after the kills did not complete:\n%s", content)
	}
	if left := listing(t, h.bin) + listing(t, h.conf); strings.Contains(left, ".tmp") {
		t.Errorf("left:\n%s", left)
	}
	// What a killed one leaves at the end is removed, too.
	h.ok(os.WriteFile(filepath.Join(h.bin, ".warren-cni.tmp"), nil, 0o600))
	h.ok(os.WriteFile(filepath.Join(h.conf, ".10-warren.conflist.tmp"), nil, 0o600))
	h.done(h.cni("remove"))
	if left := listing(t, h.bin) + listing(t, h.conf); left != h.bin+h.conf {
		t.Errorf("left:\n%s", left)
	}
}
