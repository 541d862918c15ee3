package e2e_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/warren-net/warren/internal/key"
	"github.com/warren-net/warren/internal/lab"
	"github.com/warren-net/warren/node/api"
)

// newFrames makes two encrypted nodes with a pod each, ready to be configured: with all offloads, so that pods send
// superpackets, and with an underlay that cuts datagrams before the wire, so that a guard sees the first byte of each.
func newFrames(t *testing.T, prefix string) *pair {
	t.Helper()
	p := &pair{cluster: newEncrypted(t, prefix)}
	p.a, p.b = p.encrypted("a"), p.encrypted("b")
	for _, n := range []*lab.Node{p.a, p.b} {
		n.Settings.Offloads = allAuto()
		p.cutsEarly(n)
	}
	return p
}

// cutsEarly has the kernel cut what a node sends before its device has it.
func (c *cluster) cutsEarly(n *lab.Node) {
	c.t.Helper()
	c.do(n.NS, "ethtool -K eth0 tx-udp-segmentation off")
}

// start starts the nodes and gives each a pod.
func (p *pair) start() {
	p.t.Helper()
	p.up(p.a, p.b)
	p.a1, p.b1 = p.pod(p.a, "1"), p.pod(p.b, "1")
	p.greet()
}

// greet has the pods reach each other, so that there is a session.
func (p *pair) greet() {
	p.t.Helper()
	p.eventually(func() error {
		_, err := p.a1.NS.Ping(p.ctx, p.b1.V4, lab.Ping{Count: 1})
		return err
	})
}

// sendsFrames waits until a node says whether it sends superframes to a peer.
func (c *cluster) sendsFrames(wait time.Duration, from, to *lab.Node, want bool) {
	c.t.Helper()
	c.within(wait, func() error {
		for _, p := range ask[[]api.Peer](c, from, "peers") {
			if p.Name == to.Name && p.Superframes == want {
				return nil
			}
		}
		return fmt.Errorf("%w: node %s does not say superframes %v of its peer %s", errNotYet, from.Name, want, to.Name)
	})
}

// both waits until both nodes say whether they send superframes.
func (p *pair) both(want bool) {
	p.t.Helper()
	const wait = 15 * time.Second
	p.sendsFrames(wait, p.a, p.b, want)
	p.sendsFrames(wait, p.b, p.a, want)
}

// frames counts the superframes that a node sent and got.
func (c *cluster) frames(n *lab.Node) (sent, got uint64) {
	c.t.Helper()
	for _, w := range ask[api.Status](c, n, "status").Workers {
		sent += w.TxSuperframes
		got += w.RxSuperframes
	}
	return sent, got
}

// offload is what a node says of an offload.
func (c *cluster) offload(n *lab.Node, name string) api.Offload {
	c.t.Helper()
	for _, o := range ask[api.Status](c, n, "status").Offloads {
		if o.Name == name {
			return o
		}
	}
	c.t.Fatalf("node %s does not tell of the offload %s", n.Name, name)
	return api.Offload{}
}

// framed wants what f sends from a pod to another to leave as superframes, and to be opened at the other end.
func (c *cluster) framed(from, to *lab.Pod, family int, least uint64, f func(lab.Path)) {
	c.t.Helper()
	sent, _ := c.frames(from.Node)
	_, got := c.frames(to.Node)
	f(between(from, to, family))
	nowSent, _ := c.frames(from.Node)
	_, nowGot := c.frames(to.Node)
	if nowSent-sent < least || nowGot-got < least {
		c.t.Errorf("IPv%d, node %s to %s: %d superframes sent and %d got, want at least %d", family, from.Node.Name,
			to.Node.Name, nowSent-sent, nowGot-got, least)
	}
}

// frameBytes is what the transfers of these tests send: some superpackets of it are small, most are not. They are not
// as fast as they can be, so that a guard can look at each of the datagrams.
const (
	frameBytes  = 4 << 20
	framePace   = 8 << 20 // bytes a second
	leastFrames = frameBytes / (256 << 10)
)

// paced sends so many bytes over TCP and compares the hashes.
func (c *cluster) paced(path lab.Path) {
	c.t.Helper()
	tr, err := lab.StartTransfer(c.ctx, path, lab.TransferOptions{Bytes: frameBytes, BytesPerSecond: framePace})
	c.ok(err)
	if _, err := tr.Wait(); err != nil {
		c.t.Errorf("%s to %s: %v", path.From.Name, path.Addr, err)
	}
}

// talksInFrames sends TCP both ways in both families, which must arrive as superframes.
func (p *pair) talksInFrames() {
	p.t.Helper()
	for _, family := range families() {
		for _, d := range [][2]*lab.Pod{{p.a1, p.b1}, {p.b1, p.a1}} {
			p.framed(d[0], d[1], family, leastFrames, p.paced)
		}
	}
}

