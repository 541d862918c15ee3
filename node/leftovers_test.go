package node_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warren-net/warren/internal/lab"
)

// another writes a second configuration for a node, which has everything of its own.
func (c *cluster) another(n *lab.Node) string {
	c.t.Helper()
	text, err := os.ReadFile(n.ConfigFile)
	c.ok(err)
	other := strings.ReplaceAll(string(text), "runDir: "+n.RunDir, "runDir: "+n.RunDir+"2")
	other += "vxlan: {port: 4790}\ndevice: other0\nrouting: {table: 99, rulePriority: 6000}\n"
	file := filepath.Join(n.Dir, "second.yaml")
	c.ok(os.WriteFile(file, []byte(other), 0o644))
	return file
}

// TestTwoNodesInOneNamespace: rules and routes are recognised by their protocol number, so two nodes would remove each
// other's.
func TestTwoNodesInOneNamespace(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	running := c.state(a)
	file := c.another(a)
	warren := filepath.Join(c.lab.Options.BinDir, "warren")
	for _, command := range []string{"up", "down"} {
		_, err := a.NS.Run(c.ctx, warren, command, "--config", file)
		if err == nil || !strings.Contains(err.Error(), "another warren is running in this network namespace, with device "+
			"warren0 in use; stop it first") {
			t.Errorf("%s beside another node: %v", command, err)
		}
	}
	c.same(a, running)
	c.ping(a, b)
}

// TestDeviceRenamed starts with another device name over what a killed daemon left.
func TestDeviceRenamed(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	before := c.state(a)
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	text, err := os.ReadFile(a.ConfigFile)
	c.ok(err)
	c.ok(a.Kill())
	c.ok(os.WriteFile(a.ConfigFile, append(text, "device: other0\n"...), 0o644))
	c.ok(a.Up(c.ctx))
	c.ping(a, b)
	if out, err := a.NS.Run(c.ctx, "ip", "-o", "addr", "show", "dev", "warren0"); err == nil {
		t.Errorf("the old device is still there: %s", out)
	}
	c.ok(a.Kill())
	c.ok(os.WriteFile(a.ConfigFile, text, 0o644))
	_, err = a.Warren(c.ctx, "down") // of a file that names another device than the one that is there
	c.ok(err)
	c.same(a, before)
}

// TestNoPodWithoutGuards: after an orderly stop that took everything away, a pod would send in the clear.
func TestNoPodWithoutGuards(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	c.ok(a.Up(c.ctx))
	before := c.state(a)
	p, err := a.AddPod(c.ctx, "p", lab.PodOptions{})
	c.ok(err)
	c.ok(p.Delete(c.ctx, lab.PodOptions{}))
	c.same(a, before)
	c.ok(a.Down(c.ctx))
	stopped := c.state(a)
	_, err = a.AddPod(c.ctx, "p", lab.PodOptions{})
	if err == nil || !strings.Contains(err.Error(), "start `warren up`") || !strings.Contains(err.Error(), `"code": 11`) {
		t.Errorf("a pod could be added: %v", err)
	}
	c.same(a, stopped)

	// A start that fails does not let pods in either.
	socket := filepath.Join(a.RunDir, "warren.sock")
	c.ok(os.WriteFile(socket, nil, 0o600))
	c.refused(a, "is not a socket")
	if _, err := a.AddPod(c.ctx, "p", lab.PodOptions{}); err == nil {
		t.Error("a pod could be added after a start that failed")
	}
	c.ok(os.Remove(socket))

	// After a crash, and while a pod is left, the guards are there.
	c.ok(a.Up(c.ctx))
	c.ok(a.Kill())
	p, err = a.AddPod(c.ctx, "p", lab.PodOptions{})
	c.ok(err)
	c.ok(a.Up(c.ctx))
	c.ok(a.Down(c.ctx))
	q, err := a.AddPod(c.ctx, "q", lab.PodOptions{})
	c.ok(err)
	for _, pod := range []*lab.Pod{p, q} {
		out, err := pod.NS.Run(c.ctx, "ping", "-c1", "-W1", "10.244.2.2")
		if err == nil || !strings.Contains(err.Error(), "Unreachable") {
			t.Errorf("a pod's packet for another node found no guard: %v\n%s", err, out)
		}
		// Its own node can be reached all the same, and reaches it.
		for _, family := range []int{4, 6} {
			_, err := pod.NS.Run(c.ctx, "ping", "-c1", "-W1", a.Address(family).String())
			c.ok(err)
			_, err = a.NS.Run(c.ctx, "ping", "-c1", "-W1", pod.Address(family).String())
			c.ok(err)
		}
	}
	c.ok(a.Up(c.ctx))
	for _, pod := range []*lab.Pod{p, q} {
		_, err = pod.NS.Run(c.ctx, "ping", "-c1", "-W1", a.PodCIDRs[0].Addr().Next().String())
		c.ok(err)
		c.ok(pod.Delete(c.ctx, lab.PodOptions{}))
	}
	c.ok(a.Down(c.ctx))
	c.same(a, stopped)
}

