package cni_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netns"
	"github.com/warren-net/warren/cni/podrecord"
)

// nodeExec runs plugins for libcni in a node's namespace, as the runtime of that node would.
type nodeExec struct {
	invoke.DefaultExec
	ns string
}

func (e *nodeExec) ExecPlugin(ctx context.Context, plugin string, stdin []byte, environ []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+e.ns, plugin)
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	var said types.Error
	if json.Unmarshal(stdout.Bytes(), &said) == nil && said.Msg != "" {
		return nil, &said
	}
	return nil, fmt.Errorf("%s: %w: %s%s", plugin, err, stdout.String(), stderr.String())
}

// chain is a conflist with the upstream plugins behind warren-cni.
type chain struct {
	n       *node
	list    *libcni.NetworkConfigList
	lib     *libcni.CNIConfig
	outside string // a namespace that the node reaches at 192.0.2.2
}

func newChain(t *testing.T, mode, backend string) *chain {
	t.Helper()
	n := newNodeWithUpstream(t)
	c := &chain{n: n, outside: namespace(t, "o")}
	sh(t, n.ns, "ip link add up0 type veth peer name up0 netns "+c.outside+" && ip link set up0 addrgenmode none up && "+
		"ip addr add 192.0.2.1/24 dev up0")
	sh(t, c.outside, "ip link set up0 up && ip addr add 192.0.2.2/24 dev up0")
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion": "1.1.0", "name": "pods", "plugins": [
		{"type": "warren-cni", "mode": %q, "runDir": %q, "stateDir": %q, "capabilities": {"mac": true}},
		{"type": "tuning", "dataDir": %q, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "txQLen": 321,
			"capabilities": {"mac": true}},
		{"type": "bandwidth", "capabilities": {"bandwidth": true}},
		{"type": "portmap", "backend": %q, "capabilities": {"portMappings": true}},
		{"type": "firewall", "backend": "iptables"}]}`,
		mode, n.run(), n.state(), filepath.Join(n.dir, "tuning"), backend))
	if err != nil {
		t.Fatal(err)
	}
	c.list = list
	c.lib = libcni.NewCNIConfigWithCacheDir([]string{n.path}, filepath.Join(n.dir, "cache"), &nodeExec{ns: n.ns})
	return c
}

const chainMAC = "02:00:00:00:00:42"

func (c *chain) runtimeConf(p *pod) *libcni.RuntimeConf {
	limit := map[string]any{
		"ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 40_000_000, "egressBurst": 8_000_000,
	}
	return &libcni.RuntimeConf{
		ContainerID: p.id, NetNS: "/run/netns/" + p.ns, IfName: "eth0",
		CapabilityArgs: map[string]any{
			"mac": chainMAC, "bandwidth": limit,
			"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}},
		},
	}
}

func (c *chain) add(p *pod) {
	c.n.t.Helper()
	if _, err := c.lib.AddNetworkList(c.n.t.Context(), c.list, c.runtimeConf(p)); err != nil {
		c.n.t.Fatalf("ADD of the list: %v", err)
	}
}

func (c *chain) del(p *pod) {
	c.n.t.Helper()
	if err := c.lib.DelNetworkList(c.n.t.Context(), c.list, c.runtimeConf(p)); err != nil {
		c.n.t.Errorf("DEL of the list: %v", err)
	}
}

// inside runs f on a thread in a namespace; sockets that it opens stay there.
func inside(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		handle, err := netns.GetFromName(ns)
		if err == nil {
			err = errors.Join(netns.Set(handle), handle.Close())
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// serve answers every connection to port 80 of a pod with its name.
func serve(t *testing.T, p *pod) {
	t.Helper()
	var l net.Listener
	err := inside(p.ns, func() (err error) {
		l, err = net.Listen("tcp4", ":80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, p.id)
			_ = conn.Close()
		}
	}()
}

// fetch reads what a server sends to somebody in a namespace.
func fetch(ns, address string) (string, error) {
	var said []byte
	err := inside(ns, func() error {
		conn, err := net.DialTimeout("tcp4", address, 2*time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		said, err = io.ReadAll(conn)
		return err
	})
	return string(said), err
}

// Upstream's plugins behind warren-cni, driven as a runtime does it: each does its work, and nothing is left.
func TestBehindWarren(t *testing.T) {
	for _, mode := range modes {
		for _, backend := range []string{"iptables", "nftables"} {
			t.Run(mode+" "+backend, func(t *testing.T) {
				c := newChain(t, mode, backend)
				n := c.n
				p := n.pod("")
				c.add(p) // makes what upstream's plugins leave for the next pod: their chains
				c.del(p)
				before := n.dump()

				c.add(p)
				if err := c.lib.CheckNetworkList(t.Context(), c.list, c.runtimeConf(p)); err != nil {
					t.Errorf("CHECK of the list: %v", err)
				}
				c.works(t, p)
				c.del(p)
				unchanged(t, "after DEL", before, n.dump())
				c.del(p)

				// GC of a pod that is gone, beside one that stays.
				lost := n.pod("")
				c.add(lost)
				sh(t, "", "ip netns del "+lost.ns)
				if err := c.lib.GCNetworkList(t.Context(), c.list, &libcni.GCArgs{}); err != nil {
					t.Errorf("GC of the list: %v", err)
				}
				unchanged(t, "after GC", before, n.dump())
			})
		}
	}
}

// A hardware address that tuning alone sets cuts the pod off, as the documentation says, and CHECK tells.
func TestTuningAloneSetsTheAddress(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := newChain(t, mode, "nftables")
			list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion": "1.1.0", "name": "pods", "plugins": [
				{"type": "warren-cni", "mode": %q, "runDir": %q, "stateDir": %q},
				{"type": "tuning", "dataDir": %q, "mac": %q}]}`,
				mode, c.n.run(), c.n.state(), filepath.Join(c.n.dir, "tuning"), chainMAC))
			if err != nil {
				t.Fatal(err)
			}
			c.list = list
			p := c.n.pod("")
			c.add(p)
			if _, err := try(p.ns, "ping -c 1 -W 1 "+gateway4); err == nil {
				t.Error("the pod reaches its gateway")
			}
			err = c.lib.CheckNetworkList(t.Context(), c.list, c.runtimeConf(p))
			if err == nil || !strings.Contains(err.Error(), "has hardware address "+chainMAC) {
				t.Errorf("CHECK: %v", err)
			}
			c.del(p)
		})
	}
}

