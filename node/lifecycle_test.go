package node_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warren-net/warren/cni/podrecord"
	"github.com/warren-net/warren/node/api"
)

func TestStartTalkStop(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	before := c.state(a)
	a.Settings.Express, b.Settings.Express = "auto", "off"
	c.ok(c.lab.WriteConfigs())
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	c.ping(b, a)

	s := c.status(a)
	if s.Node != "a" || s.Device.Queues != 16 || s.Device.MTU != 1420 || s.Snapshot.Peers != 1 || len(s.Workers) != 3 ||
		len(s.Offloads) == 0 || len(s.Warnings) != 0 || s.LastReload != nil || s.Tunnel.Underlay[0].Device != "eth0" {
		t.Errorf("%+v", s)
	}
	if w := s.Workers[2]; !w.Express || s.Workers[0].Express || len(c.status(b).Workers) != 2 {
		t.Errorf("%+v; without an express worker %+v", s.Workers, c.status(b).Workers)
	}
	p := ask[[]api.Peer](c, a, "peers")
	if len(p) != 1 || p[0].Name != "b" || p[0].MTU != 1420 ||
		p[0].TxPackets == 0 || p[0].RxPackets == 0 || p[0].LastSeen == nil {
		t.Errorf("%+v", p)
	}
	if r := ask[[]api.Route](c, a, "routes"); len(r) < 8 {
		t.Errorf("%+v", r)
	}
	if d := ask[[]api.Drop](c, a, "drops", "-a"); len(d) < 20 {
		t.Errorf("%+v", d)
	}
	if out, err := a.Warren(c.ctx, "status"); err != nil || !strings.Contains(out, "VTEP 0e:57:c0:00:02:01") {
		t.Errorf("%s, %v", out, err)
	}
	c.ok(a.Down(c.ctx))
	c.same(a, before)
	if _, err := os.Stat(filepath.Join(a.RunDir, "warren.sock")); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	// An orderly restart.
	c.ok(a.Up(c.ctx))
	c.ping(a, b)
}

func TestSecondInstanceIsRefused(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	c.ok(a.Up(c.ctx))
	running := c.state(a)
	c.refused(a, "another warren is running with run directory "+a.RunDir, fmt.Sprintf("(pid %d)", a.Daemon().Pid()))
	if _, err := a.Warren(c.ctx, "down"); err == nil || !strings.Contains(err.Error(), "another warren is running") {
		t.Errorf("down beside a running daemon: %v", err)
	}
	c.same(a, running)
	c.status(a) // and it still answers
}

// TestDeviceInUse starts a second daemon that has everything of its own but the device.
func TestDeviceInUse(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	running := c.state(a)
	text, err := os.ReadFile(a.ConfigFile)
	c.ok(err)
	other := strings.ReplaceAll(string(text), "runDir: "+a.RunDir, "runDir: "+a.RunDir+"2") + "vxlan: {port: 4790}\n"
	file := filepath.Join(a.Dir, "second.yaml")
	c.ok(os.WriteFile(file, []byte(other), 0o644))
	_, err = a.NS.Run(c.ctx, filepath.Join(c.lab.Options.BinDir, "warren"), "up", "--config", file)
	if err == nil || !strings.Contains(err.Error(), "warren0") || !strings.Contains(err.Error(), "use") {
		t.Errorf("second daemon on the device: %v", err)
	}
	c.same(a, running)
	c.ping(a, b)
}

func TestPortInUse(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	_, err := a.NS.Run(c.ctx, "ip", "link", "add", "vx0", "type", "vxlan", "id", "9", "dstport", "4789", "dev", "eth0")
	c.ok(err)
	_, err = a.NS.Run(c.ctx, "ip", "link", "set", "vx0", "up")
	c.ok(err)
	time.Sleep(100 * time.Millisecond) // the device's own IPv6 address settles
	before := c.state(a)
	c.refused(a, "UDP port 4789 is in use by another program or by a kernel VXLAN device")
	c.same(a, before)
}

