package cni_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/warren-net/warren/cni"
)

// Where the DHCP server is: on the node's bridge, which an operator has made, or beyond the uplink of one that ADD
// makes.
const (
	onBridge = "on the bridge"
	onUplink = "beyond the uplink"
)

// dhcpNode is a node with upstream's DHCP daemon, and a network namespace with a DHCP server on the same link.
type dhcpNode struct {
	*node
	lan      string // the server's namespace
	said     func() string
	commands []*exec.Cmd
}

func newDHCPNode(t *testing.T, where string) *dhcpNode {
	t.Helper()
	n := &dhcpNode{node: newNodeWithUpstream(t)}
	n.lan = namespace(t, "l")
	sh(t, n.ns, "ip link add lan0 type veth peer name lan1 netns "+n.lan+" && ip link set lan0 addrgenmode none up")
	bridge := `"uplink": "lan0"`
	if where == onBridge {
		bridge = `"bridge": "br-lan"`
		sh(t, n.ns, "ip link add br-lan type bridge && ip link set br-lan address 02:00:00:00:00:07 addrgenmode none up && "+
			"ip link set lan0 master br-lan")
	}
	sh(t, n.lan, "ip link set lan1 addrgenmode none up && ip addr add 10.244.1.250/24 dev lan1")
	// What a server gets that is no broadcast is a release.
	sh(t, n.lan, "nft 'add table inet seen; "+
		"add chain inet seen in { type filter hook prerouting priority -400; }; "+
		"add rule inet seen in ip saddr 0.0.0.0 ip daddr 10.244.1.250 udp dport 67 counter'")
	n.confMore = fmt.Sprintf(`, %s, "ipam": {"type": "dhcp", "daemonSocketPath": %q, "provide": [`+
		`{"option": "vendor-class-identifier", "value": "node-a"}]}`, bridge, n.socket())
	return n
}

func (n *dhcpNode) socket() string { return filepath.Join(n.dir, "dhcp.sock") }

// start runs a program until the end of the test, and returns what it has said so far.
func (n *dhcpNode) start(ns string, args ...string) (said func() string) {
	n.t.Helper()
	log, err := os.Create(filepath.Join(n.dir, fmt.Sprintf("log-%d", len(n.commands))))
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + ns}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.commands = append(n.commands, cmd)
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
	})
	return func() string {
		text, err := os.ReadFile(log.Name())
		if err != nil {
			n.t.Error(err)
		}
		return string(text)
	}
}

// daemon runs upstream's DHCP client, which asks in the pods' namespaces.
func (n *dhcpNode) daemon(t *testing.T) {
	t.Helper()
	n.start(n.ns, filepath.Join(filepath.Dir(n.bin), "dhcp"), "daemon", "-socketpath", n.socket(), "-timeout", "2s",
		"-resendtimeout", "4s")
	eventually(t, "the DHCP daemon", func() bool { _, err := os.Stat(n.socket()); return err == nil })
}

// server runs dnsmasq with a pool for this node, and one for whoever does not say that it is this node. Clients renew
// their lease every three seconds, the least that it takes.
func (n *dhcpNode) server(t *testing.T, pool, gateway string) {
	t.Helper()
	sh(t, n.lan, "ip addr add 10.244.2.250/24 dev lan1")
	n.said = n.start(n.lan, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=lan1",
		"--bind-interfaces", "--dhcp-range=tag:a,"+pool, "--dhcp-vendorclass=set:a,node-a",
		"--dhcp-range=tag:!a,10.244.2.100,10.244.2.150,255.255.255.0,2m", "--dhcp-option=option:router,"+gateway,
		"--dhcp-option=option:T1,3", "--dhcp-authoritative", "--no-ping", "--user=root", "--pid-file=", "--leasefile-ro",
		"--dhcp-leasefile="+filepath.Join(n.dir, "leases"))
	eventually(t, "dnsmasq", func() bool { return strings.Contains(n.said(), "DHCP, IP range") })
}

// released counts the releases that reached the server's link.
func (n *dhcpNode) released() string {
	n.t.Helper()
	return regexp.MustCompile(`packets \d+`).FindString(sh(n.t, n.lan, "nft list chain inet seen in"))
}

const pool = "10.244.1.100,10.244.1.150,255.255.255.0,2m"

