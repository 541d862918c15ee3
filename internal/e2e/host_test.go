package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
)

// An outcome is what a program that ended by itself left behind.
type outcome struct {
	code           int
	stdout, stderr string
}

// program runs a program to its end in a namespace. A program that does not end is stopped, with code -1.
func (c *cluster) program(ns *lab.NS, how *syscall.SysProcAttr, args ...string) outcome {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = how
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := ns.Do(cmd.Run)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("%q: %v", args, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func warren() string { return filepath.Join(binDir(), "warren") }

// nobody runs a program without any privilege.
func nobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// aLine wants a failed program to have ended with status 1 and one line on standard error, with all these words.
func (o outcome) aLine(t *testing.T, words ...string) {
	t.Helper()
	if o.code != 1 {
		t.Errorf("exit status %d, want 1", o.code)
	}
	line, rest, _ := strings.Cut(o.stderr, "\n")
	if !strings.HasPrefix(line, "warren: ") || rest != "" {
		t.Errorf("standard error is not one line of warren's:\n%s", o.stderr)
	}
	for _, word := range words {
		if !strings.Contains(o.stderr, word) {
			t.Errorf("no %q in: %s", word, o.stderr)
		}
	}
}

// TestHostRefuses starts the real program on hosts where it can't work: it says why and what to do, in one line, and
// leaves the host as it was.
func TestHostRefuses(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a := c.node("a")
	c.configure()
	c.ok(os.Chmod(c.lab.Dir, 0o755))
	up := []string{warren(), "up", "--config", a.ConfigFile}
	inside := func(script string) []string {
		return append([]string{"unshare", "--mount", "sh", "-c", script + ` && exec "$0" "$@"`}, up...)
	}
	// Root may open everything, unless these are taken away.
	plainRoot := func(script string) []string {
		return append([]string{"unshare", "--mount", "sh", "-c", script + ` && exec "$0" "$@"`,
			"setpriv", "--bounding-set=-dac_override,-dac_read_search"}, up...)
	}
	for _, x := range []struct {
		name  string
		setUp []string // commands in the node
		args  []string
		how   *syscall.SysProcAttr
		words []string
		undo  []string
	}{
		{name: "not root", args: up, how: nobody(), words: []string{"CAP_NET_ADMIN", "run warren as root"}},
		{name: "down, not root", args: []string{warren(), "down", "--config", a.ConfigFile}, how: nobody(),
			words: []string{"CAP_NET_ADMIN"}},
		{name: "no TUN", args: inside("mount -t tmpfs none /dev/net"), words: []string{"/dev/net/tun", "no such file",
			"mknod"}},
		{name: "TUN not accessible", words: []string{"/dev/net/tun", "permission denied"},
			args: plainRoot("mount -t tmpfs none /dev/net && mknod -m 0 /dev/net/tun c 10 200")},
		{name: "TUN is something else", words: []string{"/dev/net/tun", "mknod"},
			args: inside("mount -t tmpfs none /dev/net && touch /dev/net/tun")},
		{name: "device name of a veth", setUp: []string{"ip link add warren0 type veth peer name other"}, args: up,
			words: []string{"warren0", "taken", "device"}, undo: []string{"ip link del warren0"}},
		{name: "device name of a TUN", setUp: []string{"ip tuntap add warren0 mode tun"}, args: up,
			words: []string{"warren0", "taken", "device"}, undo: []string{"ip link del warren0"}},
		{name: "port of a kernel VXLAN device", args: up,
			setUp: []string{"ip link add vx9 type vxlan id 9 dstport 4789 dev eth0", "ip link set vx9 up addrgenmode none"},
			words: []string{"4789", "in use", "vxlan.port"}, undo: []string{"ip link del vx9"}},
		{name: "address missing", setUp: []string{"ip addr del 192.0.2.1/24 dev eth0"}, args: up,
			words: []string{"192.0.2.1", "addresses"},
			undo:  []string{"ip addr add 192.0.2.1/24 dev eth0", "ip route add default via 192.0.2.254"}},
		{name: "no such file", args: []string{warren(), "up", "--config", a.Dir + "/none.yaml"},
			words: []string{"none.yaml", "no such file"}},
		{name: "no place for the state directory", words: []string{a.StateDir, "read-only"},
			setUp: []string{"rmdir " + a.StateDir}, undo: []string{"mkdir " + a.StateDir},
			args: inside(fmt.Sprintf("mount --bind %s %s && mount -o remount,ro,bind %s", a.Dir, a.Dir, a.Dir))},
		{name: "read-only run directory", args: inside(fmt.Sprintf("mount -t tmpfs -o ro none %s", a.RunDir)),
			words: []string{a.RunDir, "read-only"}},
		{name: "full run directory", words: []string{a.RunDir, "no space"},
			args: inside(fmt.Sprintf("mount -t tmpfs -o size=4k none %s && cat /dev/zero >%s/fill 2>/dev/null; true",
				a.RunDir, a.RunDir))},
	} {
		t.Run(x.name, func(t *testing.T) {
			sub := *c
			sub.t = t
			sub.do(a.NS, x.setUp...)
			before := sub.state(a.NS)
			files := listing(t, a.Dir)
			sub.program(a.NS, x.how, x.args...).aLine(t, x.words...)
			sub.same(a.NS, before)
			if after := listing(t, a.Dir); after != files {
				t.Errorf("files before:\n%s\nafter:\n%s", files, after)
			}
			sub.do(a.NS, x.undo...)
		})
	}
	c.up(a) // and then it works
}

// listing names the files below a directory, but for the lock, which stays.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if filepath.Base(path) != "warren.lock" {
			names = append(names, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, "\n")
}

// TestPortInUse has another program listen at the tunnel's port.
func TestPortInUse(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a := c.node("a")
	c.configure()
	for _, network := range []string{"udp4", "udp6"} {
		t.Run(network, func(t *testing.T) {
			sub := *c
			sub.t = t
			var conn *net.UDPConn
			sub.ok(a.NS.Do(func() (err error) {
				conn, err = net.ListenUDP(network, &net.UDPAddr{Port: vxlanPort})
				return err
			}))
			defer conn.Close()
			before := sub.state(a.NS)
			sub.program(a.NS, nil, warren(), "up", "--config", a.ConfigFile).aLine(t, "4789", "in use", "vxlan.port")
			sub.same(a.NS, before)
		})
	}
}

// TestTwoDaemons starts a second daemon beside a running one, which goes on.
func TestTwoDaemons(t *testing.T) {
	c := newCluster(t, lab.Options{})
	nodes := c.running("a")
	a := nodes[0]
	p := c.pod(a, "1")
	before, files := c.state(a.NS), listing(t, a.Dir)
	c.program(a.NS, nil, warren(), "up", "--config", a.ConfigFile).aLine(t, "another warren is running", a.RunDir,
		fmt.Sprint("pid ", a.Daemon().Pid()))
	c.program(a.NS, nil, warren(), "down", "--config", a.ConfigFile).aLine(t, "another warren is running")
	c.same(a.NS, before)
	if after := listing(t, a.Dir); after != files {
		t.Errorf("files before:\n%s\nafter:\n%s", files, after)
	}
	c.ping(p.NS, outside(4), lab.Ping{})
}

// TestConfigIsRefused tries a few of the mistakes that node/config tests, through the program.
func TestConfigIsRefused(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a := c.node("a")
	for _, x := range []struct {
		name  string
		edit  edit
		words []string
	}{
		{"unknown key", set("devise", "warren0"), []string{"devise", "device"}},
		{"long device name", set("device", "warren0123456789"), []string{"warren0123456789", "15"}},
		{"small MTU", set("mtu", 1000), []string{"mtu", "1000", "1280"}},
		{"bad CIDR", setNode("a", "podCIDRs", []string{"10.244.1.0/33"}), []string{"10.244.1.0/33", "podCIDRs"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			sub := *c
			sub.t = t
			sub.configure(x.edit)
			before := sub.state(a.NS)
			for _, command := range []string{"up", "check", "down"} {
				sub.program(a.NS, nil, warren(), command, "--config", a.ConfigFile).aLine(t, append(x.words, "warren.yaml")...)
			}
			sub.same(a.NS, before)
		})
	}
}

// TestCheck wants `warren check` to find what is wrong with a host, to name the mend, and to change nothing.
func TestCheck(t *testing.T) {
	c := newCluster(t, lab.Options{})
	a := c.node("a")
	c.configure()
	c.ok(os.Chmod(c.lab.Dir, 0o755))
	check := []string{warren(), "check", "--config", a.ConfigFile}
	find := func(t *testing.T, o outcome, code int, words ...string) {
		t.Helper()
		if o.code != code || o.stderr != "" {
			t.Errorf("exit status %d, want %d; standard error %q", o.code, code, o.stderr)
		}
		for _, word := range words {
			if !strings.Contains(o.stdout, word) {
				t.Errorf("no %q in:\n%s", word, o.stdout)
			}
		}
	}
	before := c.state(a.NS)
	find(t, c.program(a.NS, nil, check...), 0, "0 errors")
	find(t, c.program(a.NS, nobody(), check...), 1, "CAP_NET_ADMIN", "root", "mend:")
	find(t, c.program(a.NS, nil, append([]string{"unshare", "--mount", "sh", "-c",
		`mount -t tmpfs none /dev/net && exec "$0" "$@"`}, check...)...), 1, "/dev/net/tun does not exist", "modprobe tun")
	c.same(a.NS, before)

	c.do(a.NS, "ip link add warren0 type veth peer name other",
		"ip link add vx9 type vxlan id 9 dstport 4789 dev eth0", "ip link set vx9 up addrgenmode none",
		"ip link set eth0 mtu 1300", "ip route add 10.244.7.0/24 dev eth0")
	before = c.state(a.NS)
	find(t, c.program(a.NS, nil, check...), 1, "warren0", "1300", "4789", "vx9", "10.244.7.0/24", "mend:")
	c.same(a.NS, before)
}
