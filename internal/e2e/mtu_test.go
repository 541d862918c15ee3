package e2e_test

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// maxStall is how long a TCP connection may stand still while the path changes: a retransmission timeout or two.
const maxStall = 3 * time.Second

// tooBig matches ICMP "fragmentation needed" (RFC 1191) and ICMPv6 "packet too big" with an MTU from an address.
func tooBig(from netip.Addr, mtu int) func(*pkt) bool {
	return func(p *pkt) bool {
		return p.src == from && p.mtu == mtu &&
			(p.proto == protoICMP && p.kind == 3 && p.code == 4 || p.proto == protoICMPv6 && p.kind == 2)
	}
}

// shrink gives the underlay of both nodes an MTU.
func (p *pair) shrink(mtu int) {
	p.t.Helper()
	for _, n := range []*lab.Node{p.a, p.b} {
		p.ok(n.SetUnderlayMTU(mtu))
	}
}

// peerMTU waits until both nodes tell the other's pods this MTU.
func (p *pair) peerMTU(mtu int) {
	p.t.Helper()
	for _, n := range []*lab.Node{p.a, p.b} {
		p.eventually(func() error {
			if got := ask[[]api.Peer](p.cluster, n, "peers")[0].MTU; got != mtu {
				return fmt.Errorf("%w: node %s says MTU %d of its peer, want %d", errNotYet, n.Name, got, mtu)
			}
			return nil
		})
	}
}

// warns waits until a node's status has a warning with all these words, and its log as well.
func (p *pair) warns(n *lab.Node, words ...string) {
	p.t.Helper()
	p.eventually(func() error {
		log, err := os.ReadFile(n.Daemon().Log)
		p.ok(err)
		for _, text := range []string{strings.Join(ask[api.Status](p.cluster, n, "status").Warnings, "\n"), string(log)} {
			for _, word := range words {
				if !strings.Contains(text, word) {
					return fmt.Errorf("%w: node %s does not warn of %q: %s", errNotYet, n.Name, word, text)
				}
			}
		}
		return nil
	})
}

// forget has a pod forget what it learnt of paths.
func (p *pair) forget(pods ...*lab.Pod) {
	p.t.Helper()
	for _, pod := range pods {
		p.do(pod.NS, "ip -4 route flush cache", "ip -6 route flush cache")
	}
}

// refusesAbove wants pings with DF of the MTU to pass, and larger ones to be refused by the gateway, with that MTU.
func (p *pair) refusesAbove(from, to *lab.Pod, f, mtu int) {
	p.t.Helper()
	p.forget(from)
	p.fullPing(from.NS, to.Address(f), mtu)
	said := p.capture(from.NS, "eth0", tooBig(gateway(from.Node, f), mtu))
	larger := fmt.Sprint(lab.PayloadFor(mtu+1, to.Address(f)))
	out, err := from.NS.Run(p.ctx, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", larger,
		to.Address(f).String())
	if err == nil || !regexp.MustCompile(fmt.Sprintf(`mtu ?[=:] ?%d\b`, mtu)).MatchString(out+err.Error()) {
		p.t.Errorf("IPv%d: a ping of %d bytes with DF: want a refusal with mtu %d, got %v: %s", f, mtu+1, mtu, err, out)
	}
	if said.stop() == 0 {
		p.t.Errorf("IPv%d: no ICMP error with MTU %d from the gateway", f, mtu)
	}
}

// fragments wants IPv4 packets without DF of the pods' MTU to arrive, though the path is narrower.
func (p *pair) fragments(from, to *lab.Pod) {
	p.t.Helper()
	p.forget(from, to)
	out, err := from.NS.Run(p.ctx, "ping", "-n", "-c", "3", "-l", "3", "-i", "1", "-W", "1", "-M", "dont", "-s", "1392",
		to.V4.String()) // see lab.NS.Ping
	if err != nil || !strings.Contains(out, "3 received") {
		p.t.Errorf("pings of 1420 bytes without DF: %v: %s", err, out)
	}
}

// during runs transfers of both families in both directions while f happens, and wants them to go on.
func (p *pair) during(what string, f func()) {
	p.t.Helper()
	var transfers []*lab.Transfer
	for _, family := range families() {
		for _, path := range []lab.Path{between(p.a1, p.b1, family), between(p.b1, p.a1, family)} {
			t, err := lab.StartTransfer(p.ctx, path, lab.TransferOptions{BytesPerSecond: 8 << 20})
			p.ok(err)
			transfers = append(transfers, t)
		}
	}
	time.Sleep(300 * time.Millisecond)
	f()
	time.Sleep(time.Second)
	for _, t := range transfers {
		t.Finish()
	}
	for _, t := range transfers {
		if r, err := t.Wait(); err != nil || r.LongestStall > maxStall {
			p.t.Errorf("%s: a transfer stood still for %v (%d bytes): %v", what, r.LongestStall, r.Bytes, err)
		}
	}
}

