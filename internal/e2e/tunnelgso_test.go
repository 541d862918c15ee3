package e2e_test

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// A gsoTrouble keeps superpackets from leaving a node uncut.
type gsoTrouble struct {
	name        string
	begin, mend []string // command lines in the node's namespace
	why         string   // in what the status says
	only4       bool     // IPv6 does not mind
}

func gsoTroubles() []gsoTrouble {
	const chain = "inet others forward"
	return []gsoTrouble{
		{
			name: "a firewall that forwards what pods send only", why: "a firewall drops forwarded packets",
			begin: []string{
				"nft add table inet others",
				"nft add chain " + chain + " { type filter hook forward priority 0 ; policy drop ; }",
				"nft add rule " + chain + " iifname warren0 accept",
				"nft add rule " + chain + " oifname warren0 accept",
			},
			mend: []string{"nft delete table inet others"},
		},
		{
			name: "strict reverse path filter", why: "net.ipv4.conf.all.rp_filter is 1", only4: true,
			begin: []string{"sysctl -qw net.ipv4.conf.all.rp_filter=1"},
			mend:  []string{"sysctl -qw net.ipv4.conf.all.rp_filter=2"}, // a loose one does no harm
		},
		{
			name: "a device that does not cut tunnelled superpackets", why: "tx-udp_tnl-segmentation off",
			begin: []string{"ethtool -K eth0 tx-udp_tnl-segmentation off"},
			mend:  []string{"ethtool -K eth0 tx-udp_tnl-segmentation on"},
		},
		{
			name: "a device that cuts no TCP", why: "tx-tcp-segmentation, tx-tcp6-segmentation",
			begin: []string{"ethtool -K eth0 tso off"}, mend: []string{"ethtool -K eth0 tso on"},
		},
		{
			name: "no route from there", why: "from warren0-gso",
			begin: []string{
				"ip rule add iif warren0-gso pref 10 unreachable", "ip -6 rule add iif warren0-gso pref 10 unreachable",
			},
			mend: []string{"ip rule del pref 10", "ip -6 rule del pref 10"},
		},
	}
}

// TestTunnelGSO has superpackets leave uncut, and has everything happen that keeps them from it: they are cut then, by
// Warren, as long as that lasts, and nothing is lost.
func TestTunnelGSO(t *testing.T) {
	for _, family := range families() {
		t.Run(fmt.Sprintf("IPv%d underlay", family), func(t *testing.T) { testTunnelGSO(t, family) })
	}
}

func testTunnelGSO(t *testing.T, family int) {
	t.Helper()
	c := newCluster(t, lab.Options{})
	a, b := c.node("a"), c.node("b")
	var edits []edit
	for _, n := range []*lab.Node{a, b} {
		n.Settings.Offloads = allAuto()
		edits = append(edits, setNode(n.Name, "addresses", []netip.Addr{n.Address(family)}))
	}
	c.configure(edits...)
	before := c.state(a.NS)
	c.up(a, b)
	path := between(c.pod(a, "1"), c.pod(b, "1"), 4)
	path6 := between(c.pod(a, "2"), c.pod(b, "2"), 6)
	send := func(whole bool) {
		t.Helper()
		c.leavesUncut(a, whole)
		was := c.whole(a)
		c.transfer(path, gsoBytes)
		c.transfer(path6, gsoBytes)
		// Some are small, as the sender sees fit.
		if n := c.whole(a) - was; whole && n < 2*gsoBytes/(64<<10) || !whole && n > 0 {
			t.Errorf("%d superpackets left uncut, want that: %v", n, whole)
		}
	}
	send(true)
	for _, trouble := range gsoTroubles() {
		if trouble.only4 && family == 6 {
			continue
		}
		t.Run(trouble.name, func(t *testing.T) {
			sub := *c
			sub.t, c = t, &sub
			c.do(a.NS, trouble.begin...)
			send(false)
			if _, why := c.tunnelGSO(a); !strings.Contains(why, trouble.why) {
				t.Errorf("the reason is %q, want %q in it", why, trouble.why)
			}
			c.do(a.NS, trouble.mend...)
			send(true)
		})
	}
	for range 3 {
		c.ok(a.Kill())
		if out := c.run(a.NS, "ip", "link"); strings.Contains(out, gsoDevice) {
			t.Errorf("left by a killed daemon: %s", out)
		}
		c.up(a)
		c.leavesUncut(a, true)
	}
	send(true)
	c.do(a.NS, "ip link delete "+gsoDevice)
	send(false)
	if _, why := c.tunnelGSO(a); !strings.Contains(why, "restart warren to have it back") {
		t.Errorf("the reason after the device was deleted is %q", why)
	}
	c.ok(a.Kill())
	c.ok(b.Down(c.ctx))
	if _, err := a.Warren(c.ctx, "down"); err != nil {
		t.Error(err)
	}
	for _, line := range c.state(a.NS)["device"] {
		if strings.Contains(line, gsoDevice) {
			t.Errorf("left: %s; before: %s", line, before["device"])
		}
	}
}