func TestDeviceTaken(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	_, err := a.NS.Run(c.ctx, "ip", "tuntap", "add", "warren0", "mode", "tun")
	c.ok(err)
	before := c.state(a)
	c.refused(a, "warren0", "taken")
	c.same(a, before)
}

func TestAddressMissing(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	_, err := a.NS.Run(c.ctx, "ip", "addr", "flush", "dev", "eth0", "scope", "global")
	c.ok(err)
	before := c.state(a)
	c.refused(a, a.V4.String(), "no interface has the node's address")
	c.same(a, before)
}

func TestSocketPathTaken(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	c.ok(os.WriteFile(filepath.Join(a.RunDir, "warren.sock"), []byte("x"), 0o600))
	before := c.state(a)
	c.refused(a, "is not a socket") // the last step of a start: everything before it is undone
	c.same(a, before)
}

func TestNoTUN(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	before := c.state(a)
	_, err := a.NS.Run(c.ctx, "unshare", "-m", "sh", "-c",
		"mount -t tmpfs none /dev/net && exec \"$0\" up --config \"$1\"",
		filepath.Join(c.lab.Options.BinDir, "warren"), a.ConfigFile)
	if err == nil || !strings.Contains(err.Error(), "/dev/net/tun") {
		t.Error(err)
	}
	c.same(a, before)
}