// TestReloadThatDoesNotFit: what this node is changes with a restart only.
func TestReloadThatDoesNotFit(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	running := c.state(a)
	text, err := os.ReadFile(a.ConfigFile)
	c.ok(err)
	for _, step := range []struct {
		edit []string
		want string // part of the outcome
	}{
		{[]string{"10.244.1.0/24", "10.244.2.0/24", "10.244.2.0/24", "10.244.1.0/24"}, "of node b overlaps 10.244.1.0/24"},
		{[]string{"10.244.", "10.9."}, "is outside the cluster's new ranges"},
		{[]string{"node: a\n", "node: b\n"}, "node: a → b"},
	} {
		c.ok(os.WriteFile(a.ConfigFile, []byte(strings.NewReplacer(step.edit...).Replace(string(text))), 0o644))
		c.eventually(func() error {
			s := c.status(a)
			if s.LastReload == nil ||
				!strings.Contains(s.LastReload.Error+strings.Join(s.LastReload.NeedsRestart, " "), step.want) {
				return errNotYet
			}
			return nil
		})
		c.same(a, running)
		c.ping(a, b)
	}
}

// TestReloadThatTheHostDoesNotTake: what of a good file cannot be set up is said, and done when the host lets us.
func TestReloadThatTheHostDoesNotTake(t *testing.T) {
	c := newCluster(t, "a", "b")
	a := c.nodes[0]
	c.ok(a.Up(c.ctx))
	_, err := a.NS.Run(c.ctx, "ip", "route", "add", "10.9.0.0/16", "via", "192.0.2.254")
	c.ok(err)
	text, err := os.ReadFile(a.ConfigFile)
	c.ok(err)
	wider := strings.Replace(string(text), "    - 10.244.0.0/16\n", "    - 10.244.0.0/16\n    - 10.9.0.0/16\n", 1)
	c.ok(os.WriteFile(a.ConfigFile, []byte(wider), 0o644))
	c.eventually(func() error {
		s := c.status(a)
		if s.LastReload == nil || !strings.Contains(s.LastReload.Incomplete, "somebody else's route to 10.9.0.0/16") ||
			len(s.ClusterCIDRs) != 3 || len(s.Warnings) != 1 {
			return errNotYet
		}
		return nil
	})
	if out, err := a.Warren(c.ctx, "status"); err != nil || !strings.Contains(out, ", but not in full: ") {
		t.Errorf("%v\n%s", err, out)
	}
	_, err = a.NS.Run(c.ctx, "ip", "route", "del", "10.9.0.0/16", "via", "192.0.2.254")
	c.ok(err)
	_, err = a.NS.Run(c.ctx, "ip", "rule", "del", "pref", "5203") // something that is noticed at once
	c.ok(err)
	c.eventually(func() error {
		if s := c.status(a); s.LastReload.Incomplete != "" || len(s.Warnings) != 0 {
			return errNotYet
		}
		return nil
	})
}

// TestIPv6TurnedOff: many hosts have IPv6 in the kernel and turned off on their interfaces; pods have it all the same.
func TestIPv6TurnedOff(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	_, err := a.NS.Run(c.ctx, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
	c.ok(err)
	before := c.state(a)
	for _, n := range c.nodes {
		text, err := os.ReadFile(n.ConfigFile)
		c.ok(err)
		only4 := strings.ReplaceAll(string(text), ", '"+a.V6.String()+"'", "")
		c.ok(os.WriteFile(n.ConfigFile, []byte(only4), 0o644))
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	p, err := a.AddPod(c.ctx, "p", lab.PodOptions{})
	c.ok(err)
	_, err = b.NS.Run(c.ctx, "ping", "-c1", "-W1", "-I", b.PodCIDRs[1].Addr().Next().String(), p.V6.String())
	c.ok(err)
	c.ok(p.Delete(c.ctx, lab.PodOptions{}))
	c.ok(a.Down(c.ctx))
	c.same(a, before)
}

// TestPodOfAFormerCIDR changes the node's pod CIDR while a pod is attached: its packets must not leave by the default
// route, with an address that nobody knows.
func TestPodOfAFormerCIDR(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	c.ok(a.Up(c.ctx))
	p, err := a.AddPod(c.ctx, "p", lab.PodOptions{})
	c.ok(err)
	c.ok(a.Down(c.ctx))
	a.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.77.0/24"), netip.MustParsePrefix("fd00:10:244:77::/64")}
	c.write()
	c.ok(a.Up(c.ctx))
	_, err = a.NS.Run(c.ctx, "nft", "add table inet leak; "+
		"add chain inet leak out { type filter hook postrouting priority 0; }; "+
		"add rule inet leak out oifname eth0 ip saddr "+p.V4.String()+" counter; "+
		"add rule inet leak out oifname eth0 ip6 saddr "+p.V6.String()+" counter")
	c.ok(err)
	for _, dst := range []string{b.V4.String(), b.V6.String(), "203.0.113.1", "2001:db8:113::1"} {
		if _, err = p.NS.Run(c.ctx, "ping", "-c1", "-W0.2", dst); err == nil {
			t.Errorf("it reaches %s", dst)
		}
	}
	out, err := a.NS.Run(c.ctx, "nft", "list", "table", "inet", "leak")
	if err != nil || strings.Count(out, "packets 0 ") != 2 {
		t.Errorf("its packets leave in the clear: %v\n%s", err, out)
	}
	if log := a.Daemon().LogTail(); !strings.Contains(log, "delete the pod") ||
		!strings.Contains(log, "address="+p.V4.String()) {
		t.Errorf("the log does not say so:\n%s", log)
	}
	c.ok(p.Delete(c.ctx, lab.PodOptions{}))
	c.eventually(func() error {
		out, err := a.NS.Run(c.ctx, "ip", "rule")
		if err == nil && strings.Contains(out, "from "+p.V4.String()+" ") {
			return errNotYet
		}
		return err
	})
}