// TestTunnelGSOByPeer wants a firewall that drops what goes to one peer to concern that one alone, all the time.
func TestTunnelGSOByPeer(t *testing.T) {
	for _, family := range families() {
		t.Run(fmt.Sprintf("IPv%d underlay", family), func(t *testing.T) { testTunnelGSOByPeer(t, family) })
	}
}

func testTunnelGSOByPeer(t *testing.T, family int) {
	t.Helper()
	c := newCluster(t, lab.Options{})
	a, b, d := c.node("a"), c.node("b"), c.node("d") // that of a alone runs
	var edits []edit
	for _, n := range []*lab.Node{a, b, d} {
		n.Settings.Offloads = allAuto()
		edits = append(edits, setNode(n.Name, "addresses", []netip.Addr{n.Address(family)}))
	}
	c.configure(edits...)
	c.up(a)
	uncut := func() map[string]bool {
		peers := map[string]bool{}
		for _, p := range ask[[]api.Peer](c, a, "peers") {
			peers[p.Name] = p.TunnelGSO
		}
		return peers
	}
	want := func(peers map[string]bool) {
		t.Helper()
		c.eventually(func() error {
			if got := uncut(); !maps.Equal(got, peers) {
				return fmt.Errorf("%w: superpackets leave uncut: %v, want %v", errNotYet, got, peers)
			}
			return nil
		})
	}
	want(map[string]bool{"b": true, "d": true})
	ip := map[int]string{4: "ip", 6: "ip6"}[family]
	c.do(a.NS,
		"nft add table inet others",
		"nft add chain inet others forward { type filter hook forward priority 0 ; policy accept ; }",
		fmt.Sprintf("nft add rule inet others forward iifname %s %s daddr %s drop", gsoDevice, ip, d.Address(family)),
	)
	dropped := map[string]bool{"b": true, "d": false}
	want(dropped)
	const rounds = 7 * time.Second // two without an event
	for end := time.Now().Add(rounds); time.Now().Before(end); time.Sleep(rounds / 100) {
		if got := uncut(); !maps.Equal(got, dropped) {
			t.Fatalf("superpackets leave uncut: %v, want %v", got, dropped)
		}
	}
	c.do(a.NS, "nft delete table inet others")
	want(map[string]bool{"b": true, "d": true})
}

const (
	gsoBytes  = 16 << 20
	gsoDevice = "warren0-gso"
)

// tunnelGSO says whether a node leaves the cutting of superpackets to its device, and why not.
func (c *cluster) tunnelGSO(n *lab.Node) (enabled bool, why string) {
	c.t.Helper()
	for _, o := range ask[api.Status](c, n, "status").Offloads {
		if o.Name == "tunnel-gso" {
			return o.Enabled, o.Reason
		}
	}
	c.t.Fatalf("node %s does not tell of tunnel-gso", n.Name)
	return false, ""
}

// leavesUncut waits until a node has decided to leave the cutting of superpackets to its device, or not to.
func (c *cluster) leavesUncut(n *lab.Node, want bool) {
	c.t.Helper()
	c.eventually(func() error {
		if on, why := c.tunnelGSO(n); on != want || why == "not tried yet" {
			return fmt.Errorf("%w: node %s: tunnel-gso is in use: %v, want %v (%s)", errNotYet, n.Name, on, want, why)
		}
		return nil
	})
}

// whole counts the superpackets that a node sent uncut.
func (c *cluster) whole(n *lab.Node) (sum uint64) {
	c.t.Helper()
	for _, w := range ask[api.Status](c, n, "status").Workers {
		sum += w.TxWhole
		if w.TxWholeRefused > 0 {
			c.t.Errorf("node %s: worker %d had %d superpackets refused", n.Name, w.ID, w.TxWholeRefused)
		}
	}
	return sum
}
