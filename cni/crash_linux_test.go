package cni_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/warren-net/warren/cni"
	"github.com/warren-net/warren/cni/podrecord"
)

// Killed at a random moment of ADD, a DEL cleans up; killed at a random moment of DEL, another DEL does.
func TestKilledAtRandomMoments(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.warm(mode)
			before := n.dump()
			p := n.pod(n.conf("1.0.0", mode))
			// How long a whole ADD takes here, to spread the kills over it.
			begin := time.Now()
			p.add()
			whole := time.Since(begin)
			p.del()
			var unfinished int
			for i := range 40 {
				p.id = fmt.Sprintf("killed-%d", i)
				if !n.kill(p.call("ADD"), rand.N(whole*3/2)) {
					unfinished++
				}
				if i%2 == 0 {
					n.kill(p.call("DEL"), rand.N(whole))
				}
				p.del()
				if i%8 == 7 {
					unchanged(t, fmt.Sprintf("after kill %d and DEL", i), before, n.dump())
				}
				if t.Failed() {
					return
				}
			}
			if unfinished == 0 {
				t.Error("no ADD was killed before its end: the test showed nothing")
			}
			r := p.add()
			ping(t, n.ns, r.addrs()[0])
			p.del()
		})
	}
}

// kill runs the plugin and kills it after a while; it reports whether the plugin was done by then.
func (n *node) kill(c call, after time.Duration) bool {
	n.t.Helper()
	cmd := n.command(c)
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	time.Sleep(after)
	_ = cmd.Process.Kill() // nsenter has become the plugin: it executes it without a fork
	return cmd.Wait() == nil
}

// As many as a node's usual pod CIDR has room for: all at once added, all at once deleted, in any order.
func TestManyAtOnce(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.warm(mode)
			before := n.dump()
			const count = 250
			pods := make([]*pod, count)
			for i := range pods {
				pods[i] = n.pod(n.conf("1.0.0", mode))
			}
			results := make([]result, count)
			n.atOnce(pods, "ADD", results)
			holder := map[netip.Addr]string{}
			for i, r := range results {
				if len(r.IPs) != 2 {
					t.Fatalf("pod %d got %+v", i, r)
				}
				for _, addr := range r.addrs() {
					if holder[addr] != "" {
						t.Errorf("%s was given twice", addr)
					}
					holder[addr] = pods[i].id
				}
			}
			for i := range 20 {
				from, to := rand.N(count), rand.N(count)
				ping(t, pods[from].ns, results[to].addrs()[i%2])
			}
			records, err := podrecord.List(n.state())
			if err != nil || len(records) != count {
				t.Errorf("%d records (%v), want %d", len(records), err, count)
			}
			rand.Shuffle(count, func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
			n.atOnce(pods, "DEL", nil)
			unchanged(t, "after all were deleted", before, n.dump())
		})
	}
}

// atOnce runs one command for all pods at the same time.
func (n *node) atOnce(pods []*pod, command string, results []result) {
	n.t.Helper()
	begin := time.Now()
	defer func() { n.t.Logf("%d %s at once took %v", len(pods), command, time.Since(begin)) }()
	var wg sync.WaitGroup
	for i, p := range pods {
		wg.Go(func() {
			var stdout, stderr bytes.Buffer
			cmd := n.command(p.call(command))
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				n.t.Errorf("%s %s: %v\n%s%s", command, p.id, err, stdout.String(), stderr.String())
				return
			}
			if results != nil {
				if err := json.Unmarshal(stdout.Bytes(), &results[i]); err != nil {
					n.t.Errorf("result of %s: %v\n%s", p.id, err, stdout.String())
				}
			}
		})
	}
	wg.Wait()
}

