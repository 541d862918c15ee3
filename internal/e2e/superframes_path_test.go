package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
	"github.com/warren-net/warren/tunnel/wireguard"
)

// TestSuperframesLossy loses datagrams on the way to one node. It has the other one stop superframes, by itself, and
// asks for them again once they would arrive; what goes the other way does not change.
func TestSuperframesLossy(t *testing.T) {
	p := newFrames(t, "frameloss")
	p.configure()
	g := p.guardUnderlay()
	p.start()
	p.both(true)
	p.talksInFrames()
	p.do(p.b.NS, "nft add table inet loss",
		"nft add chain inet loss in { type filter hook input priority 0 ; }",
		"nft add rule inet loss in udp dport 51820 numgen random mod 100 < 3 drop")
	all := p.streams(between(p.a1, p.b1, 4), between(p.a1, p.b1, 6), between(p.b1, p.a1, 4))
	const soon = 30 * time.Second
	p.sendsFrames(soon, p.a, p.b, false)
	stopped := time.Now()
	for _, peer := range ask[[]api.Peer](p.cluster, p.b, "peers") {
		if peer.Name == p.a.Name && !peer.Paused {
			t.Error("node b does not say that it has asked its peer to send none")
		}
	}
	if log, err := os.ReadFile(p.b.Daemon().Log); err != nil || !strings.Contains(string(log), "superframes lose pieces") {
		t.Errorf("the log of node b does not say why (%v)", err)
	}
	if p.drops(p.b, "lost-pieces") == 0 {
		t.Error("node b has not counted what it lost")
	}
	p.sendsFrames(soon, p.b, p.a, true)
	if n := p.drops(p.a, "lost-pieces"); n > 0 {
		t.Errorf("node a, to which nothing was lost, counts %d superframes as lost", n)
	}
	sent, _ := p.frames(p.a)
	p.paced(between(p.a1, p.b1, 4))
	// Half a minute later node b asks for them again.
	if now, _ := p.frames(p.a); now > sent && time.Since(stopped) < 25*time.Second {
		t.Errorf("node a sent %d superframes after it was asked not to", now-sent)
	}
	end("with loss", all)
	p.do(p.b.NS, "nft delete table inet loss")
	const again = 50 * time.Second // 30 s and a little
	p.sendsFrames(again, p.a, p.b, true)
	// They come again; how many depends on what else the machine has to do, as sockets that overflow lose pieces too.
	p.framed(p.a1, p.b1, 4, 1, p.paced)
	p.paced(between(p.b1, p.a1, 6))
	p.noErrors()
	g.nothingReadable()
}

// TestSuperframesPathMTU has the way between the nodes become narrower while superframes cross it: their pieces do as
// well.
func TestSuperframesPathMTU(t *testing.T) {
	for _, family := range families() {
		t.Run(fmt.Sprintf("IPv%d underlay", family), func(t *testing.T) { testSuperframesPathMTU(t, family) })
	}
}

func testSuperframesPathMTU(t *testing.T, family int) {
	t.Helper()
	p := newFrames(t, fmt.Sprint("fmtu", family))
	if family == 6 {
		p.configure(underlayV6(p.a, p.b)...)
	} else {
		p.configure()
	}
	outside, subnet, router := p.lab.Outside, "192.0.2.0/24", "192.0.2.254"
	if family == 6 {
		subnet, router = "2001:db8::/64 metric 256", "2001:db8::fe" // the metric of the route that there is
	}
	p.do(outside, "sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv6.conf.all.forwarding=1",
		"sysctl -qw net.ipv4.conf.all.send_redirects=0", "sysctl -qw net.ipv4.conf.eth0.send_redirects=0")
	for _, d := range []struct{ from, to *lab.Node }{{p.a, p.b}, {p.b, p.a}} {
		p.do(d.from.NS, "sysctl -qw net.ipv4.conf.eth0.accept_redirects=0",
			"sysctl -qw net.ipv4.conf.all.accept_redirects=0", "sysctl -qw net.ipv6.conf.eth0.accept_redirects=0",
			fmt.Sprintf("ip route add %s via %s", d.to.Address(family), router))
	}
	g := p.guardUnderlay()
	p.start()
	p.both(true)
	const narrow = 1400
	overhead := map[int]int{4: wireguard.Overhead4, 6: wireguard.Overhead6}[family]
	p.amid("a router's path to 1400", func() {
		p.do(outside, fmt.Sprintf("ip route replace %s dev eth0 mtu lock %d", subnet, narrow),
			fmt.Sprintf("ip -%d route flush cache", family))
		p.peerMTU(narrow - overhead)
	})
	wide := p.capture(outside, "eth0", func(k *pkt) bool {
		return len(k.payload) > 0 && k.payload[0] == typePiece && k.length > narrow
	})
	p.talksInFrames()
	wide.nothing("pieces that the path does not carry")
	p.noErrors()
	g.nothingReadable()
}