func TestUnderlayMTUShrinks(t *testing.T) {
	p := newPair(t, "routed")
	var said []*capture
	for _, f := range families() {
		said = append(said, p.capture(p.a1.NS, "eth0", tooBig(gateway(p.a, f), 1350)))
	}
	p.during("underlay from 1500 to 1400", func() {
		p.shrink(1400)
		p.peerMTU(1350)
	})
	for _, k := range said {
		if k.stop() == 0 {
			t.Errorf("the sending pod was not told of the new MTU at %s", k.where)
		}
	}
	p.warns(p.a, "eth0", "MTU 1400", "pods with MTU 1420 need 1470")
	for _, f := range families() {
		p.refusesAbove(p.a1, p.b1, f, 1350)
		p.refusesAbove(p.b1, p.a1, f, 1350)
	}
	p.fragments(p.a1, p.b1)

	p.during("underlay from 1400 to 1330", func() {
		p.shrink(1330)
		p.peerMTU(1280)
	})
	for _, f := range families() {
		p.refusesAbove(p.a1, p.b1, f, 1280)
	}
	p.fragments(p.b1, p.a1)

	// Below what IPv6 is entitled to: said, and what can be helped goes on.
	p.shrink(1300)
	p.warns(p.a, "1280", "larger packets are lost")
	p.refusesAbove(p.a1, p.b1, 4, 1250)
	for _, f := range families() {
		p.transfer(between(p.a1, p.b1, f), 4<<20)
	}

	p.shrink(1500)
	p.peerMTU(1420)
	p.eventually(func() error {
		if w := ask[api.Status](p.cluster, p.a, "status").Warnings; len(w) > 0 {
			return fmt.Errorf("%w: still warned of: %q", errNotYet, w)
		}
		return nil
	})
	p.forget(p.a1, p.b1)
	for _, f := range families() {
		p.fullPing(p.a1.NS, p.b1.Address(f), 1420)
		p.fullPing(p.b1.NS, p.a1.Address(f), 1420)
	}
}

// TestPathMTUOfARouter has the way to the peer lead through a router whose next link is narrower: its ICMP errors are
// all that tells.
func TestPathMTUOfARouter(t *testing.T) {
	p := newPair(t, "routed")
	outside := p.lab.Outside
	p.do(outside, "sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv6.conf.all.forwarding=1",
		"sysctl -qw net.ipv4.conf.all.send_redirects=0", "sysctl -qw net.ipv4.conf.eth0.send_redirects=0")
	for _, d := range []struct{ from, to *lab.Node }{{p.a, p.b}, {p.b, p.a}} {
		p.do(d.from.NS, "sysctl -qw net.ipv4.conf.eth0.accept_redirects=0", "sysctl -qw net.ipv4.conf.all.accept_redirects=0")
		p.do(d.from.NS, fmt.Sprintf("ip route add %s via 192.0.2.254", d.to.V4))
	}
	p.talks()
	p.during("a router's path from 1500 to 1400", func() {
		p.do(outside, "ip route replace 192.0.2.0/24 dev eth0 mtu lock 1400", "ip route flush cache")
		p.peerMTU(1350)
	})
	p.warns(p.a, "the path to peer b", "at most 1400 bytes")
	for _, f := range families() {
		p.refusesAbove(p.a1, p.b1, f, 1350)
	}
	p.fragments(p.a1, p.b1)
}

// TestMTUBeyondTheUnderlay promises pods more than the underlay carries.
func TestMTUBeyondTheUnderlay(t *testing.T) {
	p := &pair{cluster: newCluster(t, lab.Options{})}
	p.a, p.b = p.node("a"), p.node("b")
	p.a.Settings.MTU, p.b.Settings.MTU = 1500, 1500
	p.configure()
	p.up(p.a, p.b)
	p.warns(p.a, "eth0", "MTU 1500", "pods with MTU 1500 need 1550", "mtu: 1450")
	p.a1, p.b1 = p.pod(p.a, "1"), p.pod(p.b, "1")
	if mtu, err := p.a1.MTU(); err != nil || mtu != 1500 {
		t.Errorf("a pod's MTU is %d (%v), want 1500", mtu, err)
	}
	for _, f := range families() {
		p.refusesAbove(p.a1, p.b1, f, 1450)
		p.transfer(between(p.a1, p.b1, f), 4<<20)
	}
}