// Addresses of a real DHCP server, by upstream's plugin, from the first question to the release.
func TestDHCP(t *testing.T) {
	for _, where := range []string{onBridge, onUplink} {
		t.Run(where, func(t *testing.T) {
			n := newDHCPNode(t, where)
			n.daemon(t)
			n.server(t, pool, gateway4)
			conf := n.conf("1.0.0", cni.ModeBridge)
			warm := n.pod(conf) // makes what stays: nftables tables
			warm.add()
			warm.del()
			before := n.dump()
			first, second := n.pod(conf), n.pod(conf)
			out := n.must(first.call("ADD"))
			n.must(first.withPrev("CHECK", out))
			addr := netip.MustParseAddr(addrOf(t, out))
			if addr.Less(netip.MustParseAddr("10.244.1.100")) || netip.MustParseAddr("10.244.1.150").Less(addr) ||
				!bytes.Contains(out, []byte(`"gateway": "`+gateway4+`"`)) || !bytes.Contains(out, []byte(`"dst": "0.0.0.0/0"`)) {
				t.Errorf("result %s", out)
			}
			r := second.add()
			for _, from := range []string{n.ns, n.lan, second.ns} {
				ping(t, from, addr)
			}
			ping(t, first.ns, r.addrs()[0])
			ping(t, first.ns, netip.MustParseAddr(gateway4))
			sh(t, first.ns, "ip addr add 10.244.1.99/24 dev eth0")
			if out, err := try(first.ns, "ping -c 1 -W 1 -I 10.244.1.99 10.244.1.250"); err == nil {
				t.Errorf("an address that no server gave: %s", out)
			}
			sh(t, first.ns, "ip addr del 10.244.1.99/24 dev eth0")
			asked := strings.Count(n.said(), "DHCPREQUEST(lan1) "+addr.String())
			eventually(t, "the lease's renewal", func() bool {
				return strings.Count(n.said(), "DHCPACK(lan1) "+addr.String()) > asked
			})
			released := n.released()
			first.del()
			if now := n.released(); now == released {
				t.Errorf("DEL released no lease: %s", now)
			}
			// Who knows the address under another hardware address learns the new one.
			sh(t, second.ns, "ip neigh replace "+addr.String()+" lladdr 02:00:00:00:00:99 dev eth0 nud reachable")
			if again := first.add().addrs()[0]; again != addr {
				t.Errorf("the server gave %s again as %s", addr, again)
			}
			ping(t, second.ns, addr)
			first.del()
			second.del()
			first.del()
			unchanged(t, "after DEL", before, n.dump())
		})
	}
}

// Where no server answers, or gives what the node can't serve, ADD leaves nothing.
func TestDHCPRefused(t *testing.T) {
	for _, tc := range []struct{ pool, gateway, want, args string }{
		{want: `IPAM plugin "dhcp" failed`},
		{args: "MAC=0e:59:0a:f4:01:01", want: "itself has"}, // of the bridge, which is made from the gateway's address
		{"10.245.1.100,10.245.1.150,255.255.255.0,2m", "10.245.1.1", "outside the node's pod CIDRs", ""},
		{pool, "10.244.1.9", "which is not the node's, 10.244.1.1", ""},
	} {
		t.Run(tc.want, func(t *testing.T) {
			n := newDHCPNode(t, onUplink)
			n.daemon(t)
			if tc.pool != "" {
				sh(t, n.lan, "ip addr add 10.245.1.250/24 dev lan1")
				n.server(t, tc.pool, tc.gateway)
			}
			n.warmWithout(t)
			before := n.dump()
			p := n.pod(n.conf("1.0.0", cni.ModeBridge))
			p.args = tc.args
			if _, err := n.do(p.call("ADD")); err == nil || !strings.Contains(err.Msg, tc.want) {
				t.Errorf("ADD: %+v, want %q", err, tc.want)
			}
			unchanged(t, "after ADD", before, n.dump())
		})
	}
}

// warmWithout lets the plugin make what stays, without the DHCP plugin.
func (n *dhcpNode) warmWithout(t *testing.T) {
	t.Helper()
	more := n.confMore
	n.confMore = ""
	n.warm(cni.ModeBridge)
	n.confMore = more
}
