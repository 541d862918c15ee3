package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// unitFile is the unit, from this package's directory.
const unitFile = "../../deploy/systemd/warren.service"

// A unit is a unit file: the words of each setting, over all the lines that have it.
type unit map[string][]string

func readUnit(t *testing.T) unit {
	t.Helper()
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	u := unit{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			u[key] = append(u[key], strings.Fields(value)...)
		}
	}
	return u
}

// is fails unless a setting has this value: the sandbox below imitates that one.
func (u unit) is(t *testing.T, key, want string) {
	t.Helper()
	if got := strings.Join(u[key], " "); got != want {
		t.Fatalf("%s=%s in %s, and this test imitates %q: teach it", key, got, unitFile, want)
	}
}

// capabilities is the bounding set as setpriv(1) takes it, and as the kernel shows it.
func (u unit) capabilities(t *testing.T) (flag, mask string) {
	t.Helper()
	bits := map[string]uint{
		"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE,
		"CAP_NET_RAW": unix.CAP_NET_RAW,
	}
	sum := uint64(0)
	flag = "-all"
	for _, name := range u["CapabilityBoundingSet"] {
		bit, ok := bits[name]
		if !ok {
			t.Fatalf("CapabilityBoundingSet has %s, which this test does not know: teach it, if the node needs that", name)
		}
		sum |= 1 << bit
		flag += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	return flag, fmt.Sprintf("%016x", sum)
}

// sandbox is the program that gives a command the mounts of ProtectSystem=strict, of ReadOnlyPaths and of
// ProtectProc=invisible, in a mount namespace of its own: all is read-only but /dev, /proc and /sys and the node's
// directories $1 and $2; of /proc and /sys the paths of $3, where they are there.
const sandbox = `set -eu
mount --make-rslave /
mount -t proc -o hidepid=invisible proc /proc
for dir in "$1" "$2"; do mount --bind "$dir" "$dir"; done
while read -r _ _ _ _ at _; do
	case $at in /proc | /proc/* | /dev | /dev/* | /sys | /sys/* | "$1" | "$2") continue ;; esac
	mount -o remount,bind,ro "$(printf %b "$at")"
done </proc/self/mountinfo
for path in $3; do
	optional=${path#-}
	[ -e "$optional" ] || [ "$optional" != "$path" ]
	[ ! -e "$optional" ] || { mount --rbind "$optional" "$optional"; mount -o remount,bind,ro "$optional"; }
done
for path in "$1/../x" /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do
	if (: >>"$path") 2>/dev/null; then echo "$path can be written to" >&2; exit 1; fi
done
shift 3
exec "$@"`

// start runs the daemon of a node as the unit has it, as far as that goes without systemd.
func (u unit) start(c *cluster, n *lab.Node, socket string) *lab.Proc {
	c.t.Helper()
	for key, want := range map[string]string{
		"ProtectSystem": "strict", "ProtectProc": "invisible", "NoNewPrivileges": "yes", "Type": "notify",
		"RuntimeDirectory": "warren", "StateDirectory": "warren", "ExecStart": "/usr/local/bin/warren up",
		"LimitNICE": "-20",
	} {
		u.is(c.t, key, want)
	}
	for _, dir := range []string{n.RunDir, n.StateDir} { // systemd makes them
		c.ok(os.MkdirAll(dir, 0o755))
	}
	flag, _ := u.capabilities(c.t)
	args := []string{"unshare", "--mount", "sh", "-c", sandbox, "sandbox", n.RunDir, n.StateDir,
		strings.Join(u["ReadOnlyPaths"], " ")}
	if mayLimitNice(c.t) {
		args = append(args, "prlimit", "--nice=40:40")
	}
	args = append(args, "setpriv", "--bounding-set", flag, "--inh-caps", "-all", "--no-new-privs",
		"env", "NOTIFY_SOCKET="+socket, warren(), "up", "--config", n.ConfigFile)
	p, err := c.lab.Start(n.NS, n.Name+"-unit", args...)
	c.ok(err)
	return p
}

// mayLimitNice reports whether LimitNICE can be imitated here.
func mayLimitNice(t *testing.T) bool {
	t.Helper()
	var limit unix.Rlimit
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := errors.Join(unix.Getrlimit(unix.RLIMIT_NICE, &limit), unix.Capget(&header, &data[0])); err != nil {
		t.Fatal(err)
	}
	return limit.Max >= 40 || data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// TestUnit runs a node as its systemd unit does: with those capabilities only, most of the file system read-only, other
// processes invisible. It is a node like any other, misses no offload, and takes everything away in the end. What is
// left out here is what only systemd does: the device list and the system calls; docs/packaging.md says what was tried.
func TestUnit(t *testing.T) {
	u := readUnit(t)
	c := newCluster(t, lab.Options{})
	a, b := c.node("a"), c.node("b")
	a.Settings.Express = "auto"
	c.configure()
	before := c.state(a.NS)
	at := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	c.ok(err)
	defer conn.Close()
	c.up(b)
	p := u.start(c, a, at)
	c.ok(conn.SetReadDeadline(time.Now().Add(20 * time.Second)))
	ready := make([]byte, 100)
	read, err := conn.Read(ready)
	if err != nil || string(ready[:read]) != "READY=1" {
		log, _ := os.ReadFile(p.Log)
		t.Fatalf("it said %q, %v\n%s", ready[:read], err, log)
	}

	status := ask[api.Status](c, a, "status")
	_, mask := u.capabilities(t)
	process, err := os.ReadFile("/proc/" + strconv.Itoa(status.PID) + "/status")
	c.ok(err)
	for _, line := range []string{"CapPrm:\t" + mask, "CapEff:\t" + mask, "CapBnd:\t" + mask, "NoNewPrivs:\t1"} {
		if !strings.Contains(string(process), line+"\n") {
			t.Errorf("no %q in:\n%s", line, process)
		}
	}
	if last := status.Workers[len(status.Workers)-1]; !last.Express || last.Preferred != mayLimitNice(t) {
		t.Errorf("the express worker: %+v, may have the highest priority: %v", last, mayLimitNice(t))
	}
	c.eventually(func() error { // some are tried with the peer, whose turn may come later
		status, plain := ask[api.Status](c, a, "status"), ask[api.Status](c, b, "status")
		if !slices.Equal(status.Warnings, plain.Warnings) {
			return fmt.Errorf("warnings %q, without the sandbox %q", status.Warnings, plain.Warnings)
		}
		for i, o := range status.Offloads {
			if o.Enabled != plain.Offloads[i].Enabled {
				return fmt.Errorf("offload %+v, without the sandbox %+v", o, plain.Offloads[i])
			}
		}
		return nil
	})
	near, far := c.pod(a, "1"), c.pod(b, "1")
	for _, f := range families() {
		c.meet(near, far, f)
		c.beyond(near, f)
	}
	c.edit(a, set("onExit", "leave"))
	c.ok(p.Signal(syscall.SIGHUP))
	c.eventually(func() error {
		if r := ask[api.Status](c, a, "status").LastReload; r == nil || r.Error != "" {
			return fmt.Errorf("reload: %+v", r)
		}
		return nil
	})
	c.ok(p.Signal(syscall.SIGTERM))
	c.ok(p.Wait(c.ctx))
	c.edit(a, set("onExit", "remove"))
	p = u.start(c, a, at)
	c.eventually(func() error { return c.cniStatus(a) })
	c.meet(near, far, 4)
	c.ok(near.Delete(c.ctx, lab.PodOptions{}))
	c.ok(p.Signal(syscall.SIGTERM))
	c.ok(p.Wait(c.ctx))
	c.same(a.NS, before)
}