// noErrors wants the daemons to have logged none.
func (c *cluster) noErrors() {
	c.t.Helper()
	for _, n := range c.lab.Nodes() {
		if n.Daemon() == nil {
			continue
		}
		log, err := os.ReadFile(n.Daemon().Log)
		c.ok(err)
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "level=ERROR") {
				c.t.Errorf("node %s: %s", n.Name, line)
			}
		}
	}
}

// piecesFrom is how many pieces of superframes the guard saw of a sender.
func (g *guard) piecesFrom(a netip.Addr) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pieces[a]
}

// noPieces wants the guard to have seen no piece of a superframe. It ends it.
func (g *guard) noPieces() {
	g.c.t.Helper()
	g.nothingReadable()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.pieces) > 0 {
		g.c.t.Errorf("pieces of superframes on the underlay, by sender: %v", g.pieces)
	}
}

// TestSuperframes has two nodes send each other superframes, over an underlay of either family: of TCP and of UDP, in
// datagrams that leave one by one and in those that the device cuts.
func TestSuperframes(t *testing.T) {
	for _, family := range families() {
		t.Run(fmt.Sprintf("IPv%d underlay", family), func(t *testing.T) {
			p := newFrames(t, fmt.Sprint("frames", family))
			if family == 6 {
				p.configure(underlayV6(p.a, p.b)...)
			} else {
				p.configure()
			}
			g := p.guardUnderlay()
			p.start()
			p.both(true)
			p.talksInFrames()
			for _, f := range families() {
				for _, d := range [][2]*lab.Pod{{p.a1, p.b1}, {p.b1, p.a1}} {
					if o := p.offload(d[0].Node, "tun-uso"); o.Enabled {
						p.framed(d[0], d[1], f, 1, p.datagrams)
					} else {
						t.Logf("UDP comes in single datagrams, which are no superframes: tun-uso is off: %s", o.Reason)
						p.datagrams(between(d[0], d[1], f))
					}
				}
			}
			for _, n := range []*lab.Node{p.a, p.b} {
				if g.piecesFrom(n.Address(family)) == 0 {
					t.Errorf("no piece of a superframe from node %s on the underlay", n.Name)
				}
				if o := p.offload(n, "superframes"); !o.Enabled {
					t.Errorf("node %s says of superframes: %+v", n.Name, o)
				}
				p.do(n.NS, "ethtool -K eth0 tx-udp-segmentation on")
			}
			p.talksInFrames()
			for _, n := range []*lab.Node{p.a, p.b} {
				for _, reason := range []string{"lost-pieces", "bad-seal", "replayed", "not-wireguard"} {
					if d := p.drops(n, reason); d > 0 {
						t.Errorf("node %s: %d drops as %s", n.Name, d, reason)
					}
				}
			}
			p.noErrors()
			g.nothingReadable()
		})
	}
}

// TestSuperframesOff has one node do without: the other one sends it none either.
func TestSuperframesOff(t *testing.T) {
	p := newFrames(t, "framesoff")
	p.b.Settings.Offloads["superframes"] = "off"
	p.configure()
	g := p.guardUnderlay()
	p.start()
	for _, f := range families() {
		for _, path := range []lab.Path{between(p.a1, p.b1, f), between(p.b1, p.a1, f)} {
			p.paced(path)
			p.datagrams(path)
		}
	}
	p.both(false)
	for _, n := range []*lab.Node{p.a, p.b} {
		if sent, got := p.frames(n); sent+got > 0 {
			t.Errorf("node %s sent %d superframes and got %d", n.Name, sent, got)
		}
	}
	if o := p.offload(p.a, "superframes"); !o.Enabled {
		t.Errorf("node a, which takes superframes, says of them: %+v", o)
	}
	for _, name := range []string{"superframes", "superframes-aes"} {
		if o := p.offload(p.b, name); o.Enabled || o.Reason != "configuration" {
			t.Errorf("node b, whose configuration has none, says of %s: %+v", name, o)
		}
	}
	p.noErrors()
	g.noPieces()
}

// TestSuperframesAnew kills a node and changes keys in the middle of transfers: superframes are agreed on anew in each
// session.
func TestSuperframesAnew(t *testing.T) {
	p := newFrames(t, "framesnew")
	p.configure()
	g := p.guardUnderlay()
	p.start()
	p.both(true)
	for _, n := range []*lab.Node{p.a, p.b} {
		p.amid("kill -9 of node "+n.Name, func() {
			p.ok(n.Kill())
			time.Sleep(quiet)
			p.up(n)
		})
		p.amid("new key of node "+n.Name, func() { p.rotate(n) })
	}
	p.talksInFrames()
	p.noErrors()
	g.nothingReadable()
}

// A stream is a transfer that runs until it is ended.
type stream struct {
	c        *cluster
	transfer *lab.Transfer
}

