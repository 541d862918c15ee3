package node_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/warren-net/warren/node/api"
)

func TestReload(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)

	// A node more, by a changed file alone.
	third, err := c.lab.AddNode("c")
	c.ok(err)
	c.write()
	c.ok(third.Up(c.ctx))
	c.ping(a, third)
	c.ping(third, b)
	c.eventually(func() error {
		if c.status(a).LastReload == nil {
			return errNotYet
		}
		return nil
	})
	s := c.status(a)
	if s.Snapshot.Peers != 2 || s.LastReload.Error != "" || s.LastReload.NeedsRestart != nil {
		t.Errorf("%+v", s)
	}
	if p := ask[[]api.Peer](c, a, "peers"); p[0].TxPackets == 0 {
		t.Error("the counters of a peer that did not change began anew")
	}

	// A bad file: the old state stays.
	good, err := os.ReadFile(a.ConfigFile)
	c.ok(err)
	bad := strings.Replace(string(good), "10.244.2.0/24", "10.244.1.128/25", 1)
	c.ok(os.WriteFile(a.ConfigFile, []byte(bad), 0o644))
	c.eventually(func() error {
		s := c.status(a)
		if s.LastReload == nil || !strings.Contains(s.LastReload.Error, "of node b overlaps 10.244.1.0/24 of node a") {
			return fmt.Errorf("%w: %+v", errNotYet, s.LastReload)
		}
		return nil
	})
	if s := c.status(a); s.Snapshot.Peers != 2 {
		t.Errorf("%+v", s.Snapshot)
	}
	c.ping(a, b)

	// What cannot change while it runs is named, the rest is applied. SIGHUP asks for it.
	other := strings.Replace(string(good), "workers: 2", "workers: 1\ndevice: other0\nmasquerade: false", 1)
	if other == string(good) {
		t.Fatalf("no workers in\n%s", good)
	}
	c.ok(os.WriteFile(a.ConfigFile, []byte(other), 0o644))
	c.ok(a.Daemon().Signal(syscall.SIGHUP))
	c.eventually(func() error {
		s := c.status(a)
		if s.LastReload.Error != "" || strings.Join(s.LastReload.NeedsRestart,
			"; ") != "device: warren0 → other0; workers: 2 → 1" {
			return fmt.Errorf("%w: %+v", errNotYet, s.LastReload)
		}
		return nil
	})
	if ruleset, err := a.NS.Run(c.ctx, "nft", "list", "ruleset"); err != nil || strings.Contains(ruleset,
		"masquerade random") {
		t.Errorf("%v\n%s", err, ruleset)
	}
	c.ping(a, b)

	// SIGHUP without a change is a reload all the same.
	c.ok(os.WriteFile(a.ConfigFile, good, 0o644))
	c.eventually(func() error {
		if s := c.status(a); len(s.LastReload.NeedsRestart) > 0 {
			return errNotYet
		}
		return nil
	})
	last := c.status(a).LastReload.Time
	c.ok(a.Daemon().Signal(syscall.SIGHUP))
	c.eventually(func() error {
		if s := c.status(a); !s.LastReload.Time.After(last) {
			return errNotYet
		}
		return nil
	})
}

func TestNodeRemoved(t *testing.T) {
	c := newCluster(t, "a", "b")
	a := c.nodes[0]
	c.ok(a.Up(c.ctx))
	good, err := os.ReadFile(a.ConfigFile)
	c.ok(err)
	i := strings.Index(string(good), "    - name: b\n")
	j := strings.Index(string(good), "runDir:")
	if i < 0 || j < i {
		t.Fatalf("unknown form:\n%s", good)
	}
	c.ok(os.WriteFile(a.ConfigFile, []byte(string(good[:i])+string(good[j:])), 0o644))
	c.eventually(func() error {
		if s := c.status(a); s.Snapshot.Peers != 0 || s.LastReload == nil || s.LastReload.Error != "" {
			return fmt.Errorf("%w: %+v", errNotYet, s)
		}
		return nil
	})
}

func TestUnderlayShrinks(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	// Full packets keep flowing, so that sends are refused while the node has not yet seen its device shrink.
	_, err := c.lab.Start(a.NS, "ping", "ping", "-q", "-i", "0.01", "-s", "1392", "-M", "do",
		"-I", a.PodCIDRs[0].Addr().Next().String(), b.PodCIDRs[0].Addr().Next().String())
	c.ok(err)
	for _, step := range []struct{ mtu, peer, warnings int }{{1400, 1350, 2}, {1500, 1420, 0}} {
		c.ok(a.SetUnderlayMTU(step.mtu))
		c.eventually(func() error {
			s, p := c.status(a), ask[[]api.Peer](c, a, "peers")
			if p[0].MTU != step.peer || len(s.Warnings) != step.warnings {
				return fmt.Errorf("%w: underlay %d: peer's MTU %d, warnings %q", errNotYet, step.mtu, p[0].MTU, s.Warnings)
			}
			return nil
		})
	}
}

func TestSomebodyFlushes(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	running := c.state(a)
	for _, command := range []string{
		"ip rule del pref 5203", "ip route flush table 8787", "ip route del 10.244.0.0/16 dev warren0", "nft flush ruleset",
	} {
		_, err := a.NS.Run(c.ctx, strings.Fields(command)...)
		c.ok(err)
		c.eventually(func() error {
			if added, gone := c.state(a).Since(running); len(added)+len(gone) > 0 {
				return fmt.Errorf("%w: after %s: added %v, gone %v", errNotYet, command, added, gone)
			}
			return nil
		})
	}
}

func TestMetrics(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	a.Settings.Metrics = "127.0.0.1:9187"
	c.write()
	for _, n := range c.nodes {
		c.ok(n.Up(c.ctx))
	}
	c.ping(a, b)
	var body string
	c.ok(a.NS.Do(func() error {
		conn, err := net.Dial("tcp4", "127.0.0.1:9187")
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		all, err := io.ReadAll(resp.Body)
		body = string(all)
		return err
	}))
	for _, want := range []string{
		"warren_peers 1\n", `warren_drops_total{reason="wrong-vni"} 0`, `warren_offload_enabled{offload="`,
		`warren_peer_packets_total{direction="tx",peer="b"} `, "warren_snapshot_generation ", "go_goroutines",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
}

func TestMetricsAddressInUse(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes[0]
	a.Settings.Metrics = "127.0.0.1:9187"
	c.write()
	var l net.Listener
	c.ok(a.NS.Do(func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:9187")
		return err
	}))
	defer l.Close()
	before := c.state(a)
	c.refused(a, "metrics: 127.0.0.1:9187 is in use by another program; choose another address in `metrics`")
	c.same(a, before)
}