// works looks at what each plugin did.
func (c *chain) works(t *testing.T, p *pod) {
	t.Helper()
	n := c.n
	host := podrecord.HostIfName(p.id, "eth0")
	serve(t, p)
	if said, err := fetch(c.outside, "192.0.2.1:8080"); err != nil || said != p.id {
		t.Errorf("portmap: the host port says %q, %v", said, err)
	}
	link := sh(t, p.ns, "ip link show eth0; cat /proc/sys/net/ipv4/conf/eth0/arp_filter")
	if !strings.Contains(link, "qlen 321") || !strings.Contains(link, chainMAC) || !strings.HasSuffix(link, "\n1\n") {
		t.Errorf("tuning: %s", link)
	}

	// Firewall's rules are what lets the pod through where the policy is to drop.
	sh(t, n.ns, "iptables -P FORWARD DROP")
	reach := func() error {
		_, err := try(p.ns, "ping -c 1 -W 1 192.0.2.2")
		return err
	}
	if err := reach(); err != nil {
		t.Errorf("firewall: the pod does not reach the outside: %v", err)
	}
	rule := strings.TrimSpace(sh(t, n.ns, "iptables -S CNI-FORWARD | grep -- '-s 10.244.1.* -j ACCEPT'"))
	sh(t, n.ns, "iptables "+strings.Replace(rule, "-A", "-D", 1))
	if err := reach(); err == nil {
		t.Errorf("firewall: the pod reaches the outside without %s", rule)
	}
	if err := c.lib.CheckNetworkList(t.Context(), c.list, c.runtimeConf(p)); err == nil {
		t.Errorf("CHECK of the list does not miss %s", rule)
	}
	sh(t, n.ns, "iptables -P FORWARD ACCEPT")

	// What came in and went out passed the limits.
	for what, dev := range map[string]string{"80Mbit": host, "40Mbit": c.ifb(t)} {
		out := sh(t, n.ns, "tc -s qdisc show dev "+dev)
		if !strings.Contains(out, "tbf") || !strings.Contains(out, "rate "+what) || strings.Contains(out, "Sent 0 bytes") {
			t.Errorf("bandwidth: %s has no limit of %s, or nothing passed it: %s", dev, what, out)
		}
	}
}

// ifb is the device that bandwidth limits what a pod sends with.
func (c *chain) ifb(t *testing.T) string {
	t.Helper()
	name, _, _ := strings.Cut(sh(t, c.n.ns, "ip -br link show type ifb"), " ")
	return name
}
