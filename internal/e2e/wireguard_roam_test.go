package e2e_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/internal/lab/wgpeer"
)

// TestRoaming has a laptop change its port, its address and its address family while TCP connections run: both sides'
// packets follow.
func TestRoaming(t *testing.T) {
	c := newEncrypted(t, "roam")
	a, f := c.encrypted("a"), c.foreignLaptop("f")
	c.configure(f.asLaptop()...)
	g := c.guardUnderlay()
	f.knows(a, a.V4, key.Preshared{})
	c.up(a)
	f.up()
	pod := c.pod(a, "1")
	c.ping(f.node.NS, pod.V4, lab.Ping{})

	var echoes []*lab.Echo
	var transfers []*lab.Transfer
	for _, p := range f.paths(pod, 4) {
		e, err := lab.StartEcho(c.ctx, p, 5*time.Millisecond)
		c.ok(err)
		tr, err := lab.StartTransfer(c.ctx, p, lab.TransferOptions{BytesPerSecond: 5 << 20})
		c.ok(err)
		echoes, transfers = append(echoes, e), append(transfers, tr)
	}
	const otherPort = 51999
	moved := netip.MustParseAddr("192.0.2.199")
	for _, step := range []struct {
		name string
		do   func()
		want netip.AddrPort
	}{
		{"port", func() { c.ok(f.peer.SetPort(c.ctx, otherPort)) }, netip.AddrPortFrom(f.node.V4, otherPort)},
		{"address", func() {
			c.do(f.node.NS, "sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1",
				fmt.Sprintf("ip addr add %s/24 dev eth0", moved), fmt.Sprintf("ip addr del %s/24 dev eth0", f.node.V4))
		}, netip.AddrPortFrom(moved, otherPort)},
		{"family", func() {
			// As long as Warren's packets reach it over IPv4, it answers there.
			c.do(f.node.NS, fmt.Sprintf("ip addr del %s/24 dev eth0", moved))
			r := f.peer.Remotes[0]
			r.Endpoint = netip.AddrPortFrom(a.V6, wireguardPort)
			c.ok(f.peer.Set(c.ctx, r))
		}, netip.AddrPortFrom(f.node.V6, otherPort)},
	} {
		before := f.said(saidSentInitiation)
		step.do()
		for _, e := range echoes {
			if err := e.WaitAnswered(c.ctx); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
		}
		c.eventually(func() error {
			if got := c.endpoint(a, f.node.Name); got != step.want {
				return fmt.Errorf("%w: %s: the endpoint is %s, want %s", errNotYet, step.name, got, step.want)
			}
			return nil
		})
		if n := f.said(saidSentInitiation) - before; n > 0 {
			t.Errorf("%s: %d handshakes; a session moves along", step.name, n)
		}
	}
	for _, e := range echoes {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
	}
	for _, tr := range transfers {
		tr.Finish()
		if _, err := tr.Wait(); err != nil {
			t.Error(err)
		}
	}
	g.nothingReadable()
}