func TestNotRoot(t *testing.T) {
	c := newCluster(t, "a")
	c.ok(os.Chmod(c.lab.Dir, 0o755))
	cmd := exec.CommandContext(c.ctx, filepath.Join(c.lab.Options.BinDir, "warren"), "up", "--config",
		c.nodes[0].ConfigFile)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || string(out) != "warren: this process lacks the capability CAP_NET_ADMIN; run warren as root\n" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestKillAndRestart(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	before := c.state(a)
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	running := c.state(a)
	for range 3 {
		c.ok(a.Kill())
		c.ok(a.Up(c.ctx)) // over the stale socket, the device, routes and rules
		c.ping(a, b)
	}
	c.same(a, running) // nothing twice
	c.ok(a.Kill())
	_, err := a.Warren(c.ctx, "down")
	c.ok(err)
	c.same(a, before)
	entries, err := os.ReadDir(a.RunDir)
	c.ok(err)
	for _, e := range entries {
		if e.Name() != "warren.lock" {
			t.Errorf("left in the run directory: %s", e.Name())
		}
	}
	_, err = a.Warren(c.ctx, "down") // nothing there any more, which is no error
	c.ok(err)
}

func TestLeaveForASuccessor(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	before := c.state(a)
	a.Settings.OnExit = "leave"
	c.write()
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	running := c.state(a)
	c.ok(a.Down(c.ctx))
	// The device stays, without carrier; nothing else differs.
	_, gone := c.state(a).Since(running)
	for _, line := range gone {
		if !strings.Contains(line, "warren0") {
			t.Errorf("gone: %s", line)
		}
	}
	if _, err := a.NS.Run(c.ctx, "ip", "link", "show", "warren0"); err != nil {
		t.Error(err)
	}
	c.ok(a.Up(c.ctx))
	c.ping(a, b)
	c.same(a, running)
	c.ok(a.Kill())
	_, err := a.Warren(c.ctx, "down")
	c.ok(err)
	c.same(a, before)
}

func TestGuardsStayForAttachedPods(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	before := c.state(a)
	c.ok(a.Up(c.ctx))
	name := podrecord.HostIfName("cafe", "eth0")
	c.ok(podrecord.Create(a.StateDir, podrecord.Record{
		ContainerID: "cafe", IfName: "eth0", Mode: "routed", HostIfName: name, PodName: "web", PodNamespace: "default",
	}))
	if pods := ask[[]api.Pod](c, a, "pods"); len(pods) != 1 || pods[0].Name != "web" || pods[0].HostInterface != name {
		t.Errorf("%+v", pods)
	}
	c.ok(a.Down(c.ctx))
	added, _ := c.state(a).Since(before)
	all := strings.Join(added, "\n")
	if !strings.Contains(all, "unreachable 10.244.0.0/16") || strings.Contains(all, "device:") {
		t.Errorf("left:\n%s", all)
	}
	_, err := a.Warren(c.ctx, "down")
	c.ok(err)
	if added, _ := c.state(a).Since(before); len(added) == 0 {
		t.Error("down took the guards of an attached pod away")
	}
	c.ok(podrecord.Remove(a.StateDir, name))
	_, err = a.Warren(c.ctx, "down")
	c.ok(err)
	c.same(a, before)
}

func TestDeviceRemovedUnderIt(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	_, err := a.NS.Run(c.ctx, "ip", "link", "del", "warren0")
	c.ok(err)
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	if err := a.Daemon().Wait(ctx); err == nil {
		t.Error("the daemon ended without an error")
	}
	if log := a.Daemon().LogTail(); !strings.Contains(log, "node fails") {
		t.Errorf("log:\n%s", log)
	}
	c.ok(a.Up(c.ctx))
	c.ping(a, b)
}

func TestCheck(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	before := c.state(a)
	out, err := a.Warren(c.ctx, "check")
	if err != nil || !strings.Contains(out, " 0 errors\n") {
		t.Errorf("before the start: %v\n%s", err, out)
	}
	c.same(a, before) // nothing was changed
	c.ok(a.Up(c.ctx))
	if out, err = a.Warren(c.ctx, "check"); err != nil || !strings.Contains(out, " 0 errors\n") {
		t.Errorf("beside the running node: %v\n%s", err, out)
	}
	c.ok(a.Down(c.ctx))
	_, err = a.NS.Run(c.ctx, "ip", "tuntap", "add", "warren0", "mode", "tun")
	c.ok(err)
	out, err = a.Warren(c.ctx, "check")
	if err == nil || !strings.Contains(out, "error ") || !strings.Contains(out, "mend: ") {
		t.Errorf("with the device's name taken: %v\n%s", err, out)
	}
}

// TestFailedStartOverLeftovers: what a killed predecessor left stays as it was when its successor cannot start.
func TestFailedStartOverLeftovers(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	running := c.state(a)
	c.ok(a.Kill())
	socket := filepath.Join(a.RunDir, "warren.sock")
	c.ok(os.Remove(socket))
	c.ok(os.WriteFile(socket, nil, 0o600))
	c.refused(a, "is not a socket")
	_, gone := c.state(a).Since(running)
	for _, line := range gone {
		if !strings.Contains(line, "warren0") { // which has no carrier now
			t.Errorf("gone: %s", line)
		}
	}
	c.ok(os.Remove(socket))
	c.ok(a.Up(c.ctx))
	c.ping(a, b)
	c.same(a, running)
}

// TestOneFamily runs clusters that have one address family only, under and above.
func TestOneFamily(t *testing.T) {
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			c := newCluster(t, "a", "b")
			a, b := c.nodes[0], c.nodes[1]
			before := c.state(a)
			text := "cluster: [10.244.0.0/16]\n"
			if family == 6 {
				text = "cluster: [\"fd00:10:244::/48\"]\n"
			}
			text += "encapsulation: vxlan\nworkers: 2\nnodes:\n"
			for _, n := range c.nodes {
				own, cidr := n.V4, n.PodCIDRs[0]
				if family == 6 {
					own, cidr = n.V6, n.PodCIDRs[1]
				}
				n.PodCIDRs = []netip.Prefix{cidr}
				text += fmt.Sprintf("  - {name: %s, addresses: [%q], podCIDRs: [%q]}\n", n.Name, own, cidr)
			}
			for _, n := range c.nodes {
				own := fmt.Sprintf("%snode: %s\nrunDir: %s\nstateDir: %s\n", text, n.Name, n.RunDir, n.StateDir)
				c.ok(os.WriteFile(n.ConfigFile, []byte(own), 0o644))
				c.ok(n.Up(c.ctx))
			}
			c.ping(a, b)
			c.ok(a.Down(c.ctx))
			c.same(a, before)
		})
	}
}