// The same ADD twice at the same moment: one wins, and its pod works.
func TestSameAddAtOnce(t *testing.T) {
	n := newNode(t)
	p := n.pod(n.conf("1.0.0", cni.ModeRouted))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won int
	for range 5 {
		wg.Go(func() {
			_, err := n.do(p.call("ADD"))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if err.Code != cni.CodeAttached && err.Code != cni.CodeInterfaceName {
				t.Errorf("%+v", err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d of 5 succeeded", won)
	}
	records, err := podrecord.List(n.state())
	if err != nil || len(records) != 1 {
		t.Fatalf("records %+v (%v)", records, err)
	}
	ping(t, n.ns, records[0].Addresses[0])
}

func TestGC(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			n.warm(mode)
			conf := n.conf("1.1.0", mode)
			keep, other := n.pod(conf), n.pod(strings.Replace(conf, `"pods"`, `"other"`, 1))
			r := keep.add()
			other.add()
			before := n.dump()
			lost := n.pod(conf) // its namespace is gone, and its DEL never came
			lost.add()
			sh(t, "", "ip netns del "+lost.ns)
			stateless := n.pod(conf) // its record is gone
			stateless.add()
			broken := n.pod(conf) // its record can't be read
			broken.add()
			record := func(p *pod) string {
				return podrecord.Dir(n.state()) + "/" + podrecord.HostIfName(p.id, "eth0") + ".json"
			}
			if err := os.Remove(record(stateless)); err != nil {
				t.Fatal(err)
			}
			for path, content := range map[string]string{
				record(broken): "{", n.state() + "/cni/ipam/pods/10.244.1.200": "",
				n.state() + "/cni/ipam/pods/" + r.addrs()[0].String():  "\x00",
				podrecord.Dir(n.state()) + "/.wrn0000000000f.json.tmp": "half",
			} {
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			list := fmt.Sprintf(`[{"containerID": %q, "ifname": "eth0"}]`, keep.id)
			with := func(fields string) call {
				return call{command: "GC", conf: strings.TrimSuffix(conf, "}") + fields + "}"}
			}
			full := n.dump()
			for _, fields := range []string{`, "cni.dev/valid-attachments": [{"containerID": "x"}]`,
				`, "cni.dev/attachments": 7`} {
				if _, err := n.do(with(fields)); err == nil || err.Code != types.ErrInvalidNetworkConfig {
					t.Errorf("GC with %q: %+v", fields, err)
				}
			}
			// Without any list, as cnitool sends it, everything may be valid.
			if says := n.remarks(with("")); !strings.Contains(says, "nothing was removed") {
				t.Errorf("GC without a list says %q", says)
			}
			unchanged(t, "GC without a list", full, n.dump())
			n.must(with(`, "cni.dev/valid-attachments": ` + list))
			unchanged(t, "GC", before, n.dump())
			ping(t, n.ns, r.addrs()[0])
			n.must(with(`, "cni.dev/attachments": ` + list)) // the other spelling, and nothing to do
			unchanged(t, "second GC", before, n.dump())
			keep.del()
			other.del()
		})
	}
}

// remarks are what a call that succeeds says on standard error.
func (n *node) remarks(c call) string {
	n.t.Helper()
	var stderr bytes.Buffer
	cmd := n.command(c)
	cmd.Stderr = &stderr
	if out, err := cmd.Output(); err != nil || len(out) > 0 {
		n.t.Errorf("%s: %v, and printed %q", c.command, err, out)
	}
	return stderr.String()
}

func TestCheck(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t)
			p := n.pod(n.conf("1.0.0", mode))
			check := func(out []byte) *types.Error {
				c := p.call("CHECK")
				c.conf = strings.TrimSuffix(c.conf, "}") + `, "prevResult": ` + string(out) + "}"
				_, err := n.do(c)
				return err
			}
			if _, err := n.do(p.call("CHECK")); err == nil || !strings.Contains(err.Msg, "prevResult") {
				t.Errorf("without prevResult: %+v", err)
			}
			out := n.must(p.call("ADD"))
			if err := check(out); err != nil {
				t.Fatalf("right after ADD: %+v", err)
			}
			if err := check(bytes.ReplaceAll(out, []byte("10.244.1.2/"), []byte("10.244.1.9/"))); err == nil ||
				!strings.Contains(err.Msg, "prevResult lacks address 10.244.1.2") {
				t.Errorf("another prevResult: %+v", err)
			}
			host := podrecord.HostIfName(p.id, "eth0")
			harms := []struct{ ns, harm, undo, want string }{
				{p.ns, "ip link set eth0 down", "", "eth0 in the pod is down"},
				{p.ns, "ip addr flush dev eth0", "", "lacks address 10.244.1.2"},
				{p.ns, "ip link set eth0 address 02:00:00:00:00:99", "", "has hardware address 02:00:00:00:00:99"},
				{p.ns, "ip route del default", "", "no route to 0.0.0.0/0 via 10.244.1.1 through eth0"},
				{n.ns, "ip link set " + host + " down", "", "host interface " + host + " is down"},
				{p.ns, "ip link del eth0", "", "no interface eth0"},
				{p.ns, "ip link set eth0 name eth7", "", "no interface eth0"},
				{p.ns, "ip link set eth0 mtu 1300", "", "eth0 in the pod has MTU 1300, not 1420"},
				{n.ns, "ip link set " + host + " mtu 1300", "", host + " has MTU 1300, not 1420"},
				{n.ns, "nft flush set inet warren pods6; nft flush set bridge warren pods6; true", "",
					"set pods6 of table"},
				{n.ns, "nft flush table inet warren; nft flush table bridge warren; true", "",
					"chain source of the nftables table"},
			}
			if mode == cni.ModeRouted {
				harms = append(harms, []struct{ ns, harm, undo, want string }{
					{n.ns, "ip route del 10.244.1.2", "", "no route to 10.244.1.2 through " + host},
					{n.ns, "ip -6 neigh flush dev " + host + " nud permanent", "", host + " has no permanent neighbour entry of fd00"},
					{n.ns, "sysctl -qw net.ipv4.conf." + host + ".rp_filter=0", "", "rp_filter of host interface " + host + " is 0"},
				}...)
			} else {
				harms = append(harms, struct{ ns, harm, undo, want string }{
					n.ns, "ip link set " + host + " nomaster", "", "no port of bridge",
				})
			}
			for _, h := range harms {
				p.del()
				out := n.must(p.call("ADD"))
				want := strings.ReplaceAll(h.want, "10.244.1.2", addrOf(t, out))
				sh(t, h.ns, strings.ReplaceAll(h.harm, "10.244.1.2", addrOf(t, out)))
				if err := check(out); err == nil || err.Code != cni.CodeChanged || !strings.Contains(err.Msg, want) {
					t.Errorf("after %s: %+v, want %q", h.harm, err, want)
				}
			}
			p.del()
			if err := check(out); err == nil || err.Code != types.ErrUnknownContainer {
				t.Errorf("after DEL: %+v", err)
			}
		})
	}
}