// TestLaptop takes what `warren peer config` prints to a machine with wireguard-go, and has it talk with the pods of
// two nodes.
func TestLaptop(t *testing.T) {
	c := newEncrypted(t, "laptop")
	a, b, f := c.encrypted("a"), c.encrypted("b"), c.foreignLaptop("f")
	c.configure(f.asLaptop()...)
	g := c.guardUnderlay()
	c.up(a, b)
	pods := []*lab.Pod{c.pod(a, "1"), c.pod(b, "1")}

	secret := filepath.Join(f.node.Dir, "laptop.key")
	c.ok(os.WriteFile(secret, []byte(f.peer.PrivateKey.RevealText()+"\n"), 0o600))
	printed, err := a.Warren(c.ctx, "peer", "config", f.node.Name, "--key", secret)
	c.ok(err)
	file := filepath.Join(f.node.Dir, "laptop.conf")
	c.ok(os.WriteFile(file, []byte(printed), 0o600))

	// wg-quick would do the rest with the kernel's device: what it does is read here, and what wg takes is wg-quick's.
	mtu, err := strconv.Atoi(quickValues(printed, "MTU")[0])
	c.ok(err)
	f.peer.Config = wgpeer.Config{Name: f.peer.Name, Program: f.peer.Program, MTU: mtu, PrivateKey: key.NewPrivate(),
		Verbose: true}
	for _, text := range quickValues(printed, "Address") {
		f.peer.Addresses = append(f.peer.Addresses, netip.MustParsePrefix(text))
	}
	f.up()
	c.ok(f.peer.SetConf(c.ctx, c.run(f.node.NS, "wg-quick", "strip", file)))
	for _, text := range quickValues(printed, "AllowedIPs") {
		c.do(f.node.NS, fmt.Sprintf("ip route replace %s dev %s", text, f.peer.Device()))
	}
	for _, pod := range pods {
		c.within(20*time.Second, func() error {
			_, err := f.node.NS.Ping(c.ctx, pod.V4, lab.Ping{Count: 1})
			return err
		})
		f.talks(pod, transferBytes/8)
	}
	g.nothingReadable()
}

// quickValues are the values of a key of wg-quick's configuration, from all its lines.
func quickValues(text, key string) []string {
	var values []string
	for line := range strings.Lines(text) {
		name, list, ok := strings.Cut(line, "=")
		if !ok || strings.TrimSpace(name) != key {
			continue
		}
		for value := range strings.SplitSeq(list, ",") {
			values = append(values, strings.TrimSpace(value))
		}
	}
	return values
}

// TestRekeyByTime waits until the protocol makes new session keys by itself, two minutes after the last ones, in a
// session that Warren began with Warren, one that it began with wireguard-go, and one that wireguard-go began. No ping
// may be lost.
func TestRekeyByTime(t *testing.T) {
	c := newEncrypted(t, "rekey")
	a, b, called, caller := c.encrypted("a"), c.encrypted("b"), c.foreignNode("called"), c.foreignLaptop("caller")
	c.configure(caller.asLaptop()...)
	called.knows(a, netip.Addr{}, key.Preshared{})
	caller.knows(a, a.V4, key.Preshared{})
	g := c.guardUnderlay()
	nodes := c.guardPairs(func(x, y netip.Addr) bool { return x == a.V4 && y == b.V4 || x == b.V4 && y == a.V4 })
	called.up()
	c.up(a, b)
	caller.up()
	one, other := c.pod(a, "1"), c.pod(b, "1")
	c.ping(caller.node.NS, one.V4, lab.Ping{})
	called.reached(one)
	k := c.startTraffic("ab", one, other)
	var pingers []*pinger
	for _, f := range []*foreign{called, caller} {
		for i, p := range f.paths(one, 4) {
			pingers = append(pingers, c.startPinger(fmt.Sprint(f.node.Name, i), p.From, p.Addr))
		}
	}
	first := map[*foreign]time.Time{called: called.remote(a).Handshake, caller: caller.remote(a).Handshake}
	handshakes := nodes.handshakes()
	const rekeyAfter, grace = 120 * time.Second, 20 * time.Second
	c.within(rekeyAfter+grace, func() error {
		for f, at := range first {
			if now := f.remote(a).Handshake; now.Sub(at) < rekeyAfter-10*time.Second {
				return fmt.Errorf("%w: %s: the last handshake was at %v, the first at %v", errNotYet, f.node.Name, now, at)
			}
		}
		if nodes.handshakes() == handshakes {
			return fmt.Errorf("%w: nodes a and b made no new keys", errNotYet)
		}
		time.Sleep(time.Second)
		return nil
	})
	lost := k.end()
	for _, p := range pingers {
		lost += p.lost()
	}
	if lost > 0 {
		t.Errorf("%d pings lost", lost)
	}
	if n := caller.said(saidGotInitiation); n > 0 {
		t.Errorf("Warren called %d times in a session that wireguard-go began: that one renews it", n)
	}
	g.nothingReadable()
}