// streams begin to send along each path, at a pace at which pods still send superpackets.
func (c *cluster) streams(paths ...lab.Path) []stream {
	c.t.Helper()
	all := make([]stream, len(paths))
	for k, path := range paths {
		tr, err := lab.StartTransfer(c.ctx, path, lab.TransferOptions{BytesPerSecond: 2 << 20})
		c.ok(err)
		all[k] = stream{c, tr}
	}
	return all
}

// end ends streams, whose bytes must all have arrived.
func end(what string, streams []stream) {
	for _, s := range streams {
		s.transfer.Finish()
	}
	for _, s := range streams {
		s.c.t.Helper()
		if _, err := s.transfer.Wait(); err != nil {
			s.c.t.Errorf("%s: %v", what, err)
		}
	}
}

// amid does f while superframes carry TCP both ways, and wants them to do so again afterwards.
func (p *pair) amid(what string, f func()) {
	p.t.Helper()
	p.t.Log(what)
	all := p.streams(between(p.a1, p.b1, 4), between(p.b1, p.a1, 6))
	nodes := []*lab.Node{p.a, p.b}
	for _, n := range nodes {
		p.moreFrames(n)
	}
	f()
	p.both(true)
	for _, n := range nodes {
		p.moreFrames(n)
	}
	end(what, all)
}

// moreFrames waits until a node has sent a superframe more, and got one.
func (c *cluster) moreFrames(n *lab.Node) {
	c.t.Helper()
	sent, got := c.frames(n)
	c.eventually(func() error {
		if nowSent, nowGot := c.frames(n); nowSent <= sent || nowGot <= got {
			return fmt.Errorf("%w: node %s: %d superframes sent and %d got, before %d and %d", errNotYet, n.Name,
				nowSent, nowGot, sent, got)
		}
		return nil
	})
}

// rotate gives a node a new key, and its peer the public half, and waits until they have a session of it.
func (p *pair) rotate(n *lab.Node) {
	p.t.Helper()
	peer := p.a
	if n == p.a {
		peer = p.b
	}
	out, err := n.Warren(p.ctx, "key", "rotate")
	p.ok(err)
	p.reload(n)
	before := ask[[]api.Peer](p.cluster, peer, "peers")[0].LastHandshake
	for _, k := range []*lab.Node{n, peer} {
		p.edit(k, setNode(n.Name, "publicKey", strings.TrimSpace(out)))
		p.reload(k)
	}
	p.eventually(func() error {
		now := ask[[]api.Peer](p.cluster, peer, "peers")[0]
		if !now.Session || now.LastHandshake == nil || before != nil && !now.LastHandshake.After(*before) {
			return fmt.Errorf("%w: node %s has no session with the new key of node %s", errNotYet, peer.Name, n.Name)
		}
		return nil
	})
	_, err = n.Warren(p.ctx, "key", "rotate", "--finish")
	p.ok(err)
	p.reload(n)
}

// TestSuperframesForeign has a node send superframes to a Warren node, and wireguard-go nothing but WireGuard.
func TestSuperframesForeign(t *testing.T) {
	for _, who := range []string{"Warren calls", "wireguard-go calls"} {
		t.Run(who, func(t *testing.T) {
			p := newFrames(t, map[string]string{"Warren calls": "framesfor", "wireguard-go calls": "framescal"}[who])
			var f *foreign
			if who == "Warren calls" {
				f = p.foreignNode("f")
				p.configure()
				f.knows(p.a, netip.Addr{}, key.Preshared{})
			} else {
				f = p.foreignLaptop("f")
				p.configure(f.asLaptop()...)
				f.knows(p.a, p.a.V4, key.Preshared{})
			}
			p.cutsEarly(f.node)
			theirs := p.guardPairs(func(x, y netip.Addr) bool { return x == f.node.V4 || y == f.node.V4 })
			ours := p.guardPairs(func(x, y netip.Addr) bool { return x != f.node.V4 && y != f.node.V4 })
			f.up()
			p.start()
			if f.peer.Remotes[0].Endpoint.IsValid() {
				_, _ = f.node.NS.Ping(p.ctx, p.a1.V4, lab.Ping{Count: 1}) // so that it calls
			}
			f.reached(p.a1)
			p.both(true)
			f.talks(p.a1, frameBytes/4)
			p.talksInFrames()
			p.sendsFrames(time.Second, p.a, f.node, false)
			for _, text := range []string{"unknown type", "invalid IP version"} {
				if n := f.said(text); n > 0 {
					t.Errorf("wireguard-go says %d times: %s", n, text)
				}
			}
			if ours.piecesFrom(p.a.V4) == 0 {
				t.Error("no piece of a superframe between the Warren nodes: the guard looks at the wrong place")
			}
			p.noErrors()
			theirs.noPieces()
			ours.nothingReadable()
		})
	}
}