func addrOf(t *testing.T, out []byte) string {
	t.Helper()
	var r result
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	return r.addrs()[0].String()
}

func TestStatus(t *testing.T) {
	n := newNode(t)
	n.file.Device = "warren0"
	n.writeNodeFile()
	status := func(edit func(string) string) *types.Error {
		_, err := n.do(call{command: "STATUS", conf: edit(n.conf("1.1.0", cni.ModeRouted))})
		return err
	}
	same := func(s string) string { return s }
	want := func(err *types.Error, code uint, text string) {
		t.Helper()
		if err == nil || err.Code != code || !strings.Contains(err.Msg, text) {
			t.Errorf("got %+v, want code %d and %q", err, code, text)
		}
	}
	want(status(func(s string) string { return strings.Replace(s, n.run(), "/nonexistent", 1) }),
		types.ErrPluginNotAvailable,
		"start `warren up`")
	want(status(same), types.ErrLimitedConnectivity, "device warren0 does not exist")
	sh(t, n.ns, "ip tuntap add warren0 mode tun")
	want(status(same), types.ErrLimitedConnectivity, "device warren0 is down")
	sh(t, n.ns, "ip link set warren0 up")
	want(status(same), types.ErrLimitedConnectivity, "nobody serves device warren0")
	sh(t, n.ns, "ip link del warren0 && ip link add warren0 type veth peer name x && ip link set warren0 up && ip "+
		"link set x up")
	want(status(same), types.ErrPluginNotAvailable, "no node daemon answers at")
	n.daemon(healthy)
	if err := status(same); err != nil {
		t.Errorf("with a served device: %+v", err)
	}
	n.confMore = `, "podCIDRs": ["10.244.1.0/30"]`
	p := n.pod(n.conf("1.1.0", cni.ModeRouted))
	p.add()
	want(status(same), types.ErrPluginNotAvailable, "all 1 addresses of 10.244.1.0/30 are in use")
	p.del()
	if err := status(same); err != nil {
		t.Errorf("after the pod left: %+v", err)
	}
}
